"""What a network must be to be traced, and what is said where it is not."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
import untraceable
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import (
    InvalidArgumentError,
    UnsupportedModelError,
    UntraceableModelError,
)
from causalprune.graph import capture
from causalprune.graph.trace import exported_in, shape_of, trace, trace_shapes


@pytest.mark.parametrize("name", sorted(networks.ALL))
def test_symbolic_trace_comes_first(name: str) -> None:
    model = networks.ALL[name]()
    x = torch.randn(5, 1, 16, 16)
    for traced in (trace(model), trace(model, x)):
        assert exported_in(traced) is None
        torch.testing.assert_close(traced(x), model(x))
    assert all(shape_of(n) for n in traced.graph.nodes if n.op == "call_module")


def test_a_symbolic_trace_of_the_wrong_branch_is_not_taken() -> None:
    class Types(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 5, bias=False), nn.Linear(5, 3)

        def forward(self, x: Any) -> Tensor:
            x = torch.tanh(self.fc1(x)) if isinstance(x, Tensor) else self.fc1(x)
            return self.fc2(x)

    model, x = Types(), torch.randn(3, 4)
    assert not torch.allclose(trace(model)(x), model(x))
    for example in (x, torch.zeros(2, 4)):
        traced = trace(model, example)
        assert exported_in(traced) is not None
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("model", [untraceable.Sized(networks.lenet()), networks.vgg()])
def test_no_message_and_no_output_where_all_is_well(
    model: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(model, networks.images(2))
    with pytest.raises(UntraceableModelError):
        trace(untraceable.OnValues(), torch.randn(2, 1, 9, 9))
    assert capfd.readouterr() == ("", "")


def test_failure_names_layer_line_and_both_reasons() -> None:
    model = nn.Sequential(OrderedDict(body=untraceable.OnValues()))
    with pytest.raises(UntraceableModelError) as caught:
        trace(model, torch.randn(2, 1, 9, 9))
    message = str(caught.value)
    assert "neither torch.fx nor torch.export" in message
    assert re.search(r"layer 'body' \(OnValues, .*untraceable\.py:\d+: 'if x\.sum", message)
    assert "control flow" in message and "data-dependent" in message


class _Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *args: Any, scale: float = 0.5, **options: Any
    ) -> Tensor:
        x = F.relu(self.fc1(x))
        if mask is not None:
            x = x * mask
        if options.get("twice"):
            scale = 2 * scale
        return self.fc2(x) * scale


def test_optional_inputs_keep_their_defaults() -> None:
    model, x = _Options(), torch.randn(3, 4)
    for traced in (trace(model), trace(model, x)):
        assert exported_in(traced) is None
        assert [n.name for n in traced.graph.nodes if n.op == "placeholder"] == ["x"]
        torch.testing.assert_close(traced(x), model(x))
    assert [group.name for group in capture(model, x).groups] == ["fc1"]


class _Remembers(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: object = None
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.shape = x.shape, x.shape
        return self.inner(x * torch.tensor([0.5]) + self.offset)


@pytest.mark.parametrize("sized", [False, True], ids=["symbolic", "exported"])
def test_a_traced_forward_leaves_nothing_behind(sized: bool) -> None:
    inner = networks.lenet()
    model = _Remembers(untraceable.Sized(inner) if sized else inner).eval()
    x = torch.randn(3, 1, 16, 16)
    traced = trace(model, x)
    assert (exported_in(traced) is not None) is sized
    assert all(type(size) is int for size in (*model.seen, *model.shape))  # of a run, no trace
    assert not [name for name in vars(model) if "constant" in name]
    assert torch.equal(model.offset, torch.ones(1))
    torch.testing.assert_close(traced(x), model(x))


def test_a_trace_without_a_run_leaves_nothing_behind() -> None:
    model, x = _Remembers(networks.lenet()), torch.randn(3, 1, 16, 16)
    attributes = set(vars(model))
    traced = trace(model)
    assert set(vars(model)) == attributes and model.seen is None
    torch.testing.assert_close(traced(x), model.eval()(x))


class _TwoInputs(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class _NamedInput(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


class _NoInput(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(2, 3)


@pytest.mark.parametrize("model", [_TwoInputs(), _NamedInput(), _NoInput()])
def test_number_of_inputs_is_named(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=r"one input, got _\w+\.forward\("):
        capture(model, torch.randn(2, 4))


class _Returns(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(4, 3), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(x)
        return self.kind({"logits": logits, "features": x}) if self.kind is dict else (logits, x)


@pytest.mark.parametrize(
    ("kind", "described"), [(dict, "dict with 'logits', 'features'"), (tuple, "tuple of 2")]
)
def test_output_that_is_no_tensor_is_named(kind: type, described: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"one tensor.*{described}"):
        capture(_Returns(kind), torch.randn(2, 4))
    data = (torch.randn(4, 4), torch.arange(4) % 3)
    with pytest.raises(UnsupportedModelError, match=described):
        cp.score(_Returns(kind), data, method="ablation")


def test_compiled_networks_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
        compiled = torch.compile(networks.mlp())
    with pytest.raises(UnsupportedModelError, match="ScriptModule"):
        capture(scripted, torch.randn(2, 4))
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile"):
        capture(compiled, networks.images(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_example_that_does_not_fit_is_named(name: str) -> None:
    model = networks.ALL[name]().train()
    with pytest.raises(InvalidArgumentError, match=r"example: .*\(3, 2, 16, 16\).*channels"):
        trace_shapes(model, torch.randn(3, 2, 16, 16))
    with pytest.raises(InvalidArgumentError, match=r"example: .*untraceable\.py:\d+"):
        trace_shapes(untraceable.HuggingFaceLike(), torch.randn(3, 1, 12))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("example", [None, [1.0], torch.zeros(4), torch.zeros(0, 4)])
def test_example_must_be_a_batch(example: object) -> None:
    with pytest.raises(InvalidArgumentError, match="example: expected a batch"):
        trace_shapes(nn.Linear(4, 3), example)  # type: ignore[arg-type]


def test_batch_norm_without_statistics_is_refused_by_name() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    inner = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    data = (networks.images(4), networks.targets(4))
    for model, layer in ((inner, "1"), (untraceable.Sized(inner), "inner.1")):
        with pytest.raises(UnsupportedModelError, match=f"layer '{layer}'.*batch statistics"):
            cp.score(model, data, method="ablation")
