"""Uniform noise: its range, that an image's own does not depend on batches, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from causalprune.errors import InvalidArgumentError
from causalprune.measures import add_uniform_noise


@pytest.mark.parametrize("seed", [0, 5])
def test_by_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # More than one of the blocks in which noise is drawn.
    images = torch.randn(1030, 1, 3, 5, generator=generator, dtype=torch.float64)
    before = images.clone()
    noisy = add_uniform_noise(images, 0.7, seed)
    for place in (0, 17, 1024, 1029):
        drawn = np.random.default_rng([seed, place]).random((1, 3, 5), np.float32)
        expected = images[place] + 0.7 * torch.from_numpy(2 * drawn - 1).double()
        torch.testing.assert_close(noisy[place], expected)
    assert torch.equal(images, before)
    added = (noisy - images) / 0.7
    # 15450 draws: the mean's standard deviation is 0.0047, that of the variance 0.0024.
    assert abs(float(added.mean())) < 0.03 and abs(float(added.var()) - 1 / 3) < 0.015
    assert added.abs().max() <= 1
    assert not torch.equal(add_uniform_noise(images, 0.7, seed + 1), noisy)


def test_levels_scale_the_same_draws_and_batches_do_not_matter() -> None:
    images = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    small, large = add_uniform_noise(images, 0.1, 3), add_uniform_noise(images, 0.4, 3)
    torch.testing.assert_close((large - images), 4 * (small - images), rtol=1e-4, atol=1e-6)
    parts = [
        add_uniform_noise(part, 0.1, 3, first=k) for k, part in ((0, images[:2]), (2, images[2:]))
    ]
    assert torch.equal(torch.cat(parts), small)
    assert torch.equal(add_uniform_noise(images, 0.0), images)
    assert add_uniform_noise(images[:0], 0.3).shape == (0, 2, 4, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.ones(2, 3, dtype=torch.int64)}, "images: .*int64"),
        ({"images": torch.ones(3)}, "images: .*N"),
        ({"level": -0.1}, "level: .*-0.1"),
        ({"level": float("inf")}, "level: .*inf"),
        ({"seed": -1}, "seed: .*-1"),
        ({"first": 0.5}, "first: .*0.5"),
    ],
)
def test_refusals(change: dict[str, Any], words: str) -> None:
    arguments = {"images": torch.ones(2, 3), "level": 0.1, "seed": 0, "first": 0} | change
    with pytest.raises(InvalidArgumentError, match=words):
        add_uniform_noise(
            arguments["images"], arguments["level"], arguments["seed"], first=arguments["first"]
        )
