"""The layers of a pruned network that are refitted, and to what."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import UnitGraph, trace
from causalprune.graph.flow import describe
from causalprune.graph.intervene import check_units
from causalprune.graph.recording import projected
from causalprune.graph.sites import site_of
from causalprune.graph.steps import Step, steps_of
from causalprune.graph.suffixes import first_input
from causalprune.graph.trace import layers_of, shape_of
from causalprune.pruning.constants import Place, place_of

__all__ = ["Reader", "Traced", "kept_outputs", "readers_of", "traced_of"]

FLAT_BELOW = {"relu": 0.0, "hardswish": -3.0}
"""Activations, and below what they are 0."""


@dataclass(frozen=True)
class Traced:
    """A traced network.

    Attributes
    ----------
    model : nn.Module
    traced : fx.GraphModule
    modules : Mapping of str to nn.Module
        As `traced` calls them.
    """

    model: nn.Module
    traced: fx.GraphModule
    modules: Mapping[str, nn.Module]

    @cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        """Nodes by name."""
        return {node.name: node for node in self.traced.graph.nodes}

    @cached_property
    def steps(self) -> Sequence[Step]:
        """What the network does, as steps that overwrite nothing.

        Raises
        ------
        UnsupportedModelError
            If it writes into a tensor that it reads through a view.
        """
        # Not folded: the same steps on the same values give the same bits in both networks.
        steps = steps_of(self.traced, fold=False)
        if steps is None:
            raise UnsupportedModelError(
                "model: overwrites a tensor that it reads elsewhere through a view, so that no "
                "layer can be fitted to a value on the way; use another compensation"
            )
        return steps

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Place of every step."""
        return {step.name: index for index, step in enumerate(self.steps)}

    @cached_property
    def projections(self) -> Mapping[str, fx.Node]:
        """Node of every convolution and linear layer, and of the attention that ends in one."""
        found = {self.projection(node): node for node in self.nodes.values()}
        return {layer: node for layer, node in found.items() if layer}

    def place_of_constant(self, layer: str) -> Place | None:
        """Return where a constant in the output of `layer` would go."""
        bias = self.model.get_submodule(layer)._parameters.get("bias")
        return place_of(bias, _tensor(self.projections[layer]), self.modules)

    def projection(self, node: fx.Node) -> str:
        """Name of the convolution or linear layer that a step ends in, or ``""``."""
        target = str(node.target)
        if node.op == "call_module":
            module = self.modules[target]
            if isinstance(module, nn.MultiheadAttention):
                return f"{target}.out_proj"
            return target if isinstance(module, (nn.Conv2d, nn.Linear)) else ""
        if getattr(node.target, "__name__", "") != "shifted_window_attention":
            return ""
        names = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        ends = [name for name in names if name.endswith(".proj.weight")]
        return ends[0].removesuffix(".weight") if len(ends) == 1 else ""


@dataclass(frozen=True)
class Reader:
    """A layer of the pruned network that is refitted.

    Attributes
    ----------
    layer : str
        Dotted name.
    module : nn.Conv2d or nn.Linear
    step : Step
        The layer, or the attention layer that ends in it.
    pre, target : str
        Its pre-activation in the pruned and in the original network.
    kept : Tensor [n], int64, or None
        Output channels of the original layer that are left; None: all.
    norm : batch norm or None
        Between the layer and its pre-activation.
    place : Place or None
        Of a constant in the layer's output.
    flat_below : float or None
        Below it the activation behind the pre-activation is 0; None: it is so nowhere.
    """

    layer: str
    module: nn.Conv2d | nn.Linear
    step: Step
    pre: str
    target: str
    kept: Tensor | None
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    place: Place | None
    flat_below: float | None = None

    def inputs(self, value_of: Callable[[str], Any]) -> Tensor:
        """Return what the layer reads, [N, I, H, W] or [..., I]."""
        if self.step.module is not None and not isinstance(self.step.module, nn.MultiheadAttention):
            read: Tensor = value_of(first_input(self.step))
            return read
        seen: list[Tensor] = []

        def watch(heads: Tensor) -> Tensor:
            seen.append(heads)
            return heads

        projected(self.step, value_of, watch)
        return seen[0]

    def of_target(self, value: Tensor) -> Tensor:
        """Return the channels of the original pre-activation that are left."""
        if self.kept is None:
            return value
        axis = 1 if isinstance(self.module, nn.Conv2d) else -1
        return value.index_select(axis, self.kept.to(value.device))


def traced_of(model: nn.Module, image: Tensor, graph: UnitGraph | None = None) -> Traced:
    """Trace a network on `image` [1, ...].

    Raises
    ------
    UnsupportedModelError
        If it cannot be traced.
    """
    traced = trace(model, image, exported=None if graph is None else graph.exported)
    return Traced(model, traced, layers_of(traced, model))


