"""Every corruption: range, severities, streams of random numbers, standardised and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from experiments.image_cases import smooth_images
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.experiments import CORRUPTIONS, corrupt, corrupt_standardised, load_data
from causalprune.experiments.corruptions_base import draws_for
from causalprune.experiments.standardisation import standardised

COMMON = {
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
EXTRA = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
WITHOUT_CHANCE = {
    *("defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast"),
    *("pixelate", "jpeg_compression", "saturate"),
}
# Where the published parameters do not grow with every severity: the severities that they grow
# over. Glass takes turns between smoothing and passes; motion blur takes another radius for the
# same Gaussian; frost keeps less of the image; mud comes after water; the elastic transform's
# affine part gets smaller; fog of one density gets rougher; less colour comes before more.
RISING = {
    ("glass_blur", 32): ((2, 4), (3, 5)),
    ("glass_blur", 96): ((2, 3), (1, 5)),
    ("motion_blur", 32): ((1, 2, 3), (4, 5)),
    ("frost", 32): ((1, 2), (1, 5)),
    ("frost", 96): ((1, 3, 5),),
    ("fog", 96): ((1, 2), (4, 5)),
    ("spatter", 32): ((1, 2, 3), (4, 5)),
    ("elastic_transform", 32): ((5, 4, 3, 2, 1),),
    ("elastic_transform", 96): ((1, 2), (3, 4, 5)),
    ("saturate", 32): ((1, 2), (3, 4, 5)),
    ("saturate", 96): ((1, 2), (3, 4, 5)),
}
NAMES = sorted(CORRUPTIONS)


def needs_pillow(name: str) -> None:
    if name == "jpeg_compression":
        pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def squares(name: str, severity: int, images: Tensor) -> float:
    return float((corrupt(images, name, severity, seed=3) - images).square().mean())


# ---- every corruption ----------------------------------------------------------------------------


def test_the_fifteen_and_the_four_are_there() -> None:
    assert {name for name, each in CORRUPTIONS.items() if not each.extra} == COMMON
    assert {name for name, each in CORRUPTIONS.items() if each.extra} == EXTRA
    assert all(name == each.name for name, each in CORRUPTIONS.items())
    assert all(len(each.small) == len(each.large) == 5 for each in CORRUPTIONS.values())
    themes = {each.theme for each in CORRUPTIONS.values()}
    assert themes == {"noise", "blur", "weather", "digital"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in NAMES
        for shape in ((3, 32, 32), (1, 28, 28), (3, 9, 13), (1, 8, 8), (3, 65, 78))
        if shape[0] in CORRUPTIONS[name].channels
    ],
)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_shape_dtype_and_range_stay(name: str, shape: tuple[int, int, int], severity: int) -> None:
    needs_pillow(name)
    images = smooth_images(3, *shape)
    before = images.clone()
    corrupted = corrupt(images, name, severity, seed=1)
    assert corrupted.shape == images.shape and corrupted.dtype == torch.float32
    assert corrupted.is_contiguous() and bool(corrupted.isfinite().all())
    assert float(corrupted.min()) >= 0 and float(corrupted.max()) <= 1
    assert torch.equal(images, before)
    # A few drops may miss a tiny image.
    assert name == "spatter" or not torch.equal(corrupted, images)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 71)])
def test_an_image_comes_out_the_same_in_any_batch(name: str, shape: tuple[int, int, int]) -> None:
    needs_pillow(name)
    images = smooth_images(7, *shape)
    state = torch.get_rng_state()
    together = corrupt(images, name, 4, seed=11)
    parts = [corrupt(images[at : at + 3], name, 4, seed=11, first=at) for at in (0, 3, 6)]
    assert torch.equal(together, torch.cat(parts))
    assert torch.equal(torch.get_rng_state(), state)
    same = torch.equal(corrupt(images, name, 4, seed=12), together)
    assert same == (name in WITHOUT_CHANCE)


def test_batches_beyond_the_working_size_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth_images(9, 3, 16, 16)
    whole = corrupt(images, "snow", 3, seed=2)
    monkeypatch.setattr("causalprune.experiments.corruptions._VALUES", 2 * 3 * 16 * 16)
    assert torch.equal(corrupt(images, "snow", 3, seed=2), whole)


def test_streams_differ_by_image_name_severity_and_seed() -> None:
    keys = [(0, "snow", 1, 0), (0, "snow", 1, 1), (0, "snow", 2, 0), (0, "fog", 1, 0)]
    keys += [(1, "snow", 1, 0), (2**40, "snow", 1, 0)]
    assert len({draws_for(*key, 1)[0].integers(2**62) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 96])
def test_images_change_more_with_severity(name: str, side: int) -> None:
    needs_pillow(name)
    images = smooth_images(40, 3, side, side, seed=5)
    for severities in RISING.get((name, side), ((1, 2, 3, 4, 5),)):
        changes = [squares(name, severity, images) for severity in severities]
        assert changes == sorted(changes) and len({0.0, *changes}) == len(changes) + 1


@pytest.mark.parametrize("name", NAMES)
def test_severity_zero_and_no_images(name: str) -> None:
    images = smooth_images(2, 3, 12, 12)
    assert corrupt(images, name, 0) is images
    assert corrupt(images[:0], name, 3).shape == (0, 3, 12, 12)


def test_the_shorter_side_chooses_the_parameters() -> None:
    noise = CORRUPTIONS["gaussian_noise"]
    assert noise.parameters(1, 63, 200) == (0.04,)
    assert noise.parameters(5, 64, 64) == (0.38,)
    change = corrupt(torch.full((4, 3, 64, 64), 0.5), "gaussian_noise", 1) - 0.5
    assert float(change.std()) == pytest.approx(0.08, rel=0.02)


# ---- standardised images -------------------------------------------------------------------------


def test_standardised_images_are_corrupted_as_pixels() -> None:
    pixels = smooth_images(4, 3, 32, 32)
    standard = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = standardised(pixels, standard)
    found = corrupt_standardised(images, "fog", 4, 9, mean=standard[0], std=standard[1], first=2)
    expected = standardised(corrupt(pixels, "fog", 4, 9, first=2), standard)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert corrupt_standardised(images, "fog", 0, mean=standard[0], std=standard[1]) is images


def test_the_images_of_a_data_set_are_corrupted_as_they_come() -> None:
    data = load_data("digits", test_limit=20)
    images = data.test[0]
    mean, std = data.mean, data.std
    assert isinstance(mean, float) and isinstance(std, float)
    noisy = corrupt_standardised(images, "brightness", 3, mean=mean, std=std)
    expected = ((images * std + mean).clamp(0.0, 1.0) + 0.15).clamp(max=1.0)
    torch.testing.assert_close(noisy * std + mean, expected, rtol=0, atol=1e-5)


def test_another_standardisation_is_refused() -> None:
    images = standardised(smooth_images(2, 3, 16, 16), ((0.5,), (0.25,)))
    with pytest.raises(InvalidArgumentError, match=r"images: expected \(pixels - mean\) / std"):
        corrupt_standardised(images, "fog", 1, mean=0.5, std=2.0)
    with pytest.raises(InvalidArgumentError, match=r"std: expected positive numbers, got 0"):
        corrupt_standardised(images, "fog", 1, mean=0.5, std=0.0)


# ---- bad input -----------------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"corruption 'gausian_noise'; known: .*zoom_blur"):
        corrupt(torch.rand(1, 3, 8, 8), "gausian_noise", 1)
    with pytest.raises(UnknownNameError, match=r"; did you mean 'gaussian_noise'\?$"):
        corrupt(torch.rand(1, 3, 8, 8), "gausian_noise", 1)
    with pytest.raises(UnknownNameError, match=r"zoom_blur$"):
        corrupt(torch.rand(1, 3, 8, 8), "qqq", 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 8, 8).double(), "images: expected a float32 tensor, got torch.float64"),
        (np.zeros((1, 3, 8, 8), np.float32), "images: expected a float32 tensor, got ndarray"),
        (torch.rand(3, 8, 8), r"images: expected \[N, C, H, W\] .* got \[3, 8, 8\]"),
        (torch.rand(1, 2, 8, 8), r"1 or 3 channels .* got \[1, 2, 8, 8\]"),
        (torch.rand(1, 3, 8, 7), r"at least 8 x 8 pixels, got \[1, 3, 8, 7\]"),
        (torch.rand(1, 3, 8, 8) + 1, r"images: expected values in \[0, 1\], got 1(\.\d+)? to "),
        (torch.full((1, 3, 8, 8), float("nan")), r"expected values in \[0, 1\], got nan"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        corrupt(images, "fog", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severity": 6}, "severity: expected a whole number from 0 to 5, got 6"),
        ({"severity": -1}, "severity: expected .* got -1"),
        ({"severity": 2.0}, r"severity: expected .* got 2\.0"),
        ({"severity": True}, "severity: expected .* got True"),
        ({"seed": -3}, "seed: expected a whole number of at least 0, got -3"),
        ({"seed": None}, "seed: expected .* got None"),
        ({"first": -1}, "first: expected a whole number of at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        corrupt(torch.rand(1, 3, 8, 8), "fog", **options)
