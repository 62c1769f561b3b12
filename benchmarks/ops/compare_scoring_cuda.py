"""Time the operators that scores are made of on a GPU, beside cuDNN's forward and pure torch.

``python compare_scoring_cuda.py [OUT.md]`` writes benchmarks/results/scoring_cuda.md, or the file
named. Our own cells and cuDNN's are device time, from replays of a CUDA graph of many calls between
two events (see compare_convolutions_cuda.py); a peer in pure torch is timed between two events as a
user would call it, Python included, on part of its work where it is slow. Everything is float32,
TF32 off. Every result is checked against the CPU before it is timed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from compare_convolutions_cuda import REPLAYS, described_machine, milliseconds, table
from path_effects_cases import (
    SHAPES,
    Layer,
    Shape,
    forward_channels_last,
    forward_nchw,
    layer,
    naive_loop,
    native,
    native_weighted,
)
from relative_sensitivity_cases import native as sensitivity
from relative_sensitivity_cases import torch_products
from torch import Tensor

from causalprune import _native
from causalprune.ops import channel_update, histogram_information

RESULTS = Path(__file__).parents[1] / "results" / "scoring_cuda.md"
IMAGES = 64
PART = 8  # input channels of the naive loop, images of the products
CHANGED = (1, 8)
# samples, columns of x, columns of y, bins
HISTOGRAMS = (
    (10_000, 64, 64, 64),
    (100_000, 16, 32, 64),
    (2_000, 512, 512, 32),
    (10_000, 64, 64, 256),
)


def event_milliseconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Best time of a call that may wait for the device."""
    best = float("inf")
    for _ in range(repeats + 1):  # the first warms up
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        best = min(best, first.elapsed_time(last))
    return best


def expect_close(what: str, found: Tensor, expected: Tensor, relative: float) -> None:
    """Refuse a result that is further from the CPU's than `relative` of the largest value."""
    worst = (found.cpu() - expected).abs().max().item()
    if not worst <= relative * expected.abs().max().item():
        raise RuntimeError(f"{what}: off by {worst:.1e} from the CPU")


def on_gpu(given: Layer) -> Layer:
    tensors = {
        field.name: value.cuda()
        for field in dataclasses.fields(given)
        if isinstance(value := getattr(given, field.name), Tensor)
    }
    return dataclasses.replace(given, **tensors)


def forward_milliseconds(given: Layer) -> float:
    return min(milliseconds(forward_nchw(given)), milliseconds(forward_channels_last(given)))


# ---- one row of each table -----------------------------------------------------------------------


def path_row(shape: Shape) -> list[str]:
    few = layer(dataclasses.replace(shape, images=2))
    for name, got, expected in zip(
        ("edge", "unit"), native(on_gpu(few))(), native(few)(), strict=True
    ):
        expect_close(f"path_effects, {shape.name}, {name}", got, expected, 1e-5)
    given = on_gpu(layer(dataclasses.replace(shape, images=IMAGES)))
    forward = forward_milliseconds(given)
    ours, weighted = milliseconds(native(given)), milliseconds(native_weighted(given))
    part = min(PART, shape.inputs)
    naive = event_milliseconds(naive_loop(given, part)) * shape.inputs / part
    teraflops = 2e-9 * given.shape.multiply_adds / ours
    return [
        shape.name,
        f"{forward:.3f}",
        f"{ours:.3f} ({ours / forward:.2f})",
        f"{weighted:.3f} ({weighted / forward:.2f})",
        f"{teraflops:.1f}",
        f"{naive / ours:.1f}",
    ]


def sensitivity_row(shape: Shape) -> list[str]:
    few = layer(dataclasses.replace(shape, images=2), rectified=False)
    whole = layer(dataclasses.replace(shape, images=IMAGES))
    forward = forward_milliseconds(on_gpu(whole))
    cells = [shape.name, f"{forward:.3f}"]
    for aggregate in ("mean", "max"):
        got, expected = (sensitivity(each, aggregate)() for each in (on_gpu(few), few))
        expect_close(f"relative_sensitivity, {shape.name}, {aggregate}", got, expected, 3e-5)
        ours = milliseconds(sensitivity(on_gpu(whole), aggregate))
        signed = layer(dataclasses.replace(shape, images=IMAGES), rectified=False)
        both_parts = milliseconds(sensitivity(on_gpu(signed), aggregate))
        part = on_gpu(layer(dataclasses.replace(shape, images=PART)))
        peer = event_milliseconds(torch_products(part, aggregate)) * IMAGES / PART
        cells += [
            f"{ours:.3f} ({ours / forward:.2f})",
            f"{both_parts:.3f}",
            f"{peer / ours:.1f}",
        ]
    return cells