def readers_of(
    original: Traced,
    small: Traced,
    graph: UnitGraph,
    remove: Mapping[str, Sequence[int]],
    layers: str,
) -> list[Reader]:
    """Layers to refit, in the order in which the pruned network computes them.

    Parameters
    ----------
    original, small : Traced
    graph : UnitGraph
        Of the original network.
    remove : Mapping of str to sequence of int
        What the pruned network lacks.
    layers : str
        ``"consumers"``: layers that read removed units; ``"all"``: and what lies behind them;
        ``"pairs"``: and the layers that make the units.
    """
    kept, own = kept_outputs(original.model, graph, remove), _own_weights(small)
    reached: set[str] = set()
    found = []
    for step in small.steps:
        node = small.nodes[step.name]
        layer = small.projection(node)
        twin = original.projections.get(layer)
        behind = any(name in reached for name in step.inputs)
        reads = twin is not None and _reads_less(original.model, small.model, layer)
        if behind or reads:
            reached.add(step.name)
        makes = layer in kept and layers == "pairs"
        wanted = reads or makes or (behind and layers != "consumers")
        if wanted and twin is not None and layer in own:
            found.append(_reader(original, small, layer, step, twin, kept.get(layer)))
    return found


def _reader(
    original: Traced, small: Traced, layer: str, step: Step, twin: fx.Node, kept: Tensor | None
) -> Reader:
    module = small.model.get_submodule(layer)
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    n_outputs = len(original.model.get_parameter(f"{layer}.weight"))
    if len(module.weight) != (n_outputs if kept is None else len(kept)):
        raise InvalidArgumentError(
            f"small: expected the network without the units of remove, got {len(module.weight)} "
            f"outputs of {layer!r}"
        )
    node = small.nodes[step.name]
    site = site_of(node, small.modules, layer)
    twin_site = site_of(twin, original.modules, layer)
    pre, norm_name, activation = small.nodes[site.pre], site.norm, site.activation
    target = original.nodes[twin_site.pre]
    if _path(node, pre) != _path(twin, target):  # nothing behind the layers themselves compares
        pre, target, norm_name, activation = _tensor(node), _tensor(twin), None, "identity"
    norm = None if norm_name is None else small.modules[norm_name]
    assert norm is None or isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    return Reader(
        layer=layer,
        module=module,
        step=step,
        pre=pre.name,
        target=target.name,
        kept=kept,
        norm=norm,
        place=small.place_of_constant(layer),
        flat_below=FLAT_BELOW.get(activation),
    )


def _path(node: fx.Node, end: fx.Node) -> list[str]:
    """Return what the value of a layer passes on its way to its pre-activation."""
    current, path = _tensor(node), []
    while current is not end:
        (current,) = current.users
        path.append(describe(current))
    return path


def _tensor(node: fx.Node) -> fx.Node:
    """Return the node of a layer's output, also where the layer returns a tuple."""
    if shape_of(node) is not None:
        return node
    entries = [user for user in node.users if user.target is operator.getitem]
    return next((entry for entry in entries if entry.args[1] == 0), node)


def _reads_less(original: nn.Module, small: nn.Module, layer: str) -> bool:
    before, after = (_weight_of(model, layer) for model in (original, small))
    return before is not None and after is not None and before.shape[1] != after.shape[1]


def _weight_of(model: nn.Module, layer: str) -> Tensor | None:
    try:
        return model.get_parameter(f"{layer}.weight")
    except AttributeError:  # the other network has no such layer
        return None


def _own_weights(traced: Traced) -> set[str]:
    """Layers whose weights and biases are theirs alone, plain, and used once."""
    owners = Counter(
        id(parameter)
        for module in traced.model.modules()
        for parameter in module.parameters(recurse=False)
    )
    calls = Counter(traced.projection(node) for node in traced.nodes.values())
    del calls[""]
    own = set()
    for layer, n_calls in calls.items():
        module = traced.model.get_submodule(layer)
        plain = "weight" in module._parameters and not parametrize.is_parametrized(module)
        alone = all(owners[id(each)] == 1 for each in module.parameters(recurse=False))
        if plain and alone and n_calls == 1 and not _read_elsewhere(traced, layer):
            own.add(layer)
    return own


def _read_elsewhere(traced: Traced, layer: str) -> bool:
    """Whether another step than the layer itself reads a parameter of it."""
    names = (f"{layer}.weight", f"{layer}.bias")
    return any(
        user is not traced.projections[layer]
        for node in traced.nodes.values()
        if node.op == "get_attr" and node.target in names
        for user in node.users
    )


def kept_outputs(
    model: nn.Module, graph: UnitGraph, remove: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Output channels [n], int64, that are left of every layer of `model` that loses some."""
    masks: dict[str, Tensor] = {}
    for name, units in remove.items():
        group = graph.group(name)
        gone = check_units(group, units, "remove")
        for owned in group.owned:
            module = model.get_submodule(owned.layer)
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            if owned.layer not in masks:
                masks[owned.layer] = torch.ones(len(module.weight), dtype=torch.bool)
            masks[owned.layer][owned.columns(gone)] = False
    return {layer: mask.nonzero().flatten() for layer, mask in masks.items()}
