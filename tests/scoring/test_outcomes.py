"""Outcomes that compare two outputs: against brute force, and who takes them."""

from __future__ import annotations

from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import Interventions, UnitGraph, capture, removed
from causalprune.scoring import METHODS, OUTCOMES, Scores, register_outcome, score
from causalprune.scoring.projections import directions_of, distances, generator_of

X = networks.images(11, seed=int(torch.randint(1000, ())))
Y = networks.targets(11)
TAKE = {"ablation", "banzhaf", "irreplaceable", "path", "taylor"}


def logits_change(plain: Tensor, cut: Tensor) -> Tensor:
    """By loops over classes, of logits [K]."""
    before, after = plain - plain.mean(), cut - cut.mean()
    return sum((after[k] - before[k]) ** 2 for k in range(len(plain))) / len(plain)


def divergence(plain: Tensor, cut: Tensor) -> Tensor:
    p, q = (
        torch.distributions.Categorical(logits=plain),
        torch.distributions.Categorical(logits=cut),
    )
    return torch.distributions.kl_divergence(p, q)


BY_HAND = {"logits": logits_change, "divergence": divergence}


def by_image(name: str, plain: Tensor, cut: Tensor) -> Tensor:
    by_hand = BY_HAND[name]
    return torch.stack([by_hand(a, b) for a, b in zip(plain, cut, strict=True)])


def in_double(name: str) -> tuple[nn.Module, Tensor, UnitGraph]:
    model = networks.ALL[name]().double()
    return model, X.double(), capture(model, X.double())


def assert_is_mean_of(scores: Scores, group: str, unit: int, effects: Tensor) -> None:
    frame = scores.frame
    (row,) = frame[(frame["group"] == group) & (frame["unit"] == unit)].itertuples()
    assert row.effect == pytest.approx(effects.mean().item(), rel=1e-6, abs=1e-12)
    assert row.importance == pytest.approx(effects.mean().item(), rel=1e-6, abs=1e-12)
    assert row.se == pytest.approx(effects.std().item() / len(effects) ** 0.5, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("outcome", BY_HAND)
@pytest.mark.parametrize("name", ["lenet", "residual"])
@torch.no_grad()
def test_ablation_equals_brute_force_without_labels(name: str, outcome: str) -> None:
    model, x, graph = in_double(name)
    scores = score(model, x, "ablation", outcome, batch_size=4)
    plain = model(x)
    for group in graph.groups:
        for unit in range(group.n_units):
            with removed(model, graph, {group.name: [unit]}):
                effects = by_image(outcome, plain, model(x))
            assert_is_mean_of(scores, group.name, unit, effects)
    frame = scores.frame
    assert scores.outcome == outcome and (frame["effect"] >= 0).all()
    assert ((frame["category"] == "critical") == (frame["low"] > 0)).all()
    assert not (frame["category"] == "detrimental").any()


@pytest.mark.parametrize("value", ["mean", "resample"])
@torch.no_grad()
def test_ablation_to_other_values(value: str) -> None:
    model, x, graph = in_double("mlp")
    scores = score(model, x, "ablation", "logits", intervention=value, seed=3, batch_size=11)
    run = Interventions(model, graph, example=x[:1], value=value, seed=3)
    if value == "mean":
        run.calibrate([x])
    plain = run.observe(x)
    for group in graph.groups:
        for unit, cut in enumerate(run.remove(group.name, range(group.n_units))):
            assert_is_mean_of(scores, group.name, unit, by_image("logits", plain, cut))


def first_order(model: nn.Module, x: Tensor, group: str, graph: UnitGraph) -> Tensor:
    """First-order change of every logit [N, n_units, K], by the Jacobian at what is read."""
    (consumer,) = graph.group(group).consumers
    layer, units = model.get_submodule(consumer.layer), graph.group(group).n_units
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0].detach().requires_grad_())
        return (seen[0],)

    handle = layer.register_forward_pre_hook(keep)
    logits = model(x)
    handle.remove()
    changes = []
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), seen[0], retain_graph=True)
        product = (-seen[0].detach() * gradient).movedim(consumer.axis, 1)
        product = product.reshape(*product.shape[:2], -1).sum(2)
        columns = [product[:, consumer.columns([unit])].sum(1) for unit in range(units)]
        changes.append(torch.stack(columns, 1))
    return torch.stack(changes, 2)


