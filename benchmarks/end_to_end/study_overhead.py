"""What a study's machinery costs beside its trials: queue, records, heartbeat, monitor, table.

A LeNet-5 on the digits is pruned and retrained so long that a trial takes seconds. CPU time of
the thread that prunes, retrains and measures is the trial; all other CPU time of the process
after the preparation of the block is the machinery's, and of that each part is timed by itself.
The live table is on. Run from anywhere: ``python benchmarks/end_to_end/study_overhead.py`` writes
benchmarks/results/study_overhead.md.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet20_cifar import RESULTS, provenance
from rich.console import Console

import causalprune as cp
from causalprune.experiments import study, study_local, study_progress, trial
from causalprune.experiments.prepared import Prepared
from causalprune.experiments.store import StudyStore
from causalprune.experiments.study_work import StudyWork
from causalprune.measures import SystemMonitor, system

TEXT = """\
methods: [l1]
ratios: [0.0, 0.2, 0.4, 0.5, 0.6, 0.8]
checkpoints: 4
epochs: 2
retrain_epochs: 24
"""
TRIAL, PREPARATION, START = "trial", "preparation", "once: imports, opening the store"
IDLE_SECONDS = 5.0

cpu: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)


def timed(owner: Any, name: str, part: str, clock: Callable[[], float] = time.thread_time) -> None:
    """Add up the CPU time of a function or method under the name of a part."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def measured(*given: Any, **named: Any) -> Any:
        begin = clock()
        try:
            return inner(*given, **named)
        finally:
            cpu[part] += clock() - begin
            calls[part] += 1

    setattr(owner, name, measured)


def run_study(folder: Path) -> tuple[float, float, float]:
    """CPU and wall time outside the preparation, and the trials' own wall time; in seconds."""
    file = folder / "overhead.yaml"
    file.write_text(TEXT)
    walls: dict[str, float] = {}
    # The preparation's own threads are its account, too.
    timed(study_local, "prepared_block", PREPARATION, time.process_time)
    prepared_block = study_local.prepared_block

    def with_wall(work: StudyWork, number: int) -> Prepared:
        begin = time.perf_counter()
        try:
            return prepared_block(work, number)
        finally:
            walls[PREPARATION] = walls.get(PREPARATION, 0.0) + time.perf_counter() - begin

    study_local.prepared_block = with_wall
    timed(trial, "_prune_and_measure", TRIAL)
    claim = StudyStore.claim
    begin = time.process_time()

    def first_claim(*given: Any) -> Any:
        if not calls[START]:
            cpu[START], calls[START] = time.process_time() - begin, 1
        return claim(*given)

    StudyStore.claim = first_claim  # type: ignore[method-assign]
    timed(StudyStore, "claim", "claiming a trial")
    timed(StudyStore, "finish", "recording a trial")
    timed(StudyStore, "heartbeat", "heartbeats")
    timed(SystemMonitor, "__enter__", "monitor: start and end")
    timed(SystemMonitor, "__exit__", "monitor: start and end")
    timed(system, "_read", "monitor: samples")
    timed(study_progress, "_progress", "table: reading the store")
    timed(study_progress, "study_view", "table: drawing")
    with (folder / "terminal").open("w") as terminal:
        console = Console(file=terminal, force_terminal=True, width=100)
        study.following = functools.partial(  # type: ignore[assignment]
            study_progress.following, console=console
        )
        wall = time.perf_counter()
        frame = cp.Study.from_file(file).run()
        used, lasted = time.process_time() - begin, time.perf_counter() - wall
    return used - cpu[PREPARATION], lasted - walls[PREPARATION], float(frame["seconds"].sum())


def monitor_alone() -> float:
    """CPU milliseconds a second of a monitor over a block that does nothing."""
    begin = time.process_time()
    with SystemMonitor():
        time.sleep(IDLE_SECONDS)
    return 1e3 * (time.process_time() - begin) / IDLE_SECONDS


def main() -> None:
    alone = monitor_alone()
    with tempfile.TemporaryDirectory() as folder:
        used, lasted, trials = run_study(Path(folder))
    count = calls[TRIAL]
    own = cpu[TRIAL]
    rest = used - own
    parts = {name: seconds for name, seconds in cpu.items() if name not in (TRIAL, PREPARATION)}
    others = rest - sum(parts.values())
    lines = [
        "# What a study's machinery costs",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("Run from")[0].strip(),
        provenance(),
        "",
        f"{count} trials of {own / count:.1f} s of CPU time each; machinery "
        f"{1e3 * rest / count:.0f} ms a trial, **{rest / own:.2%}** of it. Wall time outside the "
        f"trials' own `seconds`: {(lasted - trials) / trials:.2%}. The machinery took "
        f"**{rest / lasted:.2%}** of a core for as long as the study ran; what is paced by the "
        "clock (samples, table, heartbeats) weighs more where other jobs slow the trials down, "
        f"here to {lasted / count:.1f} s each.",
        "",
        "| part | calls | CPU ms a trial | of a trial |",
        "|---|---|---|---|",
    ]
    for name, seconds in sorted(parts.items(), key=lambda entry: -entry[1]):
        lines.append(
            f"| {name} | {calls[name]} | {1e3 * seconds / count:.1f} | {seconds / own:.2%} |"
        )
    lines.append(f"| all else | | {1e3 * others / count:.1f} | {others / own:.2%} |")
    lines += [
        "",
        f"The monitor alone, over {IDLE_SECONDS:.0f} s in which nothing else happens: "
        f"{alone:.1f} ms of CPU time a second, {alone / 1e3:.2%} of one core.",
    ]
    (RESULTS / "study_overhead.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
