"""Exact ablation of every filter of ResNet-20 beside full-forward hooks and captum.

Every round takes other images. Ours runs all 688 filters; the peers, whose forward passes cost
the same whichever filter is cut, run a few of every layer and are scaled to all of them. Effects
of the filters that all three ran are compared. Run from anywhere:
``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/ablation.py`` writes
benchmarks/results/ablation.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import LayerFeatureAblation
from resnet20_cifar import RESULTS, images, provenance, resnet20
from torch import Tensor, nn

import causalprune as cp
from causalprune.graph import UnitGraph, capture

IMAGES, ROUNDS, SAMPLED = 512, 4, 2


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x).double(), y, reduction="none")


def cut_modules(graph: UnitGraph) -> dict[str, tuple[str, bool]]:
    """Group to the module where its channels are cut, and whether in its output."""
    return {g.name: (g.consumers[0].layer, g.consumers[0].at_output) for g in graph.groups}


def by_hooks(model: nn.Module, graph: UnitGraph, x: Tensor, y: Tensor) -> Tensor:
    """Mean effects [groups, SAMPLED] by one whole forward pass each."""
    plain, rows = losses(model, x, y), []
    for layer, at_output in cut_modules(graph).values():
        module = model.get_submodule(layer)
        for channel in range(SAMPLED):

            def zero(value: Tensor, c: int = channel) -> Tensor:
                value = value.clone()
                value[:, c] = 0
                return value

            if at_output:
                handle = module.register_forward_hook(lambda m, a, out, z=zero: z(out))
            else:
                handle = module.register_forward_pre_hook(lambda m, a, z=zero: (z(a[0]),))
            rows.append((losses(model, x, y) - plain).mean())
            handle.remove()
    return torch.stack(rows).reshape(-1, SAMPLED)


def by_captum(model: nn.Module, graph: UnitGraph, x: Tensor, y: Tensor) -> Tensor:
    """Mean effects [groups, SAMPLED]: channels one by one, then the rest as one feature.

    Right only where no layer's output is overwritten: captum reads it after the pass.
    """
    rows = []
    for layer, at_output in cut_modules(graph).values():
        module = model.get_submodule(layer)
        seen: list[tuple[int, ...]] = []

        def note(m: nn.Module, a: tuple[Tensor, ...], out: Tensor) -> None:
            seen.append(tuple((out if at_output else a[0]).shape))  # noqa: B023

        handle = module.register_forward_hook(note)
        losses(model, x[:1], y[:1])
        handle.remove()
        n = seen[0][1]
        mask = torch.clamp(torch.arange(n), max=SAMPLED).reshape(1, n, 1, 1)
        ablation = LayerFeatureAblation(lambda q: losses(model, q, y), module)
        found = ablation.attribute(
            x,
            layer_mask=mask.expand(1, *seen[0][1:]),
            attribute_to_layer_input=not at_output,
        )
        found = found[0] if isinstance(found, tuple) else found
        rows.append(-found[:, :SAMPLED, 0, 0].double().mean(0))
    return torch.stack(rows)


def main() -> None:
    torch.set_num_threads(1)
    model = resnet20()
    x, y = images(IMAGES)
    graph = capture(model, x[:1], units="filters")
    n_filters = sum(group.n_units for group in graph.groups)
    n_groups = len(graph.groups)
    losses(model, x[:64], y[:64])
    times: dict[str, list[float]] = {"ours": [], "hooks": [], "captum": []}
    worst: dict[str, float] = {"hooks": 0.0, "captum": 0.0}
    spent = 0.0
    for part_x, part_y in zip(x.chunk(ROUNDS), y.chunk(ROUNDS), strict=True):
        begin = time.process_time()
        scores = cp.score(model, (part_x, part_y), "ablation", units="filters")
        times["ours"].append(time.process_time() - begin)
        spent += scores.frame["cost"].sum()
        effects = dict(list(scores.frame.groupby("group")["effect"]))
        ours = torch.stack(
            [torch.tensor(effects[g.name].to_numpy()[:SAMPLED]) for g in graph.groups]
        )
        took, found = seconds(lambda: by_hooks(model, graph, part_x, part_y))  # noqa: B023
        times["hooks"].append(took * n_filters / (n_groups * SAMPLED + 1))
        worst["hooks"] = max(worst["hooks"], (found - ours).abs().max().item())
        took, found = seconds(lambda: by_captum(model, graph, part_x, part_y))  # noqa: B023
        # Two plain passes, the sampled channels, and the rest as one.
        times["captum"].append(took * n_filters / (n_groups * (SAMPLED + 3)))
        worst["captum"] = max(worst["captum"], (found - ours).abs().max().item())
    lines = [
        "Exact ablation of every convolution filter of the CIFAR ResNet-20, mean loss change "
        "(benchmarks/end_to_end/ablation.py).",
        provenance(),
        "",
        f"{n_filters} filters, {IMAGES} CIFAR-10 images in {ROUNDS} rounds of other images; "
        f"peers scaled from {SAMPLED} filters of each of {n_groups} layers. "
        f"Forward-equivalents of ours: {spent:.0f} of {n_filters * IMAGES}.",
        "",
        "| | CPU time for all filters and images, s | ours is faster by, median (range) "
        "| largest difference of an effect |",
        "|---|---|---|---|",
        f"| causalprune | {sum(times['ours']):.0f} | | |",
    ]
    for peer in ("hooks", "captum"):
        ratios = [p / o for p, o in zip(times[peer], times["ours"], strict=True)]
        name = {"hooks": "whole forward passes with hooks", "captum": "captum LayerFeatureAblation"}
        lines.append(
            f"| {name[peer]} | {sum(times[peer]):.0f} | {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f}) | {worst[peer]:.1e} |"
        )
    (RESULTS / "ablation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
