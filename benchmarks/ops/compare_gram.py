"""Write the table of Gram matrices of 3 x 3 patches: ``python compare_gram.py OUT.md``.

Every figure is the CPU time of one thread for one batch of maps, best of several runs, all ways of
a size in the same process right after each other; the spread is (median - best) / best of ours.
Memory is the most that is alive at a time, the maps included, workspace inside of operators not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from resnet20_cifar import provenance

from causalprune.measures import peak_activation_bytes
from causalprune.pruning.gram import ShiftedGram

SIZES = ((16, 32, 64), (64, 8, 256), (64, 56, 8), (256, 14, 32), (512, 7, 32))
"""Channels, height and width of the map, images."""

Way = Callable[[Tensor], Tensor]


def ours(maps: Tensor) -> Tensor:
    """Weight gradients of a convolution, border corrections, assembly in float64."""
    gram = ShiftedGram(nn.Conv2d(maps.shape[1], 1, 3, padding=1))
    gram.add(maps)
    return gram.matrix()


def unfolded(maps: Tensor) -> Tensor:
    """Unfold every patch, and multiply."""
    rows = F.unfold(maps, 3, padding=1).movedim(1, 2).flatten(0, 1)
    return rows.T @ rows


def shifted_views(maps: Tensor) -> Tensor:
    """Multiply shifted views of the padded, flattened maps: 13 products, borders left out."""
    n, channels, height, width = maps.shape
    grid = maps.new_zeros(n, height + 2, width + 2, channels)
    grid[:, 1:-1, 1:-1] = maps.movedim(1, -1)
    rows = grid.flatten(0, 2)
    shifts = [d * (width + 2) + e for d in range(3) for e in range(-2 if d else 0, 3)]
    return torch.stack([rows[: len(rows) - s].T @ rows[s:] for s in shifts])


def cross_ours(maps: Tensor) -> Tensor:
    """Weight gradient of the convolution."""
    n = maps.shape[1]
    return conv2d_weight(maps, (n, n, 3, 3), maps, padding=1)  # type: ignore[no-untyped-call]


def cross_unfolded(maps: Tensor) -> Tensor:
    """Unfold every patch, and multiply by the outputs."""
    rows = F.unfold(maps, 3, padding=1).movedim(1, 2).flatten(0, 1)
    return rows.T @ maps.movedim(1, -1).flatten(0, 2)


def cross_shifted(maps: Tensor) -> Tensor:
    """Multiply 9 shifted views of the padded, flattened maps by the outputs."""
    n, channels, height, width = maps.shape
    grid = maps.new_zeros(n, height + 2, width + 2, channels)
    grid[:, 1:-1, 1:-1] = maps.movedim(1, -1)
    outputs = torch.zeros_like(grid)
    outputs[:, :-2, :-2] = maps.movedim(1, -1)
    rows, right = grid.flatten(0, 2), outputs.flatten(0, 2)
    shifts = [d * (width + 2) + e for d in range(3) for e in range(3)]
    return torch.stack([rows[s:].T @ right[: len(right) - s] for s in shifts])


def seconds(run: Callable[[], object], least: float = 0.3, repeats: int = 5) -> list[float]:
    """CPU time of one thread, of as many runs as `least` seconds take."""
    run()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return times


class _Running(nn.Module):
    def __init__(self, way: Way) -> None:
        super().__init__()
        self._way = way

    def forward(self, maps: Tensor) -> Tensor:
        return self._way(maps)


def table(own: Way, peers: Mapping[str, Way], sizes: Sequence[tuple[int, int, int]]) -> str:
    """Return one row for each size: time and memory of ours, of the peers, and the ratio."""
    columns = " | ".join(f"{name}, ms (ratio), MB" for name in peers)
    lines = [f"| maps | ours, ms (spread), MB | {columns} |", "|---|---|" + "---|" * len(peers)]
    for channels, side, n in sizes:
        maps = torch.randn(n, channels, side, side)

        def figures(way: Way, maps: Tensor = maps) -> tuple[list[float], float]:
            return seconds(lambda: way(maps)), peak_activation_bytes(_Running(way), maps) / 1e6

        times, megabytes = figures(own)
        best = min(times)
        spread = (statistics.median(times) - best) / best
        cells = [f"{n} x {channels} x {side} x {side}"]
        cells.append(f"{best * 1e3:,.1f} ({spread:.0%}), {megabytes:,.0f}")
        for peer in peers.values():
            other, megabytes = figures(peer)
            ratio = min(other) / best
            cells.append(f"{min(other) * 1e3:,.1f} ({ratio:.1f}x), {megabytes:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Largest error of each way relative to the largest entry, against unfolding in float64."""
    worst = dict.fromkeys(("ours", "unfolded"), 0.0)
    for channels, side, n in SIZES:
        maps = torch.randn(n, channels, side, side)
        exact = unfolded(maps.double())
        for name, found in (("unfolded", unfolded(maps)), ("ours", ours(maps))):
            if name == "ours":  # features are ordered by channel, then by offset, in both
                assert found.shape == exact.shape
            error = float((found - exact).abs().max() / exact.abs().max())
            worst[name] = max(worst[name], error)
    return ", ".join(f"{name} {error:.1e}" for name, error in worst.items())


def main() -> None:
    """Measure, print, and write the file that the command line names."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    text = (
        "Gram matrix of the 3 x 3 patches (stride 1, padding 1) of float32 maps, for "
        'compensation="refit" (benchmarks/ops/compare_gram.py).\n'
        f"{provenance()}\n\n"
        "Ours: 15 shifts by the weight gradient of a convolution, the borders taken back, and "
        "the matrix put together in float64. Shifted views: the 13 products alone, float32, "
        "without borders or assembly.\n\n"
        + table(ours, {"F.unfold + matmul": unfolded, "shifted views": shifted_views}, SIZES)
        + "\nProduct of the patches with as many outputs as channels; ours: the weight gradient "
        "of the convolution.\n\n"
        + table(
            cross_ours,
            {"F.unfold + matmul": cross_unfolded, "shifted views": cross_shifted},
            SIZES,
        )
        + f"\nLargest error relative to the largest entry, against float64: {errors()}.\n\n"
        "torch's own kernels do all the work; no kernel of this package is involved. The matrix is "
        "put together once for a layer, however many images there are.\n"
    )
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
