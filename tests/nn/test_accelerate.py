from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causalprune as cp
from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.experiments.cifar_resnets import cifar_resnet
from causalprune.graph.trace import shapes_of, trace
from causalprune.nn.batch_norm_folding import fold_batch_norms
from causalprune.nn.packed_network import PackedStretch
from causalprune.nn.packed_stretches import cut_out, in_normal_form, stretches_in


def pruned(model: nn.Module, share: float = 0.9) -> nn.Module:
    """Zero the smallest weights, and give batch norms something to do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            size = module.weight.detach().abs()
            module.weight.data[size <= size.quantile(share)] = 0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def packed(model: nn.Module, example: Tensor, threads: int = 1) -> nn.Module:
    """All stretches of a network packed, whatever is fastest."""
    traced = trace(copy.deepcopy(model).eval().requires_grad_(False), example)
    fold_batch_norms(traced)
    in_normal_form(traced)
    shapes_of(traced, example)
    for name, stretch in cut_out(traced, stretches_in(traced)).items():
        dense = traced.get_submodule(name)
        traced.set_submodule(name, PackedStretch(stretch, dense, threads, 16 * threads))
    return traced.eval()


def stretches_of(model: nn.Module) -> list[PackedStretch]:
    return [m for m in model.modules() if isinstance(m, PackedStretch)]


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def torchvision_model(name: str, **options: object) -> nn.Module:
    from torchvision import models

    made: nn.Module = models.get_model(name, **options)
    return made


def resnet_of(block: str) -> nn.Module:
    """One block a stage: all shapes of a deeper one."""
    from torchvision.models import resnet

    made: nn.Module = resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1])
    return made


class Odd(nn.Module):
    """What else stretches are made of: concatenations that share, sums, in place, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, (3, 2), (2, 1), (0, 1), bias=False)
        self.dilated = nn.Conv2d(9, 9, 3, padding=2, dilation=2, groups=3)
        self.wise = nn.Conv2d(9, 18, 3, padding="same", groups=9)
        self.norm = nn.BatchNorm2d(27)
        self.mix = nn.Conv2d(27, 12, 1)
        self.mean = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.most = nn.MaxPool2d(3, 2, 1)
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Linear(66, 5)
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = self.dilated(x)
        pooled = self.most(y)
        y = F.relu(y, inplace=True)  # its input has been read
        y = F.dropout(y, 0.5, self.training)
        z = torch.cat([x, self.act(self.wise(y))], 1)
        z = F.silu(self.norm(z))
        a = F.gelu(self.mix(z))
        b = self.again(a)
        b += self.again(a + 1)
        c = torch.cat([self.mean(b), self.most(b), self.mean(b)], dim=1)
        d = F.pad(pooled[:, :, ::1, ::1], (0, 0, 0, 0, 2, 1))
        e = F.relu(F.pad(pooled, (0, 0, 0, 0, 0, 9))) + torch.sigmoid(pooled).repeat(1, 2, 1, 1)
        both = torch.cat([c, d, e], 1)
        return self.last(both.mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: cifar_resnet(20), (17, 3, 32, 32)),
    "basic blocks": (lambda: resnet_of("BasicBlock"), (2, 3, 64, 64)),
    "bottlenecks": (lambda: resnet_of("Bottleneck"), (1, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), (3, 3, 33, 47)),
    "densenet": (lambda: torchvision_model("densenet121").features[:8], (1, 3, 48, 48)),
    "googlenet": (
        lambda: torchvision_model("googlenet", aux_logits=False, init_weights=False),
        (1, 3, 64, 64),
    ),
    "vgg16_bn": (lambda: torchvision_model("vgg16_bn").features[:23], (1, 3, 32, 32)),
    "squeezenet": (lambda: torchvision_model("squeezenet1_1"), (2, 3, 40, 40)),
    "efficientnet_b0": (lambda: torchvision_model("efficientnet_b0").features[:5], (1, 3, 32, 32)),
    "odd": (Odd, (3, 3, 26, 19)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_networks_compute_the_same(name: str) -> None:
    make, size = NETWORKS[name]
    model, x = pruned(make()), torch.randn(size)
    fast = packed(model, x)
    with torch.no_grad():
        assert_same(fast(x), model(x))
        assert all(s.plans for s in stretches_of(fast))  # each ran natively
        x = x[:1].contiguous(memory_format=torch.channels_last)
        assert_same(fast(x), model(x))


def test_a_resnet_is_one_stretch_and_its_sums_are_fused() -> None:
    (stretch,) = stretches_of(packed(pruned(cifar_resnet(20)), torch.randn(2, 3, 32, 32)))
    kinds = [type(op).__name__ for op in stretch.stretch.operations]
    assert kinds.count("Convolution") == 19 and kinds.count("Subsampling") == 2
    assert len(kinds) == 22 and kinds[-1] == "GlobalAverage"
    residuals = [op for op in stretch.stretch.operations if getattr(op, "residual", "")]
    assert len(residuals) == 9 and all(op.activation == "relu" for op in residuals)


def small() -> nn.Module:
    return pruned(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 24, 3, 2, 1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 8, 1),
        )
    )


