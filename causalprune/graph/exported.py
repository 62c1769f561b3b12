"""Networks that torch.fx's symbolic tracer cannot trace, through torch.export.

An exported program is a graph of ATen operators in which the layers have dissolved. Here it
becomes a graph of the same language as a symbolic trace: the operators that ran inside one call
of a layer are that call again, under the layer's own name, and the other operators are the
functions of torch and ``torch.nn.functional`` that a network's author would have written. So
whatever reads a trace reads an exported one.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from causalprune.errors import UnsupportedModelError
from causalprune.graph.aten import ASSERTIONS, PASSES_THROUGH, Form, as_written, out_of_place
from causalprune.graph.functional import as_layers, bound

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """An exported network without its weights.

    Attributes
    ----------
    graph : fx.Graph
        One input; ``call_module`` and ``get_attr`` targets are names in the network.
    constants : Mapping of str to Tensor
        Tensors that the network's forward makes itself, by the name that `graph` gives them.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor] = field(repr=False)

    def bind(self, model: nn.Module) -> fx.GraphModule:
        """Return a graph module that computes what `model` does, and shares its layers."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return bound(model, graph, as_layers(graph, model), self.constants)


def export(model: nn.Module, example: Tensor) -> Exported:
    """Export `model`, in the mode it is in, with a batch size that stays free.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor and returns one.
    example : Tensor [N, ...]
        Only shape, dtype and device matter.

    Raises
    ------
    UnsupportedModelError
        If torch.export cannot export the network either, or only for one batch size; whatever
        torch.export itself raises is passed on.
    """
    rows = example[:2] if len(example) > 1 else torch.cat([example, example])
    program = _program(model, rows)
    _check_free_batch(program)
    return _Builder(model, program).build()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch.export prints about a failure to the exception, which says it too."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _program(model: nn.Module, rows: Tensor) -> ExportedProgram:
    shapes = ({0: Dim.DYNAMIC},)
    with _quietly():
        try:
            return torch.export.export(model, (rows,), dynamic_shapes=shapes, strict=False)
        except Exception as first:  # it runs the user's forward: anything may come
            if "Constraints violated" in str(first):
                raise UnsupportedModelError(
                    "it takes another way for another batch size"
                ) from first
            try:
                return torch.export.export(model, (rows,), dynamic_shapes=shapes, strict=True)
            except Exception:
                # The plain run's reason is in the author's own lines; the strict one adds to it.
                raise first from None


def _check_free_batch(program: ExportedProgram) -> None:
    (name,) = program.graph_signature.user_inputs
    (node,) = (n for n in program.graph.nodes if n.name == name)
    size = node.meta["val"].shape[0]
    if isinstance(size, int):
        raise UnsupportedModelError(f"it takes a way of its own for a batch of {size}")
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:
        return
    bounded = bounds.upper.is_Integer and int(bounds.upper) < 2**31
    # Two is the smallest size that torch.export takes for a free one.
    if int(bounds.lower) > 2 or bounded:
        raise UnsupportedModelError(
            f"it takes another way for a batch size outside of {bounds.lower}..{bounds.upper}"
        )


class _Builder:
    """The rewriting of one exported program, node by node."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self._model, self._program = model, program
        self._graph = fx.Graph()
        self._values: dict[fx.Node, Any] = {}
        self._attributes: dict[str, fx.Node] = {}
        self._names: dict[fx.Node, str] = {}
        self._constants: dict[str, Tensor] = {}

    def build(self) -> Exported:
        nodes = list(self._program.graph.nodes)
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        for node in nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                self._values[node] = self._graph.placeholder(node.name)
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                name = f"_constant_{len(self._constants)}"
                constant = self._program.constants[str(spec.target)]
                assert isinstance(constant, Tensor)
                self._names[node], self._constants[name] = name, constant.detach()
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self._names[node] = str(spec.target)
            else:
                raise UnsupportedModelError(f"it reads {spec.target!r}, which is no tensor")
        output = self._emit([node for node in nodes if node.op != "placeholder"])
        (result,) = output
        self._graph.output(result)
        self._graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        self._graph.lint()
        return Exported(self._graph, self._constants)

    # ---- nodes ----------------------------------------------------------------------------------

    def _emit(self, nodes: list[fx.Node]) -> Any:
        calls = _layer_calls(nodes, self._model, set(self._names))
        for node in nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], self._value)
            if node in calls.inner or node.target in ASSERTIONS:
                continue
            if node in calls.results:
                self._values[node] = self._layer(calls.results[node], node)
            elif node.op == "get_attr":
                continue  # the body of a higher order operator
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                self._values[node] = self._inline(node)
            else:
                self._values[node] = self._operator(node)
        raise AssertionError("an exported graph has an output")

    def _layer(self, call: _Call, node: fx.Node) -> fx.Node:
        source = self._value(call.source)
        if isinstance(self._model.get_submodule(call.layer), nn.MultiheadAttention):
            both = self._graph.call_module(
                call.layer, (source, source, source), {"need_weights": False}
            )
            return self._graph.call_function(operator.getitem, (both, 0))
        made = self._graph.call_module(call.layer, (source,))
        if _writes(node) is call.source:
            self._check_overwriting(node, call.source)
            self._values[call.source] = made  # later readers see what the layer wrote
        return made

    def _operator(self, node: fx.Node) -> Any:
        if node.target is operator.getitem and isinstance(self._value(node.args[0]), (tuple, list)):
            return self._value(node.args[0])[node.args[1]]
        if node.target in PASSES_THROUGH:
            return self._value(node.args[0])
        args = fx.map_arg(node.args, self._value)
        kwargs = fx.map_arg(node.kwargs, self._value)
        written = _writes(node)
        target: Any = node.target
        if written is not None:
            self._check_overwriting(node, written)
            target = out_of_place(target)
            if target is None:
                raise UnsupportedModelError(f"{node.target} has no form that is not in place")
        form = as_written(target, args, kwargs, _n_axes(node))
        made = form if isinstance(form, fx.Node) else self._made(node, form)
        if written is not None:
            self._values[written] = made
        return made

    def _made(self, node: fx.Node, form: Form) -> fx.Node:
        made = self._graph.create_node(*form)
        stack = node.meta.get("nn_module_stack")
        if stack is not None:
            made.meta["nn_module_stack"] = stack
        return made

    def _inline(self, node: fx.Node) -> Any:
        """Emit the body of a ``with`` block that changes no value where it stands."""
        operators = torch.ops.higher_order
        if node.target is operators.wrap_with_set_grad_enabled:
            _, name, *given = node.args
        elif node.target is operators.wrap_with_autocast and node.args[2] is False:
            *_, name = node.args[:5]
            given = list(node.args[5:])
        else:
            raise UnsupportedModelError(f"it uses {node.target}, which is control flow of its own")
        assert isinstance(name, fx.Node)
        inner = list(getattr(self._program.graph_module, str(name.target)).graph.nodes)
        inputs = [n for n in inner if n.op == "placeholder"]
        for read, source in zip(inputs, given, strict=True):
            assert isinstance(source, fx.Node)
            if source in self._names:
                self._names[read] = self._names[source]
            else:
                self._values[read] = self._value(source)
        return self._emit([n for n in inner if n.op != "placeholder"])

    def _value(self, node: Any) -> Any:
        if not isinstance(node, fx.Node) or node in self._values:
            return self._values[node] if isinstance(node, fx.Node) else node
        name = self._names[node]
        if name not in self._attributes:
            self._attributes[name] = self._graph.get_attr(name)
        return self._attributes[name]

    # ---- in place -------------------------------------------------------------------------------

    def _check_overwriting(self, node: fx.Node, written: fx.Node) -> None:
        """Refuse to overwrite what is read later under another name."""
        if written in self._names:
            raise UnsupportedModelError(f"it overwrites {self._names[written]!r}")
        root = _root(written)
        position = {n: k for k, n in enumerate(node.graph.nodes)}
        for other in node.graph.nodes:
            if position[other] >= position[node] or other is written or _root(other) is not root:
                continue
            if self._values.get(other) is self._values.get(written):
                continue
            if any(position[user] > position[node] for user in other.users):
                raise UnsupportedModelError(f"{node.target} overwrites a view that is read later")


