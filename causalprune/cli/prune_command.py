"""The command ``causalprune prune``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from causalprune.cli.before_after_table import before_after_table
from causalprune.cli.console import console_for_errors, errors_in_one_line, on_terminal
from causalprune.cli.options import (
    BatchSize,
    Classes,
    DataRoot,
    Device,
    InputShape,
    NetworkName,
    OptionalDataSource,
    Seed,
    Weights,
)
from causalprune.cli.prune_inputs import (
    example_image,
    further_options,
    guard_wanted,
    image_parts_of,
    tolerance_of,
    training_of,
)
from causalprune.cli.score_command import device_of, options_of, shape_of
from causalprune.errors import (
    CausalPruneError,
    InvalidArgumentError,
    MissingDependencyError,
    TargetNotReachedWarning,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from causalprune.experiments.before_after import BeforeAfter
    from causalprune.experiments.image_parts import ImageParts
    from causalprune.pruning import Plan
    from causalprune.pruning.trace import Trace

__all__ = ["prune"]

_UNREACHED = 1  # exit code: the folder is written, but less is gone than was asked for


@dataclass(frozen=True)
class _Pruned:
    """What the folder is written from."""

    model: nn.Module
    plan: Plan
    trace: Trace | None


def prune(
    network: NetworkName,
    weights: Weights = None,
    data: OptionalDataSource = None,
    method: Annotated[str | None, typer.Option(help="Scoring method; default path.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction to remove, in [0, 1); default 0.5.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(help="parameters (default), macs, memory, latency or units."),
    ] = None,
    outcome: Annotated[str | None, typer.Option(help="Outcome whose change is scored.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="one_shot, progressive or iterative; default: the method's.")
    ] = None,
    compensation: Annotated[
        str | None,
        typer.Option(
            help="What the remaining weights do about it: none, mean or refit; default refit "
            "where there is --data."
        ),
    ] = None,
    refit_layers: Annotated[
        str,
        typer.Option(
            help="What a refit changes: consumers, all, or pairs (also the layers that make the "
            "units which stay; takes longer, and more --images pay)."
        ),
    ] = "all",
    scope: Annotated[str | None, typer.Option(help="global or layer.")] = None,
    round_to: Annotated[
        int | None, typer.Option(help="Layers keep a multiple of so many channels.")
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option(help="A layer that keeps all its units; repeat it.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the method or the schedule, name=value; repeat it."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Calibration images; default 512 of a data set, all of a file."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="For the guard: so many further training images, or a file of them; default "
            "1000 of a data set, a fifth of a file."
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="File of test images; a data set has its own.")
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(help="Epochs of SGD on the training images, or file.py:function."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Apply this plan instead of making one.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder to go on from, should the run be killed.")
    ] = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    input_shape: InputShape = None,
    classes: Classes = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")] = Path("pruned"),
) -> None:
    """Prune a network: write a smaller one, the plan, the trace, and what it saves and costs."""
    making = {
        "method": method,
        "ratio": ratio,
        "of": of,
        "outcome": outcome,
        "schedule": schedule,
        "scope": scope,
        "round_to": round_to,
        "protect": tuple(protect) if protect else None,
        "checkpoint": checkpoint,
    }
    said = {name: value for name, value in making.items() if value is not None}
    with errors_in_one_line(), _warnings_in_one_line():
        from causalprune.experiments.before_after import compare_networks
        from causalprune.experiments.model_specs import model_from, network_source
        from causalprune.experiments.pruned_folder import check_free

        check_free(out)
        if plan is not None:
            _refuse_beside_plan(
                {**said, "option": option, "held_out": held_out, "retrain": retrain}
            )
        shape = shape_of(input_shape)
        source = network_source(network)
        chosen = options_of(option or [], method or "path", further_options())
        guarded = plan is None and guard_wanted(said, chosen, held_out)
        parts = image_parts_of(data, source, shape, images, held_out, guarded, test, data_root)
        compensation = compensation or ("none" if parts is None else "refit")
        original = model_from(network, weights, n_classes=classes, seed=seed).to(device_of(device))
        original.eval()
        example = example_image(original, parts, plan, shape or source.input_shape)
        how = {"compensation": compensation, "refit_layers": refit_layers}
        if plan is not None:
            pruned = _applied(original, plan, parts, {**how, "batch_size": batch_size})
        else:
            settings = {
                **said,
                **chosen,
                **tolerance_of(chosen, guarded, held_out),
                **training_of(retrain, parts, seed),
                **how,
                "batch_size": batch_size,
                "seed": seed,
            }
            with _kept_on_interrupt(checkpoint):
                pruned = _driven(original, parts, example, settings)
        compared = compare_networks(
            original, pruned.model, example, parts.test if parts else None, batch_size=batch_size
        )
        asked = {"network": source.name, "weights": weights, "data": data, "seed": seed}
        _write(out, pruned, compared, {**asked, **how})
    _print(out, pruned.plan, compared)
    if not pruned.plan.reached:
        stopped = pruned.trace.stopped if pruned.trace is not None else ""
        console_for_errors().print(
            f"causalprune: target not reached: {pruned.plan.achieved_ratio:.1%} of "
            f"{pruned.plan.of} removed, {pruned.plan.ratio:.1%} asked for"
            + (f" ({stopped})" if stopped else ""),
            markup=False,
            highlight=False,
        )
        raise typer.Exit(_UNREACHED)


def _refuse_beside_plan(given: Mapping[str, object]) -> None:
    beside = [
        f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, [])
    ]
    if beside:
        raise InvalidArgumentError(
            f"--plan: expected no {', '.join(beside)} beside it; the plan says what goes"
        )


def _driven(
    model: nn.Module, parts: ImageParts | None, example: torch.Tensor, settings: dict[str, Any]
) -> _Pruned:
    from causalprune.pruning import prune as drive
    from causalprune.scoring.methods import resolve_method

    method = settings["method"]
    if parts is None and resolve_method(method).needs_data:
        raise InvalidArgumentError(f"--data: expected images, which method {method!r} needs")
    if parts is None and settings["compensation"] != "none":
        raise InvalidArgumentError("--data: expected images, which the compensation needs")
    data: Any = example if parts is None else parts.calibration
    held_out: dict[str, Any] = {}
    if parts is not None and parts.held_out is not None:
        held_out = {"held_out": parts.held_out}
    try:
        small, trace = drive(
            model, data, **settings, **held_out, progress=on_terminal(), return_trace=True
        )
    except (CausalPruneError, OSError):
        raise
    except Exception as error:
        if "retrain" not in settings:
            raise
        # It is the user's function, and may raise anything; notes say where the run goes on.
        told = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
        raise CausalPruneError(f"--retrain: the function failed ({'; '.join(told)})") from error
    return _Pruned(small, trace.plan, trace)


def _applied(
    model: nn.Module, path: Path, parts: ImageParts | None, how: Mapping[str, Any]
) -> _Pruned:
    from causalprune.pruning import Plan, apply

    plan = Plan.load(path)
    data = None if parts is None or how["compensation"] == "none" else parts.calibration
    return _Pruned(apply(model, plan, data=data, **how), plan, None)


def _write(out: Path, pruned: _Pruned, compared: BeforeAfter, asked: Mapping[str, Any]) -> None:
    from causalprune.experiments.pruned_folder import (
        TRACE_FIGURE,
        TRACE_FILE,
        new_folder,
        write_pruned,
    )
    from causalprune.measures import machine_info

    plan, trace = pruned.plan, pruned.trace
    summary = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in asked.items()},
        "schedule": trace.schedule if trace is not None else None,
        "method": plan.method,
        "of": plan.of,
        "ratio": plan.ratio,
        "achieved_ratio": plan.achieved_ratio,
        "reached": plan.reached,
        "stopped": trace.stopped if trace is not None else "",
        **compared.as_dict(),
        "machine": machine_info(),
    }
    with new_folder(out) as folder:
        write_pruned(folder, pruned.model, plan, summary)
        if trace is not None:
            trace.save(folder / TRACE_FILE)
            try:
                trace.plot(folder / TRACE_FIGURE)
            except MissingDependencyError as error:
                console_for_errors().print(f"no {TRACE_FIGURE}: {error}", markup=False)


def _print(out: Path, plan: Plan, compared: BeforeAfter) -> None:
    print(plan)
    Console().print(before_after_table(compared))
    # Not through the console: a path must not be wrapped.
    print(f"pruned: {out}")


@contextmanager
def _kept_on_interrupt(checkpoint: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what is done is in {checkpoint}: the same command goes on" if checkpoint else ""
        console_for_errors().print(
            f"interrupted; {kept or 'nothing is kept without --checkpoint'}",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(130) from None


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings as lines on stderr, each text once, instead of with a place in the source."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            # The command has a line of its own for a target that was not reached.
            told = [each for each in caught if each.category is not TargetNotReachedWarning]
            texts = dict.fromkeys(" ".join(str(each.message).split()) for each in told)
    for text in texts:
        console_for_errors().print(f"warning: {text}", markup=False, highlight=False)
