"""What ``causalprune prune`` works on, read from its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causalprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from causalprune.experiments.image_parts import ImageParts

__all__ = [
    "example_image",
    "further_options",
    "guard_wanted",
    "image_parts_of",
    "tolerance_of",
    "training_of",
]


def guard_wanted(said: Mapping[str, Any], options: Mapping[str, Any], held_out: str | None) -> bool:
    """Tell whether a run with these options looks at held-out accuracy."""
    from causalprune.pruning.schedules import is_guarded, resolve_schedule

    method = said.get("method", "path")
    _, schedule, _ = resolve_schedule(said.get("schedule"), method, options)
    return is_guarded(schedule, method, held_out=held_out is not None)


def tolerance_of(
    options: Mapping[str, Any], guarded: bool, held_out: str | None
) -> dict[str, float]:
    """Tolerance of a guard whose images this command takes from the training images."""
    from causalprune.pruning.schedules import TOLERANCE_SEEN

    of_a_file = held_out is not None and not _is_count(held_out)
    if not guarded or of_a_file or "tolerance" in options:
        return {}
    return {"tolerance": TOLERANCE_SEEN}


def _is_count(held_out: str) -> bool:
    return held_out.lstrip("-").isdigit()


def image_parts_of(
    data: str | None,
    source: Any,
    shape: tuple[int, int, int] | None,
    images: int | None,
    held_out: str | None,
    guarded: bool,
    test: str | None,
    root: Path | None,
) -> ImageParts | None:
    """Read the images that the options name, ``None`` without ``--data``."""
    from causalprune.experiments.image_parts import image_parts

    if data is None:
        for name, value in (("images", images), ("held-out", held_out), ("test", test)):
            if value is not None:
                raise InvalidArgumentError(f"--{name}: expected --data beside it")
        return None
    counted = held_out is not None and _is_count(held_out)
    return image_parts(
        data,
        source,
        input_shape=shape,
        n_calibration=images,
        held_out=int(held_out) if held_out is not None and counted else held_out,
        guarded=guarded,
        test=test,
        root=root,
    )


def example_image(
    model: nn.Module,
    parts: ImageParts | None,
    plan: Path | None,
    shape: tuple[int, int, int] | None,
) -> torch.Tensor:
    """One image, which the network was seen to take."""
    import torch

    from causalprune.pruning import Plan

    if parts is not None:
        inputs = parts.calibration
        image = (inputs if isinstance(inputs, torch.Tensor) else inputs[0])[:1]
    elif plan is not None:
        known = Plan.load(plan)
        image = torch.zeros(known.example_shape, dtype=getattr(torch, known.example_dtype))
    elif shape is not None:
        image = torch.zeros(1, *shape)
    else:
        raise InvalidArgumentError(
            "--data: expected images, or --input-shape for a method that needs none; got neither"
        )
    parameter = next(model.parameters(), None)
    image = image if parameter is None else image.to(parameter.device)
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:  # a network fails on a wrong shape in any way
        raise InvalidArgumentError(
            f"data: the network does not take images {tuple(image.shape)} {image.dtype} "
            f"({type(error).__name__}: {error})"
        ) from error
    return image


def training_of(text: str | None, parts: ImageParts | None, seed: int) -> dict[str, Any]:
    """Read ``--retrain``: a number of epochs, or the name of a function of the network."""
    if text is None:
        return {}
    if not text.isdigit():
        from causalprune.experiments.model_specs import callable_from

        if ":" not in text:
            raise InvalidArgumentError(
                f"--retrain: expected a number of epochs or file.py:function, got {text!r}"
            )
        return {"retrain": callable_from(text, "--retrain")}
    from causalprune.experiments.image_parts import TrainOn
    from causalprune.pruning.retraining import SgdRecipe

    if parts is None or parts.train is None:
        raise InvalidArgumentError("--retrain: expected --data with classes beside it")
    return {"retrain": TrainOn(SgdRecipe(epochs=int(text), seed=seed), parts.train)}


def further_options() -> tuple[str, ...]:
    """Names for ``--option`` beside the method's: the schedules', and what has no flag here."""
    from dataclasses import fields

    from causalprune.pruning.schedules import SCHEDULES

    of_schedules = [field.name for kind in SCHEDULES.values() for field in fields(kind)]
    return "budget", "intervention", "confidence", "ridge", "max_cache_bytes", *of_schedules
