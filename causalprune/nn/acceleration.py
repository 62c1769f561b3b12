"""One call that makes a pruned network run faster on this machine, or leaves it as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph.trace import run_once, shapes_of, trace
from causalprune.nn.accelerated import Accelerated
from causalprune.nn.acceleration_report import AccelerationReport, LayerChoice
from causalprune.nn.batch_norm_folding import fold_batch_norms
from causalprune.nn.candidate_timing import clock_for, least_ms, module_ms, torch_threads
from causalprune.nn.packed_geometry import DoesNotFit
from causalprune.nn.packed_network import CompiledStretch, PackedStretch
from causalprune.nn.packed_operations import zeros_share
from causalprune.nn.packed_stretches import cut_out, in_normal_form, stretches_in

__all__ = ["accelerate"]

_IMAGES_A_THREAD = 16
_TOLERANCE = 1e-4
_PLANS = 3


def accelerate(
    model: nn.Module, example: Tensor, threads: int | None = None, *, tune_ms: float = 300.0
) -> Accelerated:
    """Return a copy of `model` that is as fast as this machine can run it, and never slower.

    Batch norms are folded; stretches of the network that the native packed layer can compute
    (convolutions, activations, sums, pooling, concatenations) run there where that is faster: with
    the nonzero weights only, or dense. Everything is timed here and now on `example`, in turns
    with the network as it is and in channels_last format, and the fastest is returned.

    Parameters
    ----------
    model : nn.Module
        float32, on the CPU; takes one tensor. It is not touched. Pruned weights are zeros in it.
    example : Tensor [N, ...]
        Inputs as they will come: the batch size and image size that is tuned for. Others work.
    threads : int, optional
        For native code; by default ``torch.get_num_threads()``. With 1, CPU time of the thread is
        compared, otherwise wall time.
    tune_ms : float
        Milliseconds that the timing of each choice may take.

    Returns
    -------
    Accelerated
        In eval mode, without gradients. Outputs agree with those of `model` to 1e-4 of the largest,
        which has been checked on `example`.

    Raises
    ------
    InvalidArgumentError
        If an argument has the wrong type or value, or the model does not run on `example`.
    UnsupportedModelError
        If the model is compiled, takes several inputs or returns something else than a tensor.

    Notes
    -----
    Where an input of a stretch is not finite, torch computes the stretch, as in `model`. Of what
    overflows inside a stretch, products with weights that are zero are not computed.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3))
    >>> model[2].weight.data[torch.rand(model[2].weight.shape) < 0.9] = 0
    >>> fast = accelerate(model, torch.randn(4, 3, 16, 16), threads=1, tune_ms=5)
    >>> fast(torch.randn(7, 3, 16, 16)).shape, fast.report.layers[1].layer
    (torch.Size([7, 32, 14, 14]), '2')
    """
    threads = _checked(model, example, threads, tune_ms)
    example = example.detach().clone()  # the network may work in place
    run_once(model, example)
    with torch.no_grad(), torch_threads(threads):
        return _Tuner(_copied(model), example, threads, tune_ms).best()


def _checked(model: object, example: object, threads: object, tune_ms: object) -> int:
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example, Tensor):
        raise InvalidArgumentError(f"example: expected a tensor, got {type(example).__name__}")
    for name, tensor in [("example", example), *model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            what = "example" if tensor is example else f"model: {name}"
            raise InvalidArgumentError(f"{what}: expected on the CPU, got {tensor.device}")
    if threads is None:
        threads = torch.get_num_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InvalidArgumentError(f"threads: expected a whole number from 1, got {threads!r}")
    known = isinstance(tune_ms, int | float) and not isinstance(tune_ms, bool)
    if not known or not 0 <= float(str(tune_ms)) < math.inf:
        raise InvalidArgumentError(f"tune_ms: expected milliseconds from 0, got {tune_ms!r}")
    return threads


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, without gradients; masks of torch.nn.utils.prune are applied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            # What pruning computes from a mask cannot be copied otherwise.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    made = copy.deepcopy(model, memo).eval().requires_grad_(False)
    for module in made.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    return made.requires_grad_(False)


# ---- choosing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    name: str
    network: nn.Module
    channels_last: bool

    def run(self, example: Tensor) -> Any:
        if self.channels_last:
            example = example.contiguous(memory_format=torch.channels_last)
        return self.network(example)


class _Tuner:
    """Makes the candidates and keeps the fastest."""

    def __init__(self, plain: nn.Module, example: Tensor, threads: int, tune_ms: float) -> None:
        self.plain, self.example = plain, example
        self.threads, self.tune_ms = threads, tune_ms
        self.clock = clock_for(threads)
        self.expected = plain(example)
        self.note = ""

    def best(self) -> Accelerated:
        dense = self._dense()
        folded = self._folded()
        if folded is not None:
            dense += self._in_both_formats("folded", folded)
        ms = self._timed(dense)
        fastest = dense[ms.index(min(ms))]
        before = module_ms(fastest.network, self._in_format(fastest), self.clock, 3)
        packed = [] if folded is None else self._packed(folded, fastest.channels_last, before)
        candidates = [dense[0], *([fastest] if fastest is not dense[0] else []), *packed]
        # Once more in turns: what is compared in the end is whole networks.
        final = self._timed(candidates)
        kept = candidates[final.index(min(final))]
        times = {each.name: t for each, t in zip(dense, ms, strict=True)}
        times.update({each.name: t for each, t in zip(candidates, final, strict=True)})
        layers = _layers(self.plain, kept.network, before, self._packed_ms(kept.network))
        if kept not in packed and not self.note:
            self.note = "Nothing is packed: no candidate was faster than torch."
        report = AccelerationReport(
            kept.name, times, layers, len(self.example), self.threads, self.note
        )
        return Accelerated(kept.network, report, self.example, kept.channels_last)

    def _timed(self, candidates: list[_Candidate]) -> list[float]:
        runs = [_call(each.run, self.example) for each in candidates]
        return least_ms(runs, self.tune_ms, self.clock)

    def _in_format(self, candidate: _Candidate) -> Tensor:
        if candidate.channels_last:
            return self.example.contiguous(memory_format=torch.channels_last)
        return self.example

    def _dense(self) -> list[_Candidate]:
        return self._in_both_formats("as it was", self.plain)

    def _in_both_formats(self, name: str, network: nn.Module) -> list[_Candidate]:
        found = [_Candidate(name, network, False)]
        if self.example.ndim == 4 and self.example.is_floating_point():
            last: nn.Module = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found.append(_Candidate(f"{name}, channels_last", last, True))
        return found

    def _folded(self) -> fx.GraphModule | None:
        """Return the network traced and without batch norms, if that can be had."""
        if not (self.example.dtype == torch.float32 and self.example.ndim == 4):
            self.note = "Nothing is packed: that takes images [N, C, H, W] of float32."
            return None
        try:
            traced = trace(copy.deepcopy(self.plain), self.example)
        except UnsupportedModelError as error:
            self.note = f"Nothing is packed: {error}"
            return None
        fold_batch_norms(traced)
        in_normal_form(traced)
        traced.eval()
        if self._agrees(traced):
            return traced
        self.note = "Nothing is packed: the traced network computes something else."
        return None

    def _agrees(self, network: nn.Module) -> bool:
        found, expected = network(self.example), self.expected
        if found.shape != expected.shape:
            return False
        if not torch.isfinite(expected).all():
            return torch.allclose(found, expected, rtol=1e-3, equal_nan=True)
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        error = float((found - expected).abs().max()) if expected.numel() else 0.0
        return error <= _TOLERANCE * largest

    # ---- packed candidates ----

    def _packed(
        self, folded: fx.GraphModule, channels_last: bool, before: dict[str, float]
    ) -> list[_Candidate]:
        first = self._packed_without(folded, frozenset(), channels_last)
        if first is None:
            self.note = self.note or "Nothing is packed: no stretch is faster than torch."
            return []
        found = [_Candidate("packed", first, False)]
        after = self._packed_ms(first)
        losing = {n: ms - before[n] for n, ms in after.items() if ms > 1.1 * before.get(n, ms)}
        # Each switch costs a repacking, so that only what is clearly better is worth a try.
        if sum(losing.values()) > 0.03 * sum(after.values()):
            second = self._packed_without(folded, frozenset(losing), channels_last)
            if second is not None:
                found.append(_Candidate("packed in part", second, False))
        return [each for each in found if self._agrees(each.network)]

    def _packed_without(
        self, folded: fx.GraphModule, without: frozenset[str], channels_last: bool
    ) -> fx.GraphModule | None:
        made = copy.deepcopy(folded)
        shapes_of(made, self.example)
        found = cut_out(made, stretches_in(made, without))
        images = _IMAGES_A_THREAD * self.threads
        stretches = []
        for name, stretch in found.items():
            dense = made.get_submodule(name)
            assert isinstance(dense, fx.GraphModule)
            module = PackedStretch(stretch, dense, self.threads, images)
            module.channels_last, module.packed = channels_last, False
            made.set_submodule(name, module)
            stretches.append(module)
        made.eval()
        if channels_last:
            made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in stretches:
            self._tune(module, _inputs_of(module, made, self.example))
        return made if any(module.packed for module in stretches) else None

    def _tune(self, module: PackedStretch, inputs: tuple[Tensor, ...]) -> None:
        """Choose the sections of a stretch, or torch."""
        part = [x[: module.images] for x in inputs]
        sizes = tuple(tuple(x.shape) for x in part)
        compiled: list[CompiledStretch] = []
        for plan in module.candidates(sizes, _PLANS):
            try:
                compiled.append(module.compile_plan(sizes, plan))
            except DoesNotFit:
                continue
        names = module.stretch
        runs: list[Callable[[], object]] = []
        for each in compiled:
            given = dict(zip(names.inputs, part, strict=True))
            made = [torch.empty(size) for size in each.output_sizes]
            runs.append(_call(each.run, given, dict(zip(names.outputs, made, strict=True))))
        runs.append(_call(module.dense, *part))
        ms = least_ms(runs, self.tune_ms, self.clock)
        best = ms.index(min(ms))
        module.packed = best < len(compiled)
        if module.packed:
            module.use(sizes, compiled[best])

    def _packed_ms(self, network: nn.Module) -> dict[str, float]:
        """Return the time of every convolution that runs packed, each in turn as in a run."""
        least: dict[str, float] = {}
        for module in network.modules():
            if isinstance(module, PackedStretch) and module.packed:
                inputs = _inputs_of(module, network, self.example)
                part = [x[: module.images] for x in inputs]
                compiled = module.compiled(tuple(tuple(x.shape) for x in part))
                if compiled is not None:
                    share = len(inputs[0]) / len(part[0])
                    times = compiled.layer_ms(self.clock, 4)
                    least.update({name: ms * share for name, ms in times.items()})
        return least


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _inputs_of(module: PackedStretch, network: nn.Module, example: Tensor) -> tuple[Tensor, ...]:
    """Return what reaches `module` when the network runs on `example`."""
    seen: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args))
    try:
        network(example)
    finally:
        handle.remove()
    return tuple(x.detach() for x in seen[0])


def _layers(
    plain: nn.Module, kept: nn.Module, before: dict[str, float], after: dict[str, float]
) -> tuple[LayerChoice, ...]:
    kernels: dict[str, str] = {}
    for module in kept.modules():
        if isinstance(module, PackedStretch) and module.packed:
            kernels.update(module.kernels())
    found = []
    for name, module in plain.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        found.append(
            LayerChoice(
                name,
                zeros_share(module.weight),
                kernels.get(name, "torch"),
                before.get(name, math.nan),
                after.get(name, before.get(name, math.nan)),
            )
        )
    return tuple(found)
