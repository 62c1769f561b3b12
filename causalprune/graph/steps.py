"""A traced network as a list of steps that overwrite nothing, with batch norms folded away."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["Step", "folded", "is_hooked", "is_in_place", "steps_of"]

_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_VIEWS = frozenset({
    "view", "reshape", "flatten", "transpose", "permute", "chunk", "split", "unsqueeze",
    "squeeze", "getitem", "expand", "narrow", "select", "slice", "t", "unflatten", "getattr",
    "view_as", "reshape_as", "expand_as", "swapaxes", "swapdims", "movedim", "unbind",
    "tensor_split", "contiguous", "to", "type", "type_as", "float", "double", "half", "detach",
    "dropout", "dropout2d", "alpha_dropout", "feature_dropout", "stochastic_depth",
})  # fmt: skip
_VIEW_MODULES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers whose output may be their input's memory, in eval mode."""


@dataclass(frozen=True)
class Step:
    """One node of a traced network, runnable without side effects.

    Attributes
    ----------
    name : str
        Name of the node.
    op : str
        As in ``torch.fx``: "placeholder", "get_attr", "call_module", ..., "output".
    run : callable
        Takes the node's arguments and returns its value; never writes into an argument.
    args, kwargs
        Arguments with ``Step`` names wrapped in :class:`fx.Node` of the traced graph.
    inputs : tuple of str
        Names of the steps it reads.
    module : nn.Module or None
        The layer, of a step that calls one.
    function : str
        Name of the function or method, of a step that calls one.
    folded : bool
        Whether a batch norm has been folded into `module`.
    """

    name: str
    op: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[str, ...]
    module: nn.Module | None = None
    function: str = ""
    folded: bool = False

    def __call__(self, value_of: Callable[[str], Any]) -> Any:
        """Run the step on the values of its inputs."""
        args = fx.node.map_arg(self.args, lambda node: value_of(node.name))
        kwargs = fx.node.map_arg(dict(self.kwargs), lambda node: value_of(node.name))
        return self.run(*args, **kwargs)


