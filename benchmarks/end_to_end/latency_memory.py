"""Latency and memory before and after pruning, beside torch.nn.utils.prune masks; measured.

    python benchmarks/end_to_end/latency_memory.py            # writes results/latency_memory.md
    python benchmarks/end_to_end/latency_memory.py resnet50   # one network, to the terminal

Weights are drawn: what is measured does not depend on them. Every variant is timed in turns with
all others; peak resident memory is that of a fresh process that loads the variant and runs it.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

RATIO = 0.5
REPEATS = {1: 15, 8: 5}
MEMORY_BATCH = 8
MEMORY_REPEATS = 3
SIZE = 224


def child(path: str) -> None:
    """In a fresh process: load a whole network, run it, print the peak resident bytes."""
    torch.set_num_threads(1)
    images = torch.zeros(MEMORY_BATCH, 3, SIZE, SIZE)
    if path != "-":
        # A file this benchmark has just written itself: whole modules have to be unpickled.
        model = torch.load(path, weights_only=False).eval()
        with torch.inference_mode():
            for _ in range(2):
                model(images)
    # Not getrusage: what it calls the peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak_kib = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak_kib.split()[1]) * 1024)


@dataclass
class Variant:
    name: str
    model: nn.Module
    macs: int = 0
    parameters: int = 0
    parameter_bytes: int = 0
    file_bytes: int = 0
    activation_bytes: int = 0
    resident_bytes: list[int] = field(default_factory=list)
    wall_ms: dict[int, list[float]] = field(default_factory=dict)
    cpu_ms: dict[int, list[float]] = field(default_factory=dict)


def masked(model: nn.Module, how: Callable[[nn.Module], None], permanent: bool) -> nn.Module:
    """A copy whose convolutions and linear layers, but for the classifier, carry masks."""
    other = copy.deepcopy(model)
    layers = [m for m in other.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][:-1]
    for layer in layers:
        how(layer)
        if permanent:
            torch_prune.remove(layer, "weight")
    return other


def variants(name: str) -> list[Variant]:
    from torchvision import models

    import causalprune as cp

    torch.manual_seed(0)
    model = getattr(models, name)(weights=None).eval()
    image = torch.zeros(1, 3, SIZE, SIZE)
    scores = cp.score(model, image, "l1")
    found = [Variant("unpruned", model)]
    for round_to in (None, 8):
        label = f"causalprune, {RATIO:.0%} of MACs" + (f", round_to={round_to}" if round_to else "")
        plan = cp.plan(model, scores, RATIO, "macs", scope="layer", round_to=round_to)
        found.append(Variant(label, cp.apply(model, plan)))

    def filters(layer: nn.Module) -> None:
        torch_prune.ln_structured(layer, "weight", amount=RATIO, n=1, dim=0)

    def weights(layer: nn.Module) -> None:
        torch_prune.l1_unstructured(layer, "weight", amount=RATIO)

    found.append(Variant("mask, ln_structured", masked(model, filters, False)))
    found.append(Variant("mask, ln_structured, made permanent", masked(model, filters, True)))
    found.append(Variant("mask, l1_unstructured", masked(model, weights, False)))
    return found


def measure_sizes(each: Variant) -> None:
    from causalprune.measures import (
        count_macs,
        count_parameters,
        parameter_bytes,
        peak_activation_bytes,
    )

    image = torch.zeros(1, 3, SIZE, SIZE)
    each.macs = count_macs(each.model, image)
    each.parameters = count_parameters(each.model)
    each.parameter_bytes = parameter_bytes(each.model)
    each.activation_bytes = peak_activation_bytes(each.model, image)
    stream = io.BytesIO()
    torch.save(each.model.state_dict(), stream)
    each.file_bytes = len(stream.getvalue())


def measure_resident(found: list[Variant]) -> int:
    """Fill `resident_bytes`, in turns; return the median of a process that loads nothing."""
    empty: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, each in enumerate(found):
            paths.append(str(Path(folder) / f"{number}.pt"))
            torch.save(each.model, paths[-1])
        for _ in range(MEMORY_REPEATS):
            empty.append(resident("-"))
            for each, path in zip(found, paths, strict=True):
                each.resident_bytes.append(resident(path))
    return int(np.median(empty))


def resident(path: str) -> int:
    command = [sys.executable, __file__, "--child", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_time(found: list[Variant], batch: int) -> None:
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        for each in found:
            each.wall_ms[batch], each.cpu_ms[batch] = [], []
            each.model(images)
        for turn in range(REPEATS[batch]):
            # Another order every turn: who comes behind whom must not matter.
            for number in np.random.default_rng(turn).permutation(len(found)):
                one_pass(found[number], images, batch)


def one_pass(each: Variant, images: Tensor, batch: int) -> None:
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    each.model(images)
    each.cpu_ms[batch].append((time.process_time_ns() - cpu) / 1e6)
    each.wall_ms[batch].append((time.perf_counter_ns() - wall) / 1e6)


def quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def table(name: str, found: list[Variant], empty: int) -> str:
    head = (
        "| variant | parameters | MACs | parameter MB | file MB | peak activation MB | "
        f"peak resident MB, batch {MEMORY_BATCH} | "
        + " | ".join(f"CPU ms, batch {b} | wall ms, batch {b} | of unpruned" for b in REPEATS)
        + " |"
    )
    lines = [f"## {name}", "", head, "|---|" + "---:|" * (head.count("|") - 2)]
    for each in found:
        cells = [
            each.name,
            f"{each.parameters / 1e6:.1f} M",
            f"{each.macs / 1e9:.2f} G",
            f"{each.parameter_bytes / 1e6:.1f}",
            f"{each.file_bytes / 1e6:.1f}",
            f"{each.activation_bytes / 1e6:.1f}",
            f"{(np.median(each.resident_bytes) - empty) / 1e6:.0f}",
        ]
        for batch in REPEATS:
            ratios = np.divide(each.cpu_ms[batch], found[0].cpu_ms[batch])
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            cells += [
                quartiles(each.cpu_ms[batch]),
                quartiles(each.wall_ms[batch]),
                f"{middle:.2f} ({low:.2f}-{high:.2f})",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


NOTES = f"""# Latency and memory before and after

