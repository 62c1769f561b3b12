"""Finding the stretches of a network that can stay in the packed layout."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions

from causalprune.nn.packed_operations import (
    Combination,
    Convolution,
    GlobalAverage,
    Operation,
    Pooling,
    Subsampling,
    activation_of,
    function_name,
    is_image,
    operation_of,
)
from causalprune.ops.packed_layouts import Window

__all__ = ["Stretch", "cut_out", "in_normal_form", "stretches_in"]

PREFIX = "stretch_"


@dataclass(frozen=True)
class Stretch:
    """Operations that run behind one another in the packed layout.

    Attributes
    ----------
    operations : tuple
        In an order in which they can run.
    inputs, outputs : tuple of str
        Values that come in and that others read, in the order of the dense module's.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions."""
        return tuple(o.layer for o in self.operations if isinstance(o, Convolution))


# ---- the normal form ----------------------------------------------------------------------------


def in_normal_form(traced: fx.GraphModule) -> None:
    """Remove what does nothing in eval mode, and what changes a value that another node reads.

    An operation in place changes its input for all who read it later: they read its output
    instead. Where somebody has read the input before, the operation is no longer in place, since
    nothing else would keep their order.
    """
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        if _does_nothing(node, traced):
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
        elif _is_in_place(node, traced):
            later = False
            behind: set[fx.Node] = set()
            for each in traced.graph.nodes:
                if later:
                    behind.add(each)
                later = later or each is node
            source.replace_all_uses_with(node, delete_user_cb=behind.__contains__)
            if len(source.users) > 1 or source.op in ("placeholder", "get_attr"):
                _put_apart(node, traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _does_nothing(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        kinds = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
        module = traced.get_submodule(str(node.target))
        return type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks)
    name = function_name(node)
    if name in ("dropout", "dropout2d", "stochastic_depth"):
        positions = {"dropout": 2, "dropout2d": 2, "stochastic_depth": 3}
        at = positions[name]
        given = node.args[at] if len(node.args) > at else node.kwargs.get("training", True)
        return given is False
    return False


def _is_in_place(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    name = function_name(node)
    if name == "iadd" or (name.endswith("_") and not name.endswith("__")):
        return True
    return bool(node.kwargs.get("inplace", False)) or (
        name in ("relu", "silu", "hardswish", "relu6") and len(node.args) > 1 and bool(node.args[1])
    )


def _put_apart(node: fx.Node, traced: fx.GraphModule) -> None:
    """Make an operation in place one that leaves its input alone, where that is known."""
    if node.op == "call_module":
        module: Any = copy(traced.get_submodule(str(node.target)))
        module.inplace = False
        node.target = f"{str(node.target).replace('.', '_')}_apart_{node.name}"
        traced.add_submodule(node.target, module)
        return
    name = function_name(node)
    apart: dict[str, Any] = {"iadd": operator.add, "add_": "add", "relu_": F.relu}
    if name == "add_" and node.op == "call_function":
        node.target = operator.add
    elif name == "relu_":
        node.op, node.target = "call_function", F.relu
    elif name in apart:
        node.target = apart[name]
    elif name in ("relu", "silu", "hardswish", "relu6"):
        node.args, node.kwargs = node.args[:1], {}


# ---- stretches ----------------------------------------------------------------------------------


def stretches_in(traced: fx.GraphModule, without: Collection[str] = ()) -> list[list[fx.Node]]:
    """Return the nodes of every maximal stretch that has a convolution.

    Parameters
    ----------
    traced : fx.GraphModule
        In normal form, with the shape of every value in its ``tensor_meta``.
    without : collection of str
        Names of layers that stay outside.

    Returns
    -------
    list of lists of nodes
        Connected, in the order of the graph, without cycles among each other.
    """
    packs = {n for n in traced.graph.nodes if _packs(n, traced, without)}
    packs |= _sizes_of(packs, traced)
    ends = {n for n in packs if isinstance(operation_of(n, traced), GlobalAverage)}
    # Even levels run in torch, odd ones packed; a level is never left and entered again.
    level: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        least = max((level[n] + (n in ends) for n in node.all_input_nodes), default=0)
        level[node] = least + (least % 2 != (node in packs))
    stretches = _connected([n for n in traced.graph.nodes if n in packs], level)
    kept = [_trimmed(nodes, traced) for nodes in stretches]
    return [nodes for nodes in kept if any(_convolves(n, traced) for n in nodes)]


def _packs(node: fx.Node, traced: fx.GraphModule, without: Collection[str]) -> bool:
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if str(node.target) in without or module._forward_hooks or module._forward_pre_hooks:
            return False
    source = node.args[0] if node.args else None
    if not is_image(node) and function_name(node) != "mean":
        return False
    if activation_of(node, traced):
        return is_image(source)
    return operation_of(node, traced) is not None


def _sizes_of(packs: set[fx.Node], traced: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that give an image's size to nothing but packed nodes."""
    found: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        shaped = function_name(node) in ("size", "getitem") or node.target is getattr
        unknown = shaped and node not in packs and "tensor_meta" not in node.meta
        if unknown and node.users and all(u in packs or u in found for u in node.users):
            found.add(node)
    return found


def _connected(nodes: Sequence[fx.Node], level: dict[fx.Node, int]) -> list[list[fx.Node]]:
    """Return the connected parts of nodes of the same level."""
    part = {node: node for node in nodes}

    def root(node: fx.Node) -> fx.Node:
        while part[node] is not node:
            node = part[node]
        return node

    for node in nodes:
        for source in node.all_input_nodes:
            if source in part and level[source] == level[node]:
                part[root(node)] = root(source)
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        found.setdefault(root(node), []).append(node)
    return list(found.values())


def _trimmed(nodes: list[fx.Node], traced: fx.GraphModule) -> list[fx.Node]:
    """Drop what comes before the first convolution: packing for it alone does not pay."""
    kept: dict[fx.Node, None] = {}
    for node in nodes:
        if _convolves(node, traced) or any(source in kept for source in node.all_input_nodes):
            kept[node] = None
    return list(kept)


def _convolves(node: fx.Node, traced: fx.GraphModule) -> bool:
    return isinstance(operation_of(node, traced), Convolution)


def cut_out(traced: fx.GraphModule, nodes: Sequence[Sequence[fx.Node]]) -> dict[str, Stretch]:
    """Make every stretch a submodule of `traced`, in place.

    Returns
    -------
    dict of str to Stretch
        Name of the submodule, an fx.GraphModule that computes it with torch, to its operations.
    """
    # Before values get the names of what they are taken from.
    found = {f"{PREFIX}{k}": _stretch(part, traced) for k, part in enumerate(nodes)}
    fuse_by_partitions(
        traced, [dict.fromkeys(part) for part in nodes], PREFIX, always_return_tuple=True
    )
    traced.delete_all_unused_submodules()
    traced.recompile()
    return found


def _stretch(nodes: Sequence[fx.Node], traced: fx.GraphModule) -> Stretch:
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    outputs = [n for n in nodes if any(user not in inside for user in n.users)]
    return Stretch(_operations(nodes, traced), tuple(map(str, read)), tuple(map(str, outputs)))


def _operations(nodes: Sequence[fx.Node], traced: fx.GraphModule) -> tuple[Operation, ...]:
    inside = set(nodes)
    made: dict[str, Operation] = {}
    for node in nodes:
        sources = [n for n in node.all_input_nodes if n in inside]
        # Only a value that nobody else reads may disappear into what follows.
        lone = {n.name for n in sources if len(n.users) == 1}
        activation = activation_of(node, traced)
        plain = operation_of(node, traced)
        if not activation and plain is None:
            continue  # the size of an image
        if activation:
            first = str(node.args[0])
            made[node.name] = _activated(node.name, first, activation, made, lone)
        elif isinstance(plain, Combination):
            made[node.name] = _joined(plain, made, lone)
        elif isinstance(plain, Subsampling) and plain.step == (1, 1):
            before = made.get(plain.source)
            if isinstance(before, Subsampling) and plain.source in lone:
                del made[plain.source]
                plain = replace(
                    plain,
                    source=before.source,
                    step=before.step,
                    before=plain.before + before.before,
                    after=plain.after + before.after,
                )
            made[node.name] = plain
        else:
            assert plain is not None
            made[node.name] = plain
    return tuple(part for op in made.values() for part in _thinned_first(op))


def _thinned_first(op: Operation) -> tuple[Operation, ...]:
    """Take the rows and columns that a strided 1x1 convolution reads out before it.

    Read where they lie, they fall into a quarter of the sets of every cache: the convolution then
    takes three times as long.
    """
    if not isinstance(op, Convolution):
        return (op,)
    window = op.window
    if window.kernel != (1, 1) or window.stride == (1, 1) or window.padding != (0, 0):
        return (op,)
    thinned = f"{op.name}__thinned"
    return (
        Pooling(thinned, op.source, "max", Window((1, 1), window.stride)),
        replace(op, source=thinned, window=replace(window, stride=(1, 1))),
    )


def _activated(
    name: str, source: str, activation: str, made: dict[str, Operation], lone: set[str]
) -> Operation:
    before = made.get(source)
    fuses = isinstance(before, Convolution | Combination) and before.activation == "none"
    if source in lone and fuses:
        assert isinstance(before, Convolution | Combination)
        del made[source]
        return replace(before, name=name, activation=activation)
    return Combination(name, source, activation=activation)


def _joined(sum_: Combination, made: dict[str, Operation], lone: set[str]) -> Operation:
    """Put a sum into the convolution that makes one side, a batch norm behind a sum."""
    if sum_.layer:
        before = made.get(sum_.a)
        bare = isinstance(before, Combination) and not before.layer
        if sum_.a in lone and bare:
            assert isinstance(before, Combination)
            if before.activation == "none":
                del made[sum_.a]
                return replace(before, name=sum_.name, layer=sum_.layer)
        return sum_
    order = list(made)
    sides = [(sum_.a, sum_.b), (sum_.b, sum_.a)]
    # The later one: then the other is ready, and the input of this one need not wait.
    sides.sort(key=lambda side: order.index(side[0]) if side[0] in made else -1, reverse=True)
    for mine, other in sides:
        before = made.get(mine)
        if mine == other or mine not in lone or not isinstance(before, Convolution):
            continue
        if before.activation == "none" and not before.residual:
            del made[mine]
            return replace(before, name=sum_.name, residual=other)
    return sum_
