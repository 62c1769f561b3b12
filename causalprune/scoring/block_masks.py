"""Masks of blocks of weights from scores of connections, and the random choice beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import InvalidArgumentError

__all__ = ["mint_masks", "random_masks"]

Array = Tensor | np.ndarray[Any, Any]


def mint_masks(
    scores: Mapping[str, Array], delta_quantile: float, gamma: float = 1.0
) -> dict[str, Tensor]:
    """Which blocks of weights MINT keeps.

    The threshold is one quantile of the scores of all layers together; a layer of which more than
    the share `gamma` is at or below it is cut at its own `gamma` quantile instead. Fine-tune with
    the masks fixed; a filter vanishes only where its whole row or column is masked.

    Parameters
    ----------
    scores : Mapping of str to Tensor or ndarray
        Layer name to I [O, P]: ``Scores.edges`` of method ``"mint"``.
    delta_quantile : float
        Share of all blocks to mask, in [0, 1].
    gamma : float
        Largest share of one layer's blocks to mask, in [0, 1].

    Returns
    -------
    dict of str to Tensor [O, P], bool
        True where the block stays. At least one score of every threshold's own rank goes: blocks
        *at* the threshold are masked, ties together. P counts the layer's inputs, or units where
        one unit occupies several inputs (a flattened map): repeat the columns then.

    Raises
    ------
    InvalidArgumentError
        If a share is out of range, there are no scores, or a score is not finite.

    Examples
    --------
    >>> import torch
    >>> scores = {"a": torch.tensor([[0.1, 0.2], [0.3, 0.4]]), "b": torch.tensor([[0.9, 0.8]])}
    >>> mint_masks(scores, 0.5)["a"].tolist()
    [[False, False], [False, True]]
    >>> mint_masks(scores, 0.5, gamma=0.5)["a"].tolist()
    [[False, False], [True, True]]
    """
    for name, share in (("delta_quantile", delta_quantile), ("gamma", gamma)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise InvalidArgumentError(f"{name}: expected a number in [0, 1], got {share!r}")
    tensors = _checked(scores)
    delta = _at_rank(torch.cat([score.flatten() for score in tensors.values()]), delta_quantile)
    masks = {}
    for layer, score in tensors.items():
        threshold = delta
        if float((score <= delta).double().mean()) > gamma:
            threshold = _at_rank(score.flatten(), gamma)
        masks[layer] = score > threshold
    return masks


def random_masks(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Array],
    *,
    group_size: int = 1,
    n_groups: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random choice of as many blocks of every layer: the baseline beside MINT's masks.

    Blocks are drawn among those that score above 0; those at 0, which no weight ties or which
    carry nothing, stay as they are in `masks`. So both mask as many blocks that matter.

    Parameters
    ----------
    masks : Mapping of str to Tensor [O, P], bool
        From :func:`mint_masks`.
    scores : Mapping of str to Tensor or ndarray
        The scores [O, P] that they are from.
    group_size, n_groups
        As they were given to method ``"mint"``: they set the blocks.
    seed : int

    Returns
    -------
    dict of str to Tensor [O, P], bool
        True where the block stays. As many blocks as in `masks`; as many weights, too, where all
        blocks of a layer are of one size.

    Raises
    ------
    InvalidArgumentError
        If masks and scores do not fit each other.

    Notes
    -----
    Source: Ganesh, Corso, Sekeh (2020) have no such baseline; it tells what of a figure is due
    to the choice of blocks and what to their number.

    Examples
    --------
    >>> scores = {"a": torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.5]])}
    >>> masks = mint_masks(scores, 0.5)
    >>> int(masks["a"].sum()), int(random_masks(masks, scores, seed=1)["a"].sum())
    (3, 3)
    """
    tensors = _checked(scores)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, mask in masks.items():
        score = tensors.get(layer)
        if score is None or score.shape != mask.shape:
            got = None if score is None else tuple(score.shape)
            raise InvalidArgumentError(
                f"scores[{layer!r}]: expected one of shape {tuple(mask.shape)}, as the mask, got "
                f"{got}"
            )
        rows, columns = (
            group_size if n_groups is None else -(-length // n_groups) for length in mask.shape
        )
        kept, of_block = mask[::rows, ::columns].clone(), score[::rows, ::columns]
        open_ = of_block > 0
        choices = kept[open_]
        kept[open_] = choices[torch.randperm(len(choices), generator=generator)]
        wide = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        found[layer] = wide[: mask.shape[0], : mask.shape[1]]
    return found


def _checked(scores: Mapping[str, Array]) -> dict[str, Tensor]:
    tensors = {layer: torch.as_tensor(score).double() for layer, score in scores.items()}
    if not tensors or any(score.numel() == 0 for score in tensors.values()):
        raise InvalidArgumentError("scores: expected at least one score for every layer")
    for layer, score in tensors.items():
        if not bool(torch.isfinite(score).all()):
            raise InvalidArgumentError(f"scores: expected finite scores for layer {layer!r}")
    return tensors


def _at_rank(values: Tensor, share: float) -> float:
    """Return the largest value to mask: `share` of the values, rounded down, are at or below it."""
    rank = int(share * len(values) + 1e-9)
    return float(values.sort().values[rank - 1]) if rank else -float("inf")