@pytest.mark.parametrize("outcome", BY_HAND)
def test_taylor_is_the_distance_by_the_jacobian(outcome: str) -> None:
    model, x, graph = in_double("lenet")
    scores = score(model, x, "taylor", outcome, batch_size=4)
    plain = model(x).detach()
    for group in graph.groups:
        changes = first_order(model, x, group.name, graph)
        for unit in range(group.n_units):
            effects = by_image(outcome, plain, plain + changes[:, unit])
            assert_is_mean_of(scores, group.name, unit, effects)
    assert np.allclose(scores.frame["cost"].sum(), 11 * (1 + 2 * (2 + (outcome == "divergence"))))


@pytest.mark.parametrize("n", [1, 3])
def test_few_directions_have_the_distance_as_their_mean(n: int) -> None:
    change = torch.randn(6, dtype=torch.float64)
    logits = torch.zeros(20_000, 6, dtype=torch.float64)
    outcome = OUTCOMES["logits"]
    directions = directions_of(outcome, logits, n, generator_of(0, int(torch.randint(99, ()))))
    along = (directions @ change)[:, None]
    drawn = distances(outcome, logits, directions, along)
    expected = logits_change(torch.zeros(6), change)
    assert abs(drawn.mean() - expected) < 5 * drawn.std() / 20_000**0.5
    # Of n out of 5 orthogonal directions: the part of the squared length in a random subspace.
    assert float(drawn.var()) == pytest.approx(
        2 * (5 - n) / (n * 7) * float(expected) ** 2, rel=0.1
    )


@pytest.mark.parametrize("method", ["path", "taylor"])
def test_projections(method: str) -> None:
    model = networks.lenet()
    model.fc3 = nn.Linear(8, 7)
    networks.settle(model)
    exact, six, few, other = (
        score(model, X, method, "logits", projections=n, seed=seed).frame["effect"]
        for n, seed in ((None, 0), (6, 1), (2, 0), (2, 1))
    )
    np.testing.assert_allclose(exact, six, rtol=1e-5, atol=1e-9)
    assert np.corrcoef(few, exact)[0, 1] > 0.8 and not np.allclose(few, other, rtol=1e-3)


@pytest.mark.parametrize("outcome", BY_HAND)
def test_path_is_exact_where_the_suffix_is_linear_and_not_elsewhere(outcome: str) -> None:
    model = networks.lenet()
    path = score(model, X, "path", outcome).frame
    exact = score(model, X, "ablation", outcome).frame
    last = path["group"] == "fc2"
    for column in ("effect", "se", "importance"):
        np.testing.assert_allclose(path[column][last], exact[column][last], atol=1e-5, rtol=1e-3)
    assert not np.allclose(path["effect"][~last], exact["effect"][~last], rtol=0.01)