def _writes(node: fx.Node) -> fx.Node | None:
    """Return the node whose value `node` overwrites."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return None
    written = node.args[0]
    return written if isinstance(written, fx.Node) else None


def _root(node: fx.Node) -> fx.Node:
    """Return the node in whose memory the value of `node` may lie."""
    while node.op == "call_function" and node.args:
        source = node.args[0]
        schema = getattr(node.target, "_schema", None)
        aliases = schema is not None and any(r.alias_info is not None for r in schema.returns)
        # Inert dropout hands its input on, though its schema does not say so.
        if not isinstance(source, fx.Node) or not (
            aliases or node.target in (operator.getitem, torch.ops.aten.dropout.default)
        ):
            break
        node = source
    return node


def _n_axes(node: fx.Node) -> int:
    source = node.args[0] if node.args else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    return value.ndim if isinstance(value, Tensor) else 0


# ---- layers -------------------------------------------------------------------------------------


_TRACER = fx.Tracer()


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its name, and the node that it reads."""

    layer: str
    source: fx.Node


@dataclass(frozen=True)
class _Calls:
    results: Mapping[fx.Node, _Call]
    inner: frozenset[fx.Node]


def _layer_calls(nodes: list[fx.Node], model: nn.Module, stored: set[fx.Node]) -> _Calls:
    """Find the calls of torch.nn's own layers that read one tensor and make one."""
    members: dict[tuple[str, str], list[fx.Node]] = {}
    for node in nodes:
        call = _innermost_call(node, model)
        if call is not None:
            members.setdefault(call, []).append(node)
    results: dict[fx.Node, _Call] = {}
    inner: set[fx.Node] = set()
    for (_, layer), inside in members.items():
        own = set(inside)
        # Sizes need no second look: the layer takes them from the tensor that it reads.
        sources = {s for s in _sources(inside) if _is_tensor(s)} - own - stored
        outcomes = [node for node in inside if any(user not in own for user in node.users)]
        if len(sources) == len(outcomes) == 1:
            results[outcomes[0]] = _Call(layer, sources.pop())
            inner |= own - {outcomes[0]}
    return _Calls(results, frozenset(inner))


def _innermost_call(node: fx.Node, model: nn.Module) -> tuple[str, str] | None:
    """Return the call of a torch.nn layer that `node` ran in: its own key, and the layer."""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        name = str(path).partition("@")[0]
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if name and _TRACER.is_leaf_module(module, name):
            return f"{key} {path}", name  # either of them tells a second call from the first
    return None


def _sources(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return [source for node in nodes for source in node.all_input_nodes]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
