"""Changes of several layers at once that bring one pre-activation closest to its target.

A step of Gauss and Newton: what the layers between do is taken as linear in the changes, and the
linear least squares are solved by conjugate gradients, image after image, without forming a
matrix of all weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.pruning.gram import ShiftedGram, has_shifted_gram, outputs_of, patches_of
from causalprune.pruning.readers import Reader

__all__ = ["Changes", "Part", "added", "error_of", "scaled", "solve"]

MOST_FEATURES = 4096
"""Layers that read more have their features scaled, instead of made independent."""

Changes = Mapping[str, tuple[Tensor, Tensor]]
"""Layer to the changes of its weight [O, I / groups, *kernel] and of its constant [O]."""


@dataclass(frozen=True)
class Part:
    """Some of the calibration images.

    Attributes
    ----------
    run : callable
        Takes, by layer, what is to be added to its output given its input; returns the
        pre-activation [n, O, ...] to be fitted.
    target : callable
        Takes nothing; returns what it should be.
    """

    run: Callable[[Callable[[Reader, Tensor], Tensor]], Tensor]
    target: Callable[[], Tensor]


def added(reader: Reader, inputs: Tensor, changes: Changes) -> Tensor:
    """Return what changes of its weight and constant add to the output of a layer."""
    weight, constant = changes[reader.layer]
    if isinstance(reader.module, nn.Conv2d):
        convolved: Tensor = reader.module._conv_forward(inputs, weight, None)
        return convolved + constant[:, None, None]
    product: Tensor = F.linear(inputs, weight)
    return product + constant


def scaled(changes: Changes, size: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `size` times the changes."""
    return {name: (weight * size, constant * size) for name, (weight, constant) in changes.items()}


def error_of(parts: Sequence[Part], changes: Changes, flat_below: float | None) -> float:
    """Sum of squared differences to the target, without what the activation behind hides."""
    total = 0.0
    for part in parts:
        got = part.run(lambda reader, inputs: added(reader, inputs, changes))
        residual, _ = _residual(part.target(), got, flat_below)
        total += float(residual.double().square().sum())
    return total


