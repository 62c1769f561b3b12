"""CexCNN's effects against weights zeroed by hand, and the published size of its network."""

from __future__ import annotations

import copy
from dataclasses import replace

import networks
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import DataError, InvalidArgumentError
from causalprune.experiments import build_network
from causalprune.scoring import score


def _model() -> nn.Module:
    """No batch norm, so that a filter with zero weights and bias is a filter removed."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )
    return networks.settle(model, seed=int(torch.randint(1000, ()))).double()


def _images(n: int = 37) -> Tensor:
    return torch.randn(n, 1, 13, 17, dtype=torch.float64)


def _without(model: nn.Module, layer: str, unit: int) -> nn.Module:
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        smaller.get_submodule(layer).weight[unit] = 0
        smaller.get_submodule(layer).bias[unit] = 0
    return smaller


def _predictions(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def test_effects_are_falls_of_accuracy() -> None:
    model, x = _model(), _images()
    noisy = torch.rand(37) < 0.2
    y = torch.where(noisy, torch.randint(3, (37,)), _predictions(model, x))
    scores = score(model, (x, y), "cexcnn", batch_size=8, confidence=0.9)
    right = (_predictions(model, x) == y).double()
    for row in scores.frame.itertuples():
        left = (_predictions(_without(model, row.group, row.unit), x) == y).double()
        e = right.mean() - left.mean()
        assert row.importance == pytest.approx(e.item(), abs=1e-12)
        assert row.effect == pytest.approx(-e.item(), abs=1e-12)
        changes = (left - right).numpy()
        assert row.se == pytest.approx(stats.sem(changes), abs=1e-12)
        half = stats.t.ppf(0.95, 36) * stats.sem(changes)
        assert row.low == pytest.approx(changes.mean() - half, abs=1e-12)
        expected = "critical" if changes.mean() + half < 0 else "neutral"
        expected = "detrimental" if changes.mean() - half > 0 else expected
        assert row.category == expected
    assert scores.outcome == "correctness"
    best = scores.frame.sort_values("importance", ascending=False, kind="stable")
    assert scores.top(16)["unit"].tolist() == best["unit"].tolist()


@pytest.mark.parametrize("target", [0, 2])
def test_explanations_follow_one_class_without_labels(target: int) -> None:
    model, x = _model(), _images(11)

    def probability(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return network(x).softmax(1)[:, target]

    scores = score(model, x, "cexcnn", target_class=target)
    labelled = score(model, (x, torch.zeros(11, dtype=torch.int64)), "cexcnn", target_class=target)
    np.testing.assert_array_equal(scores.frame["effect"], labelled.frame["effect"])
    for row in scores.frame.itertuples():
        fall = probability(model) - probability(_without(model, row.group, row.unit))
        assert row.importance == pytest.approx(fall.mean().item(), abs=1e-12)
        assert row.se == pytest.approx(fall.std().item() / 11**0.5, abs=1e-12)
    assert scores.outcome == f"probability of class {target}"


def test_bad_input() -> None:
    model, x, y = _model(), _images(6), torch.arange(6) % 3
    with pytest.raises(DataError, match="targets"):
        score(model, x, "cexcnn")
    with pytest.raises(DataError, match="class indices"):
        score(model, (x, y.double()), "cexcnn")
    with pytest.raises(DataError, match=r"\[0, 3\)"):
        score(model, (x, y + 1), "cexcnn")
    with pytest.raises(InvalidArgumentError, match="outcome"):
        score(model, (x, y), "cexcnn", "probability")
    assert len(score(model, (x, y), "cexcnn", "correctness").frame) == 16
    for target in (3, -1, 1.0, True):
        with pytest.raises(InvalidArgumentError, match="target_class"):
            score(model, x, "cexcnn", target_class=target)


def test_published_size_of_the_pruned_network() -> None:
    """7 of 20 and 22 of 50 filters left, ranked by e: 281,988 of 639,760 parameters."""
    model = build_network("debbi", seed=int(torch.randint(1000, ())))
    x = torch.rand(24, 1, 28, 28)
    scores = score(model, (x, _predictions(model.eval(), x)), "cexcnn")
    frame = scores.frame.sort_values("importance", kind="stable")
    lowest = {
        group: tuple(sorted(frame[frame["group"] == group]["unit"].head(n)))
        for group, n in (("conv1", 13), ("conv2", 28))
    }
    small = cp.apply(model, replace(cp.plan(model, scores, 0.5), remove=lowest))
    assert sum(p.numel() for p in model.parameters()) == 639_760
    assert sum(p.numel() for p in small.parameters()) == 281_988
    assert (small.conv1.out_channels, small.conv2.out_channels) == (7, 22)
    with torch.no_grad():  # the small network is the masked one
        masked = model
        for group, units in lowest.items():
            for unit in units:
                masked = _without(masked, group, unit)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
