"""Cutting a layer's channels on its own branch, before they are coupled to anything."""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import fx, nn

from causalprune.graph.assembly import spans_of
from causalprune.graph.flow import Producer, Walk, describe, varies
from causalprune.graph.rules import operator_name
from causalprune.graph.trace import shape_of
from causalprune.graph.units import Consumer

__all__ = ["branch_cuts"]

_ZERO_STAYS_ZERO = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "tanh", "softsign", "hardtanh", "dropout", "dropout2d", "abs", "neg", "square", "sqrt",
    "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type",
    "stochastic_depth", "drop_block2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "interpolate", "mul", "imul", "multiply", "truediv", "div", "mean",
    "sum", "flatten", "unsqueeze", "squeeze", "view", "reshape", "permute", "transpose",
    "swapaxes", "roll", "getitem", "select", "chunk", "split", "expand", "cat", "concat", "stack",
}  # fmt: skip
_JOINING = ("add", "iadd", "sub", "isub", "cat", "concat", "concatenate", "stack")
_ZERO_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.Flatten,
)  # fmt: skip


def branch_cuts(walk: Walk) -> tuple[dict[int, tuple[Consumer, fx.Node]], dict[int, str]]:
    """Where the producers whose units are mixed or coupled are cut instead.

    The cut is the output of the last layer behind the producer that all its readers lie behind;
    operators between it and the readers must turn zeros into zeros.

    Returns
    -------
    dict of int to (Consumer, fx.Node)
        First atom of a producer to the cut and the node whose output is cut.
    dict of int to str
        First atom of a producer to the reason why there is no such place.
    """
    calls = Counter(str(n.target) for n in _nodes(walk) if n.op == "call_module")
    cuts: dict[int, tuple[Consumer, fx.Node]] = {}
    reasons: dict[int, str] = {}
    mixed = np.zeros(walk.n_atoms, bool)
    for atoms, _ in walk.mixtures:
        mixed[atoms] = True
    for producer in walk.producers:
        if not mixed[producer.atoms].any():
            continue
        found = _last_layer(walk, producer, calls)
        if isinstance(found, str):
            reasons[producer.first] = found
        else:
            cuts[producer.first] = found
    return cuts, reasons


def _nodes(walk: Walk) -> list[fx.Node]:
    return list(walk.producers[0].node.graph.nodes) if walk.producers else []


def _last_layer(
    walk: Walk, producer: Producer, calls: Counter[str]
) -> tuple[Consumer, fx.Node] | str:
    node: fx.Node | None = producer.node
    best: tuple[Consumer, fx.Node] | None = None
    obstacle = ""
    while node is not None:
        layer = _layer_at(node, producer)
        if layer and calls[layer] <= 1:
            cut = _cut(walk, producer, layer, node)
            if cut is not None:
                best, obstacle = (cut, node), ""
        if node is not producer.node and (best is None or best[1] is not node):
            obstacle = obstacle or _obstacle(walk, node)
        node = _only_reader(walk, node, producer)
    if best is None:
        return "no layer's output holds them before they are coupled"
    return best if not obstacle else f"{obstacle} lies between them and what they are coupled to"


def _obstacle(walk: Walk, node: fx.Node) -> str:
    """Name of an operator that does not leave a zero a zero."""
    if node.op == "call_module":
        fine = isinstance(walk.modules[str(node.target)], _ZERO_LAYERS)
    else:
        fine = operator_name(node) in _ZERO_STAYS_ZERO
    return "" if fine else describe(node)


def _layer_at(node: fx.Node, producer: Producer) -> str:
    """Layer whose output is the value of `node`, or ``""``."""
    if node.op == "call_module":
        return str(node.target)
    # An attention layer that was traced into a function of its parameters; its own output is
    # that of the projection inside of it.
    return producer.layer.rpartition(".")[0] if node is producer.node else ""


def _cut(walk: Walk, producer: Producer, layer: str, node: fx.Node) -> Consumer | None:
    """Consumer that cuts the units at the output of `layer`, which must hold them on one axis."""
    labels, shape = walk.first_flows.get(node), shape_of(node)
    if not isinstance(labels, np.ndarray) or shape is None:
        return None
    channels = varies(labels, 1) or (producer.kind == "filter" and producer.n_units == 1)
    kind, dim = ("map", 1) if labels.ndim == 4 and channels else ("features", labels.ndim - 1)
    if any(varies(labels, d) for d in range(labels.ndim) if d != dim):
        return None
    places = np.broadcast_to(np.moveaxis(labels, dim, 0).reshape(-1), shape[dim])
    units = places - producer.first
    if not np.array_equal(np.unique(units), np.arange(producer.n_units)):
        return None
    return Consumer(layer, kind, len(units) // producer.n_units, spans_of(units))


def _only_reader(walk: Walk, node: fx.Node, producer: Producer) -> fx.Node | None:
    """Return the only reader of the value of `node`, if it carries all units of the producer."""
    readers = [user for user in node.users if user.meta.get("tensor_meta") is not None]
    if len(readers) != 1 or readers[0].op == "output":
        return None
    tensors = [source for source in readers[0].all_input_nodes if shape_of(source) is not None]
    if len(tensors) > 1 and operator_name(readers[0]) in _JOINING:
        return None  # a position embedding or a class token is not part of the units
    flow = walk.first_flows.get(readers[0])
    flow = flow[0] if isinstance(flow, tuple) else flow
    if flow is None:
        return None
    atoms = np.unique(flow[flow >= 0])
    return readers[0] if np.array_equal(atoms, producer.atoms) else None
