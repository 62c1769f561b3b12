"""Estimators for designs that remove many units at once, at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["Estimate", "difference_of_means", "draw_masks", "regression_on_masks"]

BLOCK = 2**22
"""Entries of masks that are float64 at a time."""


@dataclass(frozen=True)
class Estimate:
    """Estimated Banzhaf values of U units.

    Attributes
    ----------
    effect : Tensor [U], float64
        NaN for a unit that no image has both with and without.
    se : Tensor [U], float64
        Standard error over images, which stand for the distribution they were drawn from.
    n : Tensor [U], int64
        Images that have a row with the unit and one without it.
    """

    effect: Tensor
    se: Tensor
    n: Tensor


def draw_masks(
    probability: Tensor, n_images: int, n_masks: int, generator: torch.Generator
) -> Tensor:
    """Draw masks [n_images, n_masks, U], bool: True with `probability` [U], independently.

    Image by image, so that masks do not depend on how images are cut into batches.

    Examples
    --------
    >>> draw_masks(torch.tensor([0.0, 1.0]), 1, 2, torch.Generator()).tolist()
    [[[False, True], [False, True]]]
    """
    drawn = [
        torch.rand(n_masks, len(probability), generator=generator, dtype=torch.float64)
        < probability
        for _ in range(n_images)
    ]
    return torch.stack(drawn)


def difference_of_means(masks: Tensor, outcomes: Tensor) -> Estimate:
    """Difference of the mean outcome between rows without and with a unit, within images.

    Least squares of the outcome on the unit's own mask and one constant per image, each unit for
    itself. Standard errors are clustered by image with the CR3 (jackknife) correction.

    Parameters
    ----------
    masks : Tensor [N, T, U], bool
        True where the unit is removed.
    outcomes : Tensor [N, T], floating
        Outcome of every image under every of its masks.

    References
    ----------
    Bell and McCaffrey (2002), for CR3.

    Examples
    --------
    >>> masks = torch.tensor([[[True], [False]], [[False], [True]]])
    >>> estimate = difference_of_means(masks, torch.tensor([[3.0, 1.0], [5.0, 8.0]]))
    >>> estimate.effect.item(), estimate.n.item()
    (2.5, 2)
    """
    _check_rows(masks, outcomes)
    y = _within(outcomes.double()[..., None])[..., 0]
    parts = [_one_by_one(block, y) for block in _unit_blocks(masks)]
    effect, se, n = (torch.cat(values) for values in zip(*parts, strict=True))
    return Estimate(effect, se, n)


def regression_on_masks(masks: Tensor, outcomes: Tensor) -> Estimate:
    """Least squares of the outcome on the masks of all units and one constant per image.

    Same estimand as :func:`difference_of_means`, with less variance where several units matter
    and rows are several times as many as units, with more where they are not. Standard errors
    are clustered by image with the CR3 (jackknife) correction, and hold though the outcome is
    not additive in the units.

    Parameters
    ----------
    masks : Tensor [N, T, U], bool
        True where the unit is removed.
    outcomes : Tensor [N, T], floating

    Raises
    ------
    InvalidArgumentError
        If the rows cannot tell the units apart: it takes more than U rows beyond one per image.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> masks = draw_masks(torch.full((3,), 0.5), 5, 4, generator)
    >>> outcomes = masks.double() @ torch.tensor([1.0, 0.0, -2.0]).double()
    >>> regression_on_masks(masks, outcomes).effect.round(decimals=9).abs().tolist()
    [1.0, 0.0, 2.0]
    """
    _check_rows(masks, outcomes)
    n_images, n_masks, n_units = masks.shape
    y = _within(outcomes.double()[..., None])[..., 0]
    gram = torch.zeros(n_units, n_units, dtype=torch.float64)
    product = torch.zeros(n_units, dtype=torch.float64)
    for rows in _image_blocks(masks):
        z = _within(masks[rows].double()).flatten(0, 1)
        gram += z.T @ z
        product += z.T @ y[rows].flatten()
    factor = _factor(gram, n_images, n_masks)
    effect = torch.cholesky_solve(product[:, None], factor)[:, 0]
    influence = [
        _influence(_within(masks[rows].double()), y[rows], effect, factor)
        for rows in _image_blocks(masks)
    ]
    return Estimate(effect, torch.cat(influence, 1).square().sum(1).sqrt(), _informative(masks))


def _check_rows(masks: Tensor, outcomes: Tensor) -> None:
    if masks.ndim != 3 or masks.dtype != torch.bool or masks.shape[:2] != outcomes.shape:
        raise InvalidArgumentError(
            "masks, outcomes: expected bool [N, T, U] and [N, T], got "
            f"{masks.dtype} {tuple(masks.shape)} and {tuple(outcomes.shape)}"
        )


def _within(values: Tensor) -> Tensor:
    """Return deviations [N, T, ...] from each image's mean over its rows."""
    return values - values.mean(1, keepdim=True)


def _unit_blocks(masks: Tensor) -> Sequence[Tensor]:
    return torch.split(masks, max(1, BLOCK // max(1, masks[..., 0].numel())), dim=2)


def _image_blocks(masks: Tensor) -> list[slice]:
    step = max(1, BLOCK // max(1, masks[0].numel()))
    return [slice(i, i + step) for i in range(0, len(masks), step)]


def _informative(masks: Tensor) -> Tensor:
    return (masks.any(1) & ~masks.all(1)).sum(0)


def _one_by_one(masks: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = _within(masks.double())
    weight = z.square().sum(1)  # [N, U]
    covariance = torch.einsum("ntu,nt->nu", z, y)
    whole = weight.sum(0)
    effect = covariance.sum(0) / whole
    leverage = (weight / whole).clamp(max=1 - 1e-12)
    score = (covariance - effect * weight) / (1 - leverage)
    return effect, score.square().sum(0).sqrt() / whole, _informative(masks)


def _factor(gram: Tensor, n_images: int, n_masks: int) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal()
    if int(failed) or not bool((pivots.square() > 1e-10 * gram.diagonal()).all()):
        raise InvalidArgumentError(
            f"estimator: 'regression' cannot tell {len(gram)} units apart by {n_masks} masks on "
            f"each of {n_images} images; raise n_masks or q, or use 'difference'"
        )
    return factor


def _influence(z: Tensor, y: Tensor, effect: Tensor, factor: Tensor) -> Tensor:
    """Return what each image adds to the error of `effect`, [U, n], with the CR3 correction."""
    n_images, n_masks, n_units = z.shape
    half = torch.linalg.solve_triangular(factor, z.flatten(0, 1).T, upper=False)
    half = half.T.reshape(n_images, n_masks, n_units)
    values, vectors = torch.linalg.eigh(half @ half.transpose(1, 2))
    # An image that alone decides on a coefficient has leverage 1 there and no residual.
    scale = torch.where(values < 1 - 1e-9, (1 - values).clamp(min=1e-12).reciprocal(), 0.0)
    residual = (y - z @ effect)[..., None]
    adjusted = vectors @ (scale[..., None] * (vectors.transpose(1, 2) @ residual))
    influence: Tensor = torch.linalg.solve_triangular(
        factor.T, (half * adjusted).sum(1).T.contiguous(), upper=True
    )
    return influence
