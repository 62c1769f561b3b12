"""Tracing a network as it computes in eval mode."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from causalprune.errors import (
    InvalidArgumentError,
    UnsupportedModelError,
    UntraceableModelError,
)
from causalprune.graph.exported import Exported, export
from causalprune.graph.functional import as_layers, bound, stand_ins_in

__all__ = [
    "evaluating",
    "exported_in",
    "layers_of",
    "run_once",
    "shape_of",
    "shapes_of",
    "symbolic",
    "trace",
    "trace_shapes",
    "untouched",
]

_EXPORTED = "exported"
_NOT_THE_AUTHORS = (Path(torch.__file__).parent, Path(__file__).parent)


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


def trace(
    model: nn.Module, example: Tensor | None = None, *, exported: Exported | None = None
) -> fx.GraphModule:
    """Trace `model` in eval mode; the result shares its submodules and takes any batch size.

    By torch.fx; where its symbolic tracer fails (control flow on sizes, ``len``, ``*args``, ...)
    and an `example` is there, by torch.export, which sees the shapes. Either way convolutions,
    linear layers, norms and the other layers of ``torch.nn`` are ``call_module`` nodes under the
    names that they have in `model`.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor and returns one. Its modes are restored.
    example : Tensor [N, ...], optional
        An input batch on the model's device. What was traced is held to what the network computes
        on it.
    exported : Exported, optional
        From an earlier trace of this network or of one of the same structure
        (``UnitGraph.exported``): nothing is traced again.

    Returns
    -------
    fx.GraphModule
        With an `example`, the shape of every node's value is in its ``tensor_meta``.

    Raises
    ------
    InvalidArgumentError
        If `model` is not a module, or does not run on `example`.
    UntraceableModelError
        If neither can trace the network; names the module and the line of its forward.
    UnsupportedModelError
        If the network is a compiled one, takes more than one input or returns something else than
        a tensor.

    Examples
    --------
    >>> class Halves(nn.Module):
    ...     def forward(self, x):
    ...         return x[:, : x.shape[1] // 2] if len(x.shape) > 1 else x
    >>> trace(Halves(), torch.zeros(2, 6))(torch.ones(5, 6)).shape
    torch.Size([5, 3])
    """
    if example is not None:
        return trace_shapes(model, example, exported=exported)
    _check_model(model)
    if exported is not None:
        return _bound(exported, model)
    with evaluating(model):
        try:
            return symbolic(model)
        except Exception as error:  # tracing runs the user's forward: anything may come
            raise UntraceableModelError(
                f"model: torch.fx cannot trace {type(model).__name__}"
                f"{_where(error, model)}: {_first_line(error)}"
            ) from error


def trace_shapes(
    model: nn.Module, example: Tensor, *, exported: Exported | None = None
) -> fx.GraphModule:
    """Trace `model` and note on every node the shape of its value for `example` [N, ...].

    See :func:`trace`.
    """
    example = _telling(example)
    expected = run_once(model, example)
    rows = torch.cat([example[:2]] * 2)[:2]
    if exported is not None:
        traced = _bound(exported, model)
        with evaluating(model), torch.no_grad():
            ShapeProp(traced).propagate(rows)
        return traced
    failures: list[Exception] = []
    with evaluating(model), torch.no_grad():
        # One image is enough for torch.fx; torch.export takes a size of one for a constant.
        for way, batch in ((symbolic, example[:1]), (_exported, rows)):
            try:
                traced = way(model, batch)
                found = ShapeProp(traced).propagate(batch)
                if way is symbolic:
                    _check_same(found, expected)
                else:
                    _check_batch_sizes(model, traced, rows)
                return traced
            except Exception as error:  # tracing runs the user's forward: anything may come
                failures.append(error)
    raise UntraceableModelError(_both(failures, model)) from failures[-1]


def run_once(model: nn.Module, example: Tensor) -> Tensor:
    """Run `model` in eval mode on the first image of `example`; returns its output.

    Raises
    ------
    InvalidArgumentError
        If `example` is not a batched tensor or the network does not run on it.
    UnsupportedModelError
        If the network is a compiled one, takes more than one input or returns something else than
        a tensor.
    """
    _check_model(model)
    if not isinstance(example, Tensor) or example.ndim < 2 or example.shape[0] < 1:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InvalidArgumentError(
            f"example: expected a batch of inputs [N, ...] with N >= 1, got {got}"
        )
    with evaluating(model), torch.no_grad():
        try:
            output = model(example[:1])
        except Exception as error:
            raise InvalidArgumentError(
                f"example: the network does not run on an input of shape {tuple(example.shape)} "
                f"and dtype {example.dtype}{_where(error, model)}: {_first_line(error)}"
            ) from error
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"model: expected a forward that returns one tensor, such as logits [N, K], got "
            f"{_described(output)}; wrap {type(model).__name__} in a module that returns the logits"
        )
    return output


def shapes_of(traced: fx.GraphModule, batch: Tensor) -> fx.GraphModule:
    """Run `traced` on a batch and note the shape of every value on its node; returns `traced`."""
    ShapeProp(traced).propagate(batch)
    return traced


def exported_in(traced: fx.GraphModule) -> Exported | None:
    """Return what torch.export made, if `traced` comes from there."""
    found: Exported | None = traced.meta.get(_EXPORTED)
    return found


def layers_of(traced: fx.GraphModule, model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of `model` by name, as `traced` calls them."""
    return {**dict(model.named_modules()), **stand_ins_in(traced)}


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's value, or ``None`` where it is not a single tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


# ---- the two tracers ----------------------------------------------------------------------------


class _OneInput(fx.Tracer):
    """Traces what the network computes when it is called with one tensor and nothing else."""

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the function to trace and its arguments; defaults stay what they are."""
        _, name, *_ = inspect.signature(root_fn).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]


def symbolic(model: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """Trace `model` with torch.fx in the mode it is in; raises whatever that raises."""
    with untouched(model) as made:
        graph = _OneInput().trace(model)
    return bound(model, graph, as_layers(graph, model), made)


def _exported(model: nn.Module, example: Tensor) -> fx.GraphModule:
    with untouched(model):
        exported = export(model, example)
    return _bound(exported, model)


@contextmanager
def untouched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Undo what a traced forward assigns to its modules: proxies and fakes are of no use there.

    Tensors that torch.fx leaves on the model, for constants, end up in the dictionary.
    """
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    made: dict[str, Tensor] = {}
    try:
        yield made
    finally:
        new = {k: v for k, v in vars(model).items() if k not in kept[0][1]}
        made.update({k: v for k, v in new.items() if isinstance(v, Tensor)})
        for module, attributes, buffers in kept:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _bound(exported: Exported, model: nn.Module) -> fx.GraphModule:
    traced = exported.bind(model)
    traced.meta[_EXPORTED] = exported
    return traced


def _telling(example: Tensor) -> Tensor:
    """Return `example`, or noise of its kind where it is constant, as examples of zeros are.

    On zeros a network and a wrong trace of it may well agree.
    """
    known = isinstance(example, Tensor) and example.is_floating_point() and example.numel() > 0
    if not known or bool((example != example.flatten()[0]).any()):
        return example
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(example)


def _check_batch_sizes(model: nn.Module, traced: fx.GraphModule, rows: Tensor) -> None:
    """Hold an exported network to the network on batches of one, two and three images."""
    for n_images in (1, 2, 3):
        batch = torch.cat([rows, rows])[:n_images]
        _check_same(traced(batch), model(batch))


def _check_same(found: object, expected: Tensor) -> None:
    """Hold a trace to the network: a wrong branch, taken once for all, shows here."""
    if not _same(found, expected):
        raise UnsupportedModelError(
            f"what was traced computes something else on a batch of {len(expected)}"
        )


def _same(found: object, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape or not len(expected):
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    size = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
    # A device may sum in another order, and with fewer bits (TF32), the second time.
    error = max(1e-3, 16 * torch.finfo(expected.dtype).eps)
    return torch.allclose(found, expected, rtol=error, atol=error * size, equal_nan=True)


# ---- what a model must be, and what to say where it is not ---------------------------------------


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "model: expected a network in Python, got a compiled torch.jit.ScriptModule, whose "
            "layers cannot be reached; pass the network that was scripted"
        )
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "model: expected a network in Python, got the result of torch.compile; pass the "
            "network that was compiled (model._orig_mod)"
        )
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    takes = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(required) > 1 or not takes:
        raise UnsupportedModelError(
            f"model: expected a forward with one input, got "
            f"{type(model).__name__}.forward({', '.join(map(str, parameters))})"
        )