def solve(
    layers: Sequence[Reader],
    parts: Sequence[Part],
    *,
    ridge: float,
    n_iterations: int,
    flat_below: float | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the changes that, to first order, minimise the error.

    ``sum over images |gate * (R - J d)|^2 + ridge |z|^2``: R is the difference to the target, J
    the derivative of the pre-activation by all changes d, gate 0 where target and pre-activation
    are both in the flat part of the activation behind. z are the changes in units in which each
    layer alone moves the pre-activation by about its own size: ``d = z L^-1 / s``, with the Gram
    matrix ``L L'`` of the layer's patches and s the root mean square of the derivative of the
    pre-activation by an output of the layer.

    Parameters
    ----------
    layers : sequence of Reader
    parts : sequence of Part
    ridge : float
        Relative to what the changes move.
    n_iterations : int
        Of conjugate gradients; each is about five passes through the layers.
    flat_below : float or None
        Below it the activation behind is 0; None: it is so nowhere.
    """
    units = _units_of(layers, parts)
    zero = {layer.layer: _zeros(layer) for layer in layers}

    def run(part: Part) -> Callable[[Changes], Tensor]:
        return lambda changes: part.run(lambda layer, inputs: added(layer, inputs, changes))

    gates, gradient = [], [torch.zeros_like(t) for unit in units for t in _zeros(unit.layer)]
    for part in parts:
        got, pull = _vjp(run(part), zero)
        residual, gate = _residual(part.target(), got.detach(), flat_below)
        gates.append(gate)
        _accumulate(gradient, pull(residual)[0], units)

    def product(z: Sequence[Tensor]) -> list[Tensor]:
        found, moved = [ridge * each for each in z], _changes(z, units)
        for part, gate in zip(parts, gates, strict=True):
            towards = _jvp(run(part), zero, moved)
            _, pull = _vjp(run(part), zero)
            towards = towards if gate is None else towards * gate
            _accumulate(found, pull(towards.detach())[0], units)
        return found

    return _changes(_conjugate_gradients(product, gradient, n_iterations), units)


def _jvp(run: Callable[[Changes], Tensor], changes: Changes, moved: Changes) -> Tensor:
    with warnings.catch_warnings():
        # torch compiles its own table of derivatives by a means that it calls deprecated.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        found: Any = torch.func.jvp(run, (changes,), (moved,))
    direction: Tensor = found[1]
    return direction


def _vjp(
    run: Callable[[Changes], Tensor], changes: Changes
) -> tuple[Tensor, Callable[[Tensor], tuple[Changes]]]:
    found: Any = torch.func.vjp(run, changes)
    return found[0], found[1]


def _zeros(layer: Reader) -> tuple[Tensor, Tensor]:
    weight = layer.module.weight.detach()
    return torch.zeros_like(weight), weight.new_zeros(len(weight))


def _residual(
    target: Tensor, got: Tensor, flat_below: float | None
) -> tuple[Tensor, Tensor | None]:
    """Difference to the target as the activation behind shows it, and where it can show it."""
    if flat_below is None:
        return target - got, None
    shown = target > flat_below
    wanted = torch.where(shown, target, got.clamp(max=flat_below))
    return wanted - got, shown | (got > flat_below)


# ---- units in which the layers are alike ---------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """Of the changes of a layer: `inverse` [G, F, F] of the Gram matrix's root, or [G, F].

    `scale` [O] and `constant_scale` [O]: what an output, and a constant, is divided by. A layer
    whose constant finds no place has a `constant_scale` of 0.
    """

    layer: Reader
    inverse: Tensor
    scale: Tensor
    constant_scale: Tensor


def _units_of(layers: Sequence[Reader], parts: Sequence[Part]) -> list[_Unit]:
    grams = {layer.layer: _Gram(layer.module) for layer in layers}
    squares = {layer.layer: torch.zeros_like(_zeros(layer)[1]) for layer in layers}
    counts = dict.fromkeys(grams, 0)
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        outputs: dict[str, Tensor] = {}

        def watch(layer: Reader, inputs: Tensor, outputs: dict[str, Tensor] = outputs) -> Tensor:
            grams[layer.layer].add(inputs.detach())
            with torch.no_grad():
                shape = added(layer, inputs[:1], {layer.layer: _zeros(layer)}).shape
            outputs[layer.layer] = inputs.new_zeros(len(inputs), *shape[1:], requires_grad=True)
            return outputs[layer.layer]

        with torch.enable_grad():
            got = part.run(watch)
        signs = torch.randint(0, 2, got.shape, generator=generator).to(got) * 2 - 1
        slopes = torch.autograd.grad(got, [outputs[layer.layer] for layer in layers], signs)
        for layer, slope in zip(layers, slopes, strict=True):
            rows = outputs_of(layer.module, slope).movedim(0, 1).flatten(1)
            squares[layer.layer] += rows.square().sum(0)
            counts[layer.layer] += len(rows)
    found = []
    for layer in layers:
        name = layer.layer
        scale = (squares[name] / counts[name]).sqrt()
        scale = scale.clamp(min=float(scale.mean()) * 1e-2 or 1.0)
        constant = 1 / (scale * counts[name] ** 0.5)
        if layer.place is None:
            constant = torch.zeros_like(constant)
        found.append(_Unit(layer, grams[name].inverse_root(), scale, constant))
    return found


class _Gram:
    """Gram matrices of a layer's patches, or their diagonals where they would be too large."""

    def __init__(self, module: nn.Conv2d | nn.Linear) -> None:
        self.module = module
        self.diagonal = module.weight[0].numel() > MOST_FEATURES
        self.shifted: ShiftedGram | None = None
        if isinstance(module, nn.Conv2d) and has_shifted_gram(module) and not self.diagonal:
            self.shifted = ShiftedGram(module)
        self.total: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        if self.shifted is not None:
            self.shifted.add(inputs)
            return
        rows = patches_of(self.module, inputs)
        found = (rows.square().sum(1) if self.diagonal else rows.mT @ rows).double()
        self.total = found if self.total is None else self.total.add_(found)

    def inverse_root(self) -> Tensor:
        """Return [G, F, F]: X times its transpose has the Gram matrix for an inverse; or [G, F]."""
        weight = self.module.weight
        total = self.total if self.shifted is None else self.shifted.matrix()[None]
        assert total is not None
        if self.diagonal:
            floor = 1e-3 * total.mean(1, keepdim=True)
            return (total + floor.clamp(min=1e-30)).rsqrt().to(weight.dtype)
        # Directions that the images hardly have are bounded, or rounding would decide on them.
        floor = 1e-3 * total.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        eye = torch.eye(total.shape[1], dtype=total.dtype, device=total.device)
        root = torch.linalg.cholesky(total + floor[:, None, None] * eye)
        inverse: Tensor = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        return inverse.to(weight.dtype)


def _changes(z: Sequence[Tensor], units: Sequence[_Unit]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the changes of the layers, from their two tensors each in z."""
    return {
        unit.layer.layer: (
            _times(z[2 * k], unit, transposed=False),
            z[2 * k + 1] * unit.constant_scale,
        )
        for k, unit in enumerate(units)
    }


def _accumulate(total: Sequence[Tensor], slopes: Changes, units: Sequence[_Unit]) -> None:
    """Add derivatives by the changes to those by z."""
    for k, unit in enumerate(units):
        weight, constant = slopes[unit.layer.layer]
        total[2 * k].add_(_times(weight, unit, transposed=True))
        total[2 * k + 1].add_(constant * unit.constant_scale)


def _times(weight: Tensor, unit: _Unit, *, transposed: bool) -> Tensor:
    groups = len(unit.inverse)
    rows = weight.reshape(groups, len(weight) // groups, -1)
    if unit.inverse.ndim == 2:
        rows = rows * unit.inverse[:, None]
    else:
        rows = rows @ (unit.inverse.mT if transposed else unit.inverse)
    return (rows.reshape(len(weight), -1) / unit.scale[:, None]).reshape(weight.shape)


def _conjugate_gradients(
    product: Callable[[Sequence[Tensor]], list[Tensor]],
    gradient: Sequence[Tensor],
    n_iterations: int,
) -> list[Tensor]:
    """Return z with ``product(z) = gradient``, as far as `n_iterations` lead."""
    z = [torch.zeros_like(each) for each in gradient]
    left = [each.clone() for each in gradient]
    direction = [each.clone() for each in left]
    size = first = _dot(left, left)
    for _ in range(n_iterations):
        if size <= 1e-12 * first:
            break
        image = product(direction)
        step = size / _dot(direction, image)
        for k, each in enumerate(image):
            z[k].add_(direction[k], alpha=step)
            left[k].sub_(each, alpha=step)
        before, size = size, _dot(left, left)
        direction = [new + (size / before) * old for new, old in zip(left, direction, strict=True)]
    return z


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