def test_banzhaf_adds_to_the_distance() -> None:
    model, x, graph = in_double("mlp")
    scores = score(model, x, "banzhaf", "logits", n_masks=4)
    design = scores.tables["design"]
    assert (design["outcome_whole"] == 0).all() and "target" not in design
    from causalprune.scoring.banzhaf import recorded_masks

    masks = recorded_masks(scores)
    with torch.no_grad():
        plain = model(x)
        for row in range(0, 44, 9):
            gone = {name: np.flatnonzero(mask[row]).tolist() for name, mask in masks.items()}
            with removed(model, graph, gone):
                expected = by_image("logits", plain, model(x))[row // 4]
            assert design["outcome"][row] == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("outcome", BY_HAND)
@pytest.mark.parametrize("surrogate", [None, "taylor", "path", "logit", "none"])
def test_a_race_agrees_with_the_exact_effects(surrogate: str | None, outcome: str) -> None:
    model, x = networks.lenet(), torch.randn(60, 1, 16, 16)
    exact = score(model, x, "ablation", outcome).frame
    race = score(
        model, x, "ablation", outcome, budget=2500, surrogate=surrogate, population="images"
    ).frame
    assert race["se"].notna().all() and race["effect"].corr(exact["effect"]) > 0.9
    slack = 1e-6 + 1e-3 * exact["effect"]
    inside = exact["effect"].between(race["low"] - slack, race["high"] + slack)
    assert inside.mean() >= 0.75
    all_of_them = race["n"] == 60
    np.testing.assert_allclose(
        race["effect"][all_of_them], exact["effect"][all_of_them], atol=1e-5, rtol=1e-3
    )


def test_own_distances() -> None:
    @register_outcome("flips", higher_is_better=False, differentiable=False, compares=True)
    def flips(plain: Tensor, logits: Tensor) -> Tensor:
        return (plain.argmax(1) != logits.argmax(1)).double()

    try:
        model = networks.mlp()
        scores = score(model, X, "ablation", "flips")
        with torch.no_grad(), removed(model, capture(model, X), {"1": [3]}):
            cut = model(X)
        share = (cut.argmax(1) != model(X).argmax(1)).double().mean().item()
        assert scores.frame["effect"][3] == pytest.approx(share)
        with pytest.raises(InvalidArgumentError, match="'path' needs a differentiable outcome"):
            score(model, X, "path", "flips")
    finally:
        OUTCOMES.pop("flips")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_of_one_output_refuse_by_name(method: str) -> None:
    if method in TAKE:
        assert METHODS[method].compares
        return
    with pytest.raises(InvalidArgumentError, match=f"outcome.*{method}"):
        score(networks.mlp(), (X, Y), method, "logits")
    if METHODS[method].outcomes is None:
        with pytest.raises(InvalidArgumentError, match=r"compares two outputs.*'ablation'"):
            score(networks.mlp(), (X, Y), method, "divergence")


def only_one(logits: Tensor, targets: Tensor | None) -> Tensor:
    return logits[:, 0]


def call(**options: object) -> Callable[[], object]:
    arguments = {"method": "taylor", "outcome": "logits", **options}
    return lambda: score(networks.mlp(), (X, Y), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (call(projections=0), "projections: expected a positive integer, got 0"),
        (call(projections=True), "projections: expected a positive integer"),
        (call(outcome="loss", projections=2), "projections: expected none with outcome 'loss'"),
        (call(outcome=only_one, projections=2), "projections: expected none with outcome 'only_"),
        (call(method="path", edges=True), "edges: expected False with outcome 'logits'"),
        (
            lambda: register_outcome("both", compares=True, needs_labels=True)(only_one),
            "needs_labels: expected False",
        ),
    ],
)
def test_what_cannot_be_is_said(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        wrong()


@pytest.mark.parametrize("method", ["ablation", "taylor"])
def test_one_logit_compares_with_nothing(method: str) -> None:
    model = networks.settle(
        nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 1))
    )
    with pytest.raises(UnsupportedModelError, match="at least two"):
        score(model, X, method, "logits")
    maps = networks.settle(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)))
    with pytest.raises(UnsupportedModelError, match=r"'divergence' expects logits \[N, K\]"):
        score(maps, X, method, "divergence")


def test_impossible_classes_diverge_nowhere() -> None:
    plain = torch.tensor([[0.0, -torch.inf, 1.0]], dtype=torch.float64)
    found = OUTCOMES["divergence"].function(plain, torch.zeros(1, 3, dtype=torch.float64))
    p = torch.tensor([0.0, 1.0], dtype=torch.float64).softmax(0)
    assert found.item() == pytest.approx((p * (p.log() + np.log(3))).sum().item())
    assert OUTCOMES["divergence"].function(plain, plain).item() == 0
