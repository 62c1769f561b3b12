"""Running a traced network node by node and taking values out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from causalprune.graph.steps import is_in_place

__all__ = ["CONSUMER_INPUT", "Replay"]

CONSUMER_INPUT = ":input"
"""Ending of the key under which :attr:`Replay.values` holds what a consumer reads."""


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
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        keep: Iterable[str] = (),
        consumers: Iterable[str] = (),
    ) -> None:
        super().__init__(traced)
        self.keep = frozenset(keep)
        self.consumers = frozenset(consumers)
        self.values: dict[str, Tensor] = {}
        self._overwriting = frozenset(n.name for n in traced.graph.nodes if is_in_place(n))

    def __call__(self, inputs: Tensor) -> Any:
        """Run the network on `inputs` [N, ...] and return its output."""
        self.values = {}
        return self.run(inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; called by the interpreter, in the order of the graph."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.name in self.consumers:
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
        value = value.view_as(value)
        self.values[name + CONSUMER_INPUT] = value
        return value
