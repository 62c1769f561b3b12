"""The prune-retrain cascade: budgets, what stays gone, and going on after a kill."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import (
    CheckpointError,
    InvalidArgumentError,
    RecordError,
    UnknownNameError,
)
from causalprune.graph import capture
from causalprune.pruning import apply, cascade_steps
from causalprune.pruning.cascade_steps import CascadeStep, geometric_ratios
from causalprune.pruning.cascades import cascade
from causalprune.pruning.expansion import expanded
from causalprune.pruning.masks import holding
from causalprune.pruning.retraining import SgdRecipe
from causalprune.scoring.keep_budgets import weight_layers
from causalprune.scoring.unit_budgets import TOLERANCE

DATA = networks.images(40), networks.targets(40)
RATIOS = (0.2, 0.45, 0.6)
RECIPE = SgdRecipe(2, 0.01, batch_size=20, seed=3)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def left(model: nn.Module) -> int:
    weights = [layer.weight for layer in weight_layers(model).values()]
    return parameters(model) - sum(int((w == 0).sum()) for w in weights)


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        states[0][name].shape == t.shape and torch.equal(states[0][name], t)
        for name, t in states[1].items()
    )


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "form"), [("wt", ""), ("snip", ""), ("sipp", "randomised")])
def test_weights_fall_to_every_budget_and_stay_gone(method: str, form: str) -> None:
    model = networks.residual()
    before = copy.deepcopy(model)
    options = {"form": form} if form else {}
    gone: dict[str, Tensor] = {}
    seen = []
    for step in cascade(
        model, DATA, method, RATIOS, retrain=RECIPE, held_out=DATA, seed=2, **options
    ):
        assert step.plan is None and step.removed == () and step.masks is not None
        kept = left(step.model) / parameters(model)
        assert kept == step.keep_ratio == step.footprint.parameters / parameters(model)
        assert step.reached == (abs(kept - (1 - step.ratio)) < TOLERANCE * (1 - step.ratio))
        assert step.reached or form
        for name, mask in step.masks.items():
            weight = weight_layers(step.model)[name].weight
            assert torch.equal(weight != 0, mask)
            assert not bool((mask & gone.get(name, torch.zeros_like(mask))).any())
            gone[name] = ~mask
        assert len(step.losses) == 2 and step.accuracy is not None
        assert [row.verdict for row in step.trace] == ["kept", "retrained"]
        assert step.trace[0].accuracy == step.accuracy_pruned
        with torch.no_grad():  # what a caller does to its network reaches no later step
            for parameter in step.model.parameters():
                parameter.fill_(7.0)
        seen.append(step.ratio)
    assert tuple(seen) == RATIOS and same(model, before)


def test_each_step_goes_on_with_the_weights_of_the_last() -> None:
    model = networks.lenet()
    steps = list(cascade(model, DATA, "wt", RATIOS, retrain=RECIPE))
    network, masks = model, None
    for step in steps:
        (alone,) = cascade(network, DATA, "wt", (1 - step.keep_ratio,))
        if masks is not None:  # what was gone is zero, and zero is the smallest
            assert all(torch.equal(alone.masks[n] & m, alone.masks[n]) for n, m in masks.items())
        RECIPE.train(alone.model, DATA, masks=alone.masks)
        assert same(alone.model, step.model)
        network, masks = step.model, step.masks


# ---- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ft", "pfp"])
@pytest.mark.parametrize("name", ["lenet", "residual", "depthwise"])
def test_filters_are_removed_for_good_within_the_budget(name: str, method: str) -> None:
    model = networks.ALL[name]()
    last = 1.0
    gone: dict[str, set[int]] = {}
    for step in cascade(model, DATA, method, RATIOS, calibration=DATA[0]):
        assert step.masks is None and step.plan is not None
        small = parameters(step.model)
        assert step.keep_ratio == small / parameters(model) <= last
        assert step.footprint.parameters == step.plan.after.parameters == small
        assert step.reached == (
            abs(step.keep_ratio - 1 + step.ratio) < TOLERANCE * (1 - step.ratio)
        )
        for removal in step.removed:
            assert removal.unit not in gone.setdefault(removal.group, set())
            gone[removal.group].add(removal.unit)
        assert {g: tuple(sorted(units)) for g, units in gone.items()} == step.plan.remove
        assert same(apply(model, step.plan), step.model)  # without retraining, in values too
        last = step.keep_ratio
    assert last < 0.6


@pytest.mark.parametrize("method", ["ft", "pfp"])
def test_masked_filters_compute_what_removed_ones_do(method: str) -> None:
    model = networks.residual()
    images = networks.images(9, seed=5)
    pairs = zip(
        cascade(model, DATA, method, RATIOS, retrain=RECIPE),
        cascade(model, DATA, method, RATIOS, retrain=RECIPE, filters="masked"),
        strict=True,
    )
    for removed, masked in pairs:
        assert masked.masks and parameters(masked.model) == parameters(model)
        for training in (False, True):
            removed.model.train(training), masked.model.train(training)
            torch.testing.assert_close(
                masked.model(images), removed.model(images), rtol=0, atol=1e-5
            )
        removed.model.eval(), masked.model.eval()
        with holding(masked.model, masked.masks):
            sgd = torch.optim.SGD(masked.model.parameters(), lr=0.1)
            masked.model(images).square().sum().backward()
            sgd.step()
        small = apply(masked.model, replace(removed.plan, fingerprint=removed.plan.fingerprint))
        torch.testing.assert_close(small(images), masked.model(images), rtol=0, atol=1e-5)


def test_expansion_covers_flattened_maps_and_depthwise_filters() -> None:
    for name in networks.ALL:
        model = networks.ALL[name]()
        (step,) = cascade(model, DATA, "ft", (0.4,))
        assert step.plan is not None
        graph = capture(model, DATA[0])
        wide, masks = expanded(model, step.model, graph, step.plan.remove)
        torch.testing.assert_close(wide(DATA[0]), step.model(DATA[0]), rtol=0, atol=1e-5)
        gone = sum(int((~mask).sum()) for mask in masks.values())
        shapes = [weight_layers(each).values() for each in (model, step.model)]
        counts = [sum(layer.weight.numel() for layer in layers) for layers in shapes]
        assert gone == counts[0] - counts[1] > 0


# ---- users' functions, data, bad input -----------------------------------------------------------


def test_a_users_own_training() -> None:
    sizes = []

    def own(network: nn.Module) -> nn.Module:
        sizes.append(parameters(network))
        made = copy.deepcopy(network)
        RECIPE.train(made, DATA)
        return made

    steps = list(cascade(networks.lenet(), DATA, "wt", RATIOS, retrain=own))
    expected = list(cascade(networks.lenet(), DATA, "wt", RATIOS, retrain=RECIPE))
    assert len(sizes) == 3 and steps[0].losses == ()
    assert all(
        torch.equal(a.masks[name], b.masks[name])
        for a, b in zip(steps[:1], expected[:1], strict=True)
        for name in a.masks
    )
    assert all(left(step.model) == round(step.keep_ratio * sizes[0]) for step in steps)


def test_data_that_can_be_read_once() -> None:
    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield DATA[0][:25], DATA[1][:25]
        yield DATA[0][25:], DATA[1][25:]

    found = list(cascade(networks.lenet(), once(), "sipp", RATIOS, retrain=RECIPE))
    expected = list(cascade(networks.lenet(), DATA, "sipp", RATIOS, retrain=RECIPE))
    assert all(same(a.model, b.model) for a, b in zip(found, expected, strict=True))


def test_ratios_that_make_no_cascade_are_refused_at_once() -> None:
    model = networks.lenet()
    for wrong in ((), (0.5, 0.5), (0.6, 0.3), (0.5, 1.0), (-0.1,), 0.5, ("half",)):
        with pytest.raises(InvalidArgumentError, match="ratios"):
            cascade(model, DATA, "wt", wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="method of a cascade"):
        cascade(model, DATA, "l1")
    with pytest.raises(UnknownNameError, match="choice of filters"):
        cascade(model, DATA, "ft", filters="frozen")
    with pytest.raises(InvalidArgumentError, match="keep_ratio"):
        list(cascade(model, DATA, "pfp", (0.999,)))
    assert geometric_ratios(2, 0.9) == pytest.approx((0.1, 0.19))
    with pytest.raises(InvalidArgumentError, match="n_steps, keep"):
        geometric_ratios(0, 0.9)


# ---- checkpoints ---------------------------------------------------------------------------------


class Killed(BaseException):
    """What a test kills a run with."""


def run(method: str, folder: str, *, die_in: int | None = None) -> list[CascadeStep]:
    """Run a cascade with noise of the user's own, and kill it in a retraining."""
    calls = [0]

    def noisy(network: nn.Module) -> None:
        calls[0] += 1
        if die_in == calls[0]:
            raise Killed
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1 + 0.01 * torch.randn(parameter.shape))

    steps = cascade(networks.residual(), DATA, method, RATIOS, retrain=noisy, checkpoint=folder)
    return list(steps)


