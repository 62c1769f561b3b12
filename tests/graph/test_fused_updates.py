"""Where the update of a layer's output ends, and that what it then gives is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.graph import Interventions, capture, removed, trace
from causalprune.graph.fused_updates import FusedUpdate, fused_update
from causalprune.graph.steps import steps_of


class Block(nn.Module):
    """Two convolutions, with something behind the second."""

    def __init__(self, behind: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self.head = nn.Linear(3, 2)
        self.behind = behind
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        return self.head(self.behind(self, x, y).mean((2, 3)))


def shortcut(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return block.relu(x + block.drop(block.norm(y)))


def two_sums(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(torch.sin(x) + (x + y))


def no_relu(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return x + y


def scaled(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(2 * y)


def added_to_itself(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(y + y)


def read_twice(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x + y) * y


def clamped(block: Block, x: Tensor, y: Tensor) -> Tensor:
    return F.relu6(x + y)


CASES = {
    # what is behind the second convolution: the kinds of steps absorbed, and whether a ReLU is
    shortcut: (("norm", "drop", "add", "relu"), True),
    two_sums: (("add", "add", "relu"), True),
    no_relu: (("add",), False),
    scaled: ((), False),
    added_to_itself: ((), False),
    read_twice: ((), False),
    clamped: (("add",), False),
}
Behind = Callable[[Block, Tensor, Tensor], Tensor]


def block_of(behind: Behind) -> Block:
    torch.manual_seed(4)
    return Block(behind).eval()  # type: ignore[arg-type]


def update_of(model: nn.Module) -> FusedUpdate:
    x = torch.randn(2, 3, 6, 6)
    steps = steps_of(trace(model, x))
    assert steps is not None
    (layer,) = (step for step in steps if step.name == "second")
    readers, reached = {}, {layer.name}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
        if reached.intersection(step.inputs):
            reached.add(step.name)
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for step in steps:
            values[step.name] = x if step.op == "placeholder" else step(values.__getitem__)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    return fused_update(layer, readers, reached, (), shapes)


@pytest.mark.parametrize("behind", CASES)
def test_how_far_an_update_reaches(behind: Behind) -> None:
    absorbed, relu = CASES[behind]
    found = update_of(block_of(behind))
    assert tuple(name.split("_")[0] for name in found.absorbed) == absorbed
    assert found.relu == relu
    assert found.result == (found.absorbed[-1] if absorbed else "second")
    assert found.base.startswith("add") == ("add" in absorbed)


def test_hooks_see_what_they_always_see() -> None:
    model = block_of(shortcut)
    model.relu.register_forward_hook(lambda module, inputs, output: None)
    assert not update_of(model).relu


@pytest.mark.parametrize("behind", CASES)
@torch.no_grad()
def test_every_unit_removed_equals_whole_passes(behind: Behind) -> None:
    model = block_of(behind)
    x = torch.randn(7, 3, 9, 5)
    graph = capture(model, x[:1])
    run = Interventions(model, graph, example=x[:1])
    run.observe(x)
    for group in graph.groups:
        outputs = run.remove(group.name, range(group.n_units))
        for unit, output in enumerate(outputs):
            with removed(model, graph, {group.name: [unit]}):
                torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-6)
