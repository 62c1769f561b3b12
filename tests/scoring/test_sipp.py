from __future__ import annotations

import itertools
import math

import pytest
import torch
from networks import depthwise, lenet, residual
from scoring.keep_ratio_cases import (
    NETWORKS,
    importance_of,
    parameters_of,
    sensitivities_of,
    some_images,
    weights_of,
)
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.graph import capture
from causalprune.scoring.sensitivities import sample_size
from causalprune.scoring.sipp import sipp_budget
from causalprune.scoring.weight_sampling import sample_counts, sampling_errors, signed_rows


@pytest.mark.parametrize("network", NETWORKS)
def test_sensitivities_by_definition(network: str) -> None:
    model, x = NETWORKS[network](), some_images()
    scores = cp.score(model, x, method="sipp", batch_size=2)
    wanted = sensitivities_of(model, x, "mean")
    assert scores.edges.keys() == wanted.keys() == weights_of(model).keys()
    for name, values in wanted.items():
        got = torch.from_numpy(scores.edges[name]).double()
        torch.testing.assert_close(got, values, rtol=3e-4, atol=1e-7)
    found = importance_of(scores.frame)
    for group in capture(model, x).groups:
        for unit in range(group.n_units):
            total = 0.0
            for consumer in group.consumers:
                # Columns of the weight that reads the unit; none of these consumers has groups.
                total += float(wanted[consumer.layer][:, consumer.columns([unit])].sum())
            assert float(found[group.name][unit]) == pytest.approx(total, rel=1e-3, abs=1e-6)
    assert (scores.frame["n"] == len(x)).all() and (scores.frame["cost"] > 0).all()


def test_batches_do_not_matter_and_the_network_is_left_alone() -> None:
    model, x = depthwise(), some_images(5)
    model.train()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    one, all_at_once = (cp.score(model, x, method="sipp", batch_size=n) for n in (1, 5))
    for name, values in one.edges.items():
        other = torch.from_numpy(all_at_once.edges[name])
        torch.testing.assert_close(torch.from_numpy(values), other)
    assert model.training and hooks == [len(m._forward_pre_hooks) for m in model.modules()]


def test_grouped_consumers_and_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 6, 3, stride=5)
            self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2, padding_mode="reflect")
            self.inner = nn.Linear(4, 5)
            self.idle = nn.Linear(3, 3)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.grouped(self.stem(x).relu())
            return self.head(self.inner(input=x.flatten(2).transpose(1, 2)).relu().mean(1))

    torch.manual_seed(2)
    model, x = Tokens().eval(), some_images()
    scores = cp.score(model, x, method="sipp")
    assert "idle did not run as a layer of its own: no sensitivities" in scores.notes
    assert scores.edges.keys() == {"stem", "grouped", "inner", "head"}
    with torch.no_grad():
        tokens = model.grouped(model.stem(x).relu()).flatten(2)
    wanted = torch.zeros(5, 4, dtype=torch.float64)
    weight = model.inner.weight.detach().double()
    for image in tokens.double():
        for point in (image.clamp_min(0), (-image).clamp_min(0)):
            for o, sign in itertools.product(range(5), (1, -1)):
                own = (sign * weight[o]).clamp_min(0)
                shares = own[:, None] * point / (own @ point).clamp_min(1e-12)
                wanted[o] = torch.maximum(wanted[o], shares.mean(1))
    got = torch.from_numpy(scores.edges["inner"]).double()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_layer_that_nothing_reaches() -> None:
    model = lenet()
    with torch.no_grad():
        model.conv1.bias.fill_(-1e4)  # behind the ReLU everything is zero
    scores = cp.score(model, some_images(), method="sipp")
    assert (scores.edges["conv2"] == 0).all() and (scores.edges["conv1"] > 0).any()
    assert (importance_of(scores.frame)["conv1"] == 0).all()


def test_bad_networks_and_units() -> None:
    model = residual()
    with pytest.raises(InvalidArgumentError, match="units='groups'"):
        cp.score(model, some_images(), method="sipp", units="filters")
    with torch.no_grad():
        model.bn.weight[1] = torch.nan
    with pytest.raises(DataError, match=r"input of layer 'block1.conv1': x: .* nan"):
        cp.score(model, some_images(), method="sipp")
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidArgumentError, match="weight of layer 'stem' is not finite"):
        cp.score(model, some_images(), method="sipp")


def test_sample_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    assert sample_size(model) == math.ceil(3 * math.log(8 * 26 * 16 / 1e-16))
    assert sample_size(model, constant=1.0, delta=0.5) == math.ceil(math.log(16 * 26 * 16))
    (note,) = (n for n in cp.score(lenet(), some_images(), "sipp").notes if "guarantee" in n)
    assert note.startswith("3 images") and str(sample_size(lenet())) in note
    with pytest.raises(InvalidArgumentError, match="delta"):
        sample_size(model, delta=0.0)
    with pytest.raises(InvalidArgumentError, match="constant"):
        sample_size(model, constant=-1.0)
    with pytest.raises(InvalidArgumentError, match="found none"):
        sample_size(nn.ReLU())


# ---- how many draws ------------------------------------------------------------------------------


