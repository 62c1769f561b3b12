"""What a network computes in training mode only, such as its auxiliary classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from causalprune.graph.flow import Labels, Walk
from causalprune.graph.trace import shapes_of, symbolic, untouched

__all__ = ["called_in_training", "join_training", "trace_training"]


def called_in_training(
    model: nn.Module, example: Tensor, layers: Sequence[str]
) -> list[str] | None:
    """Return those of `layers` that a forward pass in training mode calls.

    The pass leaves nothing behind: buffers, modes and the random state are put back. ``None``
    where it fails.
    """
    called: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: called.append(name)
        )
        for name in layers
    ]
    try:
        with _training(model), torch.no_grad():
            model(_pair(example))
    except Exception:  # the user's forward: anything may come
        return None
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(called))


def trace_training(
    model: nn.Module, example: Tensor, layers: Sequence[str]
) -> fx.GraphModule | None:
    """Trace `model` in training mode, with the shapes of its values.

    Returns ``None`` where that mode reaches none of `layers`; raises whatever tracing raises.
    """
    with _training(model), torch.no_grad():
        traced = symbolic(model)
        called = {str(n.target) for n in traced.graph.nodes if n.op in ("call_module", "get_attr")}
        if not any(_is_within(layer, name) for layer in layers for name in called):
            return None
        return shapes_of(traced, _pair(example))


def join_training(walk: Walk, training: Walk) -> None:
    """Add to `walk` what `training`, a walk through the same network in training mode, knows more.

    Layers that only training calls read and pass the units too (``Walk.in_training``); what
    couples or mixes units there cannot be taken apart for good.
    """
    atoms = _atoms(walk, training)
    for first, second in training.pairs:
        a, b = atoms[first], atoms[second]
        if walk.alone:
            walk.not_sliceable(np.concatenate([a, b]), "they are coupled in training mode")
            continue
        both = (a >= 0) & (b >= 0)
        walk.pairs.append((a[both], b[both]))
        walk.not_sliceable(
            np.concatenate([a[~both], b[~both]]),
            "they are coupled to a layer that is called in training mode only",
        )
    for found, reason in (*training.refusals, *training.surgeries):
        walk.not_sliceable(atoms[found], f"in training mode: {reason}")
    for labels, reason, unless, told in (
        *training.conditions, *((*mixing, None) for mixing in training.mixing)
    ):  # fmt: skip
        places = np.where(labels >= 0, atoms[labels], -1)
        walk.not_sliceable(places, f"in training mode: {reason}", unless, told)
    known = {(reading.layer, reading.role): reading.places for reading in walk.readings}
    for reading in training.readings:
        places = np.where(reading.places >= 0, atoms[reading.places], -1)
        before = known.get((reading.layer, reading.role))
        if before is None:
            walk.in_training.append(replace(reading, places=places))
        elif not np.array_equal(before, places):
            walk.not_sliceable(
                np.concatenate([before, places]),
                f"layer {reading.layer!r} reads other units in training mode",
            )


def _atoms(walk: Walk, training: Walk) -> Labels:
    """Atom of `walk` for every atom of `training`; -1 for layers that only training calls."""
    first = {producer.layer: producer.first for producer in walk.producers}
    atoms = np.full(training.n_atoms, -1)
    for producer in training.producers:
        if producer.layer in first:
            atoms[producer.atoms] = first[producer.layer] + np.arange(producer.n_units)
    return atoms


def _is_within(layer: str, name: str) -> bool:
    """Whether `name` is the layer, one of its tensors, or a layer that it is a part of."""
    return f"{layer}.".startswith(f"{name}.") or name.startswith(f"{layer}.")


def _pair(example: Tensor) -> Tensor:
    # Batch statistics need more than one value.
    return torch.cat([example[:2]] * 2)[:2]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put what has a forward of its own into training mode, and undo whatever that does.

    Layers without children stay in eval mode: they compute the same kind of value, and neither
    batch statistics nor random numbers are spent.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    try:
        with untouched(model), torch.random.fork_rng(list(devices)):
            for module in model.modules():
                module.training = bool(list(module.children()))
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
