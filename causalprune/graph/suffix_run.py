"""Running what interventions reach: the narrow steps row by row, the wide ones for all at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from causalprune.graph.changes import Narrow, carries_on, materialised, updated
from causalprune.graph.jobs import Job, part_of, pieces
from causalprune.graph.plain_run import PlainRun, joined
from causalprune.graph.replacement import Replacement
from causalprune.graph.steps import Step
from causalprune.graph.suffixes import Cut, Suffix, first_input

__all__ = ["run_suffix"]


def run_suffix(
    plain: PlainRun, replace: Replacement, suffix: Suffix, jobs: Sequence[Job]
) -> list[Tensor]:
    """Return the outputs of every job, from one run of the wide steps.

    Parameters
    ----------
    plain : PlainRun
        Holds the values that the suffix reads.
    replace : Replacement
    suffix : Suffix
    jobs : sequence of Job
    """
    n_rows = [job.rows.n for job in jobs]
    narrow = [_run_narrow(plain, replace, suffix, job) for job in jobs]
    values = plain.numbers(suffix.numbers, sum(n_rows))
    values.update({name: joined([found[name] for found in narrow]) for name in suffix.crossing})

    def value_of(name: str) -> Any:
        if name not in values:
            values[name] = plain.together(name, [job.rows for job in jobs])
        return values[name]

    output: Any = None
    for step in suffix.wide:
        if step.name in suffix.cuts:
            output = _run_cut(plain, replace, suffix, step, value_of, jobs)
        else:
            output = step(value_of)
        values[step.name] = output
        for name in step.inputs:
            if suffix.last_reader[name] == step.name:
                values.pop(name, None)
    return list(output.split(n_rows))


def _run_narrow(plain: PlainRun, replace: Replacement, suffix: Suffix, job: Job) -> dict[str, Any]:
    changes: dict[str, Narrow] = {}
    found: dict[str, Any] = {}
    numbers = plain.numbers(suffix.numbers, job.rows.n)
    for step, means in suffix.narrow:
        if means == "carry":
            changed = {name: changes[name] for name in step.inputs if name in changes}
            others = {
                name: numbers[name] if name in numbers else plain.value(name, job.rows)
                for name in step.inputs
                if name not in changed
            }
            change = carries_on(step, next(iter(changed.values())), others, changed)
            changes[step.name] = change
        elif means == "cut":
            (cut,) = suffix.cuts[step.name]
            changes[step.name] = replace.narrow(plain, step.name, cut, job.removal, job.rows)
        elif means == "attention":
            (cut,) = suffix.cuts[step.name]
            value_of = functools.partial(plain.value, rows=job.rows)
            found[step.name] = replace.heads(plain, step, [cut], value_of, job.removal, job.rows)
        else:
            if step.name in suffix.cuts:
                (cut,) = suffix.cuts[step.name]
                source = first_input(step)
                change = replace.narrow(plain, source, cut, job.removal, job.rows)
            else:
                (change,) = (changes[name] for name in step.inputs if name in changes)
            update = suffix.updates[step.name]
            output = plain.value(update.base, job.rows)
            if len(change.columns):
                old = plain.columns(change.base, change.axis, change.columns, job.rows)
                found[update.result] = updated(step, output, change, old, relu=update.relu)
            else:  # this layer does not read the unit
                found[update.result] = output.relu() if update.relu else output.clone()
    for name in suffix.crossing & changes.keys():
        found[name] = materialised(changes[name], plain.value(name, job.rows))
    return found


def _run_cut(
    plain: PlainRun,
    replace: Replacement,
    suffix: Suffix,
    step: Step,
    value_of: Callable[[str], Any],
    jobs: Sequence[Job],
) -> Any:
    """Run a wide step whose input or output is cut."""
    cuts = suffix.cuts[step.name]
    if any(cut.consumer.kind == "attention" for cut in cuts):
        outputs = []
        for job, piece in zip(jobs, pieces(jobs), strict=True):
            alone = len(jobs) == 1
            of_job = value_of if alone else part_of(value_of, piece, plain.seen.constant)
            axis = plain.seen.images_axis(first_input(step)) or 0
            outputs.append(replace.heads(plain, step, cuts, of_job, job.removal, job.rows, axis))
        return joined(outputs)
    inner = tuple(cut for cut in cuts if not cut.consumer.at_output)
    outer = tuple(cut for cut in cuts if cut.consumer.at_output)
    if inner:
        source = first_input(step)
        patched = _replaced(plain, replace, source, value_of(source), inner, jobs)
        output = step(lambda name: patched if name == source else value_of(name))
    else:
        output = step(value_of)
    return _replaced(plain, replace, step.name, output, outer, jobs) if outer else output


def _replaced(
    plain: PlainRun,
    replace: Replacement,
    source: str,
    value: Tensor,
    cuts: Sequence[Cut],
    jobs: Sequence[Job],
) -> Tensor:
    parts, axis = [], plain.seen.images_axis(source) or 0
    for job, piece in zip(jobs, pieces(jobs), strict=True):
        part = value if len(jobs) == 1 else value[piece]
        for cut in cuts:
            donated = functools.partial(plain.donated, source, job.rows)
            removed = job.removal[cut.group]
            part = replace.in_value(part, cut, removed, donated, axis)
        parts.append(part)
    return torch.cat(parts) if len(parts) > 1 else parts[0]