def test_counts_minimise_the_sum_of_errors() -> None:
    random = torch.Generator().manual_seed(4)
    for n, budget in ((2, 9), (3, 12), (4, 11)):
        alpha = torch.rand(n, generator=random, dtype=torch.float64) * 50
        importance = torch.rand(n, generator=random, dtype=torch.float64) + 0.1

        def error(counts: Tensor, a: Tensor = alpha, w: Tensor = importance) -> float:
            return float((w * sampling_errors(a, counts)).sum())

        choices = itertools.product(range(1, budget + 1), repeat=n)
        best = min(error(torch.tensor(c)) for c in choices if sum(c) <= budget)
        found = sample_counts(alpha, importance, budget)
        assert int(found.sum()) == budget and int(found.min()) >= 1
        assert error(found) == pytest.approx(best, rel=1e-12)


def test_counts_of_many_equal_rows() -> None:
    alpha = torch.full((37,), 5.0, dtype=torch.float64)
    alpha[::5] = 0.0
    found = sample_counts(alpha, torch.ones_like(alpha), 1000)
    assert int(found.sum()) == 1000 and (found[::5] == 0).all()
    assert int(found[alpha > 0].max() - found[alpha > 0].min()) == 1
    with pytest.raises(InvalidArgumentError, match="at least 29 weights"):
        sample_counts(alpha, torch.ones_like(alpha), 28)


def test_error_falls_with_every_draw() -> None:
    counts = torch.arange(1, 400)
    errors = sampling_errors(torch.full((399,), 30.0, dtype=torch.float64), counts)
    gains = errors[:-1] - errors[1:]
    assert (gains > 0).all() and (gains[:-1] > gains[1:]).all()
    t = 30 / (3 * 17)
    assert float(errors[16]) == pytest.approx(0.5 * (t + math.sqrt(t * t + 6 * t)))


# ---- which weights -------------------------------------------------------------------------------


def scored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    x = some_images()
    edges = cp.score(model, x, method="sipp").edges
    return {n: torch.from_numpy(v) for n, v in edges.items()}, dict(capture(model, x).positions)


@pytest.mark.parametrize("form", ["deterministic", "randomised", "hybrid"])
def test_budgets_are_met(form: str) -> None:
    model = residual()
    sensitivities, positions = scored(model)
    size, outside = (
        parameters_of(model),
        parameters_of(model) - sum(w.numel() for w in weights_of(model).values()),
    )
    for keep_ratio in (0.3, 0.45, 0.6):
        found = sipp_budget(model, sensitivities, positions, keep_ratio, form=form)
        assert found.keep_ratio == pytest.approx((outside + found.kept) / size)
        assert abs(found.keep_ratio - keep_ratio) <= max(0.005 * keep_ratio, 1 / size) + 1e-12
        again = sipp_budget(model, sensitivities, positions, keep_ratio, form=form)
        for name, mask in found.masks.items():
            assert torch.equal(mask, again.masks[name])
            assert not bool(mask[sensitivities[name] == 0].any()) or form == "deterministic"
            if form != "deterministic":
                assert torch.equal(mask, found.scale[name] > 0)


def test_draws_leave_the_expectation_as_it_was() -> None:
    weight = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    values = torch.rand(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = signed_rows(weight, values)
    assert torch.equal(rows.unsorted(rows.values), values.flatten())
    counts = torch.tensor([3, 0, 50, 7])
    draws = [rows.drawn(counts, torch.Generator().manual_seed(seed)) for seed in range(3000)]
    found = torch.stack(draws).mean(0)
    # A weight's multiple is binomial / (m q): its standard deviation is at most 1 / sqrt(m q).
    for row, m in enumerate(counts.tolist()):
        mine = rows.row == row
        if m == 0:
            assert (found[mine] == 0).all()
            continue
        q = rows.values[mine] / rows.values[mine].sum()
        assert ((found[mine] - 1).abs() <= 5 / (3000 * m * q).sqrt()).all()
    for row, m in enumerate(counts.tolist()):
        mine = rows.row == row
        q = rows.values[mine] / rows.values[mine].sum()
        assert float((draws[0][mine] * m * q).sum()) == pytest.approx(m)


def test_hybrid_takes_the_smaller_error_of_every_row() -> None:
    weight = torch.randn(3, 30, generator=torch.Generator().manual_seed(3))
    values = torch.rand(3, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rows = signed_rows(weight, values)
    counts = torch.full((6,), 5)
    drawn = torch.full((90,), 9.0, dtype=torch.float64)
    kept = [
        sorted(values[o][weight[o] < 0 if s else weight[o] >= 0].tolist(), reverse=True)
        for o in range(3)
        for s in (0, 1)
    ]
    dropped = torch.tensor([sum(row[5:]) for row in kept], dtype=torch.float64)
    errors = dropped + torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    mixed = rows.mixed(counts, errors, drawn)
    for row in range(6):
        mine = mixed[rows.row == row]
        if row % 2:
            assert (mine == 9.0).all()
        else:
            assert mine[:5].tolist() == [1.0] * 5 and (mine[5:] == 0).all()


def test_bad_budgets() -> None:
    model = residual()
    sensitivities, positions = scored(model)
    with pytest.raises(UnknownNameError, match="form of sipp"):
        sipp_budget(model, sensitivities, positions, 0.5, form="greedy")
    with pytest.raises(InvalidArgumentError, match="delta"):
        sipp_budget(model, sensitivities, positions, 0.5, form="hybrid", delta=2.0)
    with pytest.raises(InvalidArgumentError, match=r"keep_ratio: .*one for each sign"):
        sipp_budget(model, sensitivities, positions, 0.13, form="randomised")
