"""Networks that cannot be traced at all: their units as hooks on the layers see them.

One run shows which layer reads what which layer has written. Every convolution and linear layer
is then a group of its own, cut behind the norm, activation, dropout and pooling that follow it,
and an intervention is a whole forward pass with a hook on that layer's output.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from causalprune.errors import CapturedByHooksWarning, UnsupportedModelError
from causalprune.graph.trace import evaluating, run_once
from causalprune.graph.units import Consumer, ConsumerSite, Owned, Span, UnitGraph, UnitGroup

__all__ = ["capture_by_hooks"]

_LAYERS = (nn.Conv2d, nn.Linear)
# What keeps the units apart, and lies behind a layer as a part of it.
_ANYWHERE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Dropout, nn.AlphaDropout, nn.PReLU,
)  # fmt: skip
_ON_MAPS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm2d, nn.InstanceNorm2d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip

Value = tuple[int, int]
"""A tensor's memory, and how often it had been written to."""


def capture_by_hooks(model: nn.Module, example: Tensor, reason: str) -> UnitGraph:
    """Find units in a network that cannot be traced, by running it once with hooks.

    Every ``nn.Conv2d`` and ``nn.Linear`` that is called once is a group of its own: its output
    channels, cut in the output of the last layer of the chain that only hands them on (batch
    norm, activation, dropout, pooling), as far as nothing else reads the values in between.
    What is not seen is what the functions between the layers do: units that an addition couples
    stay apart, and nothing can be removed for good.

    Parameters
    ----------
    model : nn.Module
        Its modes and hooks are restored.
    example : Tensor [N, ...]
        An input batch on the model's device; the network takes the same way for every batch, or
        what is found holds for this one only.
    reason : str
        Why the network could not be traced.

    Returns
    -------
    UnitGraph
        With ``traced`` false, no `sites`, and consumers of kind "map" and "features".

    Warns
    -----
    CapturedByHooksWarning
        Always; says what still works.

    Raises
    ------
    UnsupportedModelError
        If no convolution or linear layer can be cut this way.

    Examples
    --------
    >>> class Signs(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden, self.relu, self.out = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    ...     def forward(self, x):
    ...         return self.out(self.relu(self.hidden(x if x.sum() > 0 else -x)))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     graph = capture_by_hooks(Signs(), torch.ones(2, 4), "branches on a value")
    >>> graph.groups[0].consumers
    (Consumer(layer='relu', kind='features', features_per_unit=1),)
    """
    record = _recorded(model, example)
    groups, refused, positions = [], {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, _LAYERS):
            continue
        call, refusal = _only_call(record, name, module)
        if call is not None:
            positions[name] = math.prod(call.shape[2:] if _is_map(call) else call.shape[1:-1])
        if call is None or refusal:
            refused[name] = refusal
        else:
            groups.append(_group(record, call, reason))
    if not groups:
        named = "; ".join(f"{layer}: {why}" for layer, why in refused.items()) or "no layers"
        raise UnsupportedModelError(f"{reason}; nor are there units that hooks can cut ({named})")
    order = {call.layer: k for k, call in enumerate(record.calls)}
    groups.sort(key=lambda group: order[group.name])
    warnings.warn(
        f"{reason}; its units are captured by hooks on its layers instead. Ablation and the other "
        "methods on whole forward passes work, each at the cost of a full pass; "
        "method='path' and other methods that need the graph do not, and no unit can be removed "
        "for good",
        CapturedByHooksWarning,
        stacklevel=2,
    )
    return UnitGraph(
        tuple(groups), refused, NoSites(reason), positions, traced=False, untraced=reason
    )


