"""The guard of a progressive run: evidence that held-out accuracy fell too far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pruning.schedule_cases import traced
from scipy import stats
from torch import nn

from causalprune.pruning.guard import p_of_fall
from causalprune.pruning.training import correct_images, evaluate


def test_the_test_is_the_paired_t_test_of_scipy() -> None:
    random = np.random.default_rng()
    n = int(random.integers(20, 300))
    before, after = random.random(n) < 0.9, random.random(n) < 0.7
    tolerance = float(random.uniform(0, 0.2))
    expected = stats.ttest_1samp(
        before.astype(float) - after.astype(float), tolerance, alternative="greater"
    ).pvalue
    found = p_of_fall(torch.from_numpy(before), torch.from_numpy(after), tolerance)
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_spread_the_figures_decide() -> None:
    right, wrong = torch.ones(7, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)
    assert p_of_fall(right, wrong, 0.5) == 0.0
    assert p_of_fall(right, right, 0.0) == 1.0
    assert p_of_fall(wrong, right, 0.0) == 1.0
    assert p_of_fall(right[:1], wrong[:1], 0.5) == 0.0
    assert p_of_fall(right[:1], right[:1], 0.5) == 1.0


def ladder() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Hidden unit k alone decides image k: whoever goes costs one image of 40."""
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(40))
        model[2].weight.copy_(torch.stack([torch.zeros(40), torch.ones(40)]))
        model[2].bias.copy_(torch.tensor([0.0, -0.5]))
    return model, torch.eye(40), torch.ones(40, dtype=torch.int64)


@pytest.mark.parametrize(("level", "n_lost"), [(0.05, 2), (0.5, 0), (0.001, 8)])
def test_a_fall_counts_at_the_level_that_was_asked_for(level: float, n_lost: int) -> None:
    model, inputs, targets = ladder()
    assert evaluate(model, (inputs, targets)) == 1.0
    small, trace = traced(
        model, (inputs, targets), "l1", 0.5, "units", schedule="progressive", chunk=0.025,
        held_out=(inputs, targets), tolerance=0.0, guard_level=level,
    )  # fmt: skip
    kept = [step for step in trace.steps if step.verdict == "kept"]
    assert len(kept) == n_lost and len(trace.steps) == n_lost + 1
    assert int((~correct_images(small, (inputs, targets))).sum()) == n_lost
    # By hand: of k units gone the t statistic is sqrt(39 k / (40 - k)).
    bound = stats.t.ppf(1 - level, 39)
    assert all((39 * k / (40 - k)) ** 0.5 < bound for k in range(n_lost + 1) if k)
    assert (39 * (n_lost + 1) / (39 - n_lost)) ** 0.5 >= bound
    last = trace.steps[-1]
    assert last.verdict == "reverted" and "is more than 0 below 1.0000 (p = " in last.reason
    assert all("which may be chance" in step.reason for step in kept)


@pytest.mark.parametrize(("options", "tolerance"), [({}, 0.05), ({"tolerance": 0.3}, 0.3)])
def test_images_taken_from_the_data_are_given_more_tolerance(
    options: dict[str, float], tolerance: float
) -> None:
    model, inputs, targets = ladder()
    guarded = {"schedule": "progressive", "guard": True, "chunk": 0.2, **options}
    _, taken = traced(model, (inputs, targets), "l1", 0.1, "units", **guarded)
    assert taken.tolerance == tolerance
    given = {**guarded, "held_out": (inputs[:9], targets[:9])}
    _, trace = traced(model, (inputs, targets), "l1", 0.1, "units", **given)
    assert trace.tolerance == options.get("tolerance", 0.01)


def test_a_run_that_the_guard_stopped_says_so() -> None:
    model, inputs, targets = ladder()
    _, trace = traced(
        model, (inputs, targets), "l1", 0.5, "units", schedule="progressive",
        held_out=(inputs, targets), tolerance=0.0,
    )  # fmt: skip
    assert "; 1 frozen because" in trace.stopped and "tolerance of 0 from 1.000" in trace.stopped
