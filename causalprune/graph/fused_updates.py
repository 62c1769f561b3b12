"""How far behind a layer the update of its output reaches: over sums with what is plain, to a ReLU.

A layer's output after a change is ``y + W[:, columns] (new - old)``. Where y is only added to
values that the intervention leaves alone, the same change applies to the sum; a ReLU behind it is
the update's own last step. One pass over memory then does the work of three.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from causalprune.graph.steps import Step, is_hooked

__all__ = ["FusedUpdate", "fused_update"]


@dataclass(frozen=True)
class FusedUpdate:
    """What the update of a layer gives.

    Attributes
    ----------
    base : str
        Step whose plain value is updated: the layer or a sum behind it.
    relu : bool
        Whether a ReLU follows.
    result : str
        Step whose value the update then is.
    absorbed : tuple of str
        Steps behind the layer that need not run.
    """

    base: str
    relu: bool
    result: str
    absorbed: tuple[str, ...]


def fused_update(
    layer: Step,
    readers: Mapping[str, Sequence[Step]],
    reached: Collection[str],
    cuts: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> FusedUpdate:
    """Follow a layer's output to where its update ends.

    Parameters
    ----------
    layer : Step
        A convolution or linear layer that is updated.
    readers : Mapping of str to sequence of Step
        Who reads each value.
    reached : collection of str
        Steps that the intervention reaches.
    cuts : collection of str
        Steps at which units are intervened on.
    shapes : Mapping of str to tuple of int
        Of the values that are one tensor.
    """
    base, relu = layer.name, False
    absorbed: list[str] = []
    while not relu:
        following = readers.get(absorbed[-1] if absorbed else base, ())
        if len(following) != 1 or following[0].name in cuts:
            break
        (step,) = following
        if _is_relu(step):
            relu = True
        elif _adds_plain(step, reached, shapes):
            base = step.name
        elif not _is_nothing(step):
            break
        absorbed.append(step.name)
    return FusedUpdate(base, relu, absorbed[-1] if absorbed else layer.name, tuple(absorbed))


def _is_relu(step: Step) -> bool:
    if step.module is not None:
        return type(step.module) is nn.ReLU and not is_hooked(step.module)
    return step.function == "relu" and len(step.args) == 1 and not step.kwargs


def _is_nothing(step: Step) -> bool:
    return type(step.module) in (nn.Identity, nn.Dropout) and not is_hooked(step.module)  # type: ignore[arg-type]


def _adds_plain(
    step: Step, reached: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether the step is a sum of two values of its shape, of which one is plain."""
    if step.function != "add" or len(step.args) != 2 or step.kwargs or len(step.inputs) != 2:
        return False
    plain = [name for name in step.inputs if name not in reached]
    return len(plain) == 1 and all(shapes.get(n) == shapes.get(step.name) for n in step.inputs)
