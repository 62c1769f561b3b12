"""What a pruning run reads, and what its result depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from causalprune.errors import DataError
from causalprune.pruning.calibration import Images, collect, digest, read_once, split
from causalprune.pruning.checkpoints import described, weights_digest
from causalprune.pruning.run import Request
from causalprune.pruning.schedules import Progressive, Schedule

__all__ = ["arguments_of", "images_of"]


def images_of(
    data: Any,
    held_out: Any,
    schedule: Schedule,
    *,
    guarded: bool,
    whole: bool,
    needed: bool,
    max_images: int | None,
    batch_size: int,
    seed: int,
) -> tuple[Images | None, Images | None]:
    """Images to score on, ``None`` where `data` may be read as it is, and those held out.

    Parameters
    ----------
    data, held_out, max_images, batch_size, seed
        As :func:`causalprune.pruning.prune` takes them.
    schedule : Schedule
    guarded : bool
        Whether held-out accuracy decides what may go.
    whole : bool
        Whether `data` is read more than once.
    needed : bool
        Whether the images themselves are needed, and not their shape alone.

    Raises
    ------
    DataError
        If classes are missing where accuracy is measured.
    """
    held = None
    if held_out is not None:
        held = collect(held_out, max_images=None, batch_size=batch_size, seed=seed)
        if held.targets is None:
            raise DataError("held_out: expected (inputs, targets), got inputs alone")
    cut = guarded and held is None
    if not (whole or cut or read_once(data)):
        return None, held
    first = max_images if needed or cut or read_once(data) else 1
    images = collect(data, max_images=first, batch_size=batch_size, seed=seed)
    if cut:
        if images.targets is None:
            raise DataError(
                "data: expected (inputs, targets), because the guard looks at held-out accuracy, "
                "got inputs alone; give held_out, or guard=False"
            )
        assert isinstance(schedule, Progressive)
        images, held = split(images, schedule.held_out_fraction)
    return images, held


def arguments_of(
    model: nn.Module,
    request: Request,
    name: str,
    schedule: Schedule,
    images: Images,
    held: Images | None,
) -> dict[str, Any]:
    """Everything that the result depends on, as JSON."""
    compensation = {k: v for k, v in request.compensation.items() if k != "data"}
    scoring = {k: v for k, v in request.scoring.items() if k != "progress"}
    return {
        "network": type(model).__qualname__,
        "weights": weights_digest(model),
        "data": digest(images),
        "held_out": None if held is None else digest(held),
        "ratio": request.ratio,
        "of": request.of,
        "schedule": name,
        "retrain": described(request.retraining),
        **described(scoring),
        **described(dataclasses.asdict(schedule)),
        **described(request.planning),
        **described({"compensation": "none", **compensation}),
    }
