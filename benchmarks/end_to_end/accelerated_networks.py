"""cp.accelerate on whole networks with 90 % zeros, beside the best dense torch in the same run.

``python benchmarks/end_to_end/accelerated_networks.py [MACHINE]`` writes
benchmarks/results/accelerated_networks[_MACHINE].md. One thread, CPU time; all alternatives of a
row take turns, the fastest of many rounds counts. Dense: NCHW and channels_last, batch norms folded
or not.
ResNet-20 has He et al.'s trained weights where CAUSALPRUNE_DATA names them, else random ones, as
the torchvision networks have; zeros are the smallest weights of every layer.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from resnet20_cifar import RESULTS, data_folder, provenance
from torch import Tensor, nn

import causalprune as cp
from causalprune.experiments.model_specs import model_from

SPARSITY = 0.9
WEIGHTS = "resnet20-12fca82f.th"


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]]:
    weights = data_folder() / "weights" / WEIGHTS
    return {
        "ResNet-20, 32x32": (lambda: model_from("resnet20", weights), (3, 32)),
        "ResNet-50, 224x224": (lambda: model_from("torchvision:resnet50", None), (3, 224)),
    }


def with_zeros(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            size = module.weight.detach().abs()
            threshold = size.flatten().kthvalue(max(1, int(SPARSITY * size.numel()))).values
            module.weight.data *= size > threshold
    return model.eval()


def with_half_the_channels(model: nn.Module) -> nn.Module:
    """Let every bottleneck compute half its inner channels; the width around it stays."""
    from torchvision.models.resnet import Bottleneck

    for block in model.modules():
        if isinstance(block, Bottleneck):
            for conv, inside, outside in (
                (block.conv1, False, True),
                (block.conv2, True, True),
                (block.conv3, True, False),
            ):
                if inside:
                    conv.weight.data[:, conv.in_channels // 2 :] = 0
                if outside:
                    conv.weight.data[conv.out_channels // 2 :] = 0
    return model.eval()


def milliseconds(
    alternatives: dict[str, Callable[[], object]], seconds: float
) -> dict[str, list[float]]:
    for run in alternatives.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    begin = time.thread_time()
    while time.thread_time() - begin < seconds or len(next(iter(found.values()))) < 3:
        for name, run in alternatives.items():
            start = time.thread_time()
            run()
            found[name].append(1e3 * (time.thread_time() - start))
    return found


def row(name: str, model: nn.Module, x: Tensor, seconds: float) -> str:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last_x = x.contiguous(memory_format=torch.channels_last)
    begin = time.thread_time()
    fast = cp.accelerate(model, x, threads=1)
    tuned = time.thread_time() - begin
    with torch.no_grad():
        error = float((fast(x) - model(x)).abs().max() / model(x).abs().max())
        found = milliseconds(
            {"nchw": lambda: model(x), "last": lambda: last(last_x), "fast": lambda: fast(x)},
            seconds,
        )
    best = {kind: min(times) for kind, times in found.items()}
    spread = statistics.median(found["fast"]) / best["fast"] - 1
    dense = min(best["nchw"], best["last"])
    print(name, len(x), dense / best["fast"], flush=True)
    return (
        f"| {name} | {len(x)} | {best['nchw']:.2f} | {best['last']:.2f} | {best['fast']:.2f} "
        f"({spread:.0%}) | {dense / best['fast']:.2f} | {error:.0e} | {tuned:.0f} |"
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, (build, (channels, size)) in networks().items():
        model = with_zeros(build())
        for batch in (1, 16):
            x = torch.randn(batch, channels, size, size)
            rows.append(row(f"{name}, 90 % zeros", model, x, 20 if size > 100 else 5))
    model = with_half_the_channels(model_from("torchvision:resnet50", None))
    rows.append(
        row("ResNet-50, half of all inner channels", model, torch.randn(1, 3, 224, 224), 20)
    )
    lines = [
        "# Whole networks, accelerated",
        "",
        "Milliseconds of one forward pass, the fastest of many, all in turns; in brackets how far "
        "the median lies above it. Faster: the better of the two dense networks over ours. Error: "
        "largest difference over the largest output. Tuning: CPU seconds of `cp.accelerate`.",
        "",
        "| network | images | NCHW | channels_last | accelerated | faster | error | tuning, s |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        provenance(),
        "",
    ]
    name = "_".join(["accelerated_networks", *sys.argv[1:2]])
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import conftest  # noqa: F401  (a torchvision that imports everywhere)

    main()
