"""What has to be run again after an intervention on the units of one group."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from causalprune.graph.changes import is_channelwise, is_linear_layer
from causalprune.graph.fused_updates import FusedUpdate, fused_update
from causalprune.graph.steps import Step, is_hooked
from causalprune.graph.units import Consumer

__all__ = ["Cut", "Probe", "Suffix", "first_input", "input_of", "probe", "suffix_of"]


@dataclass(frozen=True)
class Cut:
    """A place where the units of a group are intervened on."""

    group: str
    consumer: Consumer


_ALLOCATING: tuple[type[nn.Module], ...] = (
    nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.LayerNorm, nn.MultiheadAttention,
)  # fmt: skip
"""Layers whose output is a tensor of their own."""
_ALLOCATING_FUNCTIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh",
    "sigmoid", "tanh", "softmax", "add", "sub", "mul", "truediv", "cat", "mean", "linear",
    "conv2d", "layer_norm", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "matmul", "bmm", "sum", "amax", "scaled_dot_product_attention",
})  # fmt: skip
"""Functions whose output is a tensor of their own."""

Cuts = Mapping[str, tuple[Cut, ...]]


@dataclass(frozen=True)
class Probe:
    """What running a network on one image and on two tells of its steps.

    Attributes
    ----------
    shapes : Mapping of str to tuple of int
        Shape of every value that is one tensor, for one image.
    growth : Mapping of str to tuple of int
        What every image more adds to that shape.
    like : Mapping of str to Tensor []
        A number of the dtype and device of every value that is one tensor.
    bytes_per_image : Mapping of str to int
        Size of every value, for one image; 0 for numbers.
    macs : Mapping of str to int
        Multiply-accumulates of every step for one image.
    by_image : frozenset of str
        Steps whose value has the images as its first dimension.
    constant : frozenset of str
        Steps that do not depend on the images.
    total_macs : int
    """

    shapes: Mapping[str, tuple[int, ...]]
    growth: Mapping[str, tuple[int, ...]]
    like: Mapping[str, Tensor]
    bytes_per_image: Mapping[str, int]
    macs: Mapping[str, int]
    by_image: frozenset[str]
    constant: frozenset[str]
    total_macs: int

    def imitation(self, name: str, n: int) -> Tensor:
        """Return a tensor that looks like a value on `n` images and takes no memory."""
        grown = zip(self.shapes[name], self.growth[name], strict=True)
        return self.like[name].expand([alone + (n - 1) * more for alone, more in grown])

    def images_axis(self, name: str) -> int | None:
        """Dimension of a value whose places are the images; None where there is none."""
        sizes = zip(self.shapes[name], self.growth[name], strict=True)
        grown = [(axis, size) for axis, size in enumerate(sizes) if size[1]]
        return grown[0][0] if [size for _, size in grown] == [(1, 1)] else None


def probe(steps: Sequence[Step], example: Tensor) -> Probe:
    """Run `steps` on one image [1, ...] and on two, and note what the values look like."""
    macs: dict[str, int] = {}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator is not counted
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:

            def run(step: Step, values: dict[str, Any]) -> Any:
                before = counter.get_total_flops()
                value = step(values.__getitem__)
                macs[step.name] = (counter.get_total_flops() - before) // 2
                return value

            one = _values(steps, example, run)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    with torch.no_grad():
        two = _values(
            steps, torch.cat([example, example]), lambda step, values: step(values.__getitem__)
        )
    dependent: set[str] = set()
    for step in steps:
        if step.name == input_of(steps) or not dependent.isdisjoint(step.inputs):
            dependent.add(step.name)
    tensors = {name: value for name, value in one.items() if isinstance(value, Tensor)}
    return Probe(
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        growth={
            name: tuple(b - a for a, b in zip(value.shape, two[name].shape, strict=True))
            for name, value in tensors.items()
        },
        like={name: value.new_zeros(()) for name, value in tensors.items()},
        bytes_per_image={name: _bytes(value) for name, value in one.items()},
        macs={step.name: macs.get(step.name, 0) for step in steps},
        by_image=frozenset(name for name in one if _doubles(one[name], two[name])),
        constant=frozenset(one) - dependent,
        total_macs=max(1, sum(macs.values())),
    )


def _values(steps: Sequence[Step], example: Tensor, run: Any) -> dict[str, Any]:
    """Run `steps` on `example`; returns what their values look like, and keeps none of them."""
    last_reader = {name: step.name for step in steps for name in step.inputs}
    values: dict[str, Any] = {}
    looks: dict[str, Any] = {}
    for step in steps:
        given = step.name == input_of(steps)
        values[step.name] = example if given else run(step, values)
        looks[step.name] = _look(values[step.name])
        for name in step.inputs:
            if last_reader[name] == step.name:
                del values[name]
    return looks


def _look(value: Any) -> Any:
    """Return a value with tensors of the same shape, dtype and device that take no memory."""
    if isinstance(value, (tuple, list)):
        return [_look(part) for part in value]
    return value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


def _doubles(one: object, two: object) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.ndim > 0 and (one.shape[0], two.shape[0]) == (1, 2)
    if isinstance(one, (tuple, list)) and isinstance(two, (tuple, list)):
        pairs = [(a, b) for a, b in zip(one, two, strict=True) if isinstance(a, Tensor)]
        return bool(pairs) and all(_doubles(a, b) for a, b in pairs)
    return False


@dataclass(frozen=True)
class Suffix:
    """The steps behind the cuts of a group.

    Attributes
    ----------
    cuts : Mapping of str to tuple of Cut
        Step name to the cuts there.
    narrow : tuple of (Step, str)
        Steps answered from the changed columns alone, with how: "cut" (columns replaced at the
        output), "carry" (channelwise), "update" (convolution or linear layer) or "attention".
    updates : Mapping of str to FusedUpdate
        What the update of each such layer starts from and gives.
    wide : tuple of Step
        Steps run again in full, in their order.
    numbers : tuple of Step
        Steps that give numbers which may depend on how many rows are run.
    crossing : frozenset of str
        Narrow steps whose value a wide step reads, or which are the output.
    plain : frozenset of str
        Steps whose plain value is needed.
    last_reader : Mapping of str to str
        Value to the wide step behind which nobody reads it.
    by_image : bool
        Whether images can be run apart from each other, and those of several interventions
        together: every plain value that is needed can be cut into images.
    macs : float
        Multiply-accumulates for one unit and image.
    row_bytes : int
        Largest value that is computed for one unit and image.
    """

    cuts: Cuts
    narrow: tuple[tuple[Step, str], ...]
    updates: Mapping[str, FusedUpdate]
    wide: tuple[Step, ...]
    numbers: tuple[Step, ...]
    crossing: frozenset[str]
    plain: frozenset[str]
    last_reader: Mapping[str, str]
    by_image: bool
    macs: float
    row_bytes: int


def input_of(steps: Sequence[Step]) -> str:
    """Name of the step that stands for the images; further arguments have their defaults."""
    return next(step.name for step in steps if step.op == "placeholder")


def first_input(step: Step) -> str:
    """Name of the step that gives a layer its main input."""
    source = step.args[0] if step.args else step.kwargs.get("input", step.kwargs.get("query"))
    return source.name if isinstance(source, fx.Node) else ""


def suffix_of(steps: Sequence[Step], seen: Probe, cuts: Cuts, *, jointly: bool = False) -> Suffix:
    """Find what an intervention at `cuts` reaches, and by which means it is answered.

    Parameters
    ----------
    steps : sequence of Step
    seen : Probe
    cuts : Mapping of str to tuple of Cut
    jointly : bool
        Several groups at once, or masks that differ by image: every step reached runs in full.
    """
    how: dict[str, str] = {}
    axes: dict[str, int] = {}
    for step in steps:
        reached = step.name in cuts or any(name in how for name in step.inputs)
        if reached and seen.bytes_per_image[step.name]:
            how[step.name] = "wide" if jointly else _means(step, seen, cuts, how, axes)
    narrow = tuple((s, how[s.name]) for s in steps if how.get(s.name, "wide") != "wide")
    updates = _updates(steps, narrow, how, cuts, seen)
    absorbed = {name for update in updates.values() for name in update.absorbed}
    wide = tuple(
        s
        for s in steps
        if (how.get(s.name) == "wide" and s.name not in absorbed) or s.op == "output"
    )
    numbers = _numbers_for(steps, seen, {*how})
    first = {step.name for step, _ in narrow} - updates.keys()
    results = {update.result for update in updates.values()}
    bases = {update.base for update in updates.values()}
    read = {name for step in wide for name in step.inputs}
    plain = (read | first | bases | {name for step, _ in narrow for name in step.inputs}) - (
        {step.name for step in (*wide, *numbers)} | (results - bases)
    )
    return Suffix(
        cuts=cuts,
        narrow=narrow,
        updates=updates,
        wide=_reusing_memory(wide, results, seen),
        numbers=numbers,
        crossing=frozenset((first | results) & read),
        plain=frozenset(plain),
        last_reader={name: step.name for step in wide for name in step.inputs},
        by_image=_by_image(plain, how, wide, seen, cuts),
        macs=_macs(narrow, wide, seen, cuts),
        row_bytes=max([1, *(seen.bytes_per_image[name] for name in how)]),
    )


def _updates(
    steps: Sequence[Step],
    narrow: Sequence[tuple[Step, str]],
    how: Mapping[str, str],
    cuts: Cuts,
    seen: Probe,
) -> dict[str, FusedUpdate]:
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    return {
        step.name: fused_update(step, readers, how, cuts, seen.shapes)
        for step, means in narrow
        if means == "update"
    }


def _by_image(
    plain: Set[str], how: Mapping[str, str], wide: Sequence[Step], seen: Probe, cuts: Cuts
) -> bool:
    """Whether images can be run apart, and those of several interventions together."""
    at_cuts = {name for step in wide if step.name in cuts for name in (step.name, *step.inputs)}
    numbers = {name for name in at_cuts if not seen.bytes_per_image[name]}
    read = (plain | at_cuts) - numbers - seen.constant
    return read <= seen.by_image and seen.constant.isdisjoint(how)


def _reusing_memory(wide: Sequence[Step], own: set[str], seen: Probe) -> tuple[Step, ...]:
    """Let activations and additions write into values that nobody reads afterwards.

    Fresh memory costs more than the arithmetic: a convolution followed by a ReLU takes twice the
    time of one followed by a ReLU in place. `own` names the values that are the suffix's own from
    the start.
    """
    last = {name: step.name for step in wide for name in step.inputs}
    readers = Counter(name for step in wide for name in step.inputs)
    # Who may be looking at a value's memory must not see it overwritten.
    viewed = {
        name
        for step in wide
        for name in step.inputs
        if not (_allocates(step) or (_passes_on(step) and readers[name] == 1))
    }
    own, result = own - viewed, []
    for step in wide:
        mine = [name for name in step.inputs if name in own and last[name] == step.name]
        function: nn.Module | str = step.module or step.function
        if (_allocates(step) or (_passes_on(step) and mine)) and step.name not in viewed:
            own.add(step.name)
        if isinstance(function, nn.Module):
            if mine and _allocates(step) and hasattr(function, "inplace"):
                module = copy.copy(function)
                module.inplace = True  # type: ignore[assignment]
                step = replace(step, run=module, module=module)
        elif function == "relu" and mine and len(step.args) == 1 and not step.kwargs:
            step = replace(step, run=torch.relu_)
        elif function == "add" and mine and _is_plain_sum(step, seen):
            first, second = step.args
            if getattr(first, "name", "") not in mine:
                first, second = second, first
            step = replace(step, run=Tensor.add_, args=(first, second))
        result.append(step)
    return tuple(result)


def _allocates(step: Step) -> bool:
    if step.module is not None:
        return isinstance(step.module, _ALLOCATING) and not is_hooked(step.module)
    return step.function in _ALLOCATING_FUNCTIONS


def _passes_on(step: Step) -> bool:
    return isinstance(step.module, (nn.Identity, nn.Dropout)) and not is_hooked(step.module)


def _is_plain_sum(step: Step, seen: Probe) -> bool:
    """Whether the terms of an addition look like its result, so that one of them can hold it."""

    def look(name: str) -> object:
        return (seen.shapes[name], seen.like[name].dtype) if name in seen.shapes else None

    alike = all(look(name) == look(step.name) for name in step.inputs)
    return len(step.args) == 2 and not step.kwargs and alike


def _means(
    step: Step, seen: Probe, cuts: Cuts, how: Mapping[str, str], axes: dict[str, int]
) -> str:
    changed = [name for name in step.inputs if name in how]
    if step.name in cuts:
        (*others, cut) = cuts[step.name]
        consumer = cut.consumer
        if others or changed or not seen.constant.isdisjoint((step.name, first_input(step))):
            return "wide"
        if consumer.kind == "attention":
            return "attention"
        if not consumer.at_output:
            return "update" if is_linear_layer(step) else "wide"
        axes[step.name] = len(seen.shapes[step.name]) + consumer.axis
        return "cut"
    if any(how[name] not in ("cut", "carry") for name in changed):
        return "wide"
    (axis, *different) = {axes[name] for name in changed}
    if different:
        return "wide"
    if all(is_channelwise(step, name, axis, seen.shapes) for name in changed):
        axes[step.name] = axis
        return "carry"
    last = len(seen.shapes[changed[0]]) - 1
    reads = 1 if isinstance(step.module, nn.Conv2d) else last
    own = is_linear_layer(step) and changed == [first_input(step)] and axis == reads
    return "update" if own else "wide"


def _numbers_for(steps: Sequence[Step], seen: Probe, reached: set[str]) -> tuple[Step, ...]:
    """Find the steps without tensors that a reached step reads, directly or not."""
    wanted: set[str] = set()
    for step in reversed(steps):
        if step.name in reached or step.name in wanted:
            wanted |= {
                name
                for name in step.inputs
                if not seen.bytes_per_image[name] and name not in seen.constant
            }
    return tuple(step for step in steps if step.name in wanted)


def _macs(
    narrow: Sequence[tuple[Step, str]], wide: Sequence[Step], seen: Probe, cuts: Cuts
) -> float:
    total = float(sum(seen.macs[step.name] for step in wide))
    share = {}
    for step, means in narrow:
        for cut in cuts.get(step.name, ()):
            source = step.name if cut.consumer.at_output else first_input(step)
            columns = seen.shapes[source][cut.consumer.axis]
            share[step.name] = cut.consumer.features_per_unit / columns
        if means == "attention":
            total += seen.macs[step.name]
        elif means == "update":
            # Behind a cut at an output, the same share of the columns has changed.
            total += share.get(step.name, max(share.values())) * seen.macs[step.name]
    return total
