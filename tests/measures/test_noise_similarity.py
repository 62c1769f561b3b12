"""Noise similarity beside a plain loop over images, draws and levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import LeNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from causalprune.errors import DataError, InvalidArgumentError, UnsupportedModelError
from causalprune.measures.similarity_under_noise import NOISE_LEVELS, noise_similarity


def two_networks(seed: int) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LeNet().double(), LeNet().double()


def by_a_plain_loop(
    model: nn.Module, reference: nn.Module, images: Tensor, levels: tuple, n_draws: int, seed: int
) -> list[tuple[float, float, float, float]]:
    """The definition, on the documented noise: one stream an image, from the seed and its place."""
    found = []
    for level in levels:
        matching, distance = np.zeros(n_draws), np.zeros(n_draws)
        for place, image in enumerate(images):
            stream = np.random.default_rng([seed, place])
            for draw in range(n_draws):
                unit = 2 * torch.from_numpy(stream.random(tuple(image.shape), np.float32)) - 1
                p, q = (
                    net((image + level * unit)[None])[0].softmax(0) for net in (model, reference)
                )
                matching[draw] += int(p.argmax() == q.argmax()) / len(images)
                distance[draw] += math.dist(p.tolist(), q.tolist()) / len(images)
        sd = [each.std(ddof=1) for each in (matching, distance)]
        found.append((matching.mean(), sd[0], distance.mean(), sd[1]))
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_by_definition(seed: int) -> None:
    model, reference = two_networks(seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(9, 1, 16, 16, generator=generator, dtype=torch.float64)
    levels = (0.0, 0.4, 3.0)
    found = noise_similarity(model, reference, images, levels=levels, n_draws=3, seed=seed)
    expected = by_a_plain_loop(model, reference, images, levels, 3, seed)
    columns = ["matching", "matching_sd", "distance", "distance_sd"]
    assert found.frame[columns].to_numpy() == pytest.approx(np.array(expected), abs=1e-9)
    assert found.frame["level"].tolist() == [0.0, 0.4, 3.0]
    assert found.frame["distance_sd"][0] == 0 < found.frame["distance_sd"][2]
    assert (found.n_images, found.n_draws) == (9, 3)


def test_batches_do_not_matter_and_seeds_do() -> None:
    model, reference = two_networks(1)
    images, labels = torch.randn(7, 1, 16, 16).double(), torch.zeros(7, dtype=torch.int64)
    options = {"levels": (0.5,), "n_draws": 2, "n_images": 5}
    whole = noise_similarity(model, reference, images, **options).frame.to_numpy()
    for data in (
        DataLoader(TensorDataset(images, labels), batch_size=2),
        iter([images[:4], images[4:]]),
        (images[:5], labels[:5]),
    ):
        found = noise_similarity(model, reference, data, batch_size=3, **options)
        assert found.frame.to_numpy() == pytest.approx(whole, abs=1e-12)
        assert found.n_images == 5
    other = noise_similarity(model, reference, images, seed=1, **options)
    assert other.frame["distance"][0] != whole[0, 3]


def test_the_noise_is_uniform_within_its_level() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x.flatten(1)[:, :2]

    images = torch.zeros(4, 3, 20, 20)
    noise_similarity(Watching(), nn.Flatten(), images[:, :1, :1, :2], levels=(0.0,), n_draws=1)
    seen.clear()
    noise_similarity(Watching(), Watching(), images, levels=(0.3,), n_draws=2)
    values = torch.stack(seen)
    assert torch.equal(values[0], values[1])  # both networks see the same
    assert not torch.equal(values[0], values[2])
    assert len(values.flatten().unique()) > 4700  # channels and images have their own
    assert values.abs().max() <= 0.3
    assert values.mean().abs() < 0.01
    assert values.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.03)


def test_modes_come_back_and_dropout_is_off() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    network[2].eval()
    found = noise_similarity(network, network, torch.randn(3, 1, 2, 2), n_draws=2)
    assert found.frame["matching"].tolist() == [1.0] * len(NOISE_LEVELS)
    assert found.frame["distance"].tolist() == [0.0] * len(NOISE_LEVELS)
    assert [part.training for part in network] == [True, True, False]
    assert found.frame["level"].tolist() == pytest.approx([0.05 * k for k in range(15)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (0.1, -0.1)}, r"levels: expected finite numbers >= 0, got -0.1"),
        ({"levels": ()}, "levels: expected finite numbers >= 0, got none"),
        ({"n_draws": 0}, "n_draws: expected an integer >= 1, got 0"),
        ({"n_images": 1.5}, "n_images: expected an integer >= 1, got 1.5"),
        ({"batch_size": True}, "batch_size: expected an integer >= 1, got True"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    network = nn.Flatten()
    with pytest.raises(InvalidArgumentError, match=message):
        noise_similarity(network, network, torch.randn(2, 1, 2, 2), **options)


def test_bad_networks_and_data_are_refused() -> None:
    images, network = torch.randn(2, 1, 2, 2), nn.Flatten()
    with pytest.raises(InvalidArgumentError, match=r"reference: expected an nn\.Module, got str"):
        noise_similarity(network, "network", images)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"reference: expected logits \[N, K\]"):
        noise_similarity(network, nn.Identity(), images)
    with pytest.raises(
        InvalidArgumentError, match=r"reference: expected as many classes .* 4, got 2"
    ):
        noise_similarity(network, nn.Sequential(network, nn.Linear(4, 2)), images)
    with pytest.raises(UnsupportedModelError, match="model: expected finite logits"):
        noise_similarity(nn.Sequential(network, Infinite()), network, images)
    with pytest.raises(DataError, match="expected finite images"):
        noise_similarity(network, network, images / 0)


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0