def packed_small() -> cp.nn.Accelerated:
    """A network that is packed for sure, whatever a busy machine measured."""
    model, x = small(), torch.randn(3, 3, 14, 17)
    fast = cp.accelerate(model, x, 1, tune_ms=0)
    network = packed(model, x)
    return cp.nn.Accelerated(network, fast.report, x, False)


def test_accelerate_leaves_the_model_and_keeps_the_fastest() -> None:
    model, x = small().train(), torch.randn(3, 3, 20, 20)
    before = copy.deepcopy(model.state_dict())
    fast = cp.accelerate(model, x, threads=1, tune_ms=2)
    assert model.training and fast(x).requires_grad is False
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    report = fast.report
    assert report.after_ms == min(report.candidates_ms.values()) <= report.before_ms
    assert [each.layer for each in report.layers] == ["0", "3", "6"]
    assert all(0.85 < each.sparsity < 0.95 and each.before_ms > 0 for each in report.layers)
    assert "whole network, batch of 3" in str(fast) and "<- kept" in str(fast)
    model.eval()
    for n in (1, 3, 16, 17, 33):
        x = torch.randn(n, 3, 20, 20)
        assert_same(fast(x), model(x).detach())


def test_what_has_nothing_to_pack_comes_back_as_it_was() -> None:
    transformer = nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (16, 12)), nn.TransformerEncoderLayer(12, 2, 16)
    )
    x = torch.randn(4, 3, 8, 8)
    fast = cp.accelerate(transformer, x, tune_ms=0)
    assert not stretches_of(fast) and "Nothing is packed" in fast.report.note
    assert_same(fast(x), transformer.eval()(x).detach())
    rows = nn.Linear(4, 2)
    fast = cp.accelerate(rows, torch.randn(5, 4), tune_ms=0)
    assert "[N, C, H, W]" in fast.report.note


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)


def test_what_cannot_be_traced_comes_back_as_it_was() -> None:
    model, x = Branches(), torch.rand(2, 3, 8, 8)
    fast = cp.accelerate(model, x, tune_ms=0)
    assert "trace" in fast.report.note
    for each in (x, -x):
        assert_same(fast(each), model(each).detach())


def test_masks_of_torch_pruning_are_applied() -> None:
    model = small()
    torch.nn.utils.prune.random_unstructured(model[3], "weight", 0.5)
    x = torch.randn(2, 3, 12, 12)
    fast = cp.accelerate(model, x, 1, tune_ms=0)
    assert_same(fast(x), model(x).detach())
    assert fast.report.layers[1].sparsity > 0.9


