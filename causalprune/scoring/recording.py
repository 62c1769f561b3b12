"""One run of a network, out of place, its batch norms folded, chosen values watched."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

__all__ = ["Recorder", "folded", "frozen"]

Watcher = Callable[[Tensor], Tensor]
"""Takes a value on its way and returns it, as it is or as a tensor to derive by."""

_OUT_OF_PLACE: Mapping[object, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient for a while: nothing is kept for weight gradients."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


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


class Recorder(fx.Interpreter):
    """Run a traced network and show chosen values on their way to a watcher.

    In-place operators run out of place, so that no value that was shown changes later; later
    readers see the new value, as they would have.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    values : Mapping of str to Watcher
        Node name to who sees its value; readers further on get what the watcher returns.
    inputs : Mapping of str to Watcher
        Node name to who sees its first input; only this node gets what the watcher returns. For
        an attention layer it is the input of the output projection, [..., heads * head width].
    fold : bool
        Fold a batch norm directly behind a convolution into it: saves a pass over the largest
        values, and what autograd keeps for it. The convolution's node then has the norm's value.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        values: Mapping[str, Watcher],
        inputs: Mapping[str, Watcher],
        *,
        fold: bool = True,
    ) -> None:
        super().__init__(traced)
        self._values = dict(values)
        self._inputs = dict(inputs)
        self._overwriting = frozenset(n.name for n in traced.graph.nodes if _in_place(n, traced))
        self._folded, self._absorbed = _fold(traced) if fold else ({}, frozenset())

    @property
    def constants(self) -> list[Tensor]:
        """Folded weights and biases that belong to no module."""
        return [t for _, *pair in self._folded.values() for t in pair if t is not None]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; called by the interpreter, in the order of the graph."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        watcher = self._inputs.get(n.name)
        if watcher is not None and _projects(n, self.module):
            result = _project(n, self.module, args, kwargs, watcher)
        else:
            if watcher is not None:
                kwargs = dict(kwargs)
                value = args[0] if args else kwargs.pop("input")
                args = (watcher(value), *args[1:])
            result = self._compute(n, args, dict(kwargs))
        if n.name in self._values:
            result = self._values[n.name](result)
        if n.name in self._overwriting and n.args and isinstance(n.args[0], fx.Node):
            self.env[n.args[0]] = result
        return result

    def _compute(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n.name in self._folded:
            convolution, weight, bias = self._folded[n.name]
            return convolution._conv_forward(args[0], weight, bias)
        if n.name in self._absorbed:
            return args[0]
        if n.name in self._overwriting and args:
            function = _functional(n, self.module)
            if function is not None:
                return function(*args, **kwargs)
            if "inplace" in kwargs:
                kwargs["inplace"] = False
            else:
                args = (args[0].clone(), *args[1:])
        return getattr(self, n.op)(n.target, args, kwargs)


def _in_place(node: fx.Node, traced: fx.GraphModule) -> bool:
    name = str(node.target)
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(name), "inplace", False))
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return (
        node.target in _OUT_OF_PLACE
        or bool(node.kwargs.get("inplace", False))
        or (name.endswith("_") and not name.endswith("__"))
    )


def _functional(node: fx.Node, traced: nn.Module) -> Callable[..., Any] | None:
    """Return the out-of-place operator of an in-place node, where no copy is needed for it."""
    if node.op == "call_module":
        return F.relu if type(traced.get_submodule(str(node.target))) is nn.ReLU else None
    return _OUT_OF_PLACE.get(node.target)


def _fold(
    traced: fx.GraphModule,
) -> tuple[dict[str, tuple[nn.Conv2d, Tensor, Tensor | None]], frozenset[str]]:
    """Convolution node to what it computes with its batch norm; and the nodes of those norms."""
    modules = dict(traced.named_modules())
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    found: dict[str, tuple[nn.Conv2d, Tensor, Tensor | None]] = {}
    absorbed: set[str] = set()
    for node in traced.graph.nodes:
        layer = _plain(node, modules, calls)
        if type(layer) is not nn.Conv2d or len(node.users) != 1:
            continue
        (user,) = node.users
        norm = _plain(user, modules, calls)
        if type(norm) is nn.BatchNorm2d and norm.running_var is not None and not norm.training:
            found[node.name] = (layer, *folded(layer, norm))
            absorbed.add(user.name)
    return found, frozenset(absorbed)


def _plain(
    node: fx.Node, modules: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> nn.Module | None:
    """Return the module that the node calls, on one value, once, with nothing hooked onto it."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = modules[str(node.target)]
    hooked = module._forward_hooks or module._forward_pre_hooks or list(module.children())
    return None if hooked or calls[str(node.target)] > 1 else module


def _projects(node: fx.Node, traced: nn.Module) -> bool:
    """Whether the node is an attention layer that ends in an output projection of its own."""
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), nn.MultiheadAttention)
    return node.op == "call_function" and "proj_weight" in _parameters(node.target)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions have none
        return {}


def _project(
    node: fx.Node,
    traced: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    watcher: Watcher,
) -> Any:
    """Attend with the identity as output projection, show the result, and project it by hand.

    The projection is linear at every token, so it commutes with whatever the layer does to
    tokens behind it (windows, shifts, padding).
    """
    if node.op == "call_module":
        layer = traced.get_submodule(str(node.target))
        assert isinstance(layer, nn.MultiheadAttention)
        projection = layer.out_proj
        replaced = {"out_proj.weight": _identity(projection.weight)}
        if projection.bias is not None:
            replaced["out_proj.bias"] = torch.zeros_like(projection.bias)
        heads, *rest = functional_call(layer, replaced, args, dict(kwargs))
        return (F.linear(watcher(heads), projection.weight, projection.bias), *rest)
    assert callable(node.target)
    bound = inspect.signature(node.target).bind(*args, **kwargs)
    weight, bias = bound.arguments["proj_weight"], bound.arguments.get("proj_bias")
    bound.arguments.update(proj_weight=_identity(weight), proj_bias=None)
    return F.linear(watcher(node.target(*bound.args, **bound.kwargs)), weight, bias)


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
