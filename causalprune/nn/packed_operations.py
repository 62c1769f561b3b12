"""What the native packed layer can compute, as plain data, and which nodes of a graph that is.

A stretch of a network becomes a list of these operations; each names the values it reads and the
one that it writes, and the layers whose weights it takes. Nothing here knows sizes of images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from causalprune.ops.packed_layouts import Window

__all__ = [
    "ACTIVATIONS",
    "Combination",
    "Concatenation",
    "Convolution",
    "GlobalAverage",
    "Operation",
    "Pooling",
    "Subsampling",
    "arguments_of",
    "function_name",
    "is_image",
    "operation_of",
]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """activation(convolution of `source` with the weights of `layer` + `residual`)."""

    name: str
    source: str
    layer: str
    window: Window
    groups: int
    activation: str = "none"
    residual: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that are read."""
        return (self.source, self.residual) if self.residual else (self.source,)


@dataclass(frozen=True)
class Combination:
    """activation(batch norm `layer` of (`a` + `b`)); `b` and `layer` may be empty."""

    name: str
    a: str
    b: str = ""
    layer: str = ""
    activation: str = "none"

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that are read."""
        return (self.a, self.b) if self.b else (self.a,)


@dataclass(frozen=True)
class Pooling:
    """The maximum or average of windows; with `exact`, only where no window is cut (ceil mode)."""

    name: str
    source: str
    kind: str
    window: Window
    count_padding: bool = True
    exact: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that are read."""
        return (self.source,)


