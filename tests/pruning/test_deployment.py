"""What people do with a pruned network: it is theirs, and needs nothing but torch."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import deployed_networks
import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import CausalPruneError
from causalprune.graph import capture, removed
from causalprune.pruning import Plan, apply, plan
from causalprune.scoring import score

SIZE = 17
IMAGES = torch.randn(5, 1, SIZE, SIZE)


CLASSES: dict[str, Callable[[], nn.Module]] = {
    "residual": deployed_networks.Residual,
    "inverted": deployed_networks.Inverted,
    "transformer": deployed_networks.Transformer,
}


@dataclass(frozen=True)
class Pruned:
    """A network, the plan, what it became, and what that computes."""

    model: nn.Module
    decided: Plan
    small: nn.Module
    outputs: Tensor


@pytest.fixture(params=CLASSES)
def pruned(request: pytest.FixtureRequest) -> Pruned:
    return _pruned(request.param)


@cache
def _pruned(name: str) -> Pruned:
    model = networks.settle(CLASSES[name]())
    decided = plan(model, score(model, IMAGES, "random"), 0.4, "units")
    small = apply(model, decided)
    with torch.no_grad(), removed(model, capture(model, IMAGES), decided.remove):
        torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    return Pruned(model, decided, small, small(IMAGES).detach())


def _check(found: Tensor, pruned: Pruned, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, pruned.outputs, rtol=tolerance, atol=tolerance)


ELSEWHERE = """
import importlib.abc, sys
class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "causalprune":
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Nowhere())
import torch
for name in sys.argv[1:]:
    model = torch.load(f"{name}.model", weights_only=False)
    images, expected = torch.load(f"{name}.data")
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    model.train()(images).sum().backward()
assert not any(name.startswith("causalprune") for name in sys.modules)
print("fine")
"""


def test_it_is_read_where_causalprune_is_not(tmp_path: Path) -> None:
    for name in CLASSES:
        torch.save(_pruned(name).small, tmp_path / f"{name}.model")
        torch.save((IMAGES, _pruned(name).outputs), tmp_path / f"{name}.data")
        assert b"causalprune" not in (tmp_path / f"{name}.model").read_bytes()
    source = Path(deployed_networks.__file__)
    (tmp_path / source.name).write_bytes(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *CLASSES], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_fresh_instance_takes_the_pruned_state(pruned: Pruned) -> None:
    text, file = pruned.decided.to_json(), io.BytesIO()
    torch.save(pruned.small.state_dict(), file)
    file.seek(0)
    fresh = apply(type(pruned.model)(), Plan.from_json(text))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(IMAGES), pruned.outputs)


def test_it_exports(pruned: Pruned) -> None:
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(pruned.small, (IMAGES[:3],), dynamic_shapes=(batch,))
    _check(program.module()(IMAGES), pruned)


@pytest.mark.filterwarnings("ignore")
def test_it_runs_in_onnxruntime(pruned: Pruned, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "pruned.onnx"
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        pruned.small, (IMAGES[:2],), str(path), dynamo=False, input_names=["images"],
        output_names=["logits"], dynamic_axes=axes,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": IMAGES.numpy()})
    _check(torch.from_numpy(found), pruned, 1e-4)


def test_it_compiles(pruned: Pruned) -> None:
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(pruned.small), backend="eager", fullgraph=True)
    _check(compiled(IMAGES), pruned)
    compiled(IMAGES).sum().backward()


def test_it_is_copied(pruned: Pruned) -> None:
    twin = copy.deepcopy(pruned.small)
    assert torch.equal(twin(IMAGES), pruned.outputs)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
    assert torch.equal(pruned.small(IMAGES), pruned.outputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_takes_other_dtypes(pruned: Pruned, dtype: torch.dtype) -> None:
    with torch.no_grad():
        found = copy.deepcopy(pruned.small).to(dtype)(IMAGES.to(dtype))
    assert found.dtype == dtype
    error = {torch.float64: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}[dtype]
    scale = float(pruned.outputs.abs().max())
    assert float((found.float() - pruned.outputs).abs().max()) < error * max(1.0, scale)


def test_it_trains_on(pruned: Pruned) -> None:
    network = copy.deepcopy(pruned.small).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    labels, losses = torch.arange(5) % 3, []
    for _ in range(3):
        loss = F.cross_entropy(network(IMAGES), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in _heard(network))
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def _heard(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that a gradient reaches: batch norm takes the bias out, softmax that of keys."""
    return [p for name, p in network.named_parameters() if not name.endswith("k_proj.bias")]


def test_it_takes_channels_last(pruned: Pruned) -> None:
    network = copy.deepcopy(pruned.small).to(memory_format=torch.channels_last)
    _check(network(IMAGES.contiguous(memory_format=torch.channels_last)), pruned)


# ---- shared modules and parameters --------------------------------------------------------------


class Tied(nn.Module):
    """Two layers with one weight, or one layer called twice, beside a layer of their own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.own = nn.Linear(9, 6), nn.Linear(6, 6)
        self.second = self.first if how == "module" else nn.Linear(9, 6)
        if how == "weight":
            self.second.weight = self.first.weight
        self.tail, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 3).flatten(1)
        if self.how == "loop":
            y = self.first(x)
            for _ in range(3):
                y = F.relu(self.own(y))
        else:
            y = F.relu(self.own(F.relu(self.first(x)))) + F.relu(self.second(x * x))
        return self.head(F.relu(self.tail(y)))


@pytest.mark.parametrize(
    ("how", "layers"), [("weight", ("first", "second")), ("module", ("first",)), ("loop", ("own",))]
)
def test_what_is_shared_stays(how: str, layers: tuple[str, ...]) -> None:
    model = networks.settle(Tied(how))
    graph = capture(model, IMAGES)
    for layer in layers:
        assert layer in graph.refused or any(
            layer in group.producers and group.surgery for group in graph.groups
        )
    decided = plan(model, score(model, IMAGES, "l1"), 0.99, "units")
    assert set(decided.remove) == {"tail"}
    small = apply(model, decided)
    with torch.no_grad(), removed(model, graph, decided.remove):
        torch.testing.assert_close(small(IMAGES), model(IMAGES))
    assert sum(p.numel() for p in small.parameters()) == decided.after.parameters
    owned = {"weight": small.second.weight, "module": small.second.weight}.get(how)
    assert owned is None or owned is small.first.weight


@pytest.mark.parametrize("how", ["weight", "module"])
def test_a_plan_that_cuts_what_is_shared_is_refused_by_name(how: str) -> None:
    model = networks.settle(Tied(how))
    nothing = plan(model, score(model, IMAGES, "l1"), 0.0)
    with pytest.raises(CausalPruneError, match="first"):
        apply(model, replace(nothing, remove={"first": (0,)}))
