"""A stretch of a network as a module that runs it in the packed layout."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from causalprune.nn.packed_geometry import DoesNotFit, Shape, shapes_in
from causalprune.nn.packed_operations import Convolution, GlobalAverage, Subsampling
from causalprune.nn.packed_plans import plans_for
from causalprune.nn.packed_sections import Blocking, Section, SectionProgram
from causalprune.nn.packed_stretches import Stretch

__all__ = ["CompiledStretch", "PackedStretch", "Plan"]

Plan = tuple[Section, ...]
Key = tuple[tuple[int, ...], ...]
"""Sizes [N, C, H, W] of the inputs."""

_local = threading.local()
_MOST_PROGRAMS = 8


def _memory(n_floats: int) -> Tensor:
    """Return memory of this thread that programs share: new pages would cost more than a layer."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or memory.numel() < n_floats:
        with torch.inference_mode(False):
            memory = torch.empty(n_floats, dtype=torch.float32)
        _local.memory = memory
    return memory


class CompiledStretch:
    """A stretch for inputs of given sizes: a program for each section.

    Parameters
    ----------
    stretch : Stretch
    layers : nn.Module
        Has the layers that the operations name.
    sizes : sequence of tuple of int
        [N, C, H, W] of every input.
    plan : tuple of Section
    threads : int
    timed : dict
        Blockings by geometry, read and extended.

    Raises
    ------
    DoesNotFit
        Where the operations or the lanes do not take images of this size.
    """

    def __init__(
        self,
        stretch: Stretch,
        layers: nn.Module,
        sizes: Key,
        plan: Plan,
        threads: int,
        timed: dict[object, Blocking],
    ) -> None:
        self.n_images = sizes[0][0]
        shapes = shapes_of(stretch, layers, sizes)
        self.output_sizes = [(self.n_images, *shapes[name]) for name in stretch.outputs]
        self.sections: list[SectionProgram] = []
        wanted = set(stretch.outputs)
        for section in plan:
            operations = stretch.operations[section.first : section.last]
            behind = {s for op in stretch.operations[section.last :] for s in op.sources}
            outputs = [op.name for op in operations if op.name in wanted | behind]
            self.sections.append(
                SectionProgram(operations, layers, shapes, outputs, section, threads, timed)
            )
        self._between = self._place_between(stretch, shapes)

    def _place_between(
        self, stretch: Stretch, shapes: Mapping[str, Shape]
    ) -> list[tuple[str, tuple[int, ...], int]]:
        """Return the values between sections, and where in the memory they lie."""
        # A multiple of 64 bytes, so that what follows is aligned.
        self.n_floats = -(-max(s.workspace_floats for s in self.sections) // 16) * 16
        placed: list[tuple[str, tuple[int, ...], int]] = []
        for section in self.sections:
            for name in section.outputs:
                if name not in stretch.outputs:
                    size = (self.n_images, *shapes[name])
                    placed.append((name, size, self.n_floats))
                    self.n_floats += -(-torch.Size(size).numel() // 16) * 16
        return placed

    @property
    def plan(self) -> Plan:
        """The sections, with the blockings that were found."""
        return tuple(
            Section(s.section.first, s.section.last, s.section.images, s.section.lanes, s.blockings)
            for s in self.sections
        )

    def layer_ms(self, clock: Callable[[], float], rounds: int) -> dict[str, float]:
        """Return the least time of every convolution, each in turn: as cold as in a run."""
        memory = _memory(self.n_floats)
        least: dict[str, float] = {}
        parts = [
            (op.layer, section.alone(op), self.n_images // section.section.images)
            for section in self.sections
            for op in section.operations
            if isinstance(op, Convolution)
        ]
        for _ in range(rounds):
            for layer, program, times in parts:
                begin = clock()
                for _ in range(times):
                    program.run([], [], memory, False, self.threads)
                ms = 1e3 * (clock() - begin)
                least[layer] = min(ms, least.get(layer, ms))
        return least

    @property
    def threads(self) -> int:
        """Threads of a run."""
        return self.sections[0].threads

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> bool:
        """Fill `outputs` [n_images, C, H, W]; false if something that was packed was not finite."""
        memory = _memory(self.n_floats)
        values: dict[str, Tensor] = {**inputs, **outputs}
        for name, size, at in self._between:
            # Channels innermost: rows of strips are short, and would not fill a vector.
            n, c, h, w = size
            values[name] = memory[at : at + n * c * h * w].view(n, h, w, c).permute(0, 3, 1, 2)
        for section in self.sections:
            step = section.section.images
            given = [values[name] for name in section.inputs]
            made = [values[name] for name in section.outputs]
            for first in range(0, self.n_images, step):
                whole = step == self.n_images
                here = given if whole else [v[first : first + step] for v in given]
                there = made if whole else [v[first : first + step] for v in made]
                if not section.run(here, there, memory):
                    return False
        return True


def shapes_of(stretch: Stretch, layers: nn.Module, sizes: Key) -> dict[str, Shape]:
    """Return channels, height and width of every value of a stretch."""
    given = {
        name: (size[1], size[2], size[3]) for name, size in zip(stretch.inputs, sizes, strict=True)
    }
    return shapes_in(stretch.operations, given, layers)


class PackedStretch(nn.Module):
    """Runs a stretch natively, and with torch where that cannot be.

    Parameters
    ----------
    stretch : Stretch
    dense : fx.GraphModule
        Computes the same with torch; has the weights.
    threads : int
    images : int
        The most images that run at a time: larger batches run piece by piece, so that
        activations stay in the cache.

    Notes
    -----
    Programs are made when a size of input comes for the first time, from `plans` where that has
    the size, and are not pickled. Runs from several Python threads are independent.
    """

    def __init__(self, stretch: Stretch, dense: fx.GraphModule, threads: int, images: int) -> None:
        super().__init__()
        self.stretch = stretch
        self.dense = dense
        self.threads = threads
        self.images = images
        self.channels_last = False
        self.packed = True
        self.plans: dict[Key, Plan] = {}
        self._forget()
        self.register_load_state_dict_post_hook(_forget_programs)  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        """Drop all programs: they have copies of the weights."""
        self._programs: dict[Key, CompiledStretch | None] = {}
        self._timed: dict[object, Blocking] = {}
        self._state: tuple[object, ...] = ()
        self._layers: list[nn.Module] = []
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be copied: programs are made again."""
        state: dict[str, Any] = dict(self.__dict__)
        for name in ("_programs", "_timed", "_state", "_layers", "_lock"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without programs."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def compiled(self, sizes: Key) -> CompiledStretch | None:
        """Return the programs for inputs of these sizes; ``None`` where there are none."""
        state = self._weights_state()
        with self._lock:
            if state != self._state:
                self._programs.clear()
                self._state = state
            if sizes not in self._programs:
                while len(self._programs) >= _MOST_PROGRAMS:
                    del self._programs[next(iter(self._programs))]
                self._programs[sizes] = self._compile(sizes)
            return self._programs[sizes]

    def _weights_state(self) -> tuple[object, ...]:
        """Tell whether a weight was changed, in place or by another."""
        if not self._layers:
            names = {getattr(op, "layer", "") for op in self.stretch.operations} - {""}
            self._layers = [self.dense.get_submodule(name) for name in sorted(names)]
        return tuple(
            _version(tensor)
            for layer in self._layers
            for group in (layer._parameters, layer._buffers)
            for tensor in group.values()
            if tensor is not None
        )

    def use(self, sizes: Key, compiled: CompiledStretch) -> None:
        """Take what was compiled for these sizes, here and after a copy."""
        with self._lock:
            self._state = self._weights_state()
            self._programs[sizes] = compiled
            self.plans[sizes] = compiled.plan

    def candidates(self, sizes: Key, most: int = 4) -> list[Plan]:
        """Return plans for inputs of these sizes, those that look fastest first."""
        try:
            shapes = shapes_of(self.stretch, self.dense, sizes)
        except DoesNotFit:
            return []
        operations, outputs = self.stretch.operations, self.stretch.outputs
        return plans_for(operations, shapes, outputs, self.dense, sizes[0][0], most)

    def _compile(self, sizes: Key) -> CompiledStretch | None:
        plans = [self.plans[sizes]] if sizes in self.plans else self.candidates(sizes, 1)
        for plan in plans:
            try:
                made = self.compile_plan(sizes, plan)
            except DoesNotFit:
                continue
            self.plans[sizes] = made.plan
            return made
        return None

    def compile_plan(self, sizes: Key, plan: Plan) -> CompiledStretch:
        """Compile one plan.

        Raises
        ------
        DoesNotFit
            If it does not fit these sizes.
        """
        return CompiledStretch(self.stretch, self.dense, sizes, plan, self.threads, self._timed)

    def kernels(self) -> dict[str, str]:
        """Return the kind of kernel of every convolution that a program of this has."""
        found: dict[str, str] = {}
        for plan in self.plans.values():
            for section in plan:
                part = self.stretch.operations[section.first : section.last]
                made = [op for op in part if isinstance(op, Convolution | Subsampling)]
                for op, blocking in zip(made, section.blockings, strict=True):
                    if isinstance(op, Convolution):
                        kind = "sparse" if blocking[0] == 1 else "packed dense"
                        found.setdefault(op.layer, kind)
        return found

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of the stretch, each [N, C, H, W] or [N, C]."""
        tracing = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        if tracing or not self.packed or not all(_packs(x, inputs[0]) for x in inputs):
            return self._dense(*inputs)
        n_images = inputs[0].shape[0]
        outputs: list[Tensor] = []
        for first in range(0, n_images, self.images):
            part = [x[first : first + self.images] for x in inputs]
            if len(part[0]) == n_images:
                part = list(inputs)
            compiled = self.compiled(tuple(tuple(x.shape) for x in part))
            if compiled is None:
                return self._dense(*inputs)
            if not outputs:
                outputs = [self._output(n_images, size) for size in compiled.output_sizes]
            there = [y[first : first + self.images] for y in outputs]
            names = self.stretch
            if not compiled.run(
                dict(zip(names.inputs, part, strict=True)),
                dict(zip(names.outputs, there, strict=True)),
            ):
                return self._dense(*inputs)
        return self._shaped(outputs)

    def _dense(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.dense(*inputs)
        return found

    def _output(self, n_images: int, size: Sequence[int]) -> Tensor:
        last = self.channels_last and size[2] * size[3] > 1
        form = torch.channels_last if last else torch.contiguous_format
        return torch.empty((n_images, *size[1:]), dtype=torch.float32, memory_format=form)

    def _shaped(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        flat = {
            op.name
            for op in self.stretch.operations
            if isinstance(op, GlobalAverage) and not op.keeps_dimensions
        }
        names = self.stretch.outputs
        return tuple(
            y.flatten(1) if name in flat else y for name, y in zip(names, outputs, strict=True)
        )


def _forget_programs(module: nn.Module, _: object) -> None:
    assert isinstance(module, PackedStretch)
    module._forget()


def _version(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _packs(x: Tensor, first: Tensor) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided
    return plain and x.ndim == 4 and len(x) == len(first) and len(x) > 0
