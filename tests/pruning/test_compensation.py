"""What the remaining weights do about removed units: means folded in, consumers refitted."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.graph import capture
from causalprune.pruning import Plan, apply, plan, refit, refit_run
from causalprune.pruning.refit import LayerFit, refit_in_place
from causalprune.scoring import score

X = networks.images(40)
Remove = Mapping[str, Sequence[int]]


def _plan(model: nn.Module, x: Tensor, remove: Remove) -> Plan:
    nothing = plan(model, score(model, x, "random", max_images=1), 0.0, of="units")
    return replace(nothing, remove={name: tuple(units) for name, units in remove.items()})


def _some(model: nn.Module, x: Tensor, share: float = 0.4) -> dict[str, tuple[int, ...]]:
    """Some units of every group that can go."""
    chosen = {}
    for group in capture(model, x).removable:
        n_gone = min(group.n_units - 1, max(1, int(share * group.n_units)))
        chosen[group.name] = tuple(sorted(torch.randperm(group.n_units)[:n_gone].tolist()))
    return chosen


def _fits(
    model: nn.Module, x: Tensor, remove: Remove, **options: object
) -> tuple[nn.Module, tuple[LayerFit, ...]]:
    small = apply(model, _plan(model, x, remove))
    fits = refit_in_place(
        model,
        small,
        capture(model, x),
        x,
        remove=remove,
        **options,  # type: ignore[arg-type]
    )
    return small, fits


# ---- refit ---------------------------------------------------------------------------------------


def test_refit_of_one_layer_by_brute_force() -> None:
    """Targets, patches and shortcut of a residual block with its ReLU, written out by hand."""
    model = networks.residual().double()
    x, remove, ridge = X.double(), {"block1.conv1": (0, 2)}, 1e-3
    small, (fit,) = _fits(model, x, remove, ridge=ridge, layers="consumers")
    with torch.no_grad():
        stem = F.relu(model.bn(model.stem(x)))
        block = model.block1
        inner = F.relu(block.bn1(block.conv1(stem)))[:, [1, 3]]
        norm = block.bn2
        weight = block.conv2.weight[:, [1, 3]]
        whole = norm(block.conv2(F.relu(block.bn1(block.conv1(stem))))) + stem
        start = norm(F.conv2d(inner, weight, padding=1)) + stem
        rows = F.unfold(inner, 3, padding=1).movedim(1, 2).flatten(0, 1)
        target, begin = (v.movedim(1, -1).flatten(0, 2) for v in (whole, start))
        centred, penalty = rows - rows.mean(0), ridge * rows.square().sum() / rows.shape[1]
        gram = centred.T @ centred + penalty * torch.eye(rows.shape[1])
        wanted, errors = target, []
        for _ in range(4):
            r = wanted - begin
            change = torch.linalg.solve(gram, centred.T @ (r - r.mean(0)))
            constant = r.mean(0) - rows.mean(0) @ change
            now = begin + rows @ change + constant
            left = (wanted - now).square().sum()
            errors.append(float((now.relu() - target.relu()).square().sum()))
            wanted = torch.where(target > 0, target, now.clamp(max=0))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        expected = weight + (change.T.reshape(weight.shape) / scale[:, None, None, None])
        torch.testing.assert_close(small.block1.conv2.weight, expected)
        means = norm.running_mean - constant / scale
        torch.testing.assert_close(small.block1.bn2.running_mean, means)
        shown = F.relu(small.block1.bn2(small.block1.conv2(inner)) + stem) - whole.relu()
    assert errors[-1] < errors[0]  # what the rounds are for: the error behind the ReLU
    assert float(shown.square().sum()) == pytest.approx(errors[-1])
    assert fit.layer == "block1.conv2"
    assert fit.before == pytest.approx(float((target - begin).square().sum()))
    assert fit.after == pytest.approx(float(left))


@pytest.mark.parametrize("layers", ["consumers", "all", "pairs"])
@pytest.mark.parametrize("name", networks.ALL)
def test_refit_comes_closer_layer_by_layer(name: str, layers: str) -> None:
    model = networks.ALL[name]()
    remove = _some(model, X)
    small, fits = _fits(model, X, remove, layers=layers)
    plain = apply(model, _plan(model, X, remove))
    assert fits and all(fit.after <= fit.before * (1 + 1e-5) for fit in fits)
    assert any(fit.after < 0.9 * fit.before for fit in fits)
    if layers != "consumers":  # the classifier's own pre-activation are the logits
        with torch.no_grad():
            error = (small(X) - model(X)).square().sum()
            assert float(error) == pytest.approx(fits[-1].after, rel=1e-3)
            assert error < (plain(X) - model(X)).square().sum()
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in small.state_dict().items()} == shapes
    assert not small.training


@pytest.mark.parametrize("max_cache_bytes", [0, 30_000])
def test_refit_is_the_same_in_little_memory(
    max_cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = networks.residual().double()
    remove = _some(model, X.double())
    whole, _ = _fits(model, X.double(), remove, layers="all")
    monkeypatch.setattr(refit_run, "CHUNK_BYTES", 1)
    parts, _ = _fits(model, X.double(), remove, layers="all", max_cache_bytes=max_cache_bytes)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", networks.ALL)
def test_refit_without_a_removal_changes_nothing(name: str) -> None:
    model = networks.ALL[name]()
    for layers in ("consumers", "all", "pairs"):
        small = refit(model, model, capture(model, X), X, remove={}, layers=layers)
        for key, value in model.state_dict().items():
            assert torch.equal(small.state_dict()[key], value), key


def test_unit_that_others_make_up_for_goes_without_a_trace() -> None:
    model = networks.vgg()
    first, norm = model[0], model[1]
    with torch.no_grad():  # behind the first ReLU channel 2 is the double of channel 0
        for tensor in (first.weight, first.bias, norm.running_mean):
            tensor[2] = tensor[0]
        norm.running_var[2] = norm.running_var[0]
        norm.weight[2], norm.bias[2] = 2 * norm.weight[0], 2 * norm.bias[0]
    small, _ = _fits(model, X, {"0": (2,)}, ridge=1e-9)
    unseen = networks.images(9, seed=5)
    with torch.no_grad():
        scale = float(model(unseen).abs().max())
        assert float((small(unseen) - model(unseen)).abs().max()) < 1e-4 * scale


class _Dense(nn.Module):
    """Concatenations of layers without biases, whose batch norms come later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 3, 3, padding=1, bias=False)
        self.norm3, self.fc = nn.BatchNorm2d(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        y = F.relu(self.norm3(torch.cat([x, y], 1)))
        return self.fc(y.mean((2, 3)))


def test_constant_goes_to_the_batch_norm_behind_a_concatenation() -> None:
    model = networks.settle(_Dense())
    remove = {"conv1": (0, 3)}
    small = apply(model, _plan(model, X, remove), compensation="mean", data=X)
    with torch.no_grad():
        read = F.relu(model.norm2(model.conv1(F.relu(model.norm1(model.stem(X))))))
        mean = read.double().mean((0, 2, 3))[[0, 3]]
        constant = model.conv2.weight[:, [0, 3]].double().sum((2, 3)) @ mean
        expected = model.norm3.running_mean.clone()
        expected[4:] -= constant.float()
    torch.testing.assert_close(small.norm3.running_mean, expected)


def test_attention_is_refitted() -> None:
    model = networks.settle(_Attention())
    x = torch.randn(60, 7, 8, generator=torch.Generator().manual_seed(0))
    graph = capture(model, x)
    heads = next(group for group in graph.groups if group.kind == "head")
    remove = {group.name: (0,) for group in graph.removable}
    assert heads.name in remove
    plain = apply(model, _plan(model, x, remove))
    for layers in ("consumers", "all"):
        small, fits = _fits(model, x, remove, layers=layers)
        assert {"attention.out_proj", "second"} <= {fit.layer for fit in fits}
        assert all(fit.after <= fit.before * (1 + 1e-5) for fit in fits)
        assert _error(small, model, x) < 0.8 * _error(plain, model, x)
    folded = apply(model, _plan(model, x, remove), compensation="mean", data=x)
    assert _error(folded, model, x) < _error(plain, model, x)


class _Attention(nn.Module):
    """A transformer block with residual additions; input [N, 7, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.second(F.gelu(self.first(self.norm2(x))))
        return self.head(x[:, 0])


def _error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean())


# ---- means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "vgg", "mlp", "residual"])
def test_folded_means_are_exact_for_constant_units(name: str) -> None:
    """A unit that never varies goes without a trace, but at padded borders."""
    model = networks.ALL[name]()
    remove = {
        "lenet": {"fc1": (1, 4), "conv2": (0, 5)},
        "vgg": {"10": (3,)},
        "mlp": {"1": (0, 2), "3": (4,)},
        "residual": {},
    }[name]
    if name == "residual":
        with torch.no_grad():
            model.block2.conv2.padding, model.block2.conv2.stride = (0, 0), (1, 1)
            model.block2.shortcut[0].kernel_size = (5, 5)
            model.block2.shortcut[0].weight = nn.Parameter(torch.randn(6, 4, 5, 5) / 10)
        remove = {"block2.conv1": (1, 3)}
    with torch.no_grad():
        for group, units in remove.items():
            layer = model.get_submodule(group)
            layer.weight[list(units)] = 0.0
            if layer.bias is not None:
                layer.bias[list(units)] = 0.7
    before = copy.deepcopy(model.state_dict())
    plain = apply(model, _plan(model, X, remove))
    small = apply(model, _plan(model, X, remove), compensation="mean", data=X, max_images=5)
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X), rtol=0, atol=2e-5)
        assert float((plain(X) - model(X)).abs().max()) > 1e-3
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_folded_means_are_means_over_the_data() -> None:
    model = networks.mlp()
    small = apply(
        model, _plan(model, X, {"1": (2, 6)}), compensation="mean", data=[X[:9], X[9:30], X[30:]]
    )
    with torch.no_grad():
        hidden = model[:3](X).mean(0)
        expected = model[3].bias + model[3].weight[:, [2, 6]] @ hidden[[2, 6]]
    torch.testing.assert_close(small[3].bias, expected)


def test_a_layer_with_no_place_for_a_constant_keeps_its_structure() -> None:
    model = networks.settle(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(),
                      nn.Linear(4, 2))
    )  # fmt: skip
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    remove = {"0": (1, 3)}
    plain = apply(model, _plan(model, x, remove))
    folded = apply(model, _plan(model, x, remove), compensation="mean", data=x)
    fitted = apply(model, _plan(model, x, remove), compensation="refit", data=x)
    assert plain.state_dict().keys() == folded.state_dict().keys() == fitted.state_dict().keys()
    assert torch.equal(folded(x), plain(x))
    assert _error(fitted, model, x) < _error(plain, model, x)


# ---- apply, and bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("compensation", ["none", "mean", "refit"])
def test_a_fresh_network_takes_the_state(compensation: str) -> None:
    model = networks.residual()
    decided = _plan(model, X, _some(model, X))
    small = apply(model, decided, compensation=compensation, data=(X, networks.targets(40)))
    fresh = apply(networks.residual(), decided)
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(X), small(X))
    loss = small.train()(X).square().mean()  # and it trains on
    loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_bad_input_is_named() -> None:
    model = networks.mlp()
    decided, graph = _plan(model, X, {"1": (0,)}), capture(model, X)
    with pytest.raises(UnknownNameError, match="compensation 'median'; known: mean, none, refit"):
        apply(model, decided, compensation="median")
    with pytest.raises(InvalidArgumentError, match="data: expected calibration images"):
        apply(model, decided, compensation="refit")
    for ridge in (-1.0, float("nan"), True, "1"):
        with pytest.raises(InvalidArgumentError, match="ridge: expected a number >= 0"):
            apply(model, decided, compensation="refit", data=X, ridge=ridge)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="choice of layers"):
        apply(model, decided, compensation="refit", data=X, refit_layers="some")
    with pytest.raises(DataError, match="finite"):
        apply(model, decided, compensation="mean", data=X * float("nan"))
    small = apply(model, decided)
    with pytest.raises(InvalidArgumentError, match="without the units of remove"):
        refit(model, small, graph, X, remove={"1": (0,), "3": (1,)})
    with pytest.raises(UnknownNameError, match="unit group"):
        refit(model, small, graph, X, remove={"nowhere": (1,)})
    with torch.no_grad():
        model[1].weight[3] = float("inf")
    broken = _plan(model, X, {"1": (0,)})
    with pytest.raises(UnsupportedModelError, match="finite values around '3'"):
        apply(model, broken, compensation="refit", data=X)
