"""Masks of single weights: real zeros, held during training, kept on disk without pickle."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from causalprune.errors import InvalidArgumentError, RecordError, UnsupportedModelError
from causalprune.files import replace_file
from causalprune.scoring.keep_budgets import weight_layers

__all__ = [
    "WeightMasks",
    "apply_masks",
    "holding",
    "load_masks",
    "masks_content",
    "n_of_m_masks",
    "save_masks",
]

WeightMasks = Mapping[str, Tensor]
"""Layer name to what stays: bool, in the shape of the layer's weight."""

SCHEMA = 1
LAYERS = "layers/"


def apply_masks(
    model: nn.Module, masks: WeightMasks, scale: Mapping[str, Tensor] | None = None
) -> None:
    """Set the masked weights of a network to zero, in place.

    Parameters
    ----------
    model : nn.Module
    masks : Mapping of str to Tensor
        Name of a convolution or linear layer to what stays, bool in the shape of its weight.
        Layers without a mask stay whole.
    scale : Mapping of str to Tensor, optional
        What the weights that stay are multiplied by
        (:attr:`causalprune.scoring.keep_budgets.WeightBudget.scale`).

    Raises
    ------
    InvalidArgumentError
        If a mask is for no such layer, of another shape, or not bool.
    UnsupportedModelError
        If the weight is computed on every access (a parametrization): zeros would not stay.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> apply_masks(model, {"": torch.tensor([[True, False]])})
    >>> (model.weight != 0).tolist()
    [[True, False]]
    """
    weights = _masked(model, masks)
    factors = {} if scale is None else scale
    with torch.no_grad():
        for name, (weight, gone) in weights.items():
            if name in factors:
                weight.mul_(factors[name].to(weight))
            weight.masked_fill_(gone.to(weight.device), 0)


@contextmanager
def holding(model: nn.Module, masks: WeightMasks | None) -> Iterator[None]:
    """Keep masked weights at zero while the network is trained, by whatever optimiser.

    They are set to zero at once, after every step of every optimiser, and at the end: neither
    gradient nor momentum nor weight decay can revive them. The biases and norms are free.

    Parameters
    ----------
    model : nn.Module
    masks : Mapping of str to Tensor or None
        As in :func:`apply_masks`; ``None``: nothing is held.

    Raises
    ------
    InvalidArgumentError, UnsupportedModelError
        As :func:`apply_masks`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    >>> with holding(model, {"": torch.tensor([[True, False]])}):
    ...     model(torch.ones(3, 2)).sum().backward()
    ...     sgd.step()
    >>> (model.weight != 0).tolist()
    [[True, False]]
    """
    weights = list(_masked(model, masks or {}).values())

    def restore(*_: object) -> None:
        with torch.no_grad():
            for weight, gone in weights:
                weight.masked_fill_(gone.to(weight.device), 0)

    restore()
    # Of all optimisers: a user's training function makes its own, out of our reach.
    handle = register_optimizer_step_post_hook(restore) if weights else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        restore()


