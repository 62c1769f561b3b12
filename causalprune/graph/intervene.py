"""The intervention do(unit := 0), where the consumers read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph.units import Consumer, UnitGraph, UnitGroup

INTERVENTIONS = ("zero", "mean", "resample", "predicted")
"""Values that do() can give a unit."""

__all__ = ["INTERVENTIONS", "check_units", "removed", "zero_columns"]


def check_units(group: UnitGroup, units: Sequence[int], argument: str = "units") -> list[int]:
    """Return `units` sorted and without repeats; every index must exist in `group`."""
    chosen = sorted({int(unit) for unit in units})
    if chosen and not 0 <= chosen[0] <= chosen[-1] < group.n_units:
        raise InvalidArgumentError(
            f"{argument}: expected units of {group.name!r} in [0, {group.n_units}), got {chosen}"
        )
    return chosen


def zero_columns(value: Tensor, consumer: Consumer, columns: Tensor) -> Tensor:
    """Return a copy of the consumer's input with `columns` at zero.

    Filled, not multiplied: a removed unit must not leave a NaN or an infinity behind.
    """
    return value.index_fill(consumer.axis, columns.to(value.device), 0.0)


@contextmanager
def removed(
    model: nn.Module, graph: UnitGraph, units: Mapping[str, Sequence[int]]
) -> Iterator[nn.Module]:
    """Remove units for the time of a ``with`` block: ``do(A := 0)`` where their consumers read.

    The units of all groups are removed jointly. Zeroing happens behind batch norm, activation
    and flatten, so inside the block the network computes what the physically pruned one will.
    Channels and features are zeroed by forward hooks; heads by a copy of the attention layer's
    output projection without their columns, because that layer does not show its projection's
    input. Everything is put back whatever happens.

    Parameters
    ----------
    model : nn.Module
        The network that `graph` was captured from, or one of the same structure.
    graph : UnitGraph
        From :func:`capture`.
    units : Mapping of str to sequence of int
        Group name to the indices of the units to remove.

    Yields
    ------
    nn.Module
        `model`.

    Raises
    ------
    UnknownNameError
        If a group is not in `graph`.
    InvalidArgumentError
        If a unit index is out of range, or `model` lacks a consumer of `graph`.

    Examples
    --------
    >>> import torch
    >>> from causalprune.graph import capture
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.ones(1, 2)
    >>> with removed(model, capture(model, x), {"0": [0, 1, 2]}), torch.no_grad():
    ...     bool(model(x) == model[2].bias)
    True
    """
    with ExitStack() as undo:
        for name, chosen in units.items():
            group = graph.group(name)
            indices = check_units(group, chosen)
            if not indices:
                continue
            in_training = (item for item in group.training if isinstance(item, Consumer))
            for consumer in (*group.consumers, *in_training):
                module = _submodule(model, consumer.layer)
                undo.callback(_cut(module, consumer, consumer.columns(indices)))
        yield model


def _cut(module: nn.Module, consumer: Consumer, columns: Tensor) -> Callable[[], None]:
    """Zero `columns` where `consumer` reads them; returns what takes the intervention back."""
    if consumer.kind == "attention":
        return _without_columns(_projection(module, consumer), columns)
    if consumer.at_output:
        return module.register_forward_hook(_zeroing_output(consumer, columns)).remove
    hook = _zeroing(consumer, columns)
    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _projection(module: nn.Module, consumer: Consumer) -> nn.Linear:
    """Return the output projection of an attention layer."""
    for name in ("out_proj", "proj"):
        found = getattr(module, name, None)
        if isinstance(found, nn.Linear):
            return found
    raise InvalidArgumentError(
        f"model: expected an attention layer {consumer.layer!r} with an output projection, got "
        f"{type(module).__name__}"
    )


def _without_columns(layer: nn.Linear, columns: Tensor) -> Callable[[], None]:
    weight = layer.weight
    with torch.no_grad():
        cut = weight.index_fill(1, columns.to(weight.device), 0.0)
    layer.weight = nn.Parameter(cut, requires_grad=False)

    def restore() -> None:
        layer.weight = weight

    return restore


def _zeroing_output(
    consumer: Consumer, columns: Tensor
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return zero_columns(output, consumer, columns)

    return hook


def _zeroing(
    consumer: Consumer, columns: Tensor
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, dict[str, Any]]]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        if args:
            return (zero_columns(args[0], consumer, columns), *args[1:]), kwargs
        return args, {**kwargs, "input": zero_columns(kwargs["input"], consumer, columns)}

    return hook


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InvalidArgumentError(
            f"model: expected the network the graph was captured from, got "
            f"{type(model).__name__} without a layer {name!r}"
        ) from error