@pytest.mark.parametrize("method", ["sipp", "pfp"])
def test_a_killed_cascade_goes_on_to_the_same_result(method: str) -> None:
    torch.manual_seed(11)
    expected = run(method, "whole")
    for die_in in (1, 2, 3):
        torch.manual_seed(11)
        with pytest.raises(Killed):
            run(method, "killed", die_in=die_in)
        if die_in > 1:
            torch.manual_seed(99)
        else:
            torch.manual_seed(11)
        found = run(method, "killed")
        assert all(same(a.model, b.model) for a, b in zip(found, expected, strict=True))
        for a, b in zip(found, expected, strict=True):
            assert (a.plan, a.keep_ratio) == (b.plan, b.keep_ratio)
            gone = [[(r.group, r.unit, r.importance) for r in each.removed] for each in (a, b)]
            assert gone[0] == gone[1]
            assert (a.masks is None) == (b.masks is None)
        again = run(method, "killed", die_in=1)  # nothing is left to train
        assert all(same(a.model, b.model) for a, b in zip(again, expected, strict=True))
        shutil.rmtree("killed")


def test_a_folder_of_another_cascade_is_refused() -> None:
    model = networks.lenet()
    list(cascade(model, DATA, "wt", (0.3,), retrain=RECIPE, checkpoint="run"))
    for wrong in (
        {"ratios": (0.4,)},
        {"method": "sipp"},
        {"retrain": replace(RECIPE, epochs=1)},
        {"calibration": DATA[0][:7]},
    ):
        given = {"method": "wt", "ratios": (0.3,), "retrain": RECIPE, **wrong}
        with pytest.raises(CheckpointError, match="other arguments"):
            cascade(model, DATA, checkpoint="run", **given)  # type: ignore[arg-type]
    with torch.no_grad():
        model.fc1.weight += 1.0
    with pytest.raises(CheckpointError, match="network was"):
        cascade(model, DATA, "wt", (0.3,), retrain=RECIPE, checkpoint="run")