torchvision networks with drawn weights, images of 3 x {SIZE} x {SIZE}, one thread; half of the
multiply-accumulates removed by `cp.plan(model, scores, {RATIO}, "macs", scope="layer")` and
`cp.apply` (score `l1`); ViT loses MLP units and attention heads. Beside them, masks of
`torch.nn.utils.prune` over the same fraction of every layer's filters (`ln_structured`) or
weights (`l1_unstructured`), the classifier's and, in ViT, the projections into heads excepted.

Times are medians (quartiles) over {REPEATS[1]} passes of 1 image and {REPEATS[8]} passes of 8, all
variants in turns, in another order every turn; "of unpruned" is the ratio of CPU times within a
turn. Peak resident memory is that of a fresh process which loads the network and runs it twice,
less that of one which loads none (median of {MEMORY_REPEATS}). MACs are what torch's flop counter
sees: a masked convolution computes as much as before. Parameters include a masked network's
weights; its parameter and file sizes include the mask and, until it is made permanent, a second
copy of the weights. Peak activation memory is for one image; the masked weights that are
recomputed in every pass count there.
"""


def main(names: list[str]) -> None:
    import resnet20_cifar

    torch.set_num_threads(1)
    parts = []
    for name in names or ("resnet50", "mobilenet_v2", "vit_b_16"):
        found = variants(name)
        for each in found:
            measure_sizes(each)
        empty = measure_resident(found)
        for batch in REPEATS:
            measure_time(found, batch)
        parts.append(table(name, found, empty))
        print(parts[-1], flush=True)
    if not names:
        text = "\n".join([NOTES, *parts, resnet20_cifar.provenance(), ""])
        (resnet20_cifar.RESULTS / "latency_memory.md").write_text(text)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tests")]
    import conftest  # noqa: F401  (a torchvision that imports everywhere)

    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main(sys.argv[1:])
