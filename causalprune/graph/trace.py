"""Tracing a network as it computes in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from causalprune.errors import InvalidArgumentError, UnsupportedModelError

__all__ = ["evaluating", "shape_of", "trace", "trace_shapes"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode for a while; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model` in eval mode with torch.fx; the result shares its submodules.

    Raises
    ------
    InvalidArgumentError
        If `model` is not a module.
    UnsupportedModelError
        If its forward depends on the values of tensors or cannot be traced for another reason.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    with evaluating(model):
        try:
            graph = fx.Tracer().trace(model)
            return fx.GraphModule(model, graph)
        except Exception as error:  # tracing runs the user's forward: anything may come
            raise UnsupportedModelError(
                f"model: torch.fx cannot trace {type(model).__name__}: {error}"
            ) from error


def trace_shapes(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace `model` and note on every node the shape of its value for `example` [N, ...].

    Raises
    ------
    InvalidArgumentError
        If `example` is not a batched tensor or the network does not run on it.
    UnsupportedModelError
        If the network cannot be traced.
    """
    if not isinstance(example, Tensor) or example.ndim < 2 or example.shape[0] < 1:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InvalidArgumentError(
            f"example: expected a batch of inputs [N, ...] with N >= 1, got {got}"
        )
    traced = trace(model)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    required = [node for node in inputs if not node.args]
    if not inputs or len(required) > 1:
        raise UnsupportedModelError(
            f"model: expected a forward with one input, got {[node.name for node in inputs]}"
        )
    with evaluating(model), torch.no_grad():
        try:  # the network itself first: the interpreter's errors bury the reason
            model(example)
            ShapeProp(traced).propagate(example)
        except Exception as error:
            raise InvalidArgumentError(
                f"example: the network does not run on an input of shape {tuple(example.shape)} "
                f"and dtype {example.dtype}: {error}"
            ) from error
    return traced


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's value, or ``None`` where it is not a single tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None
