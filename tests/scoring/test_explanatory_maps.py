"""Attribution maps and stability of explanatory graphs, and their published order of size."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scoring.explanatory_cases import predicted
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.scoring import (
    attribution_map,
    explain,
    stability,
)

# ---- maps and stability --------------------------------------------------------------------------


def test_attribution_maps_by_hand() -> None:
    model = networks.lenet()
    data, target, images = predicted(model)
    graph = explain(model, data, target)
    images = images[:3]
    with torch.no_grad():
        first = F.max_pool2d(F.relu(model.conv1(images)), 2)
        second = F.max_pool2d(F.relu(model.conv2(first)), 2)
    conv, dense = graph.layer("conv2"), graph.layer("fc1")
    child = conv.effects[0]
    maps = []
    for cause in conv.causes:
        kernel = model.conv2.weight[child : child + 1, cause.unit : cause.unit + 1]
        maps.append(_by_hand(F.conv2d(first[:, cause.unit : cause.unit + 1], kernel)))
    got = attribution_map(model, images, graph, "conv2", child)
    torch.testing.assert_close(got, torch.stack(maps).mean(0))
    maps = []
    for cause in dense.causes:
        for child in dense.effects:
            weight = model.fc1.weight[child].reshape(6, 2, 2)[cause.unit]
            maps.append(_by_hand((second[:, cause.unit] * weight)[:, None]))
    torch.testing.assert_close(
        attribution_map(model, images, graph, "fc1"), torch.stack(maps).mean(0)
    )
    with pytest.raises(InvalidArgumentError, match="positions"):
        attribution_map(model, images, graph, "fc2")
    with pytest.raises(DataError, match="unit"):
        attribution_map(model, images, graph, "conv2", 99)
    with pytest.raises(InvalidArgumentError, match="images"):
        attribution_map(model, images[0], graph, "conv2")


def _by_hand(contribution: Tensor) -> Tensor:
    weights = contribution.detach().flatten(1).softmax(1).reshape(contribution.shape)
    return F.interpolate(weights, (16, 16), mode="bilinear", align_corners=False)[:, 0]


def test_stability_counts_walks() -> None:
    model = networks.lenet()
    data, target, _ = predicted(model)
    betas = [0.0, 0.2]
    frame = stability(model, data, target, betas=betas, repeats=3, seed=5)
    assert set(frame["runs"]) == {6} and frame["times"].between(1, 6).all()
    np.testing.assert_allclose(frame["frequency"], frame["times"] / 6)
    once = stability(model, data, target, betas=[0.2], repeats=1)
    kept = explain(model, data, target, beta=0.2).layers
    assert list(zip(once["layer"], once["unit"], strict=True)) == [
        (x.layer, c.unit) for x in kept for c in x.causes
    ]
    for options in ({"betas": []}, {"repeats": 0}):
        with pytest.raises(InvalidArgumentError, match="betas, repeats"):
            stability(model, data, target, **options)


# ---- the published order of size -----------------------------------------------------------------


def test_lenet_on_mnist(data_root: Path) -> None:
    """Class 3, n = 100: the reference keeps fc3 13/84, fc2 8/120, fc1 8/16, conv2 3/6."""
    from causalprune.experiments.datasets import load_data
    from causalprune.experiments.networks import build_network
    from causalprune.experiments.training import evaluate, train

    splits = load_data("mnist", root=data_root, train_limit=4000, test_limit=1000)
    model = build_network("lenet5", seed=0)
    train(model, splits.train, epochs=2)
    assert evaluate(model, splits.test) > 0.9
    graph = explain(model, splits.train, 3, test="unpaired")
    assert graph.n_images == 100
    sizes = {x.layer: (len(x.causes), x.total) for x in graph.layers}
    assert {layer: total for layer, (_, total) in sizes.items()} == {
        "fc3": 84,
        "fc2": 120,
        "fc1": 16,
        "conv2": 6,
    }
    # The dense layers are explained by a small part of their units, the convolutions by many.
    assert 4 <= sizes["fc3"][0] <= 26
    assert 1 <= sizes["fc2"][0] <= 24
    assert 2 <= sizes["fc1"][0] <= 16
    assert 1 <= sizes["conv2"][0] <= 6
