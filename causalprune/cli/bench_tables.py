"""Tables of ``causalprune bench``: one row a timing, on the terminal and as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from causalprune.measures.information_timings import InformationTiming
    from causalprune.measures.kernel_benchmarks import ConvolutionTiming
    from causalprune.measures.path_timings import PathTiming
    from causalprune.measures.replay_timings import NetworkReplayTiming, UpdateTiming
    from causalprune.measures.sensitivity_timings import SensitivityTiming

__all__ = ["show_convolutions", "show_information", "show_path", "show_sensitivity", "show_target"]

Rows = list[dict[str, Any]]
Timing = TypeVar("Timing")


def show_convolutions(timings: Iterable[ConvolutionTiming]) -> Rows:
    """Print sparse or channel-pruned convolutions as they come; returns them as JSON values."""
    columns = ("layer", "n", "left", "dense ms", "ours ms", "+packing", "faster", "GFLOP/s")

    def cells(t: ConvolutionTiming) -> tuple[str, ...]:
        times = (t.best_dense_ms, t.native_ms, t.with_packing_ms)
        shown = (f"{time:.3f}" for time in times)
        return (
            *(t.layer, str(t.batch), f"{t.kept:.0%}"),
            *(*shown, f"{t.speedup:.2f}x", f"{t.gflops:.0f}"),
        )

    return _shown(columns, timings, cells)


def show_path(timings: Iterable[PathTiming]) -> Rows:
    """Print path effects beside the forward pass; returns them as JSON values."""

    def cells(t: PathTiming) -> tuple[str, ...]:
        times = (min(t.forward_ms.values()), t.native_ms)
        shares = (t.times_forward, t.weighted_times_forward)
        return (
            *(t.layer, str(t.batch)),
            *(f"{time:.3f}" for time in times),
            *(f"{share:.2f}x" for share in shares),
        )

    kept: list[PathTiming] = []
    columns = ("layer", "n", "forward ms", "all ms", "all", "weighted")
    rows = _shown(columns, _kept(timings, kept), cells)
    _show_captum(kept)
    return rows


def _kept(timings: Iterable[Timing], kept: list[Timing]) -> Iterator[Timing]:
    for timing in timings:
        kept.append(timing)
        yield timing


def _show_captum(timings: list[PathTiming]) -> None:
    """Print captum's time for a unit beside ours, where it was asked for."""
    from causalprune.measures.captum_peers import CAPTUM_PEERS

    for name, reason in dict(pair for t in timings for pair in t.skipped.items()).items():
        _note(f"{name} was skipped: {reason}")

    def cells(t: PathTiming) -> tuple[str, ...]:
        captum = (f"{1e3 * t.captum_ms[name] / t.units:,.0f}" for name in CAPTUM_PEERS)
        return t.layer, str(t.batch), f"{1e3 * t.weighted_ms / t.units:.1f}", *captum

    found = [timing for timing in timings if timing.captum_ms]
    if _shown(("layer", "n", "ours us", *CAPTUM_PEERS), found, cells):
        _note(
            "Microseconds for one input channel. Captum scores units, not edges; ours, the "
            "weighted sum, has every edge of that channel besides."
        )
        for name, told in CAPTUM_PEERS.items():
            _note(f"{name}: {told}; timed on part of the work, scaled.")


def show_sensitivity(timings: Iterable[SensitivityTiming]) -> Rows:
    """Print relative sensitivities beside the forward pass and plain torch."""
    columns = ("layer", "n", "by", "ours ms", "fwd", "loop", "torch", "GFLOP/s")
    last: list[SensitivityTiming] = []

    def cells(t: SensitivityTiming) -> tuple[str, ...]:
        last[:] = [t]
        times = (t.times_forward, t.loop_ms / t.native_ms, t.products_ms / t.native_ms)
        return (
            *(t.layer, str(t.batch), t.aggregate, f"{t.native_ms:.2f}"),
            *(_times(each) for each in times),
            f"{t.gflops:.0f}",
        )

    rows = _shown(columns, timings, cells)
    _note(
        "fwd: how many of the fastest forward passes ours takes. loop, torch: how many times as "
        f"long a Python loop over filters (timed on {last[0].loop_filters} filters of one image, "
        "scaled) and torch's matrix products (timed on one image, scaled) take. GFLOP/s: of three "
        "multiply-adds for every weight, position and image (two denominators, one share); "
        f"multiply-adds on registers alone reach {last[0].peak_gflops:.0f}."
    )
    return rows


