"""Score, plan and apply in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from causalprune.pruning.selection import check_request, plan
from causalprune.pruning.surgery import apply
from causalprune.scoring import score

__all__ = ["prune"]


def prune(
    model: nn.Module,
    data: Any,
    method: str = "path",
    ratio: float = 0.5,
    of: str = "parameters",
    outcome: str | Callable[..., Tensor] = "loss",
    *,
    max_images: int | None = None,
    scope: str = "global",
    protect: Iterable[str] = (),
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> nn.Module:
    """Return a physically smaller copy of a network: score, then plan, then apply.

    One shot, without retraining; `model` is untouched. Use the three steps themselves to look at
    the scores or the plan in between.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor [N, ...] and returns logits [N, K].
    data : DataLoader, Dataset, iterable of (inputs, targets), pair of tensors, or Tensor
        See :func:`causalprune.scoring.score`.
    method : str
        Scoring method.
    ratio : float
        Fraction of `of` to remove, in [0, 1).
    of : str
        ``"parameters"``, ``"macs"`` or ``"units"``.
    outcome : str or callable
        What the effects are measured on.
    max_images : int, optional
        Use the first `max_images` images only.
    scope : str
        ``"global"`` or ``"layer"``; see :func:`plan`.
    protect : iterable of str
        Layers that keep all units.
    batch_size, seed, progress
        See :func:`causalprune.scoring.score`.

    Returns
    -------
    nn.Module
        Of the same classes as `model`; needs no causalprune.

    Raises
    ------
    CausalPruneError
        Whatever the three steps raise.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> images, labels = torch.randn(8, 4), torch.arange(8) % 2
    >>> prune(model, (images, labels), ratio=0.5, of="units")[0].out_features
    5
    """
    # A bad ratio or scope must not cost the time of scoring first.
    check_request(ratio, of, scope)
    scores = score(
        model,
        data,
        method,
        outcome,
        max_images=max_images,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    return apply(model, plan(model, scores, ratio, of, scope=scope, protect=protect))
