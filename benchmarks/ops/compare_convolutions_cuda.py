"""Time sparse_conv2d and channel_conv2d on a GPU beside cuDNN.

``python compare_convolutions_cuda.py [OUT.md]`` writes benchmarks/results/convolutions_cuda.md, or
the file named. Every cell is the best of several replays of a CUDA graph of many calls, between two
events on the stream: device time, launches included, Python left out. Peers of a layer run right
after each other on the same data, which stays in the second-level cache where it fits. cuDNN
chooses its fastest algorithm (benchmark mode) and the better of NCHW and channels_last.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from causalprune import _native
from causalprune.ops.channel_conv2d_cuda import channel_conv2d_cuda, channel_plan_cuda
from causalprune.ops.sparse_conv2d_cuda import sparse_conv2d_cuda, sparse_plan_cuda

RESULTS = Path(__file__).parents[1] / "results" / "convolutions_cuda.md"
BATCHES = (1, 8, 64)
SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.98)
KEPT = (0.25, 0.5, 0.75)  # of the inputs and of the outputs
CALLS = 20  # in one graph
REPLAYS = 10


@dataclass(frozen=True)
class Layer:
    name: str
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def options(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return (self.stride,) * 2, (self.kernel // 2,) * 2, (1, 1), 1

    def flops(self, images: int) -> float:
        positions = (self.size // self.stride) ** 2
        return 2.0 * images * positions * self.inputs * self.outputs * self.kernel**2


LAYERS = (
    Layer("16, 32x32, 3x3", 16, 16, 32),
    Layer("64, 8x8, 3x3", 64, 64, 8),
    Layer("64, 56x56, 3x3", 64, 64, 56),
    Layer("128, 28x28, 3x3", 128, 128, 28),
    Layer("256, 14x14, 3x3", 256, 256, 14),
    Layer("512, 7x7, 3x3", 512, 512, 7),
    Layer("128, 56x56, 3x3 stride 2", 128, 128, 56, stride=2),
    Layer("64 to 256, 56x56, 1x1", 64, 256, 56, kernel=1),
    Layer("256 to 64, 56x56, 1x1", 256, 64, 56, kernel=1),
    Layer("512 to 128, 28x28, 1x1", 512, 128, 28, kernel=1),
    Layer("1024 to 256, 14x14, 1x1", 1024, 256, 14, kernel=1),
    Layer("512 to 2048, 7x7, 1x1", 512, 2048, 7, kernel=1),
)


def milliseconds(call: Callable[[], object]) -> float:
    """Device time of one call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # cuDNN tries its algorithms outside of the capture
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    best = float("inf")
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        best = min(best, first.elapsed_time(last) / CALLS)
    return best


def dense_milliseconds(layer: Layer, x: Tensor, weight: Tensor, *, tf32: bool = False) -> float:
    torch.backends.cudnn.allow_tf32 = tf32
    formats = (torch.contiguous_format, torch.channels_last)
    times = []
    for memory_format in formats:
        inputs = x.contiguous(memory_format=memory_format)
        weights = weight.contiguous(memory_format=memory_format)
        times.append(milliseconds(lambda: F.conv2d(inputs, weights, None, *layer.options)))  # noqa: B023
    return min(times)


def draw(layer: Layer, images: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(images, layer.inputs, layer.size, layer.size, device="cuda")
    fan_in = layer.inputs * layer.kernel**2
    weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel, device="cuda")
    return x, weight / fan_in**0.5


def check(found: Tensor, expected: Tensor) -> None:
    worst = (found - expected).abs().max().item() / expected.abs().max().item()
    if not worst < 1e-4:
        raise RuntimeError(f"the kernel is off by {worst:.1e} of the largest output")


def sparse_row(layer: Layer, images: int) -> list[str]:
    x, weight = draw(layer, images)
    fp32 = dense_milliseconds(layer, x, weight)
    tf32 = dense_milliseconds(layer, x, weight, tf32=True)
    bf16 = dense_milliseconds(layer, x.bfloat16(), weight.bfloat16())
    torch.backends.cudnn.allow_tf32 = False
    cells = [layer.name, str(images), f"{fp32:.4f}", f"{tf32:.4f}", f"{bf16:.4f}"]
    for sparsity in SPARSITIES:
        pruned = weight * (torch.rand_like(weight) >= sparsity)
        plan = sparse_plan_cuda(pruned)

        def call(weight: Tensor = pruned, plan: object = plan) -> Tensor:
            return sparse_conv2d_cuda(x, weight, None, None, *layer.options, "none", plan)

        check(call(), F.conv2d(x, pruned, None, *layer.options))
        mine = milliseconds(call)
        useful = layer.flops(images) * pruned.count_nonzero().item() / pruned.numel()
        cells.append(
            f"{mine:.4f} ({fp32 / mine:.2f}, {tf32 / mine:.2f}, {bf16 / mine:.2f}; "
            f"{useful / mine * 1e-9:.1f})"
        )
    return cells


def channel_row(layer: Layer, images: int) -> list[str]:
    x, weight = draw(layer, images)
    cells = [layer.name, str(images), f"{dense_milliseconds(layer, x, weight):.4f}"]
    for kept in KEPT:
        inputs = torch.randperm(layer.inputs, device="cuda")[: int(kept * layer.inputs)]
        outputs = torch.randperm(layer.outputs, device="cuda")[: int(kept * layer.outputs)]
        narrow = weight[outputs][:, inputs].contiguous()
        plan = channel_plan_cuda(narrow, inputs, outputs, layer.inputs, layer.outputs)
        rest = (inputs, outputs, layer.outputs, *layer.options, "none", plan)

        def call(narrow: Tensor = narrow, rest: tuple[object, ...] = rest) -> Tensor:
            return channel_conv2d_cuda(x, narrow, None, None, *rest)

        narrow_x = x[:, inputs].contiguous()
        check(call()[:, outputs], F.conv2d(narrow_x, narrow, None, *layer.options))
        ideal = dense_milliseconds(layer, narrow_x, narrow)
        mine = milliseconds(call)
        cells.append(f"{mine:.4f} / {ideal:.4f} ({ideal / mine:.0%})")
    return cells


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def described_machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"Commit {commit[:12]}, {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, torch {torch.__version__}."
    )


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("compare_convolutions_cuda.py needs a CUDA device, and torch finds none.")
    if not _native.with_cuda:
        sys.exit("compare_convolutions_cuda.py needs a build with CUDA kernels, and this has none.")
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    cases = [(layer, images) for layer in LAYERS for images in BATCHES]
    sparse = table(
        ["layer", "images", "fp32", "TF32", "bf16", *(f"{s:.0%} zero" for s in SPARSITIES)],
        [sparse_row(layer, images) for layer, images in cases],
    )
    channels = table(
        ["layer", "images", "all channels", *(f"{kept:.0%} kept" for kept in KEPT)],
        [channel_row(layer, images) for layer, images in cases],
    )
    text = (
        f"# Convolutions on CUDA\n\n{described_machine()}\n\nDevice time in ms, best of "
        f"{REPLAYS} replays of a graph of {CALLS} calls, between events.\n\n"
        "## sparse_conv2d beside dense cuDNN\n\nIn brackets: speed-up over cuDNN in fp32, TF32 "
        f"and bf16; useful TFLOP/s.\n\n{sparse}\n## channel_conv2d beside cuDNN on the equally "
        "narrow convolution, fp32\n\nSo many of the inputs and of the outputs kept, scattered; "
        f"the time over here includes zeroing the other channels.\n\n{channels}"
    )
    print(text)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    out.write_text(text)


if __name__ == "__main__":
    main()