def test_copies_and_pickles_run_the_same(tmp_path: Path) -> None:
    fast, x = packed_small(), torch.randn(3, 3, 14, 17)
    expected = fast(x)
    assert torch.equal(copy.deepcopy(fast)(x), expected)
    torch.save(fast, tmp_path / "fast.pt")
    torch.save({"x": x, "expected": expected}, tmp_path / "case.pt")
    code = f"""
import torch
torch.set_num_threads(1)
case = torch.load({str(tmp_path / "case.pt")!r}, weights_only=True)
fast = torch.load({str(tmp_path / "fast.pt")!r}, weights_only=False)
stretch = fast.network.stretch_0
plans = dict(stretch.plans)
assert plans and all(section.blockings for plan in plans.values() for section in plan)
assert torch.equal(fast(case["x"]), case["expected"])
assert stretch.plans == plans
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_changed_and_loaded_weights_are_used(tmp_path: Path) -> None:
    fast, x = packed_small(), torch.randn(3, 3, 14, 17)
    expected = fast(x)
    torch.save(fast.state_dict(), tmp_path / "weights.pt")
    other = copy.deepcopy(fast)
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    assert not torch.allclose(other(x), expected)
    assert_same(other(x), other.network.stretch_0.dense(x)[0])
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(x), expected)


def test_other_sizes_batches_and_formats() -> None:
    fast = packed_small()
    for size in ((1, 3, 14, 17), (33, 3, 14, 17), (2, 3, 9, 30), (2, 3, 5, 5)):
        x = torch.randn(size)
        expected = fast.network.stretch_0.dense(x)[0]
        for each in (x, x.contiguous(memory_format=torch.channels_last)):
            assert_same(fast(each), expected)
        turned = torch.randn(*size[:2], size[3], size[2]).transpose(2, 3)
        assert_same(fast(turned), fast.network.stretch_0.dense(turned)[0])
    with pytest.raises(RuntimeError):  # as torch has it
        fast(torch.randn(2, 4, 9, 9))


def test_values_that_are_not_finite_go_through_as_in_torch() -> None:
    fast, x = packed_small(), torch.randn(20, 3, 14, 17)
    x[1, 0, 3, 3] = torch.nan
    x[18, 1, 7, 7] = torch.inf
    expected = fast.network.stretch_0.dense(x)[0]
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert expected.isnan().any()


def test_python_threads_do_not_disturb_each_other() -> None:
    fast = packed_small()
    inputs = [torch.randn(n, 3, 14, 17) for n in (1, 2, 3, 4)]
    expected = [fast.network.stretch_0.dense(x)[0] for x in inputs]
    wrong: list[float] = []

    def work() -> None:
        for _ in range(20):
            for x, y in zip(inputs, expected, strict=True):
                error = float((fast(x) - y).abs().max() / y.abs().max())
                if not error <= 1e-4:
                    wrong.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_several_threads_of_a_program() -> None:
    model, x = pruned(cifar_resnet(8)), torch.randn(40, 3, 32, 32)
    with torch.no_grad():
        assert_same(packed(model, x, threads=2)(x), model(x))


def test_export_and_compile_see_the_dense_network() -> None:
    fast, x = packed_small(), torch.randn(3, 3, 14, 17)
    expected = fast(x)
    exported = torch.export.export(fast, (x,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any("aten.conv" in target for target in targets), targets
    assert_same(exported.module()(x), expected)
    assert_same(torch.compile(fast, backend="eager")(x), expected)


def test_gradients_and_training_are_refused() -> None:
    fast, x = packed_small(), torch.randn(3, 3, 14, 17, requires_grad=True)
    with pytest.raises(UnsupportedModelError, match=r"^x: .*no gradients"):
        fast(x)
    with torch.no_grad():
        assert fast(x).shape == (3, 8, 3, 4)
    with torch.inference_mode():
        assert fast(x.detach()).shape == (3, 8, 3, 4)
    with pytest.raises(UnsupportedModelError, match="train"):
        fast.train()
    assert not fast.eval().training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "net"}, "model: expected a torch.nn.Module, got str"),
        ({"example": [1.0]}, "example: expected a tensor, got list"),
        ({"example": torch.zeros(3)}, "example: expected a batch"),
        ({"example": torch.zeros(2, 4, 8, 8)}, "example: the network does not run"),
        ({"example": torch.zeros(2, 3, 8, 8, device="meta")}, "example: expected on the CPU"),
        ({"model": nn.Conv2d(3, 2, 3, device="meta")}, "model: weight: expected on the CPU"),
        ({"threads": 0}, "threads: expected a whole number from 1, got 0"),
        ({"threads": 1.5}, "threads: expected a whole number"),
        ({"tune_ms": -1}, "tune_ms: expected milliseconds from 0, got -1"),
        ({"tune_ms": "long"}, "tune_ms: expected milliseconds"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    given = {"model": small(), "example": torch.zeros(2, 3, 8, 8), **arguments}
    with pytest.raises(InvalidArgumentError, match=message):
        cp.accelerate(**given)  # type: ignore[arg-type]


def test_bad_inputs_are_named() -> None:
    fast = packed_small()
    with pytest.raises(InvalidArgumentError, match="x: expected a tensor, got list"):
        fast([1.0])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"x: expected dtype torch\.float32"):
        fast(torch.zeros(2, 3, 14, 17).double())
    with pytest.raises(InvalidArgumentError, match="x: expected 4 dimensions"):
        fast(torch.zeros(3, 14, 17))
    with pytest.raises(InvalidArgumentError, match="x: expected a tensor on the CPU"):
        fast(torch.zeros(2, 3, 14, 17, device="meta"))