def update_row(shape: Shape, changed: int) -> list[str]:
    given = on_gpu(layer(dataclasses.replace(shape, images=IMAGES)))
    plain = given.pre.contiguous(memory_format=torch.channels_last)
    difference, weight = given.x[:, :changed].contiguous(), given.weight[:, :changed].contiguous()

    def ours() -> Tensor:
        return channel_update(plain, difference, weight, padding=given.padding, relu=True)

    def composite() -> Tensor:
        change = F.conv2d(difference, weight, padding=given.padding)
        return change.add_(plain).relu_().contiguous(memory_format=torch.channels_last)

    expected = channel_update(
        plain.cpu(), difference.cpu(), weight.cpu(), padding=given.padding, relu=True
    )
    expect_close(f"channel_update, {shape.name}", ours(), expected, 1e-6)
    mine, peer = milliseconds(ours), milliseconds(composite)
    moved = 4.0 * (2 * plain.numel() + difference.numel())
    return [
        shape.name,
        str(changed),
        f"{forward_milliseconds(given):.3f}",
        f"{mine:.3f}",
        f"{moved / mine * 1e-6:.0f}",
        f"{peer / mine:.2f}",
    ]


def bin_shares(values: Tensor, bins: int) -> Tensor:
    """One-hot bins [columns * bins, N] of the columns of `values`."""
    least, largest = values.double().aminmax(dim=0)
    place = ((values.double() - least) * (bins / (largest - least))).long().clamp_(max=bins - 1)
    return F.one_hot(place.T, bins).transpose(1, 2).flatten(0, 1).float()


def information_by_products(x: Tensor, y: Tensor, bins: int) -> Tensor:
    """All joint histograms as one matrix product of one-hot codes: exact below 2^24 samples."""
    of_x, of_y = bin_shares(x, bins), bin_shares(y, bins)
    joint = (of_y @ of_x.T).view(y.shape[1], bins, x.shape[1], bins).double()

    def terms(counts: Tensor) -> Tensor:
        return torch.xlogy(counts, counts) / torch.log(torch.tensor(2.0, dtype=torch.float64))

    sums = terms(joint).sum((1, 3))
    marginal_x = terms(of_x.sum(1).double()).view(-1, bins).sum(1)
    marginal_y = terms(of_y.sum(1).double()).view(-1, bins).sum(1)
    n = float(len(x))
    return (sums - marginal_x - marginal_y[:, None]) / n + torch.log2(torch.tensor(n).double())


def histogram_row(n: int, n_x: int, n_y: int, bins: int) -> list[str]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, n_x, generator=generator)
    y = torch.randn(n, n_y, generator=generator) + x[:, :1]
    gpu_x, gpu_y = x.cuda(), y.cuda()
    columns = min(n_x, PART)
    expected = histogram_information(x[:, :columns], y, bins)
    found = histogram_information(gpu_x[:, :columns], gpu_y, bins)
    expect_close("histogram_information", found, expected, 1e-11)
    peer_found = information_by_products(gpu_x[:, :columns], gpu_y, bins)
    expect_close("the histograms by products", peer_found, expected, 1e-9)
    ours = milliseconds(lambda: histogram_information(gpu_x, gpu_y, bins))
    peer = event_milliseconds(lambda: information_by_products(gpu_x, gpu_y, bins))
    pairs = n_x * n_y
    return [
        f"{n_x} x {n_y}, {n:,} samples, {bins} bins",
        f"{ours:.3f}",
        f"{pairs * n / ours * 1e-6:.1f}",
        f"{peer / ours:.1f}",
    ]


# ---- all of it -----------------------------------------------------------------------------------


def sections() -> list[tuple[str, str]]:
    paths = table(
        ["layer", "forward", "all statistics", "one statistic", "TFLOP/s", "naive loop / ours"],
        [path_row(shape) for shape in SHAPES],
    )
    of_aggregate = ["rectified", "signed", "torch / ours"]
    sensitivities = table(
        ["layer", "forward"] + [f"{a}: {c}" for a in ("mean", "max") for c in of_aggregate],
        [sensitivity_row(shape) for shape in SHAPES],
    )
    updates = table(
        ["layer", "changed", "whole forward", "ours", "GB/s", "torch / ours"],
        [update_row(shape, changed) for shape in SHAPES for changed in CHANGED],
    )
    histograms = table(
        ["pairs", "ours", "samples of pairs a nanosecond", "torch / ours"],
        [histogram_row(*size) for size in HISTOGRAMS],
    )
    return [
        (f"path_effects, {IMAGES} images (in brackets: times the forward)", paths),
        (
            f"relative_sensitivity, {IMAGES} images (likewise; signed inputs are two points)",
            sensitivities,
        ),
        (f"channel_update with ReLU, {IMAGES} rows", updates),
        ("histogram_information", histograms),
    ]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("compare_scoring_cuda.py needs a CUDA device, and torch finds none.")
    if not _native.with_cuda:
        sys.exit("compare_scoring_cuda.py needs a build with CUDA kernels, and this has none.")
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    text = (
        f"# Scoring on CUDA\n\n{described_machine()}\n\nMilliseconds of device time, best of "
        f"{REPLAYS} replays of a graph; peers in torch with Python. Forward: cuDNN, float32, the "
        "better of NCHW and channels_last.\n"
    )
    for head, body in sections():
        text += f"\n## {head}\n\n{body}"
    print(text)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    out.write_text(text)


if __name__ == "__main__":
    main()
