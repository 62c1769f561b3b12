"""What one changed pixel reaches in the first layers of a network: windows, and their places.

A pixel at ``stride * block + phase`` changes, behind every layer, a window whose size depends on
the phase alone and whose place moves on by whole positions from block to block. So all pixels of
one phase share matrices and shapes, and differ in a table of positions.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causalprune.graph.steps import Step, is_hooked, steps_of
from causalprune.graph.trace import trace

__all__ = ["Layer", "Network", "Phase", "Span", "network_of", "phases_of"]

Span = tuple[int, int]
"""First and last position along an axis, both included."""

_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Identity,
    nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid",
    "tanh", "softplus", "hardswish", "hardsigmoid", "hardtanh",
})  # fmt: skip
_LARGEST_MATRIX = 2**22
"""Numbers in the matrix of a layer's change: 16 MB in float32."""


@dataclass(frozen=True)
class Layer:
    """One layer that is followed window by window.

    Attributes
    ----------
    step : Step
    kind : str
        "convolution", "pointwise", "max" or "average" (pooling).
    kernel, stride, padding : (int, int)
        Along height and width.
    """

    step: Step
    kind: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def reached(self, span: Span, axis: int) -> Span:
        """Return the outputs that read any of the inputs."""
        k, s, p = self.kernel[axis], self.stride[axis], self.padding[axis]
        return -(-(span[0] + p - k + 1) // s), (span[1] + p) // s

    def read(self, span: Span, axis: int) -> Span:
        """Return the inputs that these outputs read."""
        k, s, p = self.kernel[axis], self.stride[axis], self.padding[axis]
        return span[0] * s - p, span[1] * s - p + k - 1


@dataclass(frozen=True)
class Network:
    """A network in two parts.

    Attributes
    ----------
    layers : tuple of Layer
        The first ones, one behind the other; followed window by window.
    rest : tuple of Step
        All others, from the last layer's value to the output.
    source : str
        Name of the last layer's step, which the rest reads.
    last_reader : mapping of str to str
        Name of a step to that of the last one that reads its value.
    """

    layers: tuple[Layer, ...]
    rest: tuple[Step, ...]
    source: str
    last_reader: Mapping[str, str]

    def finish(self, value: Tensor) -> Tensor:
        """Run the rest on the last layer's value [R, C, H, W]."""
        values: dict[str, Tensor] = {self.source: value}
        result = value
        for step in self.rest:
            result = step(values.__getitem__)
            for name in step.inputs:
                if self.last_reader[name] == step.name:
                    values.pop(name, None)
            values[step.name] = result
        return result


def network_of(model: nn.Module, example: Tensor) -> Network | None:
    """Split a network behind the layers that a changed pixel does not yet reach as a whole.

    Returns
    -------
    Network or None
        ``None`` where the network does not begin with a plain convolution that one can follow,
        or cannot be traced without side effects.
    """
    steps = steps_of(trace(model, example))
    if steps is None or example.ndim != 4:
        return None
    begin = next((k for k, step in enumerate(steps) if step.op == "placeholder"), 0)
    first = steps[begin].name
    layers: list[Layer] = []
    for step in steps[begin + 1 :]:
        layer = _layer(step)
        if layer is None or step.inputs != (first,) or (not layers and layer.kind != "convolution"):
            break
        if any(k < s for k, s in zip(layer.kernel, layer.stride, strict=True)):
            break  # there are pixels that it does not read
        layers.append(layer)
        first = step.name
    while layers and not _worthwhile(layers, example):
        layers.pop()
    while layers and _read_again(layers, steps):
        layers.pop()
    if not layers:
        return None
    names = {layer.step.name for layer in layers}
    rest = tuple(step for step in steps[begin + 1 :] if step.name not in names)
    last = {name: step.name for step in rest for name in step.inputs}
    return Network(tuple(layers), rest, layers[-1].step.name, last)


def _layer(step: Step) -> Layer | None:
    module = step.module
    if module is None:
        return Layer(step, "pointwise") if step.function in _POINTWISE_FUNCTIONS else _pool(step)
    if is_hooked(module):
        return None
    if type(module) is nn.Conv2d:
        plain = module.groups == 1 and module.dilation == (1, 1)
        if not plain or module.padding_mode != "zeros" or isinstance(module.padding, str):
            return None
        kernel, stride, padding = (
            _pair(each) for each in (module.kernel_size, module.stride, module.padding)
        )
        return Layer(step, "convolution", kernel, stride, padding)
    if type(module) in _POINTWISE:
        return Layer(step, "pointwise")
    if type(module) is nn.MaxPool2d and _pair(module.dilation) == (1, 1):
        plain = (
            not module.return_indices and not module.ceil_mode and _pair(module.padding) == (0, 0)
        )
        kind = "max"
    elif type(module) is nn.AvgPool2d and module.divisor_override is None:
        plain, kind = not module.ceil_mode and _pair(module.padding) == (0, 0), "average"
    else:
        return None
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    return Layer(step, kind, kernel, stride) if plain else None


def _pool(step: Step) -> Layer | None:
    """Return a pooling that is called as a function with a kernel and a stride at most."""
    kind = {"max_pool2d": "max", "avg_pool2d": "average"}.get(step.function)
    given = {**dict(zip(("kernel_size", "stride"), step.args[1:], strict=False)), **step.kwargs}
    # torch.fx writes the defaults of max_pool2d down as keywords.
    defaults = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    sizes = [given.pop(name, None) for name in ("kernel_size", "stride")]
    unusual = any(name not in defaults or given[name] != defaults[name] for name in given)
    if kind is None or len(step.args) > 3 or unusual or sizes[0] is None:
        return None
    kernel = _pair(sizes[0])
    return Layer(step, kind, kernel, _pair(sizes[1]) if sizes[1] else kernel)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)  # type: ignore[call-overload]


