"""Rules of the layers with parameters: what produces units, consumes them, or belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn

from causalprune.graph.flow import Flow, Labels, Walk, describe, labels_of, varies
from causalprune.graph.heads import masks_of, why_heads_stay
from causalprune.graph.rules_arithmetic import normalised_together
from causalprune.graph.rules_shapes import argument, input_labels, input_node, pass_on
from causalprune.graph.trace import shape_of

__all__ = [
    "batch_norm",
    "conv2d",
    "group_norm",
    "layer_norm_layer",
    "linear",
    "multihead_attention",
    "prelu",
    "shifted_window_attention",
]


def _columns(walk: Walk, node: fx.Node, labels: Labels, dim: int) -> Labels | None:
    """Return the unit at every place along `dim` of the input; ``None`` if there is none.

    Several units at one place (tokens of two layers one behind the other) become one.
    """
    source = input_node(node)
    shape = None if source is None else shape_of(source)
    assert shape is not None
    table = np.moveaxis(labels, dim, 0).reshape(labels.shape[dim], -1)
    table = np.broadcast_to(table, (shape[dim], table.shape[1]))
    columns: Labels = table.max(axis=1)
    partner = np.broadcast_to(columns[:, None], table.shape)
    apart = (table >= 0) & (table != partner)
    if ((table < 0) & (partner >= 0)).any():
        walk.not_sliceable(columns, "they share their places with a tensor that carries no units")
    if not apart.any():
        return columns
    a, b = table[apart], partner[apart]
    if walk.alone or bool((walk.producer_of(a) == walk.producer_of(b)).any()):
        return None
    walk.pairs.append((a, b))
    return columns


def _fits(walk: Walk, name: str) -> str:
    """Why the input of a layer cannot be cut in it, or ``""``."""
    return f"read by layer {name!r}, which {walk.unusable[name]}" if name in walk.unusable else ""


def _consume(walk: Walk, node: fx.Node, name: str, kind: str, dim: int, what: str) -> None:
    labels = input_labels(walk, node)
    if labels is None:
        return
    columns = None
    if not any(varies(labels, d) for d in (0,) if d != dim % labels.ndim):
        columns = _columns(walk, node, labels, dim)
    if columns is None:
        walk.mix(node, [labels], f"{describe(node)} does not read the units as its {what}")
    elif _fits(walk, name):
        walk.mix(node, [labels], _fits(walk, name))
    else:
        walk.read(node, name, kind, columns)


def _along(atoms: Labels, n_dims: int, dim: int) -> Labels:
    shape = [1] * n_dims
    shape[dim] = len(atoms)
    return atoms.reshape(shape)


def conv2d(walk: Walk, node: fx.Node) -> Flow | None:
    """Convolution: consumes and produces; depthwise: belongs to the units that pass it."""
    name = str(node.target)
    conv = walk.modules[name]
    assert isinstance(conv, nn.Conv2d)
    source = input_node(node)
    if source is None or len(shape_of(source) or ()) != 4:
        labels = input_labels(walk, node)
        walk.mix(node, [labels], f"{describe(node)} reads something else than maps [N, C, H, W]")
        walk.refused_layers[name] = "reads something else than maps [N, C, H, W]"
        return None
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    if depthwise and not walk.alone:
        return _depthwise(walk, node, name)
    if conv.groups > 1 and not walk.alone:
        return _grouped(walk, node, name, conv)
    _consume(walk, node, name, "conv", 1, "channels")
    atoms = walk.produce(node, name, "filter", conv.out_channels)
    if conv.groups > 1:
        reason = f"{describe(node)} is a grouped convolution with {conv.groups} groups"
        walk.not_sliceable(atoms, reason)
        for labels in labels_of(input_labels(walk, node)):
            walk.not_sliceable(labels, reason)
    return _along(atoms, 4, 1)


def _grouped(walk: Walk, node: fx.Node, name: str, conv: nn.Conv2d) -> Flow | None:
    """Couple what a grouped convolution reads and makes: a unit is a whole group of it."""
    atoms = walk.produce(node, name, "filter", conv.out_channels)
    made = atoms.reshape(conv.groups, -1)
    labels = input_labels(walk, node)
    reads = np.full(conv.in_channels, -1)
    if labels is not None:
        walk.pairs.append((made[:, 1:].ravel(), np.repeat(made[:, 0], made.shape[1] - 1)))
        columns = None if varies(labels, 0) else _columns(walk, node, labels, 1)
        if columns is None or name in walk.unusable:
            why = _fits(walk, name) or f"{describe(node)} does not read the units as its channels"
            walk.mix(node, [labels], why)
        else:
            reads = columns
    of_group = np.repeat(made[:, 0], conv.in_channels // conv.groups)
    walk.pairs.append((reads[reads >= 0], of_group[reads >= 0]))
    if (reads < 0).any():
        walk.not_sliceable(
            of_group[reads < 0],
            f"{describe(node)} is a grouped convolution of channels that carry no units",
        )
    return _along(atoms, 4, 1)


def _depthwise(walk: Walk, node: fx.Node, name: str) -> Flow | None:
    labels = input_labels(walk, node)
    if labels is None:
        walk.refused_layers[name] = "is depthwise on channels that carry no units"
        return None
    return _carried(walk, node, labels, name, "depthwise")


def _carried(walk: Walk, node: fx.Node, labels: Labels, name: str, role: str) -> Flow | None:
    """Let units pass a layer with parameters of their own."""
    columns = None if varies(labels, 0) else _columns(walk, node, labels, 1)
    if columns is None:
        return walk.mix(node, [labels], f"{describe(node)} does not read the units as its channels")
    if name in walk.unusable:
        if role != "norm":
            return walk.mix(node, [labels], f"passes layer {name!r}, which {walk.unusable[name]}")
        walk.not_sliceable(labels, f"passes layer {name!r}, which {walk.unusable[name]}")
    walk.read(node, name, role, columns)
    return labels


def linear(walk: Walk, node: fx.Node) -> Flow | None:
    """Linear layer: consumes features of the last dimension, and produces them."""
    name = str(node.target)
    layer = walk.modules[name]
    assert isinstance(layer, nn.Linear)
    _consume(walk, node, name, "linear", -1, "features")
    atoms = walk.produce(node, name, "hidden", layer.out_features)
    return _along(atoms, len(shape_of(node) or ()), -1)


# --- normalisation -------------------------------------------------------------------------------


def batch_norm(walk: Walk, node: fx.Node) -> Flow | None:
    """Batch norm (instance norm): its parameters belong to the channels that pass it."""
    labels = input_labels(walk, node)
    return None if labels is None else _carried(walk, node, labels, str(node.target), "norm")


def layer_norm_layer(walk: Walk, node: fx.Node) -> Flow | None:
    """Layer norm over the trailing dimensions of `normalized_shape`."""
    labels = input_labels(walk, node)
    if labels is None:
        return None
    module: Any = walk.modules[str(node.target)]
    trailing = len(module.normalized_shape)
    return normalised_together(walk, node, labels, list(range(labels.ndim - trailing, labels.ndim)))


def group_norm(walk: Walk, node: fx.Node) -> Flow | None:
    """Group norm: mixes the channels of a group."""
    labels = input_labels(walk, node)
    return None if labels is None else normalised_together(walk, node, labels, [1])


def prelu(walk: Walk, node: fx.Node) -> Flow | None:
    """PReLU; one slope per channel would have to be removed with the channel."""
    module = walk.modules[str(node.target)]
    labels = input_labels(walk, node)
    if labels is not None and isinstance(module, nn.PReLU) and module.num_parameters != 1:
        walk.not_sliceable(labels, f"{describe(node)} has one slope per channel")
    return pass_on(walk, node)


# --- attention -----------------------------------------------------------------------------------


def _heads(walk: Walk, node: fx.Node, name: str, n_heads: int, width: int, stays: str) -> None:
    """Open the heads of an attention layer, which its own output projection consumes."""
    atoms = walk.produce(node, name, "head", n_heads)
    if stays:
        walk.not_sliceable(atoms, stays)
    walk.read(node, name, "attention", np.repeat(atoms, width // n_heads))


def multihead_attention(walk: Walk, node: fx.Node) -> Flow | None:
    """``nn.MultiheadAttention``: consumes tokens, opens heads, produces tokens."""
    name = str(node.target)
    layer = walk.modules[name]
    assert isinstance(layer, nn.MultiheadAttention)
    flows = [walk.flows.get(source) for source in node.all_input_nodes]
    walk.mix(node, flows, f"read by the input projection of attention {name!r}")
    _heads(walk, node, name, layer.num_heads, layer.embed_dim, why_heads_stay(walk, node, layer))
    walk.masks[name] = masks_of(node)
    meta: Any = node.meta.get("tensor_meta")
    n_dims = len(meta[0].shape)
    atoms = walk.produce(node, f"{name}.out_proj", "hidden", layer.embed_dim)
    walk.not_sliceable(atoms, f"attention {name!r} has one embedding width for input and output")
    return (_along(atoms, n_dims, -1), None)


def shifted_window_attention(walk: Walk, node: fx.Node) -> Flow | None:
    """Swin attention of torchvision (v1 and v2), a function of the parameters of its module."""
    projection = argument(node, 2, "proj_weight")
    n_heads = argument(node, 5, "num_heads")
    labels = input_labels(walk, node)
    target = str(projection.target) if isinstance(projection, fx.Node) else ""
    name = target.removesuffix(".proj.weight")
    if name == target or not isinstance(n_heads, int):
        return walk.mix(node, [labels], f"{describe(node)} of computed weights has no rule")
    walk.mix(node, [labels], f"read by the input projection of attention {name!r}")
    layer = walk.modules[f"{name}.proj"]
    assert isinstance(layer, nn.Linear)
    stays = f"{name!r} computes the width of its heads from their number"
    _heads(walk, node, name, n_heads, layer.in_features, stays)
    walk.refused_layers[f"{name}.qkv"] = f"makes the queries, keys and values of {name!r}"
    out = walk.produce(node, f"{name}.proj", "hidden", layer.out_features)
    walk.not_sliceable(out, f"attention {name!r} has one embedding width for input and output")
    return _along(out, len(shape_of(node) or ()), -1)
