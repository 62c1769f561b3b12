"""Folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from causalprune.errors import DataError
from causalprune.experiments import load_data

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def _image(path: Path, level: int, size: int = 28) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), level, dtype=np.uint8)
    pixels[: size // 2] = 0
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    for number in range(20):
        _image(folder / "bright" / f"{number:02}.png", 250 - number)
        _image(folder / "dark" / f"{number:02}.png", 40 + number)
    (folder / "bright" / "notes.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    return folder


def test_classes_are_numbered_by_name(images: Path) -> None:
    splits = load_data(str(images), calibration=8)
    assert splits.classes == ("bright", "dark")
    assert splits.name == "shapes"
    assert [len(part[1]) for part in (splits.train, splits.calibration, splits.test)] == [
        22,
        8,
        10,
    ]
    pixels = splits.test[0] * splits.std + splits.mean
    brightness = pixels[:, 0, 20, 10] * 255
    assert bool((brightness[splits.test[1] == 0] > 200).all())
    assert bool((brightness[splits.test[1] == 1] < 100).all())


def test_a_test_folder_of_its_own_is_used(tmp_path: Path) -> None:
    for number in range(12):
        _image(tmp_path / "train" / "a" / f"{number}.png", 200, size=40)
        _image(tmp_path / "train" / "b" / f"{number}.png", 100, size=40)
    _image(tmp_path / "val" / "b" / "only.png", 100, size=16)
    splits = load_data(str(tmp_path), input_shape=(3, 28, 28), calibration=4)
    assert splits.test[1].tolist() == [1]
    assert splits.train[0].shape == (20, 3, 28, 28)


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    for name, level in (("high", 60_000), ("low", 10_000)):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = np.full((28, 28), level + number, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    splits = load_data(str(tmp_path), calibration=2)
    pixels = (splits.test[0] * splits.std + splits.mean).mean((1, 2, 3))
    expected = torch.tensor([60_000 / 65_535, 10_000 / 65_535])[splits.test[1]]
    assert torch.allclose(pixels, expected, atol=0.01)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_broken_image_is_named(images: Path, content: bytes) -> None:
    (images / "dark" / "07.png").write_bytes(content)
    with pytest.raises(DataError, match=r"07\.png: not a readable image"):
        load_data(str(images), calibration=8)


def test_a_truncated_image_is_named(images: Path) -> None:
    path = images / "dark" / "07.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"07\.png"):
        load_data(str(images), calibration=8)


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 class folders found, expected at least 2"):
        load_data(str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no image in this class folder"):
        load_data(str(tmp_path))


def test_a_test_class_without_training_images(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/c"):
        _image(tmp_path / name / "0.png", 100)
    with pytest.raises(DataError, match="classes without training images: c"):
        load_data(str(tmp_path))
