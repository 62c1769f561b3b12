"""Ridge regression of a residual on what a layer reads, from sums over calibration images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from causalprune.pruning.gram import (
    ShiftedGram,
    has_shifted_gram,
    outputs_of,
    padding_of,
    patches_of,
    weight_gradient,
)

__all__ = ["Change", "Moments"]

PATCH_BYTES = 2**26
"""Unfolded patches that are in memory at a time."""


@dataclass(frozen=True)
class Change:
    """What a regression adds to the output of a layer.

    Attributes
    ----------
    weight : Tensor [O, I / groups, *kernel], float64
    constant : Tensor [O], float64
    before, after : Tensor [O], float64
        Sum of squared residuals without and with the change.
    """

    weight: Tensor
    constant: Tensor
    before: Tensor
    after: Tensor


@dataclass
class Moments:
    """Sums over positions that the regression of a residual on a layer's patches needs.

    With G groups, F = I / G * kernel features of a patch and O outputs; a position is a place of
    a map, or a token, of one image. Sums are float64 over products of the inputs' precision.

    Attributes
    ----------
    layer : nn.Conv2d or nn.Linear
    by_rows : bool
        Whether the patches themselves are kept, and the regression is solved in the space of
        positions, which is smaller where there are fewer positions than features. The result is
        the same.
    n : int
        Positions seen.
    """

    layer: nn.Conv2d | nn.Linear
    by_rows: bool = False
    n: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _shifted: ShiftedGram | None = None
    _patches_seen: bool = False

    def __post_init__(self) -> None:
        """Choose how the Gram matrix is accumulated."""
        if not self.by_rows and has_shifted_gram(self.layer):
            assert isinstance(self.layer, nn.Conv2d)
            self._shifted = ShiftedGram(self.layer)

    def restart(self) -> None:
        """Forget the residuals; the patches stay, so the same inputs are to be added again."""
        for name in ("cross", "residual", "squares"):
            self._sums.pop(name, None)
        self._rows.clear()
        self._patches_seen = True

    @property
    def finite(self) -> bool:
        """Whether neither patches nor residuals have had a NaN or an infinity."""
        return all(bool(torch.isfinite(total).all()) for total in self._sums.values())

    def add(self, inputs: Tensor, residual: Tensor) -> None:
        """Add images.

        Parameters
        ----------
        inputs : Tensor [N, I, H, W] or [..., I]
            What the layer reads.
        residual : Tensor [N, O, Ho, Wo] or [..., O]
            What a change of the layer is to explain.
        """
        inputs, residual = _floating(inputs), _floating(residual)
        if self._shifted is None:
            n_parts = max(1, min(len(inputs), _patch_bytes(self.layer, residual) // PATCH_BYTES))
            parts = zip(inputs.chunk(n_parts), residual.chunk(n_parts), strict=True)
            for part, explained in parts:
                self._add_rows(patches_of(self.layer, part), outputs_of(self.layer, explained))
            return
        self._note(outputs_of(self.layer, residual))
        cross = _cross(self._shifted.layer, inputs, residual)
        self._sum("cross", cross[:-1].flatten(1).T[None])
        if not self._patches_seen:
            self._shifted.add(inputs)
            self._sum("patch", cross[-1:].flatten(1))

    def _add_rows(self, rows: Tensor, explained: Tensor) -> None:
        self._note(explained)
        if not self._patches_seen:
            self._sum("patch", rows.sum(1, dtype=torch.float64))
        if self.by_rows:
            self._rows.append((rows, explained))
            return
        if not self._patches_seen:
            self._sum("gram", rows.mT @ rows)
        self._sum("cross", rows.mT @ explained)

    def _note(self, explained: Tensor) -> None:
        if not self._patches_seen:
            self.n += explained.shape[1]
        self._sum("residual", explained.sum(1, dtype=torch.float64))
        self._sum("squares", explained.double().square().sum(1))

    def _sum(self, name: str, part: Tensor) -> None:
        total = self._sums.get(name)
        self._sums[name] = part.double() if total is None else total.add_(part)

    def solve(self, ridge: float, *, constant: bool = True, made: Tensor | None = None) -> Change:
        """Minimise ``|R - X D - c|^2 + lambda |D + made|^2``.

        With lambda = `ridge` * the mean of the diagonal of ``X'X`` (per group); c carries no
        penalty, and is zero where there is to be no `constant`.

        Parameters
        ----------
        ridge : float
        constant : bool
        made : Tensor [O, I / groups, *kernel], float64, optional
            Changes of the weight that have been made before. Default: none.
        """
        solved = self._solved_by_rows if self.by_rows else self._solved
        n_groups = self._sums["patch"].shape[0]
        weight = self.layer.weight if made is None else made
        before = weight.new_zeros(weight.shape, dtype=torch.float64) if made is None else made
        before = before.reshape(n_groups, -1, weight[0].numel()).mT
        change, mean_patch, after = solved(ridge, constant, before)
        mean_residual = self._sums["residual"] / self.n
        offset = torch.zeros_like(mean_residual)
        if constant:
            offset = mean_residual - (mean_patch[:, None] @ change)[:, 0]
        weight = change.mT.reshape(self.layer.weight.shape)
        return Change(weight, offset.flatten(), self._sums["squares"].flatten(), after.flatten())

    def _solved(self, ridge: float, constant: bool, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gram = self._sums["gram"] if self._shifted is None else self._shifted.matrix()[None]
        cross, squares = self._sums["cross"], self._sums["squares"]
        mean_patch = self._sums["patch"] / self.n
        penalty = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        if constant:
            mean_residual = self._sums["residual"] / self.n
            scaled = self.n * mean_patch[:, :, None]
            gram = torch.baddbmm(gram, scaled, mean_patch[:, None], alpha=-1)
            cross = torch.baddbmm(cross, scaled, mean_residual[:, None], alpha=-1)
            squares = squares - self.n * mean_residual**2
        # The whole change has the penalty, so what has been made is explained once more.
        change = _ridge_solution(gram, cross + gram @ made, penalty) - made
        explained = 2 * (change * cross).sum(1) - (change * (gram @ change)).sum(1)
        return change, mean_patch, (squares - explained).clamp(min=0)

    def _solved_by_rows(
        self, ridge: float, constant: bool, made: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.cat([part for part, _ in self._rows], 1).double()
        explained = torch.cat([part for _, part in self._rows], 1).double()
        penalty = ridge * rows.square().sum((1, 2)) / rows.shape[2]
        mean_patch = rows.mean(1)
        if constant:
            rows = rows - mean_patch[:, None]
            explained = explained - explained.mean(1, keepdim=True)
        whole = _ridge_solution(rows @ rows.mT, explained + rows @ made, penalty)
        change = rows.mT @ whole - made
        return change, mean_patch, (explained - rows @ change).square().sum(1)


def _ridge_solution(gram: Tensor, cross: Tensor, penalty: Tensor) -> Tensor:
    """Return D of ``(gram + penalty I) D = cross`` for each group: the smallest, of several."""
    gram = gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    solution = torch.cholesky_solve(cross, factor)
    for group in failed.nonzero().flatten().tolist():
        solution[group] = torch.linalg.pinv(gram[group], hermitian=True) @ cross[group]
    return solution


def _cross(layer: nn.Conv2d, inputs: Tensor, residual: Tensor) -> Tensor:
    """Return the sums [O + 1, I, kh, kw] of patch times residual; the last: of the patch alone."""
    inputs, padding = padding_of(layer, inputs)
    ones = torch.ones_like(residual[:, :1])
    (kh, kw), (down, across) = layer.kernel_size, layer.dilation
    size = (residual.shape[1] + 1, inputs.shape[1], kh, kw)
    outputs = torch.cat([residual, ones], 1)
    return weight_gradient(inputs, size, outputs, padding, (down, across))


def _patch_bytes(layer: nn.Conv2d | nn.Linear, residual: Tensor) -> int:
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    n_positions = residual.numel() // layer.weight.shape[0]
    return n_positions * groups * layer.weight[0].numel() * residual.element_size()


def _floating(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
