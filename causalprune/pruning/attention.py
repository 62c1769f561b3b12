"""Attention layers with fewer heads.

``nn.MultiheadAttention`` has one width for its tokens and for all heads together, so that fewer
heads of the same width have no place in it. What takes its place here is an ``fx.GraphModule`` of
plain torch layers: it is called in the same way, and like them it needs torch only to be pickled,
exported, compiled and trained.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["MASKS", "fewer_heads", "macs_within", "parameters_of_heads"]

MASKS = ("key_padding_mask", "attn_mask")


def fewer_heads(
    layer: nn.MultiheadAttention, kept: Tensor, masks: Mapping[str, torch.dtype] | None = None
) -> fx.GraphModule:
    """Return an attention layer that has only some of the heads.

    Heads do not see each other before the output projection, so that each of the remaining ones
    computes what it did. The result is called as ``nn.MultiheadAttention`` is and returns
    ``(output, None)``: it never gives the attention weights, whatever `need_weights` is. Dropout
    of the attention weights follows the mode of the module.

    Parameters
    ----------
    layer : nn.MultiheadAttention
        Embedding width E, H heads; neither ``add_bias_kv`` nor ``add_zero_attn``.
    kept : Tensor [h], int64
        The heads that stay, ascending; 0 < h <= H.
    masks : Mapping of str to dtype, optional
        Which of ``key_padding_mask`` [N, S] and ``attn_mask`` [L, S] the layer is called with.
        The result takes these, always, and no other.

    Returns
    -------
    fx.GraphModule
        Of ``q_proj``, ``k_proj``, ``v_proj`` (each h * E / H features) and ``out_proj``; with
        the dtype, device, mode and ``requires_grad`` of `layer`, which is not changed.

    Examples
    --------
    >>> layer = nn.MultiheadAttention(12, 3, batch_first=True)
    >>> fewer = fewer_heads(layer, torch.tensor([0, 2]))
    >>> fewer.q_proj, fewer.out_proj.in_features
    (Linear(in_features=12, out_features=8, bias=True), 8)
    >>> tokens = torch.randn(5, 7, 12)
    >>> fewer(tokens, tokens, tokens)[0].shape
    torch.Size([5, 7, 12])
    """
    root = nn.Module()
    width = layer.embed_dim // layer.num_heads
    for name, module in _projections(layer, _features(kept, width)).items():
        root.add_module(name, module)
    if layer.dropout > 0:
        root.add_module("dropout", nn.Dropout(layer.dropout))
    graph = _attention(width, layer.batch_first, layer.dropout > 0, masks or {})
    return fx.GraphModule(root, graph, "MultiheadAttention").train(layer.training)


def _features(heads: Tensor, width: int) -> Tensor:
    """Features [h * width] of `heads`."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def _projections(layer: nn.MultiheadAttention, features: Tensor) -> dict[str, nn.Linear]:
    """Slice the projections of queries, keys and values by rows, that of the output by columns."""
    weights: tuple[Any, ...] = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    together = weights[0] is None
    if together:
        weights = layer.in_proj_weight.chunk(3)
    biases: tuple[Any, ...] = (None,) * 3
    if layer.in_proj_bias is not None:
        biases = layer.in_proj_bias.chunk(3)
    made = {}
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        index = features.to(weight.device)
        own = None if bias is None else bias.index_select(0, index)
        made[name] = _linear(weight.index_select(0, index), own)
        first = layer.in_proj_weight if together else weight
        _train(made[name], first.requires_grad, layer.in_proj_bias)
    out = layer.out_proj
    index = features.to(out.weight.device)
    made["out_proj"] = _linear(out.weight.index_select(1, index), out.bias)
    _train(made["out_proj"], out.weight.requires_grad, out.bias)
    return made


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # On the meta device: a layer that draws its weights would move the random state.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _train(layer: nn.Linear, weight: bool, bias: Tensor | None) -> None:
    layer.weight.requires_grad_(weight)
    if bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)


# ---- the graph ----------------------------------------------------------------------------------


