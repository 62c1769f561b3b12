"""Splits that are fixed, disjoint and balanced; files that are checked before they are used."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    MissingDependencyError,
    UnknownNameError,
)
from causalprune.experiments import ImageSet, load_data, register_data
from causalprune.experiments.idx import read_idx_images, read_idx_labels
from causalprune.experiments.sampling import stratified_split

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


def test_digits_are_split_in_proportion_and_without_overlap() -> None:
    splits = load_data("digits")
    assert [len(labels) for _, labels in (splits.train, splits.calibration, splits.test)] == [
        1091,
        256,
        450,
    ]
    for _, labels in (splits.train, splits.calibration, splits.test):
        counts = torch.bincount(labels, minlength=10).float()
        assert counts.min() / counts.max() > 0.9
    seen = [{image.numpy().tobytes() for image in part[0]} for part in (splits.train, splits.test)]
    # A few digits of the data set are drawn pixel for pixel alike; most must be new.
    assert len(seen[0] & seen[1]) < 5
    assert splits.train[0].shape[1:] == (1, 28, 28)
    assert splits.train[0].dtype == torch.float32
    everything = torch.cat([splits.train[0], splits.calibration[0]])
    assert abs(float(everything.mean())) < 1e-3 and abs(float(everything.std()) - 1) < 1e-3


def test_splits_do_not_depend_on_any_seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = load_data("digits")
    torch.manual_seed(2)
    second = load_data("digits")
    assert first.split == second.split
    assert torch.equal(first.calibration[0], second.calibration[0])


def test_split_id_tells_test_images_apart() -> None:
    assert load_data("digits").split != load_data("digits", test_limit=449).split


def test_input_shape_is_the_network_s() -> None:
    splits = load_data("digits", input_shape=(3, 16, 20), train_limit=300, test_limit=50)
    assert splits.train[0].shape == (44, 3, 16, 20)
    assert torch.equal(splits.test[0][:, 0], splits.test[0][:, 2])


@pytest.mark.parametrize("chosen", [1, 7, 33, 99])
def test_stratified_split_has_the_number_asked_for(chosen: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 7, 100))
    rest, picked = stratified_split(labels, chosen)
    assert len(picked) == chosen
    assert sorted([*rest.tolist(), *picked.tolist()]) == list(range(100))
    share = torch.bincount(labels[picked], minlength=7) - torch.bincount(labels) * chosen / 100
    assert float(share.abs().max()) < 1


def test_unknown_data_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown data set 'cifar'; known: .*digits, .*mnist"
    ):
        load_data("cifar")
    with pytest.raises(DataError, match="no such folder"):
        load_data("./no-such-folder")


@pytest.mark.parametrize("name", ["train_limit", "test_limit"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected at least 1, got 0"):
        load_data("digits", **{name: 0})  # type: ignore[arg-type]


def test_too_few_images_for_the_calibration_part() -> None:
    with pytest.raises(DataError, match="256"):
        load_data("digits", train_limit=256)


def test_constant_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from causalprune.experiments import datasets

    monkeypatch.setattr(datasets, "_SOURCES", dict(datasets._SOURCES))

    @register_data("blank")
    def blank(root: Path | None, shape: tuple[int, int, int]) -> ImageSet:
        images, labels = torch.zeros(40, *shape), torch.arange(40) % 2
        return ImageSet(images, labels, images, labels, ("a", "b"))

    with pytest.raises(DataError, match="same value"):
        load_data("blank", calibration=10)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match="scikit-learn"):
        load_data("digits")


def test_mnist_is_read_from_the_files(small_mnist: Path) -> None:
    splits = load_data("mnist", root=small_mnist, calibration=20)
    assert [len(part[1]) for part in (splits.train, splits.calibration, splits.test)] == [
        60,
        20,
        20,
    ]
    pixels = splits.test[0] * splits.std + splits.mean
    original = read_idx_images(small_mnist / "MNIST/raw/t10k-images-idx3-ubyte.gz")
    assert torch.allclose(pixels[:, 0], torch.from_numpy(original / 255.0).float(), atol=1e-5)
    assert torch.equal(splits.test[1], torch.arange(20) % 10)


def test_mnist_is_found_by_the_environment(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSALPRUNE_DATA", str(small_mnist))
    assert len(load_data("mnist", calibration=20).test[1]) == 20


def test_mnist_without_a_folder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAUSALPRUNE_DATA", raising=False)
    with pytest.raises(DataError, match=r"--data-root.*CAUSALPRUNE_DATA"):
        load_data("mnist")
    with pytest.raises(DataError, match="holds none of train-images-idx3-ubyte"):
        load_data("mnist", root=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_data("mnist", root=tmp_path / "nowhere")


def test_mnist_with_a_file_missing_names_it(small_mnist: Path) -> None:
    (small_mnist / "MNIST/raw" / LABELS).unlink()
    with pytest.raises(DataError, match=f"missing: {LABELS}"):
        load_data("mnist", root=small_mnist)


def test_fashion_mnist_is_read_from_its_own_folder(small_fashion_mnist: Path) -> None:
    splits = load_data("fashion-mnist", root=small_fashion_mnist, calibration=20)
    assert len(splits.train[1]) == 60 and splits.split.startswith("fashion-mnist-test-20-")
    assert splits.classes[9] == "ankle boot" and len(splits.classes) == 10
    with pytest.raises(DataError, match="neither itself nor in MNIST/raw"):
        load_data("mnist", root=small_fashion_mnist)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10"])
def test_missing_files_come_with_the_command_that_fetches_them(tmp_path: Path, name: str) -> None:
    known = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "CIFAR10": "cifar10"}[name]
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=known) as caught:
            load_data(known, root=root)
        call = f"from torchvision.datasets import {name}; {name}({str(root)!r}, download=True)"
        assert f'to fetch {known!r}: python -c "{call}"' in str(caught.value)


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in CIFAR-10's layout, 20 images a batch, whose digests torchvision is told."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch() -> dict[str, object]:
        pixels = generator.integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "labels": [index % 10 for index in range(20)]}

    train = [write(f"data_batch_{number}", batch()) for number in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch())])
    _, digest = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", dict(CIFAR10.meta, md5=digest))
    return tmp_path


def test_cifar10_is_read_through_torchvision(
    small_cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSALPRUNE_DATA", str(small_cifar10))
    splits = load_data("cifar10", input_shape=(3, 32, 32), calibration=30)
    assert [len(part[1]) for part in (splits.train, splits.calibration, splits.test)] == [
        70,
        30,
        20,
    ]
    assert splits.classes[3] == "cat" and torch.equal(splits.test[1], torch.arange(20) % 10)
    content = pickle.loads((small_cifar10 / "cifar-10-batches-py/test_batch").read_bytes())
    mean, std = (torch.tensor(values)[:, None, None] for values in (splits.mean, splits.std))
    pixels = (splits.test[0] * std + mean) * 255
    expected = torch.from_numpy(content["data"].reshape(20, 3, 32, 32)).float()
    assert torch.allclose(pixels, expected, atol=1e-3)


def test_broken_files_of_cifar10_are_refused(small_cifar10: Path) -> None:
    file = small_cifar10 / "cifar-10-batches-py/data_batch_3"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="not the files of CIFAR-10"):
        load_data("cifar10", root=small_cifar10)
    file.unlink()
    with pytest.raises(DataError, match=r"missing in '.*cifar-10-batches-py': data_batch_3; "):
        load_data("cifar10", root=small_cifar10)


def test_cifar10_without_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingDependencyError, match="data set 'cifar10' needs torchvision"):
        load_data("cifar10", root=tmp_path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _not_gzip(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the checksum
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _short_header(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x00\x00\x08"))


@pytest.mark.parametrize("damage", [_truncated, _not_gzip, _corrupt, _empty, _short_header])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_broken_file_is_named(
    small_mnist: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = small_mnist / "MNIST/raw" / name
    damage(path)
    with pytest.raises(DataError, match=name):
        load_data("mnist", root=small_mnist, calibration=20)


@pytest.mark.parametrize("change", ["magic", "short", "long", "huge"])
def test_a_header_that_lies_is_refused(
    tmp_path: Path, write_idx: Callable[..., Path], change: str
) -> None:
    path = tmp_path / "images.gz"
    if change == "magic":
        write_idx(path, np.zeros((2, 3, 3)), magic=2049)
        words = "magic number 2049, expected 2051"
    else:
        claimed = {"short": 3, "long": 1, "huge": 1 << 30}[change]
        header = struct.pack(">4I", 2051, claimed, 3, 3)
        path.write_bytes(gzip.compress(header + bytes(18)))
        words = {"short": "18 bytes of content, expected 27", "long": "more bytes"}.get(
            change, "impossible shape"
        )
    with pytest.raises(DataError, match=words):
        read_idx_images(path)


def test_labels_and_images_must_belong_together(
    small_mnist: Path, write_idx: Callable[..., Path]
) -> None:
    raw = small_mnist / "MNIST/raw"
    write_idx(raw / LABELS, np.zeros(79))
    with pytest.raises(DataError, match="79 labels for 80 images"):
        load_data("mnist", root=small_mnist)
    write_idx(raw / LABELS, np.full(80, 12))
    with pytest.raises(DataError, match="label 12 found, expected 0 to 9"):
        load_data("mnist", root=small_mnist)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.gz: no such file"):
        read_idx_labels(tmp_path / "labels.gz")


def test_the_real_mnist_files(real_data: Path) -> None:
    splits = load_data("mnist", root=real_data)
    assert [len(part[1]) for part in (splits.train, splits.calibration, splits.test)] == [
        59_744,
        256,
        10_000,
    ]
    assert splits.mean == pytest.approx(0.1307, abs=1e-4)
    assert splits.std == pytest.approx(0.3081, abs=1e-4)
    counts = torch.bincount(splits.test[1]).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
