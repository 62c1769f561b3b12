"""Putting another value into units where they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from causalprune.errors import UnsupportedModelError
from causalprune.graph.changes import Narrow, columns_of, with_columns
from causalprune.graph.plain_run import PlainRun, Rows
from causalprune.graph.predictions import Prediction, predicted
from causalprune.graph.recording import projected
from causalprune.graph.steps import Step
from causalprune.graph.suffixes import Cut
from causalprune.graph.units import Consumer, UnitGraph

__all__ = [
    "Removal",
    "Replacement",
    "first_of",
    "mean_key",
    "prediction_key",
    "without_heads",
]

Removal = Mapping[str, "Sequence[int] | Tensor"]
"""Group name to the units that go, or to which of them go on which row [rows, n_units], bool."""


def mean_key(cut: Cut) -> str:
    """Key of a cut in the mapping of means."""
    return f"{cut.consumer.layer}:{cut.consumer.kind}"


def prediction_key(cut: Cut) -> str:
    """Key of a cut in the mapping of predictions: one for each group that a consumer reads."""
    return f"{mean_key(cut)}:{cut.group}"


@dataclass(frozen=True)
class Replacement:
    """The value that do() gives a unit.

    Attributes
    ----------
    value : str
        ``"zero"``, ``"mean"``, ``"resample"`` or ``"predicted"``.
    means : Mapping of str to Tensor
        :func:`mean_key` of a cut to the mean of every column [columns] there; for attention
        [n_units, E], what a head's mean gives to the layer's output.
    predictions : Mapping of str to tuple of Prediction
        :func:`prediction_key` of a cut to how its units follow from the others; for one unit at
        a time.
    """

    value: str
    means: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: Mapping[str, tuple[Prediction, ...]] = field(default_factory=dict)

    def narrow(
        self, plain: PlainRun, source: str, cut: Cut, removal: Removal, rows: Rows
    ) -> Narrow:
        """Change of a plain value in which units have been replaced on all rows."""
        units = removal[cut.group]
        assert not isinstance(units, Tensor)
        old = plain.whole(source)
        columns = cut.consumer.columns(units).to(old.device)
        axis = old.ndim + cut.consumer.axis
        shape = list(old.shape) if rows.index is None else [rows.n, *old.shape[1:]]
        shape[axis] = len(columns)
        if self.value == "predicted":
            new = self._predicted(plain.value(source, rows), cut, units)
        else:
            new = self._new(old, cut, columns, shape, lambda: plain.donated(source, rows))
        return Narrow(source, axis, columns, new)

    def in_value(
        self,
        value: Tensor,
        cut: Cut,
        removed: Sequence[int] | Tensor,
        donated: Callable[[], Tensor],
        images_axis: int = 0,
    ) -> Tensor:
        """Return `value` [rows, ...] with units replaced; `donated` gives it on the donors.

        Images lie along `images_axis`.

        Replaced, not multiplied by zero: a removed unit must not leave a NaN or infinity behind.
        """
        axis = value.ndim + cut.consumer.axis
        if isinstance(removed, Tensor):
            places, units = _places_of(cut.consumer, removed.shape[1])
            mask = torch.zeros(len(removed), value.shape[axis], dtype=torch.bool)
            mask[:, places] = removed.cpu()[:, units]
            shape = [1] * value.ndim
            shape[images_axis], shape[axis] = mask.shape
            everywhere = torch.arange(value.shape[axis], device=value.device)
            new = self._new(value, cut, everywhere, list(value.shape), donated)
            return torch.where(mask.reshape(shape).to(value.device), new, value)
        columns = cut.consumer.columns(removed).to(value.device)
        if self.value == "zero":
            return value.index_fill(axis, columns, 0.0)
        if self.value == "predicted":
            return with_columns(value, axis, columns, self._predicted(value, cut, removed))
        shape = list(value.shape)
        shape[axis] = len(columns)
        new = self._new(value, cut, columns, shape, donated)
        return with_columns(value, axis, columns, new)

    def _predicted(self, value: Tensor, cut: Cut, units: Sequence[int]) -> Tensor:
        """Return what `units` are predicted to be from the others in `value`, each alone."""
        axis = value.ndim + cut.consumer.axis
        known = self.predictions[prediction_key(cut)]
        found = [predicted(known, value, axis, unit) for unit in units]
        parts = [part for part in found if part is not None]
        return torch.cat(parts, axis) if parts else value.narrow(axis, 0, 0)

    def _new(
        self,
        like: Tensor,
        cut: Cut,
        columns: Tensor,
        shape: list[int],
        donated: Callable[[], Tensor],
    ) -> Tensor:
        if self.value == "zero":
            return like.new_zeros(shape)
        axis = like.ndim + cut.consumer.axis
        if self.value == "resample":
            return columns_of(donated(), axis, columns)
        form = [1] * like.ndim
        form[axis] = len(columns)
        means = self.means[mean_key(cut)].to(like)
        return means[columns].reshape(form).expand(shape).clone()

    # ---- attention heads ---------------------------------------------------------------------

    def heads(
        self,
        plain: PlainRun,
        step: Step,
        cuts: Sequence[Cut],
        value_of: Callable[[str], Any],
        removal: Removal,
        rows: Rows,
        images_axis: int = 0,
    ) -> Any:
        """Value of an attention layer in which heads have been replaced.

        The layer's output is linear in its heads: what one of them gives to it is found by
        running the layer with the head's columns of the output projection at zero. A predicted
        head is replaced in what the projection reads.
        """
        if self.value == "predicted":
            (cut,) = cuts  # one unit at a time
            patched = functools.partial(self._in_heads, cut, removal[cut.group])
            return projected(step, value_of, patched)
        output: Any = None
        for cut in cuts:
            removed = removal[cut.group]
            if not isinstance(removed, Tensor):
                output = without_heads(step, value_of, cut.consumer.columns(removed))
                for unit in removed if self.value != "zero" else ():
                    given = self._given_instead(plain, step, cut, unit, rows)
                    output = _with_first(output, first_of(output) + given.to(first_of(output)))
                continue
            whole = step(value_of)
            total = first_of(whole)
            for unit in removed.any(0).nonzero().flatten().tolist():
                without = without_heads(step, value_of, cut.consumer.columns([unit]))
                change = first_of(without) - first_of(whole)
                if self.value != "zero":
                    given = self._given_instead(plain, step, cut, unit, rows)
                    change = change + given.to(change)
                form = [1] * total.ndim
                form[images_axis] = len(removed)
                on = removed[:, unit].to(total).reshape(form)
                total = total + on * change
            output = _with_first(whole, total)
        return output

    def _in_heads(self, cut: Cut, removed: Sequence[int] | Tensor, value: Tensor) -> Tensor:
        return self.in_value(value, cut, removed, lambda: value)

    def _given_instead(
        self, plain: PlainRun, step: Step, cut: Cut, unit: int, rows: Rows
    ) -> Tensor:
        """Return what the replaced head gives to the output."""
        if self.value == "mean":
            return self.means[mean_key(cut)][unit]

        def donated(name: str) -> Any:
            constant = name in plain.seen.constant
            return plain.value(name, rows) if constant else plain.donated(name, rows)

        without = without_heads(step, donated, cut.consumer.columns([unit]))
        given: Tensor = first_of(plain.donated(step.name, rows)) - first_of(without)
        return given

    # ---- without a trace ---------------------------------------------------------------------

    def whole_run(
        self, model: nn.Module, graph: UnitGraph, inputs: Tensor, removal: Removal
    ) -> Tensor:
        """Output of a whole forward pass, patched by hooks."""
        donors = torch.roll(torch.arange(len(inputs)), 1)

        def patch(cut: Cut) -> Callable[[Tensor], Tensor]:
            def replaced(value: Tensor) -> Tensor:
                # The first unit that is read on a path sees the donor's plain value.
                return self.in_value(value, cut, removal[cut.group], lambda: value[donors])

            return replaced

        cuts = [Cut(name, c) for name in removal for c in graph.group(name).consumers]
        if any(cut.consumer.kind == "attention" for cut in cuts):
            raise UnsupportedModelError(
                "model: attention heads of a network that overwrites shared tensors cannot be cut"
            )
        with _hooked(model, [(cut.consumer, patch(cut)) for cut in cuts]):
            output: Tensor = model(inputs)
        return output


def without_heads(step: Step, value_of: Callable[[str], Any], columns: Tensor) -> Any:
    """Value of an attention layer whose output projection does not read `columns`."""
    name = _projection_of(step)
    if step.module is None:

        def masked(source: str) -> Any:
            found = value_of(source)
            return found.index_fill(1, columns.to(found.device), 0.0) if source == name else found

        return step(masked)
    args = fx.node.map_arg(step.args, lambda node: value_of(node.name))
    kwargs = fx.node.map_arg(dict(step.kwargs), lambda node: value_of(node.name))
    weight = step.module.get_parameter(name).detach()
    weight = weight.index_fill(1, columns.to(weight.device), 0.0)
    return functional_call(step.module, {name: weight}, args, kwargs)


def _projection_of(step: Step) -> str:
    """Name of the parameter or argument that projects an attention layer's heads."""
    if isinstance(step.module, nn.MultiheadAttention):
        return "out_proj.weight"
    for argument in step.args:
        if isinstance(argument, fx.Node) and str(argument.target).endswith("proj.weight"):
            return argument.name
    raise UnsupportedModelError(
        f"model: expected an attention layer with an output projection, got {step.name!r}"
    )


def first_of(value: Any) -> Any:
    """Return the output of a layer that may give more than one (attention: its weights)."""
    return value[0] if isinstance(value, (tuple, list)) else value


def _with_first(value: Any, new: Tensor) -> Any:
    return type(value)([new, *value[1:]]) if isinstance(value, (tuple, list)) else new


@functools.lru_cache(maxsize=4096)
def _places_of(consumer: Consumer, n_units: int) -> tuple[Tensor, Tensor]:
    """Every place of a consumer that a unit occupies, and the unit in it."""
    columns = [consumer.columns([unit]) for unit in range(n_units)]
    units = [torch.full((len(places),), unit) for unit, places in enumerate(columns)]
    return torch.cat(columns), torch.cat(units)


@contextmanager
def _hooked(
    model: nn.Module, patches: Sequence[tuple[Consumer, Callable[[Tensor], Tensor]]]
) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for consumer, patch in patches:
            module = model.get_submodule(consumer.layer)
            if consumer.at_output:
                handles.append(module.register_forward_hook(_on_output(patch)))
            else:
                handles.append(module.register_forward_pre_hook(_on_input(patch), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_output(patch: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda module, args, output: patch(output)


def _on_input(patch: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (patch(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": patch(kwargs["input"])}

    return hook
