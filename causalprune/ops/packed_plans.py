"""One convolution in the packed layout, from plain tensors to a plain tensor, as a kept program."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalprune import _native
from causalprune.ops.convolutions import ConvolutionOptions
from causalprune.ops.packed_layouts import (
    LANES,
    Strips,
    Window,
    lane_choices,
    native_layout,
    strips_for,
)
from causalprune.ops.plan_cache import kept_plan

__all__ = ["ConvolutionTask", "run_packed", "workspace"]

Blocking = tuple[int, int, int, int]

# The native layer addresses a block of the layout with 31 bits.
_MOST_BLOCK_FLOATS = 2**29 - 64
# A larger workspace is given back to the system after the run.
_KEPT_WORKSPACE_FLOATS = 2**26
# Below this density no kernel that reads all weights can win, so none is timed.
_SPARSE = 0.4
_KEPT_BLOCKINGS = 512
# Listed channels that lie so near each other are packed in one run, together with those between.
_NEAR = 8
_MOST_SPANS = 16


@dataclass(frozen=True)
class ConvolutionTask:
    """All that a program depends on but the weight and the bias.

    Attributes
    ----------
    x_shape : tuple of int
        ``[N, I, H, W]``.
    n_outputs : int
        Channels of the result.
    inputs, outputs : tuple of int, optional
        The channels that are read and written; None for all.
    has_residual : bool
    options : ConvolutionOptions
    threads : int
    isa : str
    """

    x_shape: tuple[int, ...]
    n_outputs: int
    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...] | None
    has_residual: bool
    options: ConvolutionOptions
    threads: int
    isa: str


def run_packed(
    task: ConvolutionTask,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> bool:
    """Run a convolution natively, if that can be done.

    Parameters
    ----------
    task : ConvolutionTask
    x, weight, bias, residual : Tensor, float32, CPU
        Of checked shapes, none of them empty. Any strides.
    out : Tensor [N, n_outputs, Ho, Wo], float32, CPU
        Any strides.

    Returns
    -------
    bool
        False leaves `out` undefined: something is not finite, too large to be addressed, or the
        weight has just been written to.

    Raises
    ------
    MemoryError
        If the system has not got the memory that packed tensors need.
    """
    program = kept_plan(weight, bias, task, lambda: _made_program(task, weight, bias))
    if program is None:
        return False
    parts = [x] if program.spans is None else [x.narrow(1, *span) for span in program.spans]
    if residual is not None:
        parts.append(residual)
    memory = workspace(program.native.workspace_floats)
    return program.native.run(parts, [out], memory, True, task.threads)


# ---- workspaces ----------------------------------------------------------------------------------

_OF_THREAD = threading.local()


def workspace(floats: int) -> Tensor:
    """Return uninitialised memory for a program, the same one on every call of a thread.

    Fresh pages cost more than a convolution; one thread never runs two programs at once.

    Parameters
    ----------
    floats : int

    Returns
    -------
    Tensor [at least floats], float32, CPU
        Aligned to 64 bytes.

    Raises
    ------
    MemoryError
        If the system has not got so much.

    Examples
    --------
    >>> workspace(100).data_ptr() == workspace(50).data_ptr()
    True
    """
    kept: Tensor | None = getattr(_OF_THREAD, "memory", None)
    if kept is not None and kept.numel() >= floats:
        return kept
    del kept
    _OF_THREAD.memory = None  # first, so that the two never exist together
    try:
        memory = torch.empty(floats, dtype=torch.float32, device="cpu")
    except RuntimeError as error:
        raise MemoryError(f"packed tensors need {4 * floats} bytes: {error}") from None
    if floats <= _KEPT_WORKSPACE_FLOATS:
        _OF_THREAD.memory = memory
    return memory


# ---- making programs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Program:
    native: _native.PackedProgram
    spans: tuple[tuple[int, int], ...] | None  # channels of x that are packed; None for all


@dataclass(frozen=True)
class _Cut:
    """How the tensors of a task are cut into strips, and the halo that the kernel reads."""

    window: Window
    source: Strips
    target: Strips
    halo: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Rows:
    """Some outputs of a convolution, which read some packed channels."""

    weight: Tensor
    bias: Tensor | None
    inputs: list[int]
    outputs: list[int]
    groups: int


def _made_program(task: ConvolutionTask, weight: Tensor, bias: Tensor | None) -> _Program | None:
    """Make the program of a task; None where only dense torch will do."""
    weight = weight.detach().contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    if not all(bool(tensor.isfinite().all()) for tensor in (weight, bias) if tensor is not None):
        return None
    every = range(task.n_outputs)
    outputs = list(every if task.outputs is None else task.outputs)
    spans, inputs = _packed_channels(task)
    n_packed = sum(n for _, n in spans)
    cut = _cut(task, weight)
    if not _can_be_addressed(cut, n_packed, task.n_outputs):
        return None
    n_images = task.x_shape[0]
    source = native_layout(cut.source, n_images, n_packed, cut.halo)
    target = native_layout(cut.target, n_images, task.n_outputs, (0, 0, 0, 0))
    program = _native.PackedProgram(task.isa)
    read, written, residual = program.buffer(source), program.buffer(target), -1
    first = 0
    for argument, (_, n) in enumerate(spans):
        program.pack(argument, program.slice(read, first, n))
        first += n
    if max(*weight.shape[2:], *(size + 1 for size in task.options.padding)) > 1:
        program.fill_halo(read, 0.0)
    if task.has_residual:
        residual = program.buffer(target)
        program.pack(len(spans), residual)

    def convolve(rows: _Rows) -> None:
        plan = _convolution(task, cut, rows, source, target)
        program.convolve(plan, read, written, residual)

    convolve(_Rows(weight, bias, inputs, outputs, task.options.groups))
    others = sorted(set(every) - set(outputs))
    if others:
        # activation(residual) is a convolution without a tap.
        nothing = weight.new_zeros((len(others), 1, *weight.shape[2:]))
        convolve(_Rows(nothing, None, inputs[:1], others, 1))
    program.unpack(written, 0)
    program.finish()
    return _Program(program, None if task.inputs is None else spans)


def _packed_channels(task: ConvolutionTask) -> tuple[tuple[tuple[int, int], ...], list[int]]:
    """Choose spans of channels to pack: (first, number) of each.

    Also returns where, in what is packed, the listed channels lie.
    """
    if task.inputs is None:
        return ((0, task.x_shape[1]),), list(range(task.x_shape[1]))
    ordered = sorted(task.inputs)
    steps = sorted(after - before for before, after in itertools.pairwise(ordered))
    joined = max([_NEAR, *steps[: -_MOST_SPANS + 1][-1:]])
    spans: list[tuple[int, int]] = []
    lies: dict[int, int] = {}
    n_packed = 0
    for channel in ordered:
        first, n = spans[-1] if spans else (0, 0)
        if n and channel - (first + n - 1) <= joined:
            n_packed += channel + 1 - (first + n)
            spans[-1] = first, channel + 1 - first
        else:
            n_packed += 1
            spans.append((channel, 1))
        lies[channel] = n_packed - 1
    return tuple(spans), [lies[channel] for channel in task.inputs]


def _cut(task: ConvolutionTask, weight: Tensor) -> _Cut:
    o = task.options
    window = Window(
        (weight.shape[2], weight.shape[3]),
        (o.stride[0], o.stride[1]),
        (o.padding[0], o.padding[1]),
        (o.dilation[0], o.dilation[1]),
    )
    size = task.x_shape[2], task.x_shape[3]
    output_size = window.output_size(size)
    lanes = lane_choices(task.x_shape[0], output_size)[0]
    source, target = strips_for(lanes, [(size, window.stride), (output_size, (1, 1))])
    return _Cut(window, source, target, window.halo(source.strip, target.strip))


def _can_be_addressed(cut: _Cut, n_packed: int, n_outputs: int) -> bool:
    top, bottom, left, right = cut.halo
    height, width = cut.source.strip
    read = (top + height + bottom) * (left + width + right) * n_packed
    reach = (size * step for size, step in zip(cut.window.kernel, cut.window.dilation, strict=True))
    return (
        LANES * max(read, math.prod(cut.target.strip) * n_outputs) <= _MOST_BLOCK_FLOATS
        and max(reach) < 2**31
    )


# ---- blockings -----------------------------------------------------------------------------------

# What was timed once holds for every weight of that size and density: a plan of new values, or for
# another number of images, costs only the listing of its taps.
_TIMED: OrderedDict[Hashable, Blocking] = OrderedDict()
_TIMED_LOCK = threading.Lock()


def _convolution(
    task: ConvolutionTask,
    cut: _Cut,
    rows: _Rows,
    source: _native.PackedLayout,
    target: _native.PackedLayout,
) -> _native.PackedConvolution:
    density = float(rows.weight.count_nonzero()) / rows.weight.numel()
    key = cut, rows.weight.shape, rows.groups, round(20 * density), task.isa
    alone = density < _SPARSE or rows.weight.shape[0] == rows.groups
    with _TIMED_LOCK:
        blocking = _TIMED.get(key, (1 if alone else 0, 0, 0, 0))
    window = cut.window
    plan = _native.PackedConvolution(
        rows.weight,
        rows.bias,
        source,
        target,
        rows.inputs,
        rows.outputs,
        window.stride,
        window.padding,
        window.dilation,
        rows.groups,
        task.options.activation,
        blocking,
        task.threads,
        task.isa,
    )
    with _TIMED_LOCK:
        _TIMED[key] = plan.blocking
        _TIMED.move_to_end(key)
        if len(_TIMED) > _KEPT_BLOCKINGS:
            _TIMED.popitem(last=False)
    return plan