@dataclass(frozen=True)
class Concatenation:
    """Values behind one another along the channels."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class GlobalAverage:
    """The mean over height and width.

    With `kernel`, only where that is the size of the image (0: the other side's).
    """

    name: str
    source: str
    keeps_dimensions: bool
    kernel: Pair | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that are read."""
        return (self.source,)


@dataclass(frozen=True)
class Subsampling:
    """Every so many rows and columns, between channels of zeros."""

    name: str
    source: str
    step: Pair
    before: int = 0
    after: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that are read."""
        return (self.source,)


Operation = Convolution | Combination | Pooling | Concatenation | GlobalAverage | Subsampling


# ---- reading nodes ------------------------------------------------------------------------------

_MODULE_ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu")
_HOMES = (torch, F, operator, torch.Tensor, torch._C._nn)


def function_name(node: fx.Node) -> str:
    """Return the plain name of the torch function or method that `node` calls, or nothing."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        space, _, name = target._schema.name.partition("::")
        return name if space == "aten" else ""
    name = str(getattr(target, "__name__", ""))
    if name == "stochastic_depth" or any(getattr(home, name, None) is target for home in _HOMES):
        return name
    return ""


def arguments_of(node: fx.Node, names: Sequence[str], **given: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, `given` being their defaults."""
    return {**given, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def is_image(value: object) -> bool:
    """Whether `value` is a node that computes one float32 tensor [N, C, H, W]."""
    if not isinstance(value, fx.Node) or value.op == "get_attr":
        return False
    meta = value.meta.get("tensor_meta")
    return isinstance(meta, TensorMetadata) and len(meta.shape) == 4 and meta.dtype == torch.float32


def operation_of(node: fx.Node, traced: fx.GraphModule) -> Operation | None:
    """Return what `node` computes as an operation of the packed layer, or ``None``."""
    if node.op == "call_module":
        return _of_module(node, traced.get_submodule(str(node.target)))
    if node.op in ("call_function", "call_method"):
        return _of_function(node, function_name(node))
    return None


def _of_module(node: fx.Node, module: nn.Module) -> Operation | None:
    if len(node.args) != 1 or node.kwargs or not is_image(node.args[0]):
        return None
    source = str(node.args[0])
    kind = type(module)
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d:
        return _of_convolution(node, source, module)
    if isinstance(module, nn.BatchNorm2d) and kind is nn.BatchNorm2d:
        known = module.running_mean is not None and module.running_var is not None
        return Combination(node.name, source, layer=str(node.target)) if known else None
    if isinstance(module, nn.MaxPool2d) and kind is nn.MaxPool2d and not module.return_indices:
        return _pooling(node, "max", vars(module))
    if isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
        return _pooling(node, "average", vars(module))
    if isinstance(module, nn.AdaptiveAvgPool2d) and kind is nn.AdaptiveAvgPool2d:
        return GlobalAverage(node.name, source, True) if _ones(module.output_size) else None
    return None


def activation_of(node: fx.Node, traced: fx.GraphModule) -> str:
    """Return the activation that `node` is, or nothing."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return ""
        return _MODULE_ACTIVATIONS.get(type(module), "")
    name = function_name(node).removesuffix("_")
    if name == "gelu" and arguments_of(node, ("input", "approximate")).get("approximate"):
        given = arguments_of(node, ("input", "approximate"))["approximate"]
        return "gelu" if given == "none" else ""
    if name == "hardtanh":
        limits = arguments_of(node, ("input", "min_val", "max_val"), min_val=-1.0, max_val=1.0)
        return "relu6" if (limits["min_val"], limits["max_val"]) == (0, 6) else ""
    return name if name in ACTIVATIONS else ""


def _of_convolution(node: fx.Node, source: str, layer: nn.Conv2d) -> Convolution | None:
    if layer.padding_mode != "zeros" or layer.weight.dtype != torch.float32:
        return None
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    padding: Any = layer.padding
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = tuple(t // 2 for t in total)
    window = Window(kernel, _pair(layer.stride), _pair(padding), dilation)
    return Convolution(node.name, source, str(node.target), window, layer.groups)


def _of_function(node: fx.Node, name: str) -> Operation | None:
    first = node.args[0] if node.args else None
    if name in ("cat", "concat", "concatenate"):
        return _concatenation(node)
    if not is_image(first):
        return None
    source = str(first)
    if name in ("add", "iadd", "add_"):
        return _sum(node)
    if name == "max_pool2d":
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return _pooling(node, "max", arguments_of(node, names))
    if name == "avg_pool2d":
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        given = arguments_of(node, (*names, "divisor_override"))
        return _square_average(node, given) or _pooling(node, "average", given)
    if name == "adaptive_avg_pool2d":
        size = arguments_of(node, ("input", "output_size"))["output_size"]
        return GlobalAverage(node.name, source, True) if _ones(size) else None
    if name == "mean":
        given = arguments_of(node, ("input", "dim", "keepdim"), dim=None, keepdim=False)
        dim = given["dim"]
        over = isinstance(dim, (tuple, list)) and sorted(d % 4 for d in dim) == [2, 3]
        if not over or given.get("dtype") is not None:
            return None
        return GlobalAverage(node.name, source, bool(given["keepdim"]))
    if name == "getitem":
        return _subsampling(node)
    return _channel_padding(node) if name == "pad" else None


def _concatenation(node: fx.Node) -> Concatenation | None:
    given = arguments_of(node, ("tensors", "dim"), dim=0)
    tensors = given["tensors"]
    if not isinstance(tensors, (tuple, list)) or given["dim"] not in (1, -3):
        return None
    if not all(is_image(each) for each in tensors):
        return None
    return Concatenation(node.name, tuple(str(each) for each in tensors))


def _sum(node: fx.Node) -> Combination | None:
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1 or set(node.kwargs) - {"alpha"}:
        return None
    a, b = node.args
    if not (is_image(a) and is_image(b)):
        return None
    assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
    if a.meta["tensor_meta"].shape != b.meta["tensor_meta"].shape:
        return None
    return Combination(node.name, str(a), str(b))


def _pooling(node: fx.Node, kind: str, given: Mapping[str, Any]) -> Operation | None:
    dilation = given.get("dilation", 1)
    if _pair(dilation) != (1, 1) or given.get("divisor_override") is not None:
        return None
    if given.get("return_indices"):
        return None
    sizes = [given["kernel_size"], given.get("stride"), given.get("padding", 0)]
    if sizes[1] is None or sizes[1] == []:
        sizes[1] = sizes[0]
    if any(isinstance(part, fx.Node) for size in sizes for part in _pair(size)):
        return None
    window = Window(*(_pair(size) for size in sizes))
    source = node.args[0]
    assert isinstance(source, fx.Node)
    size = tuple(source.meta["tensor_meta"].shape[2:])
    if kind == "average" and window.kernel == size and window.padding == (0, 0):
        return GlobalAverage(node.name, str(source), True, window.kernel)
    exact = bool(given.get("ceil_mode", False))
    if exact and not cuts_no_window(window, (size[0], size[1])):
        return None
    counted = bool(given.get("count_include_pad", True))
    return Pooling(node.name, str(source), kind, window, counted, exact)


def cuts_no_window(window: Window, size: Pair) -> bool:
    """Whether rounding up gives the output size that rounding down gives."""
    room = [size[k] + 2 * window.padding[k] - window.kernel[k] for k in (0, 1)]
    return all(r >= 0 and r % s == 0 for r, s in zip(room, window.stride, strict=True))


def _square_average(node: fx.Node, given: Mapping[str, Any]) -> GlobalAverage | None:
    """Recognise ``avg_pool2d(x, x.size()[3])`` and the like: the mean of a square image."""
    source = node.args[0]
    sizes = _pair(given["kernel_size"])
    assert isinstance(source, fx.Node)
    if set(given) - {"input", "kernel_size"} or not all(_is_side(s, source) for s in sizes):
        return None
    shape = source.meta["tensor_meta"].shape
    return GlobalAverage(node.name, str(source), True, (0, 0)) if shape[2] == shape[3] else None


def _is_side(value: object, source: fx.Node) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if function_name(value) == "size" and value.args[0] is source:
        return value.args[1:] in ((2,), (3,), (-1,), (-2,))
    if function_name(value) != "getitem" or value.args[1] not in (2, 3, -1, -2):
        return False
    whole = value.args[0]
    if not isinstance(whole, fx.Node) or whole.args[0] is not source:
        return False
    by_method = function_name(whole) == "size" and len(whole.args) == 1
    return by_method or (whole.target is getattr and whole.args[1] == "shape")


def _subsampling(node: fx.Node) -> Subsampling | None:
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4:
        return None
    if not all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in index):
        return None
    steps = [1 if i.step is None else i.step for i in index]
    if steps[:2] != [1, 1] or not all(isinstance(s, int) and s >= 1 for s in steps):
        return None
    return Subsampling(node.name, str(node.args[0]), (steps[2], steps[3]))


def _channel_padding(node: fx.Node) -> Subsampling | None:
    names = ("input", "pad", "mode", "value")
    given = arguments_of(node, names, mode="constant", value=None)
    sides = given["pad"]
    plain = given["mode"] == "constant" and given["value"] in (None, 0)
    if not plain or not isinstance(sides, (tuple, list)) or len(sides) != 6:
        return None
    if any(sides[:4]) or not all(isinstance(s, int) and s >= 0 for s in sides[4:]):
        return None
    return Subsampling(node.name, str(node.args[0]), (1, 1), sides[4], sides[5])


def _pair(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(value) if len(value) == 2 else (value[0], value[0])
    return value, value


def _ones(size: Any) -> bool:
    return bool(_pair(size) == (1, 1))


def zeros_share(weight: torch.Tensor) -> float:
    """Return the share of weights that are zero."""
    if not weight.numel():
        return math.nan
    return 1.0 - float(torch.count_nonzero(weight)) / weight.numel()
