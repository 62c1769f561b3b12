"""Running a traced network node by node: taking values out, and running a suffix again."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from causalprune.graph.intervene import zero_columns
from causalprune.graph.units import Consumer

__all__ = ["CONSUMER_INPUT", "Replay", "Suffix"]

CONSUMER_INPUT = ":input"
"""Ending of the key under which :attr:`Replay.values` holds what a consumer reads."""

_IN_PLACE_FUNCTIONS = (operator.iadd, operator.isub, operator.imul)


def _in_place(node: fx.Node) -> bool:
    if node.op == "call_module":
        owner = node.graph.owning_module
        module = owner.get_submodule(str(node.target)) if owner is not None else None
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return (
            node.target in _IN_PLACE_FUNCTIONS
            or bool(node.kwargs.get("inplace", False))
            or (name.endswith("_") and not name.endswith("__"))
        )
    return False


class Replay(fx.Interpreter):
    """Run a traced network and keep the values of chosen nodes.

    In-place operators are run out of place, because they would overwrite values that are kept
    (pre-activations above all); later readers see the new value, as they would have.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    keep : iterable of str
        Nodes whose value is kept in :attr:`values`.
    consumers : iterable of str
        Nodes whose first input is kept under ``name + CONSUMER_INPUT``, as an autograd view of
        its own: its gradient is that of this reading alone.
    keep_all : bool
        Keep every value in ``env``, for :class:`Suffix`.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        keep: Iterable[str] = (),
        consumers: Iterable[str] = (),
        *,
        keep_all: bool = False,
    ) -> None:
        super().__init__(traced, garbage_collect_values=not keep_all)
        self.keep = frozenset(keep)
        self.consumers = frozenset(consumers)
        self.values: dict[str, Tensor] = {}
        self.patches: dict[str, tuple[Consumer, Tensor]] = {}
        self._overwriting = frozenset(n.name for n in traced.graph.nodes if _in_place(n))

    def __call__(self, inputs: Tensor) -> Any:
        """Run the network on `inputs` [N, ...] and return its output."""
        self.values = {}
        return self.run(inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; called by the interpreter, in the order of the graph."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.name in self.consumers or n.name in self.patches:
            kwargs = dict(kwargs)
            value = args[0] if args else kwargs.pop("input")
            args = (self._reading(n.name, value), *args[1:])
        overwrites = n.name in self._overwriting and bool(args)
        if overwrites:
            args = (args[0].clone(), *args[1:])
        result = getattr(self, n.op)(n.target, args, kwargs)
        if overwrites and isinstance(n.args[0], fx.Node):
            self.env[n.args[0]] = result
        if n.name in self.keep:
            self.values[n.name] = result
        return result

    def _reading(self, name: str, value: Tensor) -> Tensor:
        if name in self.patches:
            value = zero_columns(value, *self.patches[name])
        if name in self.consumers:
            value = value.view_as(value)
            self.values[name + CONSUMER_INPUT] = value
        return value


class Suffix:
    """Everything behind some consumers, to be run again under an intervention.

    The result equals that of a whole forward pass inside :func:`causalprune.graph.removed`,
    because what the intervention cannot reach is taken from the values of the plain run.

    Parameters
    ----------
    replay : Replay
        Made with ``keep_all=True``.
    consumers : Mapping of str to Consumer
        Node name to the consumer that is intervened on.
    """

    def __init__(self, replay: Replay, consumers: Mapping[str, Consumer]) -> None:
        self._replay = replay
        self._consumers = dict(consumers)
        reached: set[fx.Node] = set()
        self._nodes: list[fx.Node] = []
        for node in replay.graph.nodes:
            if node.name in self._consumers or not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                self._nodes.append(node)

    @staticmethod
    def exact(replay: Replay) -> bool:
        """Whether no value changes under a second reader, so that prefix values can be reused."""
        return not any(
            node.name in replay._overwriting and len(source.users) > 1
            for node in replay.graph.nodes
            for source in node.all_input_nodes[:1]
        )

    def __call__(self, values: Mapping[fx.Node, Any], columns: Mapping[str, Tensor]) -> Any:
        """Return the output with the input `columns` of every consumer node at zero.

        Parameters
        ----------
        values : Mapping
            ``env`` of the replay after the plain run.
        columns : Mapping of str to Tensor
            Node name to the input columns, int64, that are zeroed there.
        """
        replay = self._replay
        replay.env = dict(values)
        replay.patches = {n: (c, columns[n]) for n, c in self._consumers.items()}
        result: Any = None
        try:
            for node in self._nodes:
                result = replay.env[node] = replay.run_node(node)
        finally:
            replay.patches = {}
        return result
