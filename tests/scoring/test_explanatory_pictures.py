"""Example images, signed maps and checks beside explanatory graphs."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from scoring.explanatory_cases import predicted
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.scoring import Scores, contribution_map, explain, explained, score


def planted() -> nn.Module:
    """Logit 0 is the mean of the bright pixels, 1 of the dark ones; channel 2 is not read."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 0.5]).reshape(3, 1, 1, 1))
        model[0].bias.zero_()
        weight = torch.tensor([[2.0, -0.5, 0.0], [0.0, 3.0, 0.0]])
        model[2].weight.copy_(weight.reshape(2, 3, 1, 1))
        model[2].bias.zero_()
    return model


def bright(n: int, height: int, width: int) -> Tensor:
    return torch.rand(n, 1, height, width) + 0.5 * torch.randn(n, 1, height, width)


def test_contribution_map_of_a_closed_form() -> None:
    model, images = planted(), bright(12, 9, 7)
    graph = explain(model, (images, torch.zeros(12, dtype=torch.int64)), 0)
    assert graph.kept == {"0": (0,)}  # channel 1 speaks against the class
    found = contribution_map(model, images, graph, "2")
    torch.testing.assert_close(found, 2.0 * images[:, 0].relu() / 63)


@pytest.mark.parametrize("layer", ["conv2", "fc1"])
def test_contribution_map_sums_to_the_first_order_effect_of_the_kept_paths(layer: str) -> None:
    model = networks.lenet()
    data, target, images = predicted(model)
    graph = explain(model, data, target)
    seen: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda _, read, out: seen.extend((read[0], out)))
    gradient = torch.autograd.grad(model(images)[:, target].sum(), seen[1:])[0]
    handle.remove()
    step = graph.layer(layer)
    units, effects = [c.unit for c in step.causes], list(step.effects)
    read = torch.zeros_like(seen[0])
    columns = units if layer == "conv2" else [4 * k + p for k in units for p in range(4)]
    read[:, columns] = seen[0][:, columns]
    with torch.no_grad():
        change = (module(read) - module(torch.zeros_like(read)))[:, effects]
    expected = (change * gradient[:, effects]).flatten(1).sum(1)
    found = contribution_map(model, images, graph, layer)
    assert found.shape == (len(images), 16, 16)
    torch.testing.assert_close(found.sum((1, 2)), expected.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="positions"):
        contribution_map(model, images, graph, "fc2")
    with pytest.raises(DataError, match="conv9"):
        contribution_map(model, images, graph, "conv9")


def test_explained_scores_hold_pictures_and_checks(tmp_path: Path) -> None:
    model, images = planted(), bright(15, 10, 8)
    labels = torch.zeros(15, dtype=torch.int64)
    plain = score(model, images, method="l1")
    scores = explained(plain, model, (images, labels), [0, 1], mean=0.25, std=0.5, names=("cat",))
    again = Scores.load(scores.save(tmp_path / "scores.npz"))
    assert plain.tables == {} and again.graph(0).kept == {"0": (0,)}
    examples, pixels = again.tables["graph examples"], again.tables["graph pixels"]
    logits = model(images)[:, 0].detach()
    (chosen,) = examples.itertuples()
    middle = int((logits - logits.median()).abs().argmin())
    assert chosen.logit == pytest.approx(float(logits[middle]), rel=1e-6)
    shown = (images[middle, 0] * 0.5 + 0.25).clamp(0, 1)
    for colour in ("red", "green", "blue"):
        assert pixels[colour].dtype == np.uint8
        stored = pixels[colour].to_numpy().reshape(10, 8)
        np.testing.assert_allclose(stored, 255 * shown, atol=0.51)
    expected = 2 * images[middle, 0].relu() / 80
    np.testing.assert_allclose(pixels["map"].to_numpy().reshape(10, 8), expected, rtol=2e-3)
    checks = again.tables["graph checks"].set_index("class")
    assert list(checks["name"]) == ["cat", "1"]
    found = checks.loc[0]
    # Only channel 0 of three is left: the logit without what speaks against it; none is left of it.
    assert (found["kept"], found["units"], found["map_layer"]) == (1, 3, "2")
    whole = 2 * images.relu().mean((1, 2, 3))
    assert found["logit_kept"] == pytest.approx(float(whole.mean()), rel=1e-5)
    against = -0.5 * (-images).relu().mean((1, 2, 3))
    assert found["logit_without"] == pytest.approx(float(against.mean()), rel=1e-5)
    assert found["recognised_kept"] == 1 and found["recognised_without"] == 0
    assert 0 <= found["recognised_random"] < 1
    assert found["fall_mapped"] > 2 * abs(found["fall_elsewhere"])
    assert "class 1" in checks.loc[1, "reason"] and np.isnan(checks.loc[1, "logit_kept"])


def test_large_colour_pictures_are_stored_small() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
        model[2].weight.abs_()
    images = torch.rand(4, 3, 130, 65)
    k = int(model(images).argmax(1).mode().values)
    data = images, torch.full((4,), k)
    scores = explained(score(model, images, method="l1"), model, data, examples=2)
    examples, pixels = scores.tables["graph examples"], scores.tables["graph pixels"]
    assert [(e.height, e.width) for e in examples.itertuples()] == [(64, 32), (64, 32)]
    assert len(pixels) == 2 * 64 * 32 and pixels["map"].dtype == np.float16
    none = explained(score(model, images, method="l1"), model, data, examples=0)
    assert "graph pixels" not in none.tables and "graph checks" in none.tables


def test_networks_without_images_say_why_there_is_no_map() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    inputs = torch.randn(40, 5)
    data = inputs, model(inputs).argmax(1)
    scores = score(model, data, method="path", graphs=[int(data[1].mode().values)])
    (check,) = scores.tables["graph checks"].itertuples()
    assert "no images" in check.reason and check.recognised_kept > 0
    assert "graph pixels" not in scores.tables
    with pytest.raises(InvalidArgumentError, match="examples"):
        score(model, data, method="path", graphs=[0], examples=-1)