def test_broken_folders_are_told() -> None:
    model = networks.lenet()
    list(cascade(model, DATA, "wt", (0.3, 0.5), checkpoint="run"))
    (file,) = Path("run").glob("step-1-*.pt")
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(RecordError, match="expected the file that was written"):
        list(cascade(model, DATA, "wt", (0.3, 0.5), checkpoint="run"))
    file.unlink()
    with pytest.raises(RecordError, match="expected a step of a cascade"):
        list(cascade(model, DATA, "wt", (0.3, 0.5), checkpoint="run"))
    pointer = Path("run/cascade.json")
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "schema": 9}))
    with pytest.raises(RecordError, match="expected schema 1, got 9"):
        cascade(model, DATA, "wt", (0.3, 0.5), checkpoint="run")
    pointer.write_text("{")
    with pytest.raises(RecordError, match="expected a cascade"):
        cascade(model, DATA, "wt", (0.3, 0.5), checkpoint="run")


def test_a_full_disk_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.lenet()
    expected = list(cascade(model, DATA, "wt", RATIOS, retrain=RECIPE))
    write = cascade_steps.replace_file

    def full(path: Path, content: bytes | str) -> Path:
        if "step-1" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(cascade_steps, "replace_file", full)
        with pytest.raises(CheckpointError, match=r"No space left .* 1 finished steps") as caught:
            list(cascade(model, DATA, "wt", RATIOS, retrain=RECIPE, checkpoint="run"))
    assert isinstance(caught.value.network, nn.Module)
    assert same(caught.value.network, expected[1].model)
    found = list(cascade(model, DATA, "wt", RATIOS, retrain=RECIPE, checkpoint="run"))
    assert all(same(a.model, b.model) for a, b in zip(found, expected, strict=True))
    assert [step.losses for step in found] == [step.losses for step in expected]