def n_of_m_masks(scores: Mapping[str, Tensor], n: int = 2, m: int = 4) -> dict[str, Tensor]:
    """Keep the n highest of every m consecutive weights along the input channels.

    This is the layout of sparse tensor cores (2:4): for every output and kernel position, the
    inputs ``m k ... m k + m - 1`` are one run, as NVIDIA's kernels take a weight laid out
    ``[outputs, kernel positions, inputs]``.

    Parameters
    ----------
    scores : Mapping of str to Tensor [O, I, ...]
        Layer name to scores in the shape of the layer's weight; magnitudes, or any other.
    n, m : int
        ``1 <= n < m``.

    Returns
    -------
    dict of str to Tensor, bool
        Among equal scores the first inputs stay. A layer whose number of inputs (of a group of
        channels) is no multiple of m is not in it: it stays whole, for no kernel could use it.

    Raises
    ------
    InvalidArgumentError
        If n and m are out of range, a score is NaN, or no layer has a multiple of m inputs.

    Examples
    --------
    >>> n_of_m_masks({"fc": torch.tensor([[0.1, 0.4, 0.2, 0.3]])})["fc"].tolist()
    [[False, True, False, True]]
    """
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in (n, m)) or not 1 <= n < m:
        raise InvalidArgumentError(f"n, m: expected integers with 1 <= n < m, got {n!r}, {m!r}")
    masks = {}
    for name, score in scores.items():
        if score.ndim < 2 or bool(score.isnan().any()):
            raise InvalidArgumentError(f"scores: expected numbers [O, I, ...] for layer {name!r}")
        if score.shape[1] % m:
            continue
        last = score.detach().movedim(1, -1)
        runs = last.reshape(*last.shape[:-1], -1, m)
        best = torch.sort(runs, dim=-1, descending=True, stable=True).indices[..., :n]
        kept = torch.zeros(runs.shape, dtype=torch.bool, device=runs.device)
        masks[name] = kept.scatter_(-1, best, True).flatten(-2).movedim(-1, 1).contiguous().cpu()
    if not masks:
        raise InvalidArgumentError(
            f"m: expected a layer whose number of inputs is a multiple of {m}, found none of "
            f"{', '.join(map(repr, scores)) or 'no layers'}"
        )
    return masks


def save_masks(path: str | os.PathLike[str], masks: WeightMasks) -> Path:
    """Write masks to `path` (.npz: one bit a weight, JSON beside), atomically; returns the path.

    Raises
    ------
    InvalidArgumentError
        If a mask is not bool.

    Examples
    --------
    >>> masks = {"fc": torch.tensor([[True, False, True]])}
    >>> load_masks(save_masks("masks.npz", masks))["fc"].tolist()
    [[True, False, True]]
    """
    return replace_file(path, masks_content(masks))


def masks_content(masks: WeightMasks) -> bytes:
    """Return what :func:`save_masks` writes."""
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise InvalidArgumentError(f"masks[{name!r}]: expected bool, got {mask.dtype}")
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    bits: dict[str, Any] = {
        LAYERS + name: np.packbits(mask.detach().cpu().numpy().ravel())
        for name, mask in masks.items()
    }
    content = io.BytesIO()
    meta = json.dumps({"schema": SCHEMA, "shapes": shapes})
    np.savez_compressed(content, meta=np.array(meta), **bits)
    return content.getvalue()


def load_masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read masks that :func:`save_masks` wrote.

    Raises
    ------
    RecordError
        If the file is missing, broken, or of another schema.
    """
    try:
        # Opened here, because np.load leaks the handle of a broken archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            if meta["schema"] != SCHEMA:
                raise RecordError(f"{path}: expected masks schema {SCHEMA}, got {meta['schema']}")
            masks = {}
            for name, shape in meta["shapes"].items():
                bits = np.unpackbits(archive[LAYERS + name], count=math.prod(shape))
                masks[str(name)] = torch.from_numpy(bits.astype(np.bool_)).reshape(shape)
            return masks
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{path}: expected masks in .npz, got {error}") from error


def _masked(model: nn.Module, masks: WeightMasks) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weight and what goes of it, by layer."""
    layers = weight_layers(model)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, mask in masks.items():
        if name not in layers:
            raise InvalidArgumentError(
                f"masks: expected names of convolutions and linear layers, got {name!r}"
            )
        weight = dict(layers[name].named_parameters(recurse=False)).get("weight")
        if weight is None:
            raise UnsupportedModelError(
                f"model: the weight of layer {name!r} is computed on every access, so zeros in it "
                "would not stay; remove its parametrization first"
            )
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise InvalidArgumentError(
                f"masks[{name!r}]: expected bool of shape {tuple(weight.shape)}, got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
        found[name] = (weight, ~mask)
    return found