def _described(output: object) -> str:
    if isinstance(output, dict):
        return f"a {type(output).__name__} with {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    return type(output).__name__


def _both(failures: list[Exception], model: nn.Module) -> str:
    name = type(model).__name__
    symbolic, exported = ((_where(error, model), _first_line(error)) for error in failures)
    if symbolic[0] == exported[0]:
        return (
            f"model: neither torch.fx nor torch.export can trace {name}{symbolic[0]}: "
            f"{symbolic[1]}; {exported[1]}"
        )
    return (
        f"model: torch.fx cannot trace {name}{': '.join(symbolic)}; "
        f"nor can torch.export{': '.join(exported)}"
    )


def _where(error: BaseException, model: nn.Module) -> str:
    """Name the module and the last line of the network's own code that `error` came through."""
    names = {id(module): name for name, module in model.named_modules()}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        first = frame.f_code.co_varnames[:1]  # `self`, whatever its author calls it
        owner = frame.f_locals.get(first[0]) if first else None
        if id(owner) not in names or any(home in path.parents for home in _NOT_THE_AUTHORS):
            continue
        layer = f"layer {names[id(owner)]!r}" if names[id(owner)] else "its own forward"
        text = linecache.getline(str(path), line).strip()
        return f" at {layer} ({type(owner).__name__}, {path}:{line}: {text!r})"
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
