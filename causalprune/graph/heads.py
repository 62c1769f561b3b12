"""When the heads of an attention layer can be removed for good."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from causalprune.graph.flow import Walk
from causalprune.graph.trace import shape_of
from causalprune.graph.units import Consumer, Owned

__all__ = ["follow_heads", "masks_of", "tells_heads", "why_heads_stay", "why_sizes_stay"]

_NUMBERS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
_WIDTHS = ("attn_dim", "all_head_dim", "all_head_size", "inner_dim")

_OWN = {
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias",
    "out_proj.weight", "out_proj.bias",
}  # fmt: skip


def why_heads_stay(walk: Walk, node: fx.Node, layer: nn.MultiheadAttention) -> str:
    """Why the heads of `layer`, which `node` calls, cannot be removed for good, or ``""``.

    ``nn.MultiheadAttention`` has one width for tokens and heads together; with fewer heads it
    becomes another module (:mod:`causalprune.pruning.attention`), which gives no weights and
    knows the masks of this call only.
    """
    name = str(node.target)
    own = dict(layer.named_parameters())
    if layer.bias_k is not None or layer.add_zero_attn:
        return (
            f"attention {name!r} attends to a learnt or a zero token (add_bias_kv, add_zero_attn)"
        )
    if not set(own) <= _OWN:
        return f"attention {name!r} is parametrised or masked by another tool"
    sharing = _sharing(walk, name, own)
    if sharing:
        return f"attention {name!r} shares its parameters with layer {sharing!r}"
    if any(_reads(other, name) for other in node.graph.nodes):
        return f"attention {name!r} has its parameters read outside of it"
    return _why_call_stays(node, name)


def _why_call_stays(node: fx.Node, name: str) -> str:
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in _readers(node)):
        return f"the attention weights of {name!r}, one matrix for each head, are read"
    if len(_shape(node, 0, "query")) != 3:
        return f"attention {name!r} reads something else than batches of tokens"
    if len(_shape(node, 5, "attn_mask")) == 3:
        return f"attention {name!r} has a mask of its own for each head"
    return ""


def masks_of(node: fx.Node) -> dict[str, torch.dtype]:
    """Return the dtype of the masks that a call of ``nn.MultiheadAttention`` is given."""
    found = {}
    for place, name in ((3, "key_padding_mask"), (5, "attn_mask")):
        given = _argument(node, place, name)
        meta = given.meta.get("tensor_meta") if isinstance(given, fx.Node) else None
        if isinstance(meta, TensorMetadata):
            found[name] = meta.dtype
    return found


def _readers(node: fx.Node) -> list[fx.Node]:
    """Users whose value matters: ``x, _ = attention(...)`` leaves one that nobody reads."""
    return [user for user in node.users if user.users or user.op == "output"]


def _argument(node: fx.Node, place: int, key: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(key)


def _shape(node: fx.Node, place: int, key: str) -> tuple[int, ...]:
    given = _argument(node, place, key)
    return (shape_of(given) or ()) if isinstance(given, fx.Node) else ()


def _sharing(walk: Walk, name: str, own: dict[str, nn.Parameter]) -> str:
    """Name of another layer that has one of the parameters, or ``""``."""
    mine = {id(parameter) for parameter in own.values()}
    for full, parameter in walk.modules[""].named_parameters(remove_duplicate=False):
        if id(parameter) in mine and full.removeprefix(f"{name}.") not in own:
            return full.rpartition(".")[0]
    return ""


def _reads(node: fx.Node, name: str) -> bool:
    return node.op == "get_attr" and str(node.target).startswith(f"{name}.")


# ---- attention that a class of its own computes -------------------------------------------------


def tells_heads(module: nn.Module, size: int) -> bool:
    """Whether `module` has an attribute for the number or width of all heads that says `size`."""
    return any(vars(module).get(name) == size for name in (*_NUMBERS, *_WIDTHS))


def follow_heads(module: nn.Module, n_heads: int, n_kept: int) -> None:
    """Set the attributes that say how many heads a module has, and how wide they are together."""
    for name in (*_NUMBERS, *_WIDTHS):
        size = vars(module).get(name)
        if isinstance(size, int) and (size == n_heads or name in _WIDTHS):
            setattr(module, name, size // n_heads * n_kept)


def why_sizes_stay(
    walk: Walk, name: str, n_heads: int, owned: Sequence[Owned], consumers: Sequence[Consumer]
) -> str:
    """Why the code of attention module `name` does not follow if a head goes, or ``""``.

    A copy of the module without weights and without its last head is run, on the meta device.
    """
    module = walk.modules[name]
    if n_heads == 1 or not any(attribute in vars(module) for attribute in (*_NUMBERS, *_WIDTHS)):
        return ""
    made = {item.layer for item in owned if item.role == "producer"}
    sources = {p.node.args[0] for p in walk.producers if p.layer in made}
    source = sources.pop()
    shape = shape_of(source) if isinstance(source, fx.Node) else None
    inside = all(layer.startswith(f"{name}.") for layer in made)
    if sources or shape is None or not inside:
        return f"the queries, keys and values of {name!r} do not come from one input"
    probe = _without_last(module, f"{name}.", n_heads, [*owned, *consumers])
    weight = next(probe.parameters())
    try:
        with torch.no_grad():
            probe(torch.empty(shape, device="meta", dtype=weight.dtype))
    except Exception as error:  # a forward of its own: anything may come
        reason = str(error).partition("\n")[0]
        return f"{name!r} does not run with fewer heads of the same width: {reason}"
    return ""


def _without_last(
    module: nn.Module, prefix: str, n_heads: int, places: Sequence[Owned | Consumer]
) -> nn.Module:
    """Copy `module` to the meta device, one head narrower."""
    weightless: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in [*module.parameters(), *module.buffers()]
    }
    probe = copy.deepcopy(module, weightless).eval()
    for place in places:
        if not place.layer.startswith(prefix):
            continue
        layer = probe.get_submodule(place.layer.removeprefix(prefix))
        rows = isinstance(place, Owned)
        for name in ("weight", "bias") if rows else ("weight",):
            tensor = getattr(layer, name)
            if tensor is not None:
                width = len(place.columns([n_heads - 1]))
                part = tensor.narrow(0 if rows else 1, width, tensor.shape[not rows] - width)
                setattr(layer, name, nn.Parameter(part, requires_grad=False))
    follow_heads(probe, n_heads, n_heads - 1)
    return probe
