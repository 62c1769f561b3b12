"""Sensitivities of all weights of ResNet-20: ``python sensitivities.py OUT.json``.

sipp and pfp on 16 CIFAR images through ``cp.score`` and by the operator alone, beside a
straightforward loop over filters of the same definition in float32 and beside torch's own matrix
products, in one run: CPU time of
one thread, median of several runs; the spread is (largest - smallest) / median. Trained weights and
images come from the folder CAUSALPRUNE_DATA.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import resnet20_cifar as cifar
import torch
from torch import Tensor, nn

import causalprune as cp
from causalprune import reference
from causalprune.measures.sensitivity_peers import product_sensitivity
from causalprune.ops import relative_sensitivity

N_IMAGES = 16
PUBLISHED_S = {"sipp": 62.0, "pfp": 96.0}
AGGREGATES = {"sipp": "mean", "pfp": "max"}


Reading = tuple[str, Tensor, Tensor, dict[str, tuple[int, int]]]


def straightforward(layers: list[Reading], aggregate: str) -> dict[str, Tensor]:
    return {
        name: reference.relative_sensitivity(
            x, weight, aggregate=aggregate, dtype=torch.float32, **geometry
        )
        for name, x, weight, geometry in layers
    }


def readings(model: nn.Module, images: Tensor) -> list[Reading]:
    """What every layer reads, its weight and its geometry."""
    found: list[Reading] = []
    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue

        def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            x, weight = args[0], module.weight.detach()
            if isinstance(module, nn.Linear):
                found.append((name, x[:, :, None, None], weight[:, :, None, None], {}))
            else:
                geometry = {"stride": module.stride, "padding": module.padding}
                found.append((name, x, weight, geometry))

        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def operator(layers: list[Reading], aggregate: str) -> dict[str, Tensor]:
    return {
        name: relative_sensitivity(x, weight, aggregate=aggregate, **geometry)
        for name, x, weight, geometry in layers
    }


def torch_products(layers: list[Reading], aggregate: str) -> dict[str, Tensor]:
    found = {}
    for name, x, weight, geometry in layers:
        stride, padding = (geometry.get(k, (d, d))[0] for k, d in (("stride", 1), ("padding", 0)))
        found[name] = product_sensitivity(x, weight, aggregate, stride=stride, padding=padding)
    return found


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return times


def spread(times: list[float]) -> float:
    return (max(times) - min(times)) / statistics.median(times)


def furthest(found: Mapping[str, Tensor], layers: list[Reading], kind: str) -> float:
    """Largest difference from the float64 definition."""
    worst = 0.0
    for name, x, weight, geometry in layers:
        wanted = reference.relative_sensitivity(x, weight, aggregate=kind, **geometry)
        worst = max(worst, float((wanted - found[name].reshape(weight.shape)).abs().max()))
    return worst


def row(model: nn.Module, images: Tensor, method: str) -> dict[str, object]:
    aggregate = AGGREGATES[method]
    edges = cp.score(model, images, method=method).edges
    ours = seconds(lambda: cp.score(model, images, method=method), 7)
    with torch.no_grad():
        layers = readings(model, images)
        alone = seconds(lambda: operator(layers, aggregate), 7)
        naive = seconds(lambda: straightforward(layers, aggregate), 3)
        best = seconds(lambda: torch_products(layers, aggregate), 5)
        forward = seconds(lambda: model(images), 7)
        peer = torch_products(layers, aggregate)
    return {
        "method": method,
        "ours_s": statistics.median(ours),
        "ours_spread": spread(ours),
        "operator_s": statistics.median(alone),
        "operator_spread": spread(alone),
        "straightforward_s": statistics.median(naive),
        "straightforward_spread": spread(naive),
        "torch_products_s": statistics.median(best),
        "torch_products_spread": spread(best),
        "forward_s": statistics.median(forward),
        "published_python_s": PUBLISHED_S[method],
        "largest_difference_from_float64": furthest(
            {name: torch.from_numpy(values) for name, values in edges.items()}, layers, aggregate
        ),
        "peers_largest_difference_from_float64": furthest(peer, layers, aggregate),
    }


def markdown(rows: list[dict[str, object]]) -> str:
    head = (
        "| method | `cp.score`, s (spread) | the operator, s (spread) | Python loop, s (spread) "
        "| operator faster by | torch's matrix products, s (spread) | operator faster by "
        "| one forward pass, s | published Python, s | largest difference from float64 |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {r['method']} | {r['ours_s']:.3f} ({r['ours_spread']:.0%}) "
        f"| {r['operator_s']:.3f} ({r['operator_spread']:.0%}) "
        f"| {r['straightforward_s']:.2f} ({r['straightforward_spread']:.0%}) "
        f"| {r['straightforward_s'] / r['operator_s']:.0f}x "
        f"| {r['torch_products_s']:.3f} ({r['torch_products_spread']:.0%}) "
        f"| {r['torch_products_s'] / r['operator_s']:.1f}x | {r['forward_s']:.3f} "
        f"| {r['published_python_s']:.0f} | {r['largest_difference_from_float64']:.1e} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    model, (images, _) = cifar.resnet20(), cifar.images(N_IMAGES)
    rows = [row(model, images, method) for method in AGGREGATES]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    facts = cp.info()
    table = markdown(rows)
    print(table)
    if len(sys.argv) > 1:
        out = Path(sys.argv[1])
        record = {"commit": commit, "info": facts, "clock": "thread CPU time", "rows": rows}
        out.write_text(json.dumps(record, indent=2) + "\n")
        out.with_suffix(".md").write_text(
            f"Sensitivities of all weights of the CIFAR ResNet-20 on {N_IMAGES} CIFAR-10 images: "
            "one thread, CPU time. `cp.score` is the whole of it, tracing and tables included; "
            "the operator, the loop and the products start from what each layer reads.\n"
            f"Measured on top of commit {commit}, {facts['machine']['name']}, {facts['isa']}, "
            f"{facts['build']['compiler']}, torch {facts['versions']['torch']}. The published "
            "Python figures are from other machines; the Python loop goes over filters.\n\n" + table
        )


if __name__ == "__main__":
    main()
