"""SparseConv2d, SparseLinear and ChannelPrunedConv2d beside the layers they come from."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.nn import ChannelPrunedConv2d, SparseConv2d, SparseLinear
from causalprune.ops import plan_cache

# Of torch's own layer, where an even kernel needs a border on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"padding": 1},
    "no bias, stride 2": {"stride": 2, "bias": False},
    "groups": {"groups": 3, "dilation": 2, "padding": (2, 1)},
    "same": {"padding": "same", "kernel_size": (2, 5)},
    "valid": {"padding": "valid"},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect"},
    "circular": {"padding": "same", "padding_mode": "circular", "kernel_size": 4},
    "replicate": {"padding": 1, "padding_mode": "replicate", "stride": (2, 1)},
}


def convolution(name: str, inputs: int = 6, outputs: int = 9) -> nn.Conv2d:
    torch.manual_seed(sum(map(ord, name)))
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, **CONVOLUTIONS[name]})


def halved(conv: nn.Conv2d | nn.Linear) -> float:
    """The weight below which half of them lie."""
    return conv.weight.detach().abs().median().item()


def zeroed(layer: Any, threshold: float) -> Any:
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight[layer.weight.abs() <= threshold] = 0
    return layer


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sparse_convolution(name: str) -> None:
    conv = convolution(name)
    before = conv.weight.detach().clone()
    sparse = SparseConv2d.from_dense(conv, halved(conv), activation="silu")
    dense, x = zeroed(conv, halved(conv)), torch.randn(2, 6, 11, 10)
    expected = dense(x)
    residual = torch.randn_like(expected)
    torch.testing.assert_close(sparse(x), nn.functional.silu(expected), rtol=1e-4, atol=1e-5)
    got = sparse(x, residual)
    torch.testing.assert_close(got, nn.functional.silu(expected + residual), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse(x[0], residual[0]), got[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(conv.weight, before)
    assert torch.equal(sparse.weight, dense.weight)


def test_sparse_linear() -> None:
    linear = nn.Linear(33, 15)
    sparse = SparseLinear.from_dense(linear, halved(linear), activation="relu")
    dense = zeroed(linear, halved(linear))
    for shape in ((33,), (1, 33), (7, 33), (2, 19, 33), (2, 3, 4, 33), (0, 33)):
        x = torch.randn(shape)
        residual = torch.randn(*shape[:-1], 15)
        expected = (dense(x) + residual).relu()
        torch.testing.assert_close(sparse(x, residual), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sparse(x), dense(x).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "groups"])
def test_channel_pruned_convolution(name: str) -> None:
    conv, x = convolution(name), torch.randn(2, 6, 11, 10)
    inputs, outputs = [4, 0, 5], [8, 2, 3, 1]
    pruned = ChannelPrunedConv2d.from_dense(conv, inputs, outputs, activation="relu")
    read = torch.zeros_like(x)
    read[:, inputs] = x[:, inputs]
    full = conv(read)
    residual = torch.randn_like(full)
    expected = residual.clone()
    expected[:, outputs] += full[:, outputs]
    torch.testing.assert_close(pruned(x, residual), expected.relu(), rtol=1e-4, atol=1e-5)
    assert pruned(x)[:, [0, 4, 5, 6, 7]].count_nonzero() == 0
    assert pruned.weight.shape[:2] == (4, 3)


def test_channel_pruned_groups() -> None:
    """Lists in any order, one group without outputs."""
    conv, x = convolution("groups"), torch.randn(2, 6, 11, 10)
    pruned = ChannelPrunedConv2d.from_dense(conv, [5, 0, 2], [8, 0, 2, 7])
    assert pruned.groups == 2 and pruned.inputs.tolist() == [0, 5]
    read = torch.zeros_like(x)
    read[:, [0, 5]] = x[:, [0, 5]]
    full = conv(read)
    torch.testing.assert_close(
        pruned(x)[:, [0, 2, 7, 8]], full[:, [0, 2, 7, 8]], rtol=1e-4, atol=1e-5
    )
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    pruned = ChannelPrunedConv2d.from_dense(depthwise, [1, 5], [5, 1])
    torch.testing.assert_close(pruned(x)[:, [1, 5]], depthwise(x)[:, [1, 5]], rtol=1e-4, atol=1e-5)


def test_nothing_kept() -> None:
    conv, x = convolution("3x3"), torch.randn(2, 6, 5, 5)
    residual = torch.randn(2, 9, 5, 5)
    assert torch.equal(ChannelPrunedConv2d.from_dense(conv, [1], [])(x, residual), residual)
    constant = ChannelPrunedConv2d.from_dense(conv, [], [3])(x)
    assert conv.bias is not None
    assert torch.equal(constant[:, 3], conv.bias[3].detach().expand(2, 5, 5))
    empty = ChannelPrunedConv2d.from_dense(convolution("groups"), [], [])
    assert empty(torch.randn(1, 6, 7, 7)).count_nonzero() == 0


# ---- copies, files, threads ----------------------------------------------------------------------

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "sparse": lambda: SparseConv2d.from_dense(convolution("3x3"), 0.1, "relu"),
    "linear": lambda: SparseLinear.from_dense(nn.Linear(6, 9), 0.1),
    "channels": lambda: ChannelPrunedConv2d.from_dense(convolution("3x3"), [1, 5], [0, 8, 3]),
}


def example(kind: str) -> Tensor:
    return torch.randn(4, 6) if kind == "linear" else torch.randn(2, 6, 8, 8)


@pytest.mark.parametrize("kind", MAKERS)
def test_copies_and_files(kind: str, tmp_path: Path) -> None:
    layer, x = MAKERS[kind]().eval(), example(kind)
    expected = layer(x)
    copied = copy.deepcopy(layer)
    pickled = pickle.loads(pickle.dumps(layer))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    loaded = MAKERS[kind]()
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    loaded.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    for other in (copied, pickled, loaded):
        assert repr(other) == repr(layer)
        torch.testing.assert_close(other(x), expected)
    keys = {"weight", "bias", *(("inputs", "outputs") if kind == "channels" else ())}
    assert layer.state_dict().keys() == keys
    with torch.no_grad():
        copied.weight.zero_()
    assert not torch.equal(copied(x), expected) and torch.equal(layer(x), expected)


def test_state_dicts_are_those_of_dense_layers() -> None:
    conv, x = convolution("3x3"), torch.randn(2, 6, 8, 8)
    sparse = SparseConv2d(6, 9, 3, padding=1)
    sparse.load_state_dict(conv.state_dict())
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-5)
    other = convolution("same", 6, 9)
    linear = nn.Linear(6, 9)
    linear.load_state_dict(SparseLinear.from_dense(linear).state_dict())
    other = nn.Conv2d(6, 9, 3, padding=1)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), conv(x))


def test_representations_tell_what_is_left() -> None:
    conv = convolution("3x3")
    assert "50.0% zeros, activation=relu" in repr(
        SparseConv2d.from_dense(conv, halved(conv), "relu")
    )
    linear = nn.Linear(6, 9)
    assert "out_features=9" in repr(SparseLinear.from_dense(linear))
    assert "2 of 6 inputs, 3 of 9 outputs" in repr(MAKERS["channels"]())


def test_settings_are_kept() -> None:
    conv = convolution("no bias, stride 2").double().eval()
    conv.weight.requires_grad_(False)
    for layer in (SparseConv2d.from_dense(conv), ChannelPrunedConv2d.from_dense(conv, [0], [1])):
        assert layer.bias is None and not layer.training
        assert layer.weight.dtype == torch.float64 and not layer.weight.requires_grad
        assert layer(torch.randn(1, 6, 5, 5).double()).dtype == torch.float64


def test_a_masked_layer_is_read_as_it_runs() -> None:
    conv, x = convolution("3x3"), torch.randn(1, 6, 5, 5)
    nn.utils.prune.l1_unstructured(conv, "weight", amount=0.5)
    sparse = SparseConv2d.from_dense(conv)
    assert sparse.state_dict().keys() == {"weight", "bias"}
    assert (sparse.weight == 0).float().mean() == 0.5
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-5)


def test_refresh_after_a_write_that_torch_does_not_count() -> None:
    layer, x = SparseConv2d.from_dense(convolution("3x3")), torch.randn(1, 6, 5, 5)
    with torch.no_grad():
        before = layer(x)
        layer.weight.data.mul_(2)
        layer.refresh()
        assert layer.bias is not None
        bias = layer.bias[:, None, None]
        torch.testing.assert_close(layer(x) - bias, 2 * (before - bias), rtol=1e-4, atol=1e-5)


def test_two_threads_run_one_layer() -> None:
    layers = [MAKERS["sparse"](), MAKERS["channels"]()]
    given = [torch.randn(3, 6, 9, 9), torch.randn(2, 6, 12, 7)]
    with torch.no_grad():
        expected = [[layer(x) for x in given] for layer in copy.deepcopy(layers)]
    start, wrong = threading.Barrier(2), []

    def run(which: int) -> None:
        start.wait()
        with torch.no_grad():
            for turn in range(30):
                x = (which + turn // 3) % 2
                for layer, wanted in zip(layers, expected, strict=True):
                    if not torch.equal(layer(given[x]), wanted[x]):
                        wrong.append((which, turn))

    workers = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_plans_go_with_the_layer() -> None:
    layer = MAKERS["sparse"]()
    layer(example("sparse"))
    storage = layer.weight.untyped_storage()._cdata
    assert storage in plan_cache._OF_STORAGE
    del layer
    assert storage not in plan_cache._OF_STORAGE


# ---- training ------------------------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=1e-2),
    "AdamW": lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=0.1),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, 0.002, centered=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_keeps_the_zeros(name: str) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    network = nn.Sequential(
        SparseConv2d.from_dense(conv, halved(conv), "relu"),
        nn.Flatten(),
        SparseLinear.from_dense(nn.Linear(128, 4), 0.04),
    )
    zeros = [network[k].weight == 0 for k in (0, 2)]
    start = [network[k].weight.detach().clone() for k in (0, 2)]
    optimiser = OPTIMISERS[name](network.parameters())
    x, y = torch.randn(16, 3, 4, 4), torch.arange(16) % 4
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for k, (zero, before) in enumerate(zip(zeros, start, strict=True)):
        weight = network[2 * k].weight
        assert weight[zero].count_nonzero() == 0 and zero.sum() > 50
        assert (weight[~zero] != before[~zero]).float().mean() > 0.9


def test_training_channel_lists() -> None:
    layer, x = MAKERS["channels"](), torch.randn(2, 6, 8, 8, requires_grad=True)
    residual = torch.randn(2, 9, 8, 8, requires_grad=True)
    layer(x, residual).square().sum().backward()
    assert x.grad is not None and residual.grad is not None
    assert sorted(set(x.grad.sum((0, 2, 3)).nonzero().flatten().tolist())) == [1, 5]
    assert all(parameter.grad is not None for parameter in layer.parameters())
    torch.testing.assert_close(residual.grad, 2 * layer(x, residual).detach())


@pytest.mark.parametrize("kind", MAKERS)
def test_compile_and_export(kind: str) -> None:
    torch._dynamo.reset()
    layer, x = MAKERS[kind]().eval(), example(kind)
    with torch.no_grad():
        expected = layer(x)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), expected)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseConv2d.from_dense(nn.Linear(2, 2)), "conv: expected a torch.nn.Conv2d"),
        (lambda: SparseConv2d.from_dense(nn.LazyConv2d(2, 1)), "conv: .* got a lazy one"),
        (lambda: SparseConv2d.from_dense(nn.Conv2d(1, 1, 1), -0.1), "threshold: .* got -0.1"),
        (lambda: SparseConv2d.from_dense(nn.Conv2d(1, 1, 1), torch.nan), "threshold: .* got nan"),
        (lambda: SparseConv2d(1, 1, 1, activation="tanh"), "activation: .* got 'tanh'"),
        (lambda: SparseLinear.from_dense(nn.Conv2d(1, 1, 1)), "linear: expected a torch.nn.Linear"),
        (lambda: SparseLinear(2, 2, activation=None), "activation: .* got None"),
    ],
)
def test_bad_sparse_layers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([0, 6], [0], r"inputs: expected channels in \[0, 6\), got 6"),
        ([0], [-1], r"outputs: expected channels in \[0, 9\), got -1"),
        ([2, 2], [0], "inputs: expected every channel once, got 2 twice"),
        ([0, 2, 3], [0, 3], "inputs: expected as many of every group"),
        ([0, 2], [0, 3, 4], "outputs: expected as many of every group"),
    ],
)
def test_bad_lists(inputs: list[int], outputs: list[int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ChannelPrunedConv2d.from_dense(convolution("groups"), inputs, outputs)
    with pytest.raises(InvalidArgumentError, match="weight: expected shape"):
        ChannelPrunedConv2d(torch.zeros(2, 2, 1, 1), None, [0], [1], 4, 4)