def _worthwhile(layers: Sequence[Layer], example: Tensor) -> bool:
    """Whether following the last layer saves work over computing it for the whole map."""
    last = layers[-1]
    with torch.no_grad():
        shapes = shapes_of(layers, example)
    (channels, *_), (outputs, height, width) = shapes[-2], shapes[-1]
    spans = [_spans(layers, (0, 0), axis) for axis in (0, 1)]
    inside, outside = (math.prod(own[k][1] - own[k][0] + 1 for own in spans) for k in (-2, -1))
    if last.kind != "convolution":
        return outside < height * width
    matrix = inside * channels * outside * outputs
    return matrix <= _LARGEST_MATRIX and inside * outside < height * width * math.prod(last.kernel)


def _read_again(layers: Sequence[Layer], steps: Sequence[Step]) -> bool:
    """Whether somebody behind the last layer reads a value before it."""
    own = {layer.step.name for layer in layers}
    inner = own - {layers[-1].step.name} | {step.name for step in steps if step.op == "placeholder"}
    return any(inner & set(step.inputs) for step in steps if step.name not in own)


def shapes_of(layers: Sequence[Layer], example: Tensor) -> list[tuple[int, int, int]]:
    """Return channels, height and width of the image and behind every layer."""
    value, shapes = example[:1], [tuple(example.shape[1:])]
    for layer in layers:
        value = layer.step(lambda _, value=value: value)  # type: ignore[misc]
        shapes.append(tuple(value.shape[1:]))
    return shapes  # type: ignore[return-value]


def _spans(layers: Sequence[Layer], pixels: Span, axis: int) -> list[Span]:
    """Return the windows of the image and behind every layer, along one axis.

    What the pixels reach, and around it what a pooling behind reads besides. A convolution reads
    changes only, which are zero around it.
    """
    spans = [pixels]
    for layer in layers:
        spans.append(layer.reached(spans[-1], axis))
    for k in range(len(layers) - 1, 0, -1):
        if layers[k].kind != "convolution":
            spans[k] = layers[k].read(spans[k + 1], axis)
    return spans