class NoSites(Mapping[str, ConsumerSite]):
    """The sites of a network without a graph: none, and whoever asks for one learns why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getitem__(self, layer: str) -> ConsumerSite:
        raise UnsupportedModelError(
            f"this method needs the network's graph, and there is none. {self._reason}. "
            "method='ablation' works without it"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _group(record: _Record, first: _Call, reason: str) -> UnitGroup:
    chain = _chain(record, first)
    module = first.module
    n_units = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    assert isinstance(n_units, int)
    units = (Span(0, n_units, 0),)
    norms = [c.layer for c in chain if isinstance(c.module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    return UnitGroup(
        name=first.layer,
        kind="filter" if _is_map(first) else "hidden",
        n_units=n_units,
        owned=(
            Owned(first.layer, "producer", units),
            *(Owned(name, "norm", units) for name in norms),
        ),
        consumers=(Consumer(chain[-1].layer, "map" if _is_map(first) else "features", 1, units),),
        surgery=f"the network could not be traced: {reason.removeprefix('model: ')}",
    )


def _only_call(record: _Record, name: str, module: nn.Module) -> tuple[_Call | None, str]:
    calls = [call for call in record.calls if call.layer == name]
    if len(calls) != 1:
        return None, f"is called {len(calls)} times" if calls else "is not called by its own name"
    (call,) = calls
    if len(call.shape) != 4 if isinstance(module, nn.Conv2d) else len(call.shape) < 2:
        return call, f"returns a tensor of shape {call.shape}, without images"
    if name in record.at_output:
        return call, "feeds the model's output"
    return call, ""


def _is_map(call: _Call) -> bool:
    return isinstance(call.module, nn.Conv2d)


def _chain(record: _Record, first: _Call) -> list[_Call]:
    """Return the calls from `first` on, each the only reader of the value before it."""
    chain = [first]
    while True:
        value = chain[-1].output
        readers = record.readers[value]
        following = [call for call in record.calls if call.input == value and call.writes]
        if len(following) != 1 or readers != {following[0].index}:
            return chain
        call = following[0]
        alone = sum(other.layer == call.layer for other in record.calls) == 1
        if not alone or not _hands_on(call, first) or value in record.final:
            return chain
        chain.append(call)


def _hands_on(call: _Call, first: _Call) -> bool:
    if type(call.module) in _ANYWHERE:
        return not isinstance(call.module, nn.PReLU) or _is_map(first) or len(call.shape) == 2
    if type(call.module) is nn.BatchNorm1d:
        return not _is_map(first) and len(call.shape) == 2
    return _is_map(first) and type(call.module) in _ON_MAPS


# ---- one run, watched ---------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a layer without sublayers: what it read and what it made."""

    index: int
    layer: str
    module: nn.Module
    input: Value | None
    output: Value = (0, 0)
    shape: tuple[int, ...] = ()
    writes: bool = False


@dataclass
class _Record:
    """What one run has shown.

    `readers` has the calls, -1 for a function outside of any, that read a value; `final` the
    values in the network's output; `at_output` the layers whose units reach the output without
    another convolution or linear layer in between.
    """

    calls: list[_Call] = field(default_factory=list)
    readers: dict[Value, set[int]] = field(default_factory=lambda: defaultdict(set))
    final: set[Value] = field(default_factory=set)
    at_output: set[str] = field(default_factory=set)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator of a run: who reads which value, and whose units a value carries."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = _Record()
        self.inside: list[_Call] = []
        self._carried: dict[int, frozenset[str]] = defaultdict(frozenset)
        self._written: Counter[int] = Counter()
        self._alive: dict[int, Any] = {}  # an address must not come back for another tensor

    def value(self, tensor: Tensor) -> Value:
        """Return the value of `tensor` as it is now."""
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = storage
        return storage._cdata, self._written[storage._cdata]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and note what it reads and writes."""
        kwargs = kwargs or {}
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        reader = self.inside[-1].index if self.inside else -1
        carried: frozenset[str] = frozenset()
        for tensor in sources:
            key = self.value(tensor)
            self.record.readers[key].add(reader)
            carried |= self._carried[key[0]]
        result = func(*args, **kwargs)
        written = func._schema.is_mutable
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                memory = self.value(tensor)[0]
                self._carried[memory] |= carried
                self._written[memory] += written
        return result

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note that a layer is called."""
        tensors = [t for t in args if isinstance(t, Tensor)]
        read = self.value(tensors[0]) if len(tensors) == 1 else None
        call = _Call(len(self.record.calls), name, module, read)
        self.record.calls.append(call)
        self.inside.append(call)

    def leave(self, output: Any) -> None:
        """Note what the layer called last has returned."""
        call = self.inside.pop()
        if not isinstance(output, Tensor):
            return
        call.output, call.shape = self.value(output), tuple(output.shape)
        # Inert dropout returns its input: no link of a chain, and no end of one.
        call.writes = call.output != call.input
        if isinstance(call.module, _LAYERS):
            self._carried[call.output[0]] = frozenset({call.layer})

    def finish(self, output: Tensor) -> _Record:
        """Note which layers' units are the network's output."""
        final = self.value(output)
        self.record.final.add(final)
        self.record.at_output |= self._carried[final[0]]
        return self.record


def _recorded(model: nn.Module, example: Tensor) -> _Record:
    run_once(model, example)  # whatever does not fit is said by name
    watch = _Watch()
    with evaluating(model), torch.no_grad(), _watching(model, watch), watch:
        output = model(example[:2])
        return watch.finish(output)


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def follow(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watch.enter(name, module, (*args, *kwargs.values()))

        def behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            watch.leave(output)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(behind))

    try:
        for name, module in model.named_modules():
            followed = isinstance(module, _LAYERS) or not list(module.children())
            if name and followed and not isinstance(module, torch.jit.ScriptModule):
                follow(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()
