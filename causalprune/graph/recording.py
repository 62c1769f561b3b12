"""One run of a network, chosen values shown to watchers on their way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from causalprune.errors import UnsupportedModelError
from causalprune.graph.steps import Step, steps_of
from causalprune.graph.suffixes import first_input

__all__ = ["Recorder", "Watcher", "frozen", "projected"]

Watcher = Callable[[Tensor], Tensor]
"""Takes a value on its way and returns it, as it is or as a tensor to derive by."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient for a while: nothing is kept for weight gradients."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class Recorder:
    """Run a traced network and show chosen values on their way to a watcher.

    Nothing is overwritten, so no value that was shown changes later.

    Parameters
    ----------
    traced : fx.GraphModule
        From :func:`causalprune.graph.trace`.
    values : Mapping of str to Watcher
        Node name to who sees its value; readers further on get what the watcher returns.
    inputs : Mapping of str to Watcher
        Node name to who sees its first input; only this node gets what the watcher returns. For
        an attention layer it is the input of the output projection, [..., heads * head width].
    fold : bool
        Fold a batch norm directly behind a convolution into it: saves a pass over the largest
        values, and what autograd keeps for it. The convolution's node then has the norm's value.

    Raises
    ------
    UnsupportedModelError
        If the network writes into a tensor that it reads elsewhere through a view.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        values: Mapping[str, Watcher],
        inputs: Mapping[str, Watcher],
        *,
        fold: bool = True,
    ) -> None:
        steps = steps_of(traced, fold=fold)
        if steps is None:
            raise UnsupportedModelError(
                "model: overwrites a tensor that it reads elsewhere through a view, so no value "
                "on the way is what it was; use method='ablation'"
            )
        self._steps = steps
        self._values, self._inputs = dict(values), dict(inputs)
        self._last_reader = {name: step.name for step in steps for name in step.inputs}
        self.constants = [
            tensor
            for step in steps
            if step.folded
            for tensor in step.module.parameters()  # type: ignore[union-attr]
        ]
        """Folded weights and biases that belong to no module of the network."""

    def run(self, *inputs: Any) -> Any:
        """Run the network on its inputs, [N, ...], and return its output."""
        values: dict[str, Any] = {}
        output: Any = None
        given = iter(inputs)
        for step in self._steps:
            if step.op == "placeholder":
                value: Any = next(given, step.args[0] if step.args else None)
            else:
                value = self._run_step(step, values.__getitem__)
            if step.name in self._values:
                value = self._values[step.name](value)
            values[step.name] = output = value
            for name in step.inputs:
                if self._last_reader[name] == step.name:
                    values.pop(name, None)
        return output

    def _run_step(self, step: Step, value_of: Callable[[str], Any]) -> Any:
        watcher = self._inputs.get(step.name)
        if watcher is None:
            return step(value_of)
        if _projects(step):
            return projected(step, value_of, watcher)
        source = first_input(step)
        seen = watcher(value_of(source))
        return step(lambda name: seen if name == source else value_of(name))


def _projects(step: Step) -> bool:
    """Whether the step is an attention layer that ends in an output projection of its own."""
    if step.module is not None:
        return isinstance(step.module, nn.MultiheadAttention)
    return step.op == "call_function" and "proj_weight" in _parameters(step.run)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions have none
        return {}


def projected(step: Step, value_of: Callable[[str], Any], watcher: Watcher) -> Any:
    """Attend with the identity as output projection, show the result, and project it by hand.

    The projection is linear at every token, so it commutes with whatever the layer does to
    tokens behind it (windows, shifts, padding).
    """
    args = fx.node.map_arg(step.args, lambda node: value_of(node.name))
    kwargs = fx.node.map_arg(dict(step.kwargs), lambda node: value_of(node.name))
    if isinstance(step.module, nn.MultiheadAttention):
        projection = step.module.out_proj
        replaced = {"out_proj.weight": _identity(projection.weight)}
        if projection.bias is not None:
            replaced["out_proj.bias"] = torch.zeros_like(projection.bias)
        heads, *rest = functional_call(step.module, replaced, args, kwargs)
        return (F.linear(watcher(heads), projection.weight, projection.bias), *rest)
    bound = inspect.signature(step.run).bind(*args, **kwargs)
    weight, bias = bound.arguments["proj_weight"], bound.arguments.get("proj_bias")
    bound.arguments.update(proj_weight=_identity(weight), proj_bias=None)
    return F.linear(watcher(step.run(*bound.args, **bound.kwargs)), weight, bias)


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