def _attention(
    width: int, batch_first: bool, dropout: bool, masks: Mapping[str, torch.dtype]
) -> fx.Graph:
    """Attention of any number of heads of one width: no size of the graph tells how many."""
    graph = fx.Graph()
    tokens = [graph.placeholder(name) for name in ("query", "key", "value")]
    given = _options(graph, masks)

    def heads(name: str, x: fx.Node) -> fx.Node:
        x = graph.call_method("unflatten", (graph.call_module(name, (x,)), -1, (-1, width)))
        if batch_first:
            return graph.call_method("transpose", (x, 1, 2))
        return graph.call_method("permute", (x, 1, 2, 0, 3))

    q, k, v = (
        heads(name, x) for name, x in zip(("q_proj", "k_proj", "v_proj"), tokens, strict=True)
    )
    mask = _one_mask(graph, [(given[name], masks[name]) for name in MASKS if name in masks])
    boolean = all(dtype is torch.bool for dtype in masks.values())
    if dropout:
        scaled = graph.call_function(operator.mul, (q, width**-0.5))
        turned = graph.call_method("transpose", (k, -2, -1))
        weights = _weights(
            graph, graph.call_function(torch.matmul, (scaled, turned)), mask, boolean=boolean
        )
        dropped = graph.call_module("dropout", (weights,))
        x = graph.call_function(torch.matmul, (dropped, v))
    else:
        if mask is not None and boolean:  # here it says who may be attended to
            mask = graph.call_function(torch.logical_not, (mask,))
        x = graph.call_function(F.scaled_dot_product_attention, (q, k, v, mask))
    back = ("transpose", (x, 1, 2)) if batch_first else ("permute", (x, 2, 0, 1, 3))
    x = graph.call_method("flatten", (graph.call_method(*back), 2))
    graph.output((graph.call_module("out_proj", (x,)), None))
    graph.lint()
    return graph


def _options(graph: fx.Graph, masks: Mapping[str, torch.dtype]) -> dict[str, fx.Node]:
    """Placeholders of the other arguments, in their order, and a word where one has no effect."""
    names = {
        "key_padding_mask": None, "need_weights": True, "attn_mask": None,
        "average_attn_weights": True, "is_causal": False,
    }  # fmt: skip
    given = {
        name: graph.placeholder(name, default_value=default) for name, default in names.items()
    }
    silent = {name: None for name in MASKS if name not in masks}
    if "attn_mask" not in masks:
        silent["is_causal"] = False  # type: ignore[assignment]
    for name, value in silent.items():
        # `==`, not `is`: pickled graphs are read back by tracing, which sees only the former.
        fine = graph.call_function(operator.eq, (given[name], value))
        told = f"{name}: this attention layer was pruned where it was called without one"
        graph.call_function(torch._assert, (fine, told))
    return given


def _one_mask(graph: fx.Graph, given: Sequence[tuple[fx.Node, torch.dtype]]) -> fx.Node | None:
    """Combine masks to one that broadcasts to [N, heads, L, S]: bool (true: hidden) or added."""
    whole: fx.Node | None = None
    # The masks that are added first: what is hidden is then written into them.
    for mask, dtype in sorted(given, key=lambda item: item[1] is torch.bool):
        if mask.name == "key_padding_mask":
            for _ in range(2):
                mask = graph.call_method("unsqueeze", (mask, 1))
        if whole is None:
            whole = mask
        elif dtype is not torch.bool:
            whole = graph.call_function(operator.add, (whole, mask))
        elif all(other is torch.bool for _, other in given):
            whole = graph.call_function(operator.or_, (whole, mask))
        else:
            whole = graph.call_method("masked_fill", (whole, mask, float("-inf")))
    return whole


def _weights(graph: fx.Graph, scores: fx.Node, mask: fx.Node | None, *, boolean: bool) -> fx.Node:
    """Attention weights [N, heads, L, S]; a token that may attend to none attends to none."""
    if mask is None:
        return graph.call_function(F.softmax, (scores,), {"dim": -1})
    if boolean:
        scores = graph.call_method("masked_fill", (scores, mask, float("-inf")))
        hidden = mask
    else:
        scores = graph.call_function(operator.add, (scores, mask))
        hidden = graph.call_function(operator.eq, (mask, float("-inf")))
    weights = graph.call_function(F.softmax, (scores,), {"dim": -1})
    none = graph.call_method("all", (hidden,), {"dim": -1, "keepdim": True})
    return graph.call_method("masked_fill", (weights, none, 0.0))


# ---- sizes --------------------------------------------------------------------------------------


def parameters_of_heads(layer: nn.MultiheadAttention) -> list[nn.Parameter]:
    """Return the parameters of `layer` of which every head has an equal share."""
    return [parameter for name, parameter in layer.named_parameters() if name != "out_proj.bias"]


def macs_within(counter: FlopCounterMode, model: nn.Module, layer: str) -> int:
    """Multiply-accumulates that `layer` of `model` made in a counted run, but for its children."""
    counts = counter.get_flop_counts()
    name = f"{type(model).__name__}.{layer}"
    children = [f"{name}.{child}" for child, _ in model.get_submodule(layer).named_children()]
    own = sum(counts.get(name, {}).values())
    return (own - sum(sum(counts.get(child, {}).values()) for child in children)) // 2
