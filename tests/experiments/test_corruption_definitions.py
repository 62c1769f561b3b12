"""Corruptions by their definitions: statistics by hand, scipy, Pillow and colorsys as oracles."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from experiments.image_cases import smooth_images
from scipy import ndimage

from causalprune.errors import InvalidArgumentError, MissingDependencyError
from causalprune.experiments import corrupt
from causalprune.experiments.corruptions_base import draws_for
from causalprune.experiments.corruptions_blur import glass_blur
from causalprune.experiments.corruptions_digital import elastic_transform
from causalprune.experiments.corruptions_fields import (
    magnified,
    plasma,
    smearing,
    smoothed,
    smoothing_matrix,
)
from causalprune.experiments.corruptions_weather import _distance, _equalised, frost_texture

# ---- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "sd"), [*enumerate((0.04, 0.06, 0.08, 0.09, 0.1), 1)])
def test_gaussian_noise_has_its_standard_deviation(severity: int, sd: float) -> None:
    change = corrupt(torch.full((64, 3, 32, 32), 0.5), "gaussian_noise", severity) - 0.5
    assert float(change.std()) == pytest.approx(sd, rel=0.01)
    assert float(change.mean()) == pytest.approx(0, abs=5 * sd / 443)
    across = torch.corrcoef(change.transpose(0, 1).flatten(1))
    assert float((across - torch.eye(3)).abs().max()) < 0.03


@pytest.mark.parametrize("level", [0.2, 0.6])
def test_shot_and_speckle_noise_grow_with_the_value(level: float) -> None:
    images = torch.full((64, 3, 32, 32), level)
    shot = corrupt(images, "shot_noise", 3)
    assert float(shot.mean()) == pytest.approx(level, rel=0.01)
    assert float(shot.var()) == pytest.approx(level / 100, rel=0.03)
    # Counts of photons, over their mean at a value of 1.
    assert float((shot * 100 - (shot * 100).round()).abs().max()) < 1e-3
    speckle = corrupt(images, "speckle_noise", 2)
    assert float(speckle.std()) == pytest.approx(0.1 * level, rel=0.01)


def test_impulse_noise_is_as_often_black_as_white() -> None:
    images = torch.full((64, 3, 32, 32), 0.4)
    noisy = corrupt(images, "impulse_noise", 5)
    assert float((noisy == 0).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((noisy == 1).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert set(noisy.unique().tolist()) == {0.0, float(images[0, 0, 0, 0]), 1.0}


# ---- blur ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
        *("elastic_transform", "pixelate", "contrast"),
    ],
)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 66, 75)])
def test_what_is_even_stays_so(name: str, shape: tuple[int, int, int]) -> None:
    even = torch.rand(2, shape[0], 1, 1).expand(-1, *shape).contiguous()
    for severity in range(1, 6):
        torch.testing.assert_close(corrupt(even, name, severity), even, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "gaussian_blur"])
def test_blur_keeps_the_mean_and_takes_detail(name: str) -> None:
    images = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    for severity in (1, 3, 5):
        blurred = corrupt(images, name, severity)
        assert float(blurred.mean()) == pytest.approx(float(images.mean()), abs=0.01)
        assert float(blurred.var()) < 0.95 * float(images.var())


@pytest.mark.parametrize(("severity", "sd"), [(1, 0.4), (5, 1.0)])
def test_gaussian_blur_is_scipys(severity: int, sd: float) -> None:
    images = torch.rand(2, 3, 21, 34)
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sd, sd), mode="nearest")
    blurred = corrupt(images, "gaussian_blur", severity)
    np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "sd"), [(9, 0.7), (16, 4.0), (8, 30.0)])
def test_smoothing_in_a_mirror_is_scipys(size: int, sd: float) -> None:
    signal = np.random.default_rng(size).random(size)
    expected = ndimage.gaussian_filter1d(signal, sd, mode="reflect", truncate=3.0)
    found = smoothing_matrix(size, sd, 3.0, "mirror").numpy() @ signal
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zoom", [1.0, 1.06, 1.26, 2.25])
def test_magnified_is_the_middle_of_scipys_zoom(zoom: float) -> None:
    images = torch.rand(1, 1, 32, 32)
    side = int(np.ceil(32 / zoom))
    start = (32 - side) // 2
    middle = images[0, 0, start : start + side, start : start + side].double().numpy()
    large = ndimage.zoom(middle, zoom, order=1)
    trim = (len(large) - 32) // 2
    found = magnified(images, zoom)[0, 0].numpy()
    np.testing.assert_allclose(found, large[trim : trim + 32, trim : trim + 32], atol=1e-5)


@pytest.mark.parametrize(
    ("angle", "row", "column"), [(0, 0, -1), (90, -1, 0), (45, -(0.5**0.5), -(0.5**0.5))]
)
def test_smearing_is_a_half_gaussian_along_its_angle(
    angle: float, row: float, column: float
) -> None:
    point = torch.zeros(1, 1, 25, 25)
    point[0, 0, 12, 12] = 1.0
    found = smearing(point, draws_for(0, "", 1, 0, 1), 4, 2.0, angle, angle)[0, 0]
    weights = np.exp(-0.5 * (np.arange(9) / 2.0) ** 2)
    expected = torch.zeros(25, 25)
    for tap, weight in enumerate(weights / weights.sum()):
        expected[12 + round(tap * row), 12 + round(tap * column)] += weight
    torch.testing.assert_close(found, expected)


def test_the_direction_of_motion_is_the_images_own() -> None:
    images = smooth_images(1, 3, 32, 32).expand(4, -1, -1, -1).contiguous()
    blurred = corrupt(images, "motion_blur", 5)
    assert min(float((blurred[0] - other).abs().max()) for other in blurred[1:]) > 1e-3


def test_glass_takes_the_values_of_near_pixels_and_spares_the_border() -> None:
    numbers = torch.arange(20.0 * 23).view(1, 1, 20, 23)
    # No smoothing, so that every value tells where it comes from.
    moved = glass_blur(numbers, draws_for(5, "", 1, 0, 1), 0.01, 1, 1).long()[0, 0]
    rows, columns = moved // 23, moved % 23
    down, across = torch.arange(20)[:, None] - rows, torch.arange(23) - columns
    assert set(down.unique().tolist()) == set(across.unique().tolist()) == {0, 1}
    assert not down[:2].any() and not across[:, :2].any()
    assert float(down[2:, 2:].float().mean()) == pytest.approx(0.5, abs=0.1)


def test_defocus_averages_over_a_disc() -> None:
    point = torch.zeros(1, 1, 65, 65)
    point[0, 0, 32, 32] = 1.0
    spread = corrupt(point, "defocus_blur", 1)[0, 0].numpy()
    rows, columns = np.mgrid[-32:33, -32:33]
    disc = (rows**2 + columns**2 <= 9).astype(float)
    np.testing.assert_allclose(spread, disc / disc.sum(), atol=1e-6)


# ---- weather -------------------------------------------------------------------------------------


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation() -> None:
    images = torch.rand(1, 3, 8, 8)
    images[0, :, 0, 0] = 0.0
    bright = corrupt(images, "brightness", 4)
    for before, after in zip(images[0].flatten(1).T, bright[0].flatten(1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1.0))
        assert after.tolist() == pytest.approx(expected, abs=1e-5)
    grey = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(corrupt(grey, "brightness", 2), (grey + 0.1).clamp(max=1.0))


def test_snow_whitens_and_fog_mixes_with_a_fractal() -> None:
    images = smooth_images(20, 3, 32, 32) * 0.8
    assert float(corrupt(images, "snow", 5).mean()) > float(images.mean()) + 0.1
    clear = torch.zeros(2, 1, 32, 32)
    clear[:, :, 0, 0] = 1.0
    foggy = corrupt(clear, "fog", 3, seed=4)
    surface = plasma(draws_for(4, "fog", 3, 0, 2), 32, 32, 2.5)
    torch.testing.assert_close(foggy, (clear + 0.75 * surface) / 1.75)
    assert not corrupt(clear * 0, "fog", 5).any()


def test_fractals_span_their_range_and_are_rougher_with_less_decay() -> None:
    steps = []
    for decay in (3.0, 1.5):
        surface = plasma(draws_for(0, "", 1, 0, 8), 64, 64, decay)
        assert surface.shape == (8, 1, 64, 64)
        assert surface.amin((1, 2, 3)).tolist() == [0.0] * 8
        assert surface.amax((1, 2, 3)).tolist() == [1.0] * 8
        steps.append(float(surface.diff(dim=-1).abs().mean()))
    assert steps[1] > 2 * steps[0]
    assert plasma(draws_for(0, "", 1, 0, 1), 40, 9, 2.0).shape == (1, 1, 40, 9)


@pytest.mark.parametrize("side", [32, 96, 224])
def test_frost_is_half_bright_and_uneven_at_any_size(side: int) -> None:
    texture = frost_texture(draws_for(0, "frost", 1, 0, 12), side, side)
    assert 0.45 < float(texture.mean()) < 0.62 and 0.18 < float(texture.std()) < 0.3
    assert float(texture.min()) >= 0 and float(texture.max()) <= 1
    frosted = corrupt(torch.zeros(12, 1, side, side), "frost", 1)
    colour = corrupt(torch.zeros(12, 3, side, side), "frost", 1)
    assert float(colour[:, 2].mean()) > float(frosted.mean()) > float(colour[:, 0].mean())


def test_mud_covers_and_water_is_added() -> None:
    white = torch.ones(8, 3, 32, 32)
    muddy = corrupt(white, "spatter", 5)
    assert float((muddy < 1).float().mean()) > 0.01
    assert muddy.amin((0, 2, 3)).tolist() == pytest.approx([63 / 255, 42 / 255, 20 / 255], abs=0.01)
    assert torch.equal(corrupt(white, "spatter", 2), white)
    wet = corrupt(white * 0, "spatter", 3)
    assert wet.amax((2, 3))[:, 0].tolist() == pytest.approx([0.5 * 175 / 255] * 8)
    assert wet.amax((2, 3))[:, 1].tolist() == pytest.approx([0.5 * 238 / 255] * 8)


def test_distances_are_euclidean_up_to_twenty_pixels() -> None:
    marked = torch.rand(3, 1, 40, 57, generator=torch.Generator().manual_seed(1)) < 0.003
    assert marked.flatten(1).any(1).all()
    expected = np.stack([ndimage.distance_transform_edt(~each[0].numpy()) for each in marked])
    found = _distance(marked)[:, 0].clamp(max=20).numpy()
    assert expected.max() > 20
    np.testing.assert_allclose(found, expected.clip(max=20), atol=1e-5)


def test_levels_are_spread_by_their_frequency() -> None:
    levels = torch.tensor([2.0, 2.0, 5.0, 7.0]).view(1, 1, 2, 2)
    assert _equalised(levels).flatten().tolist() == [0.0, 0.0, 128.0, 255.0]
    assert _equalised(torch.full((1, 1, 2, 2), 20.0)).unique().tolist() == [20.0]


# ---- digital -------------------------------------------------------------------------------------


def test_contrast_scales_about_the_mean_of_each_channel() -> None:
    images = smooth_images(3, 3, 32, 32)
    means = images.mean((-2, -1), keepdim=True)
    flat = corrupt(images, "contrast", 5)
    torch.testing.assert_close(flat, means + 0.15 * (images - means))


def test_saturate_scales_the_saturation_of_colour_images() -> None:
    images = torch.rand(1, 3, 8, 8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.5, 0.0
    for severity, (scale, shift) in ((1, (0.3, 0)), (5, (2.5, 0.2))):
        changed = corrupt(images, "saturate", severity)
        for before, after in zip(images[0].flatten(1).T, changed[0].flatten(1).T, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
            expected = colorsys.hsv_to_rgb(hue, min(saturation * scale + shift, 1.0), value)
            assert after.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"saturate .* expected 3 channels, got 1"):
        corrupt(images[:, :1], "saturate", 1)


@pytest.mark.parametrize(("severity", "blocks"), [*enumerate((30, 28, 27, 24, 20), 1)])
def test_pixelate_leaves_so_many_blocks(severity: int, blocks: int) -> None:
    images = torch.rand(1, 3, 32, 32)
    coarse = corrupt(images, "pixelate", severity)
    assert len(coarse[0, 0].unique(dim=0)) == blocks == len(coarse[0, 0].unique(dim=1)[0])
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    eight_bit = (images[0] * 255).round().to(torch.uint8)
    small = image.fromarray(eight_bit.permute(1, 2, 0).numpy()).resize((blocks, blocks), image.BOX)
    expected = np.asarray(small.resize((32, 32), image.BOX), dtype=np.float32)
    exact = corrupt(eight_bit[None].float() / 255, "pixelate", severity)[0].permute(1, 2, 0) * 255
    # Pillow rounds after each axis.
    assert float(np.abs(exact.numpy() - expected).max()) <= 1.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "qualities"), [(32, (80, 40)), (72, (25, 7))])
def test_jpeg_is_pillows_round_trip(channels: int, side: int, qualities: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    images = smooth_images(2, channels, side, side + 5)
    for severity, quality in zip((1, 5), qualities, strict=True):
        found = corrupt(images, "jpeg_compression", severity)
        for before, after in zip(images, found, strict=True):
            pixels = (before * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            file = io.BytesIO()
            picture = image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            picture.save(file, "JPEG", quality=quality)
            with image.open(file) as opened:
                expected = np.asarray(opened).reshape(pixels.shape)
            assert np.array_equal((after.permute(1, 2, 0) * 255).round().numpy(), expected)


def test_jpeg_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(
        MissingDependencyError, match=r"Pillow: pip install 'causalprune\[vision\]'"
    ):
        corrupt(torch.rand(1, 1, 8, 8), "jpeg_compression", 1)


def test_elastic_without_motion_is_the_image_and_moves_by_its_field() -> None:
    images = torch.rand(2, 3, 24, 31)
    draws = draws_for(0, "", 1, 0, 2)
    still = elastic_transform(images, draws, 0.0, 0.0, 0.0)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)
    # A field that is smoothed over many images is even: all pixels move alike.
    ramp = torch.linspace(0.2, 0.8, 48).expand(1, 1, 48, 48).contiguous()
    moved = elastic_transform(ramp, draws_for(1, "", 1, 0, 1), 3.0, 5.0, 0.0)
    field = draws_for(1, "", 1, 0, 1)[0]
    field.uniform(-1.0, 1.0, (3, 2))
    across = field.uniform(-1.0, 1.0, (2, 48, 48))[0].mean() * 3.0 * 48
    assert abs(across) > 0.05
    expected = ramp + across * 0.6 / 47
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(moved[inside], expected[inside].float(), rtol=0, atol=2e-3)


def test_elastic_moves_points_by_an_affine_map() -> None:
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    images = torch.stack([xs, ys])[:, None] / 40
    twice = [draws_for(6, "", 1, 3, 1)[0] for _ in range(2)]
    moved = elastic_transform(images, twice, 0.0, 0.0, 0.05)[:, 0] * 40
    moves = 0.05 * 40 * draws_for(6, "", 1, 3, 1)[0].uniform(-1.0, 1.0, (3, 2))
    for (x, y), (right, down) in zip(((33, 33), (33, 7), (7, 7)), moves, strict=True):
        # What was at the point is found where it moved to.
        for image, place in zip(moved, (x, y), strict=True):
            found = ndimage.map_coordinates(image.numpy(), [[y + down], [x + right]], order=1)
            assert found[0] == pytest.approx(place, abs=0.02)


def test_smoothing_leaves_the_batch_alone() -> None:
    images = torch.rand(50, 3, 32, 32)
    alone = torch.cat([smoothed(image[None], 0.7) for image in images])
    assert torch.equal(smoothed(images, 0.7), alone)