def is_in_place(node: fx.Node) -> bool:
    """Whether the node writes into its first argument."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        module = owner.get_submodule(str(node.target)) if owner is not None else None
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = _name_of(node.target)
        return (
            node.target in _OUT_OF_PLACE
            or node.target is operator.setitem
            or bool(node.kwargs.get("inplace", False))
            or _told_by_position(node) is not None
            or (name.endswith("_") and not name.endswith("__"))
        )
    return False


def _told_by_position(node: fx.Node) -> int | None:
    """Which positional argument of a function is ``inplace=True``; None where there is none."""
    if not any(argument is True for argument in node.args):
        return None
    try:
        parameters = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return None
    place = parameters.index("inplace") if "inplace" in parameters else len(node.args)
    return place if place < len(node.args) and node.args[place] is True else None


def steps_of(
    traced: fx.GraphModule, keep: Collection[str] = (), *, fold: bool = True
) -> list[Step] | None:
    """Return the steps of a network in eval mode, or ``None`` where views are overwritten.

    Operators that write into their input are replaced by those that return a new tensor, and
    whoever reads that input later reads the new value, as it would have. Batch norms in
    evaluation form are folded into the convolution before them.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    keep : collection of str
        Nodes whose value must stay what it is (no folding into them).
    fold : bool
        Whether to fold at all.
    """
    current: dict[fx.Node, fx.Node] = {}
    steps: list[Step] = []
    for node in traced.graph.nodes:
        args = fx.node.map_arg(node.args, lambda source: current.get(source, source))
        kwargs = fx.node.map_arg(node.kwargs, lambda source: current.get(source, source))
        if is_in_place(node):
            source = node.args[0] if node.args else node.kwargs.get("input")
            run = _without_overwriting(traced, node)
            if run is None or not isinstance(source, fx.Node) or _overwrites_a_view(source, node):
                return None
            current.update(dict.fromkeys(_connected(source, is_in_place), node))
        else:
            run = _runner(traced, node)
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        function = _name_of(node.target) if node.op in ("call_function", "call_method") else ""
        kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        place = _told_by_position(node) if node.op == "call_function" else None
        args = args if place is None else (*args[:place], False, *args[place + 1 :])
        inputs = _inputs_of(args, kwargs)
        steps.append(Step(node.name, node.op, run, args, kwargs, inputs, module, function))
    return _folded(steps, frozenset(keep)) if fold else steps


def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution or linear layer with the batch norm behind it.

    Parameters
    ----------
    layer : nn.Module
        With a weight [O, ...] and a bias [O] or none.
    norm : nn.Module, optional
        Batch norm over O channels with running statistics.

    Returns
    -------
    weight : Tensor, shape and dtype of the layer's
    bias : Tensor [O], or None where the layer has none and no norm follows
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if norm is None:
        return weight, bias
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = (0.0 if bias is None else bias.double()) - norm.running_mean.double()
    shift = shift * scale + (0.0 if norm.bias is None else norm.bias.detach().double())
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _inputs_of(args: Any, kwargs: Any) -> tuple[str, ...]:
    found: list[str] = []
    fx.node.map_arg((args, dict(kwargs)), lambda node: found.append(node.name))
    return tuple(dict.fromkeys(found))


def _runner(traced: fx.GraphModule, node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    if node.op == "call_method":
        # A view of a tensor in another memory format may need a copy.
        name = "reshape" if node.target == "view" else str(node.target)
        return lambda first, *args, **kwargs: getattr(first, name)(*args, **kwargs)
    if node.op == "get_attr":
        value: Any = traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return lambda: value
    if node.op == "call_function":
        if node.target is torch.ops.aten.view.default:
            return torch.reshape
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        return target
    return lambda *args: args[0] if args else None


def _without_overwriting(traced: fx.GraphModule, node: fx.Node) -> Callable[..., Any] | None:
    if node.op == "call_module":
        module = copy.copy(traced.get_submodule(str(node.target)))
        module.inplace = False  # type: ignore[assignment]
        return module
    name = _name_of(node.target)
    if node.op == "call_method":
        return lambda first, *args, **kwargs: getattr(first, name[:-1])(*args, **kwargs)
    if node.target in _OUT_OF_PLACE:
        found: Callable[..., Any] = _OUT_OF_PLACE[node.target]
        return found
    if not name.endswith("_"):  # a function with inplace=True
        return None if node.target is operator.setitem else _runner(traced, node)
    if isinstance(node.target, torch._ops.OpOverload):
        packet = getattr(torch.ops.aten, name[:-1], None)
        return getattr(packet, node.target._overloadname, None)
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


def _overwrites_a_view(source: fx.Node, node: fx.Node) -> bool:
    """Whether somebody reads the memory that `node` writes into by another name, afterwards.

    Names that in-place operators gave to `source` itself are followed by :func:`steps_of`.
    """
    place = {other: index for index, other in enumerate(node.graph.nodes)}
    same_value = _connected(source, is_in_place)
    same_memory = _connected(source, lambda other: is_in_place(other) or _is_view(other))
    return any(
        place[name] < place[node] and any(place[user] > place[node] for user in name.users)
        for name in same_memory - same_value
    )


def _connected(start: fx.Node, links: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Nodes that are reached from `start` over nodes that link their first input to themselves."""
    found, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        near = [user for user in node.users if links(user) and user.all_input_nodes[0] is node]
        near += node.all_input_nodes[:1] if links(node) else []
        waiting += [other for other in near if other not in found]
        found.update(near)
    return found


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module":
        owner = node.graph.owning_module
        return owner is not None and isinstance(
            owner.get_submodule(str(node.target)), _VIEW_MODULES
        )
    return node.op in ("call_function", "call_method") and _name_of(node.target) in _VIEWS


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody's hooks see, and may change, what the module reads or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _folded(steps: list[Step], keep: frozenset[str]) -> list[Step]:
    readers: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        for name in step.inputs:
            readers.setdefault(name, []).append(index)
    result = list(steps)
    for place, step in enumerate(steps):
        conv, users = step.module, readers.get(step.name, [])
        if type(conv) is not nn.Conv2d or len(users) != 1 or step.name in keep:
            continue
        norm = steps[users[0]].module
        if type(norm) is not nn.BatchNorm2d or norm.running_var is None:
            continue
        if is_hooked(conv) or is_hooked(norm):  # their hooks are to see what they always see
            continue
        own = copy.copy(conv)
        own._parameters = dict(conv._parameters)
        weight, bias = folded(conv, norm)
        assert bias is not None
        own.weight, own.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        result[place] = replace(step, run=own, module=own, folded=True)
        result[users[0]] = replace(steps[users[0]], run=lambda x: x, module=nn.Identity())
    return result
