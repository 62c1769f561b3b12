"""What a study shows of itself: counts and estimates, the table, the lines off a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.store_cases import ENDED, claimed, ended_worker
from rich.console import Console

from causalprune.experiments.config import RunConfig
from causalprune.experiments.store import StudyStore, Worker
from causalprune.experiments.store_progress import Part, StudyProgress
from causalprune.experiments.study_progress import following
from causalprune.experiments.study_spec import StudySpec
from causalprune.experiments.study_steps import BLOCKS, preparing, steps_there
from causalprune.experiments.study_view import estimate, study_view

SPEC = StudySpec("small", (RunConfig(network="resnet20", data="cifar-subset"), RunConfig()))
ERROR = "RuntimeError: no scores: " + "a reason that goes on and on, " * 8


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    cells = [
        {"block": block, "architecture": network, "method": method, "ratio": ratio}
        for block, network in enumerate(("resnet20", "lenet5"))
        for method in ("l1", "wt")
        for ratio in (0.0, 0.5)
    ]
    return StudyStore.create(tmp_path / "study", {"a": 1}, cells)


def part(method: str, ratio: float, seconds: float | None, **counts: int) -> Part:
    filled = {"queued": 0, "running": 0, "ok": 0, "failed": 0} | counts
    return Part(0, "lenet5", method, ratio, **filled, seconds=seconds)


def progress_of(*parts: Part, workers: int = 1) -> StudyProgress:
    return StudyProgress(parts, workers, 0, (), None)


# ---- counts and estimates -----------------------------------------------------------------------


def test_counts_by_block_method_and_ratio(store: StudyStore) -> None:
    alive, dead = Worker.here(), ended_worker()
    with store:
        store.finish(claimed(store, alive), alive, ENDED | {"seconds": 2.0})
        store.fail(claimed(store, alive), alive, ERROR, {"seconds": 1.0})
        store.fail(claimed(store, alive), alive, "ValueError: odd", {"seconds": 9.0})
        store.claim(alive)
        first = store.progress()
        store.claim(dead)
        found = store.progress()
    assert (found.total, found.count("ok"), found.count("failed")) == (8, 1, 2)
    assert (first.workers, first.interrupted) == (1, 0)
    assert (found.count("running"), found.workers, found.interrupted) == (2, 1, 1)
    assert found.last_error == "ValueError: odd" and dict(found.errors)[ERROR.strip()] == 1
    # What the rows say, not how long trials were held.
    seconds = {(p.block, p.method, p.ratio): p.seconds for p in found.parts}
    assert seconds[0, "l1", 0.0] == 2.0 and seconds[0, "wt", 0.0] == 9.0
    assert seconds[1, "wt", 0.5] is None and len(seconds) == 8


def test_the_estimate_follows_the_ratio_and_the_workers() -> None:
    known = (part("l1", 0.0, 10.0, ok=1, queued=4), part("l1", 0.8, 1.0, ok=3, queued=4))
    assert progress_of(*known).seconds_left() == 44.0
    assert progress_of(*known, workers=4).seconds_left() == 11.0
    # However many there are, a trial runs in one.
    assert progress_of(*known).seconds_left(workers=100) == 10.0
    # The nearest ratio of its method; of any method, where it has none yet.
    assert progress_of(*known, part("l1", 0.7, None, queued=1)).seconds_left() == 45.0
    assert progress_of(*known, part("wt", 0.1, None, queued=1)).seconds_left() == 54.0
    # One that runs is half done.
    assert progress_of(part("l1", 0.0, 10.0, ok=1, running=1)).seconds_left() == 5.0


def test_the_estimate_says_what_it_leaves_out() -> None:
    done = part("l1", 0.0, 600.0, ok=1)
    assert progress_of(done).seconds_left() == 0.0
    assert estimate(progress_of(done)) == "nothing left to run"
    begun = part("l1", 0.0, 600.0, ok=1, queued=3)
    other = replace(part("l1", 0.0, None, queued=5), block=1)
    assert progress_of(other).seconds_left() is None
    assert estimate(progress_of(other)) == (
        "5 trials left, time unknown before the first has ended"
    )
    assert progress_of(begun, other).without_estimate() == 5
    assert estimate(progress_of(begun, other, workers=2)) == (
        "about 15 min left for 2 processes, without 5 trials of blocks that have not begun"
    )


# ---- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_table_fits_its_width(width: int, blocks: int) -> None:
    parts = [
        Part(block, "x", method, ratio, queued, 1, 3, 1, 70.0)
        for block in range(blocks)
        for method in ("l1", "wt")
        for ratio, queued in ((0.0, 2), (0.5, 9))
    ]
    progress = StudyProgress(tuple(parts), 2, 1, ((ERROR, 4),), ERROR)
    spec = replace(SPEC, blocks=SPEC.blocks[:blocks])
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(study_view(spec, progress, ["training x (3 of 9)"], width=width, elapsed=61))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and len(lines) <= 14
    said = " ".join(" ".join(lines).split())
    total = sum(p.queued + p.running + p.ok + p.failed for p in parts)
    assert f"small: {16 * blocks} of {total} trials recorded, here for 1:01; about" in said
    assert "left for 2 processes" in said and "preparing: training x (3 of 9)" in said
    assert "last failure: RuntimeError" in said and "whose process has ended: 1" in said
    assert ("resnet20 on cifar-subset" in said) and (("lenet5 on digits" in said) == (blocks == 2))
    if blocks == 1:
        assert "l1 8/21 2 2 " in said and "wt 8/21 2 2 " in said


def test_on_a_terminal_the_table_is_drawn_in_place(store: StudyStore) -> None:
    worker, written = Worker.here(), io.StringIO()
    console = Console(file=written, width=80, force_terminal=True)
    with store, following(SPEC, store.folder, console=console) as follower:
        block = store.folder / BLOCKS / "0-resnet20"
        with preparing(block), follower.stages(block)("training", 1) as advance:
            advance("network 0")
            assert steps_there(store.folder) == ["training: network 0 (1 of 1)"]
        assert steps_there(store.folder) == []
        store.fail(claimed(store, worker), worker, "ValueError: odd")
        row = {"trial": 0, "error": "ValueError: odd", "method": "l1", "ratio": 0.0}
        follower.ended(0, row, "failed")  # the table shows it: no line of its own
    text = written.getvalue()
    assert "\x1b[1A" in text and "1 of 8 trials recorded" in text
    assert "last failure: ValueError: odd" in text and "trial 0 (" not in text
    assert text.endswith(f"1 trials recorded, 1 failed: {store.folder}\n")


def test_off_a_terminal_it_is_a_few_lines(store: StudyStore) -> None:
    written = io.StringIO()
    row = {"trial": 3, "error": "ValueError: [odd]", "method": "l1", "ratio": 0.5}
    with store, following(SPEC, store.folder, console=Console(file=written)) as follower:
        follower.ended(1, row, "failed")
        follower.ended(0, row | {"trial": 4}, "failed")  # the same again: counted at the end
        follower.ended(0, row | {"trial": 5, "error": None}, "ok")
    assert written.getvalue().splitlines() == [
        f"small: 8 trials, 8 left to run, in {store.folder}",
        "trial 3 (lenet5 on digits, l1, 50%) failed: ValueError: [odd]",
        f"0 trials recorded, 0 failed: {store.folder}",
    ]
    assert "\x1b" not in written.getvalue()


def test_nothing_is_shown_on_request(store: StudyStore, capsys: pytest.CaptureFixture[str]) -> None:
    with store, following(SPEC, store.folder, show=False) as follower:
        follower.ended(0, {"error": "odd", "method": "l1", "ratio": 0.5, "trial": 1}, "failed")
    assert capsys.readouterr().out == ""