@dataclass(frozen=True)
class Phase:
    """Pixels that reach windows of one shape, one or several next to each other in every block.

    Attributes
    ----------
    pixels : Tensor [B, window], int64
        Flat places of its pixels, block by block; -1 outside of the image.
    sizes : tuple of (int, int)
        Height and width of the window in the image and behind every layer.
    places : tuple of Tensor [B, window], int64
        Flat positions of the window in every map; outside of a map its nearest position, and
        behind the last layer the first one that there is not.
    valid : tuple of Tensor [B, window], bool
        Whether a position is in the map.
    matrices : tuple of (Tensor [window * C, window' * C'] or None)
        For every convolution, from changes of its input to changes of its output.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    places: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    matrices: tuple[Tensor | None, ...]


def phases_of(layers: Sequence[Layer], example: Tensor) -> list[Phase]:
    """Return phases that hold every pixel of the image once, with tables on its device."""
    with torch.no_grad():
        shapes = shapes_of(layers, example)
    rows, columns = (_axis_phases(layers, axis, shapes[0][1 + axis]) for axis in (0, 1))
    matrix_of = functools.lru_cache(None)(_matrix)
    phases = []
    for y, x in itertools.product(rows, columns):
        windows = zip(y.places, x.places, shapes, strict=True)
        tables = [_table(a, b, shape) for a, b, shape in windows]
        places, valid = ([table[k].to(example.device) for table in tables] for k in (0, 1))
        pixels = places[0].where(valid[0], -1)
        places[-1] = places[-1].where(valid[-1], math.prod(shapes[-1][1:]))
        matrices = tuple(
            matrix_of(layer.step.run, layer.stride, y.pairs[k], x.pairs[k])
            if layer.kind == "convolution"
            else None
            for k, layer in enumerate(layers)
        )
        sizes = tuple((a.shape[1], b.shape[1]) for a, b in zip(y.places, x.places, strict=True))
        phases.append(Phase(pixels, sizes, tuple(places), tuple(valid), matrices))
    return phases


@dataclass(frozen=True)
class _AxisPhase:
    """One axis of a phase.

    Attributes
    ----------
    places : list of Tensor [B, window]
        Positions in the image and behind every layer; they may lie outside.
    pairs : list of (int, int, int)
        For every layer: input and output positions, and the kernel's place of the first pair.
    """

    places: list[Tensor]
    pairs: list[tuple[int, int, int]]


def _axis_phases(layers: Sequence[Layer], axis: int, size: int) -> list[_AxisPhase]:
    strides = list(itertools.accumulate((1, *(x.stride[axis] for x in layers)), operator.mul))
    found, low = [], 0
    while low < min(strides[-1], size):
        spans, high = _spans(layers, (low, low), axis), low
        # Neighbours that reach no more go together.
        while high + 1 < strides[-1] and _spans(layers, (low, high + 1), axis)[1:] == spans[1:]:
            high += 1
        spans[0] = (low, high)
        blocks = torch.arange(len(range(low, size, strides[-1])))[:, None]
        places = [
            torch.arange(first, last + 1) + strides[-1] // stride * blocks
            for (first, last), stride in zip(spans, strides, strict=True)
        ]
        pairs = [
            (
                spans[k][1] - spans[k][0] + 1,
                spans[k + 1][1] - spans[k + 1][0] + 1,
                spans[k][0] - spans[k + 1][0] * layer.stride[axis] + layer.padding[axis],
            )
            for k, layer in enumerate(layers)
        ]
        found.append(_AxisPhase(places, pairs))
        low = high + 1
    return found


def _table(rows: Tensor, columns: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return flat positions and whether they are in the map, both [B, window]."""
    height, width = shape[1:]
    y, x = rows[:, None, :, None], columns[None, :, None, :]
    valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    places = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return places.flatten(2).flatten(0, 1), valid.flatten(2).flatten(0, 1)


def _matrix(
    run: nn.Conv2d,
    stride: tuple[int, int],
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
) -> Tensor:
    """Return the matrix [h * w * C, h' * w' * O] from changes of a window to those behind it."""
    weight = run.weight.detach()
    indices, inside = [], []
    for axis, (n_in, n_out, shift) in enumerate((rows, columns)):
        place = torch.arange(n_in)[:, None] - stride[axis] * torch.arange(n_out) + shift
        inside.append((place >= 0) & (place < weight.shape[2 + axis]))
        indices.append(place.clamp(0, weight.shape[2 + axis] - 1))
    (y, x), (in_y, in_x) = indices, inside
    chosen = weight[:, :, y[:, None, :, None], x[None, :, None, :]]  # [O, C, h, w, h', w']
    kept = (in_y[:, None, :, None] & in_x[None, :, None, :]).to(weight)
    matrix = (chosen * kept).permute(2, 3, 1, 4, 5, 0)
    return matrix.reshape(math.prod(matrix.shape[:3]), -1).contiguous()