def show_information(
    histograms: Iterable[InformationTiming], trees: Iterable[InformationTiming]
) -> Rows:
    """Print histogram and spanning-tree information beside other packages."""
    skipped: dict[str, str] = {}

    def peers(t: InformationTiming, names: Iterable[str]) -> Iterator[str]:
        skipped.update(t.skipped)
        for name in names:
            found = [us for peer, us in t.peers_us.items() if peer.startswith(name)]
            yield _times(found[0] / t.native_us) if found else "-"

    def histogram(t: InformationTiming) -> tuple[str, ...]:
        rate, share = t.increments_per_second or 0.0, t.share_of_machine or 0.0
        own = (t.case, f"{t.native_us:.1f}", f"{rate / 1e9:.2f}", f"{share:.0%}")
        return *own, *peers(t, ("numpy", "torch", "sklearn"))

    def tree(t: InformationTiming) -> tuple[str, ...]:
        return t.case, f"{t.native_us:,.1f}", *peers(t, ("scipy",))

    columns = ("histograms", "us/pair", "G/s", "limit", "numpy", "torch", "sklearn")
    rows = _shown(columns, histograms, histogram)
    rows += _shown(("spanning trees", "us/pair", "scipy"), trees, tree)
    _note(
        "numpy, torch, sklearn, scipy: how many times as long histogram2d, bincount, "
        "mutual_info_score and minimum_spanning_tree take for a pair, each timed on some pairs; "
        "binning is in ours and numpy's, nearest neighbours and distances are in ours alone. G/s: "
        "1e9 histogram increments; limit: their share of what a thread makes when it does nothing "
        "else, on 64 x 64 counts and 8-bit codes in the first cache."
    )
    for name, reason in skipped.items():
        _note(f"{name} was skipped: {reason}")
    return rows


def show_target(timing: InformationTiming, limit_seconds: float) -> Rows:
    """Print the time of the whole pair of layers, and what it is to stay below."""
    _note(
        f"{timing.case}: {timing.seconds:.1f} s of wall time on {timing.threads} threads "
        f"(at most {limit_seconds:.0f} wanted), {timing.cpu_seconds or 0.0:.1f} s of CPU time "
        "in all"
    )
    return [timing.as_dict()]


def show_replay(updates: Iterable[UpdateTiming], networks: Iterable[NetworkReplayTiming]) -> Rows:
    """Print what a change of one unit costs, by layer and for a whole network."""

    def update(t: UpdateTiming) -> tuple[str, ...]:
        times = (t.native_ms, min(t.whole_ms.values()), min(t.difference_ms.values()))
        faster = (t.faster_than_whole, t.faster_than_difference)
        return (
            *(t.layer, str(t.rows)),
            *(f"{time:.2f}" for time in times),
            *(_times(each) for each in faster),
            f"{t.gigabytes_per_second:.0f}",
        )

    def network(t: NetworkReplayTiming) -> tuple[str, ...]:
        return (
            *(f"{t.network} {t.module}", str(t.units), str(t.images), f"{t.native_us:.0f}"),
            *(f"{min(t.forward_us.values()):.0f}", _times(t.speedup)),
        )

    update_columns = ("layer", "n", "ours ms", "whole", "diff", "faster", "", "GB/s")
    network_columns = ("network and block", "units", "n", "ours us", "whole", "faster")
    rows = _shown(update_columns, updates, update)
    rows += _shown(network_columns, networks, network)
    _note(
        "n: rows, which are images with a unit changed. whole: everything again, by the fastest of "
        "torch's layouts. diff: torch's convolution of the changed channel's difference, added to "
        "the plain output. faster: than the one, than the other. GB/s: plain output and "
        "difference read, new output written. Networks have random weights, and times are for "
        "one unit and image."
    )
    return rows


def _times(share: float) -> str:
    return f"{share:.1f}x" if share < 10 else f"{share:,.0f}x"


def _note(text: str) -> None:
    Console(highlight=False).print(text, markup=False)


def _shown(
    columns: Iterable[str], timings: Iterable[Timing], cells: Callable[[Timing], tuple[str, ...]]
) -> Rows:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    rows: Rows = []
    for timing in timings:
        rows.append(timing.as_dict())  # type: ignore[attr-defined]
        table.add_row(*cells(timing))
    if rows:
        Console().print(table)
    return rows
