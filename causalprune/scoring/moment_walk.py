"""Mean and variance of every value of a network whose input is independent Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from causalprune.errors import UnsupportedModelError
from causalprune.graph.flow import describe
from causalprune.graph.trace import shape_of
from causalprune.scoring.moments import (
    Function,
    Moments,
    channel_moments,
    compact,
    moments_through,
    relu_moments,
    together,
)

__all__ = ["MomentWalk"]


class MomentWalk(fx.Interpreter):
    """Walk a traced network with moments in the place of values.

    All places of a value are taken as independent of each other, as methods of data-free scoring
    do for channels. Exact then: convolutions and linear layers (borders aside, which are taken as
    any other position), batch norm, sums of independent branches, products of independent values,
    averages, and activations of Gaussian values. A maximum over positions is exact behind an
    activation that never falls, and takes its operand for Gaussian elsewhere. Layer and group
    norms divide by expected statistics.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace` with an example.
    watchers : Mapping of str to callable
        Node name of a convolution or linear layer to who gets the moments that it reads. Nodes
        that none of them depends on are not visited.
    """

    def __init__(
        self, traced: fx.GraphModule, watchers: Mapping[str, Callable[[Moments], None]]
    ) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # it would bury our messages
        self._watchers = dict(watchers)
        self._needed: set[fx.Node] = set()
        for node in reversed(list(traced.graph.nodes)):
            if node.name in self._watchers or self._needed & node.users.keys():
                self._needed.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; called by the interpreter, in the order of the graph."""
        if n not in self._needed:
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "placeholder" or not _carries(args, kwargs):
            return super().run_node(n)
        if n.name in self._watchers:
            self._watchers[n.name](args[0] if args else kwargs["input"])
        rule: Any = self._rule(n)
        if rule is None:
            raise UnsupportedModelError(
                f"model: the moments of {describe(n)} (node {n.name!r}) have no rule; "
                "mode='histogram' runs the network instead"
            )
        return rule(n, args, kwargs)

    def _rule(self, node: fx.Node) -> Callable[..., Any] | None:
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            for kind, rule in _MODULE_RULES.items():
                if isinstance(module, kind):
                    return lambda n, args, kwargs: rule(n, module, args[0])
            return None
        name = str(getattr(node.target, "__name__", node.target)).strip("_")
        if name in _ASKING:
            return lambda n, args, kwargs: _on(n, *_part(args, kwargs, "mean"))
        if name in _MOVING:
            return _move
        return _FUNCTION_RULES.get(name)


def _carries(args: Any, kwargs: Any) -> bool:
    found = []
    map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, Moments) else None)
    return bool(found)


def _on(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        # An expanded tensor cannot be viewed, whatever the network's own could.
        name = "reshape" if node.target == "view" else str(node.target)
        return getattr(args[0], name)(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _part(args: Any, kwargs: Any, name: str) -> tuple[Any, Any]:
    """Arguments with every value's mean or variance in its place; constants vary by nothing."""

    def take(value: Any) -> Any:
        if isinstance(value, Moments):
            return getattr(value, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double() if name == "mean" else torch.zeros_like(value).double()
        return value

    return map_aggregate(args, take), map_aggregate(kwargs, take)


def _move(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Whatever only moves values about does the same to their moments."""
    means, variances = (_on(node, *_part(args, kwargs, name)) for name in ("mean", "var"))
    if isinstance(means, Tensor):
        return Moments(means, variances)
    return [Moments(m, v) for m, v in zip(means, variances, strict=True)]


def _pad(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    """Constants that are put around a value vary by nothing; copies of it vary as it does."""
    given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    value, given = given.pop("input"), {**given, "value": given.get("value")}
    return Moments(F.pad(value.mean, **given), F.pad(value.var, **{**given, "value": None}))


# ---- layers --------------------------------------------------------------------------------------


def _layer(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    convolves = isinstance(module, nn.Conv2d)
    mean, var = channel_moments(value, -3 if convolves else -1)
    weight = module.weight.detach().double().cpu()
    weight = weight.reshape(*weight.shape[:2], -1)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    shape = (groups, -1, weight.shape[1])
    sums, squares = (w.reshape(shape) for w in (weight.sum(2), weight.square().sum(2)))
    m = (sums @ mean.reshape(groups, -1, 1)).flatten()
    v = (squares @ var.reshape(groups, -1, 1)).flatten()
    if module.bias is not None:
        m = m + module.bias.detach().double().cpu()
    if not convolves:
        tokens = (*value.mean.shape[:-1], len(m))
        return Moments(m.expand(tokens), v.expand(tokens))
    maps = (*value.mean.shape[:-3], len(m), *_plane(node))
    return Moments(m[:, None, None].expand(maps), v[:, None, None].expand(maps))


def _plane(node: fx.Node) -> tuple[int, int]:
    shape = shape_of(node)
    assert shape is not None
    return shape[-2], shape[-1]


def _batch_norm(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedModelError(f"model: {describe(node)} has no running statistics")
    scale = (module.running_var.double() + module.eps).rsqrt().cpu()
    if module.weight is not None:
        scale = scale * module.weight.detach().double().cpu()
    shift = -module.running_mean.double().cpu() * scale
    if module.bias is not None:
        shift = shift + module.bias.detach().double().cpu()
    shape = (-1, *[1] * (value.mean.ndim - 2))
    scale, shift = scale.reshape(shape), shift.reshape(shape)
    return _expanded(
        compact(value.mean) * scale + shift, compact(value.var) * scale.square(), value
    )


def _expanded(mean: Tensor, var: Tensor, like: Moments) -> Moments:
    return Moments(mean.expand(like.mean.shape), var.expand(like.mean.shape))


def _normalised(
    value: Moments, dims: tuple[int, ...], eps: float, weight: Any, bias: Any
) -> Moments:
    centre = value.mean.mean(dims, keepdim=True)
    spread = (value.var + (value.mean - centre).square()).mean(dims, keepdim=True) + eps
    scale = 1.0 if weight is None else weight.detach().double().cpu()
    shift = 0.0 if bias is None else bias.detach().double().cpu()
    mean = (value.mean - centre) * spread.rsqrt() * scale + shift
    return Moments(mean, value.var / spread * (scale * scale))


def _layer_norm(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    assert isinstance(module, nn.LayerNorm)
    dims = tuple(range(-len(module.normalized_shape), 0))
    return _normalised(value, dims, module.eps, module.weight, module.bias)


def _f_layer_norm(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False))
    given.update(kwargs)
    dims = tuple(range(-len(given["normalized_shape"]), 0))
    eps, weight, bias = given.get("eps", 1e-5), given.get("weight"), given.get("bias")
    return _normalised(given["input"], dims, eps, weight, bias)


# ---- activations ---------------------------------------------------------------------------------


def _through(function: Function, value: Moments, *, rising: bool) -> Moments:
    mean, var = together(value)
    found = _expanded(*moments_through(function, mean, var), value)
    return Moments(found.mean, found.var, (function, mean, var) if rising else None)


def _relu(value: Moments) -> Moments:
    mean, var = together(value)
    found = _expanded(*relu_moments(mean, var), value)
    return Moments(found.mean, found.var, (F.relu, mean, var))


def _elementwise_module(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    if isinstance(module, nn.ReLU):
        return _relu(value)
    if isinstance(module, nn.PReLU):
        slope = module.weight.detach().double().cpu()
        if len(slope) > 1:
            raise UnsupportedModelError(f"model: {describe(node)} has one slope per channel")
        return _through(lambda x: torch.where(x > 0, x, slope * x), value, rising=bool(slope >= 0))
    # Out of place: the points of the grid are shared by mean and variance.
    return _through(lambda x: module(x.clone()), value, rising=isinstance(module, _RISING))


def _elementwise(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    value, *rest = args if args else (kwargs.pop("input"),)
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    if name == "relu":
        return _relu(value)
    return _through(
        lambda x: _on(node, (x.clone(), *rest), kwargs), value, rising=name in _RISING_NAMES
    )


# ---- pooling -------------------------------------------------------------------------------------


def _size(value: Any) -> int:
    return value * value if isinstance(value, int) else math.prod(value)


def _max_pool(node: fx.Node, value: Moments, window: int) -> Moments:
    function, mean, var = value.rising or ((lambda x: x), *together(value))
    plane = _plane(node)
    shape = (*value.mean.shape[:-2], *plane)
    if mean.shape[-2:] != (1, 1):
        # Positions differ: take those of the window's average.
        mean, var = (t.mean((-2, -1), keepdim=True) for t in (mean, var))
    found = moments_through(function, mean, var, window)
    return Moments(found[0].expand(shape), found[1].expand(shape))


def _average_pool(node: fx.Node, value: Moments, window: int) -> Moments:
    shape = (*value.mean.shape[:-2], *_plane(node))
    mean, var = (compact(t).mean((-2, -1), keepdim=True) for t in (value.mean, value.var))
    return Moments(mean.expand(shape), (var / window).expand(shape))


def _pool_module(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        pool = _average_pool if isinstance(module, nn.AdaptiveAvgPool2d) else _max_pool
        return pool(node, value, _share(node, value))
    assert isinstance(module, (nn.MaxPool2d, nn.AvgPool2d))
    pool = _average_pool if isinstance(module, nn.AvgPool2d) else _max_pool
    return pool(node, value, _size(module.kernel_size))


def _share(node: fx.Node, value: Moments) -> int:
    height, width = _plane(node)
    return max(1, value.mean.shape[-2] // height) * max(1, value.mean.shape[-1] // width)


def _pool(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    name = str(getattr(node.target, "__name__", node.target))
    value = args[0] if args else kwargs["input"]
    size = args[1] if len(args) > 1 else kwargs.get("kernel_size")
    window = _share(node, value) if name.startswith("adaptive") else _size(size)
    return (_average_pool if "avg" in name else _max_pool)(node, value, window)


# ---- arithmetic ----------------------------------------------------------------------------------


def _mean(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    (means, named), (variances, _) = (_part(args, kwargs, name) for name in ("mean", "var"))
    mean, var = _on(node, means, named), _on(node, variances, _part(args, kwargs, "var")[1])
    return Moments(mean, var * (mean.numel() / means[0].numel()))


def _parts(value: Any) -> tuple[Any, Any]:
    if isinstance(value, Moments):
        return value.mean, value.var
    if isinstance(value, Tensor):
        return value.detach().double().cpu(), torch.zeros((), dtype=torch.float64)
    return float(value), torch.zeros((), dtype=torch.float64)


def _combine(sign: float) -> Callable[..., Moments]:
    def rule(node: fx.Node, args: Any, kwargs: Any) -> Moments:
        if kwargs.get("alpha", 1) != 1:
            raise UnsupportedModelError(f"model: {describe(node)} with alpha has no moments rule")
        (m, v), (m2, v2) = _parts(args[0]), _parts(args[1] if len(args) > 1 else kwargs["other"])
        mean = m + sign * m2
        return Moments(mean, (v + v2).expand(mean.shape))

    return rule


def _product(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    (m, v), (m2, v2) = _parts(args[0]), _parts(args[1] if len(args) > 1 else kwargs["other"])
    mean = m * m2
    return Moments(mean, (v * v2 + v * m2 * m2 + v2 * m * m).expand(mean.shape))


def _quotient(node: fx.Node, args: Any, kwargs: Any) -> Moments:
    if isinstance(args[1], Moments):
        raise UnsupportedModelError(f"model: {describe(node)} by a value has no moments rule")
    m, _ = _parts(args[1])
    return Moments(args[0].mean / m, args[0].var / (m * m))


# ---- registries ----------------------------------------------------------------------------------

_RISING = (
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
_FALLING_SOMEWHERE = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
_RISING_NAMES = {
    "relu6", "leaky_relu", "elu", "selu", "celu", "hardsigmoid", "hardtanh", "sigmoid", "tanh",
    "softplus", "softsign", "clamp",
}  # fmt: skip
_ELEMENTWISE_NAMES = {*_RISING_NAMES, "relu", "gelu", "silu", "mish", "hardswish", "abs", "square"}
_ASKING = {"size", "dim", "getattr", "numel", "sym_size", "shape"}
_MOVING = {
    "flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "cat", "concat",
    "stack", "chunk", "split", "tensor_split", "unbind", "getitem", "contiguous", "clone",
    "detach", "expand", "roll", "narrow", "index_select", "movedim", "swapaxes", "unflatten",
    "channel_shuffle", "pixel_shuffle",
}  # fmt: skip
_PASSING = {"dropout", "dropout2d", "alpha_dropout", "stochastic_depth", "float", "to"}


def _pass(node: fx.Node, args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs["input"]


def _flat(node: fx.Node, module: nn.Module, value: Moments) -> Moments:
    return Moments(module(value.mean), module(value.var))


_MODULE_RULES: Mapping[Any, Callable[[fx.Node, nn.Module, Moments], Moments]] = {
    (nn.Conv2d, nn.Linear): _layer,
    (nn.BatchNorm1d, nn.BatchNorm2d): _batch_norm,
    nn.LayerNorm: _layer_norm,
    (nn.ReLU, nn.PReLU, *_RISING, *_FALLING_SOMEWHERE): _elementwise_module,
    (
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    ): _pool_module,
    (nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.ChannelShuffle, nn.PixelShuffle): _flat,
    (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout): lambda node, module, value: value,
}  # fmt: skip

_FUNCTION_RULES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(_ELEMENTWISE_NAMES, _elementwise),
    **dict.fromkeys(_PASSING, _pass),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pool),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _pool),
    **dict.fromkeys(("add", "iadd"), _combine(1.0)),
    **dict.fromkeys(("sub", "isub"), _combine(-1.0)),
    **dict.fromkeys(("mul", "imul"), _product),
    "truediv": _quotient,
    "mean": _mean,
    "pad": _pad,
    "layer_norm": _f_layer_norm,
    "neg": lambda node, args, kwargs: Moments(-args[0].mean, args[0].var),
}
