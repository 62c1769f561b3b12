"""A score spread over processes: the same bits as in one, and shards that outlive a kill."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networks
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    ProcessGroupError,
    RecordError,
    UnknownNameError,
)
from causalprune.scoring import (
    METHODS,
    Scores,
    register_method,
    score,
    score_sharded,
)
from causalprune.scoring.intervals import PairedMean
from causalprune.scoring.processes import Workers
from causalprune.scoring.tally import Tally

X, Y = networks.images(23), networks.targets(23)

JOB = """
import os
import sys
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.scoring import score, score_sharded

out, task = Path(sys.argv[1]), sys.argv[2]
rank = os.environ.get("RANK", "0")
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3, 2), nn.GELU(),
    nn.Flatten(), nn.Linear(7 * 9, 6), nn.ReLU(), nn.Linear(6, 3),
).eval()
data = torch.randn(23, 1, 9, 9), torch.arange(23) % 3
calls = 0


def counted(logits, targets):
    global calls
    calls += 1
    # Process 1 has finished its first item, and not all.
    finished = out / "shards" / "shard-000000-0001.npz"
    if task == "die" and dist.get_rank() == 1 and finished.exists():
        os._exit(9)
    return F.cross_entropy(logits, data[1][: len(logits)], reduction="none")
"""

EQUAL = """
for method in ("ablation", "path", "taylor"):
    together = score_sharded(model, data, method, batch_size=5, shards=out / method)
    alone = score(model, data, method, batch_size=5)
    pd.testing.assert_frame_equal(together.frame, alone.frame, check_exact=True)
    assert together.notes == alone.notes and not dist.is_initialized()
    together.save(out / f"{method}-{rank}.npz")
for method, options in (
    ("irreplaceable", {}),
    ("ablation", {"outcome": "divergence", "intervention": "mean"}),
    ("taylor", {"outcome": "logits", "projections": 1}),
):
    together = score_sharded(model, data[0], method, batch_size=5, **options)
    alone = score(model, data[0], method, batch_size=5, **options)
    pd.testing.assert_frame_equal(together.frame, alone.frame, check_exact=True)
with torch.no_grad():
    model[0].weight[0, 0, 0, 0] += float(rank)
try:
    score_sharded(model, data, "path")
except InvalidArgumentError as error:
    (out / f"error-{rank}").write_text(str(error))
"""

COUNTED = """
scores = score_sharded(model, data, "ablation", counted, batch_size=5, shards=out / "shards")
(out / f"calls-{rank}").write_text(str(calls))
scores.save(out / f"counted-{rank}.npz")
if rank == "0":
    score(model, data, "ablation", counted, batch_size=5).save(out / "alone.npz")
"""


def _launched(script: Path, *arguments: str, n: int = 2) -> subprocess.CompletedProcess[str]:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n))
    launch = torchrun if n > 1 else ()
    return subprocess.run(
        [sys.executable, *launch, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def _same(one: Scores, other: Scores) -> None:
    pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)


@dataclass(frozen=True)
class Story:
    """A job of two processes of which one is killed, and the same job started again."""

    folder: Path
    killed: subprocess.CompletedProcess[str]
    finished: dict[Path, int]  # shards that the killed job left, and when they were written
    written_when_killed: list[Path]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("sharding")
    script = folder / "job.py"
    script.write_text(JOB + COUNTED + EQUAL)
    killed = _launched(script, str(folder), "die")
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("shards/shard-*.npz")}
    written = list(folder.glob("*.npz"))
    again = _launched(script, str(folder), "run")
    assert again.returncode == 0, again.stderr
    return Story(folder, killed, finished, written)


def test_a_killed_process_ends_the_job_with_an_error(story: Story) -> None:
    assert story.killed.returncode != 0 and "exitcode  : 9" in story.killed.stderr
    assert not story.written_when_killed and 0 < len(story.finished) < 15


def test_the_job_started_again_uses_finished_shards_and_ends_as_in_one_process(
    story: Story,
) -> None:
    assert len(list(story.folder.glob("shards/shard-*.npz"))) == 15
    assert {path: path.stat().st_mtime_ns for path in story.finished} == story.finished
    alone = Scores.load(story.folder / "alone.npz")
    for rank in (0, 1):
        _same(Scores.load(story.folder / f"counted-{rank}.npz"), alone)
    # Five batches with three items each, of five to seven units that are run one by one.
    calls = sum(int((story.folder / f"calls-{rank}").read_text()) for rank in (0, 1))
    observations = 2 * 5
    assert calls <= 5 * (5 + 7 + 6) + observations - 5 * len(story.finished)


def test_one_process_finds_what_two_have_left(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.folder / "shards", tmp_path / "shards")
    script = tmp_path / "job.py"
    script.write_text(JOB + COUNTED)
    run = _launched(script, str(tmp_path), "run", n=1)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "calls-0").read_text() == "0"
    _same(Scores.load(tmp_path / "counted-0.npz"), Scores.load(story.folder / "alone.npz"))


def test_two_processes_give_the_bits_of_one(story: Story) -> None:
    # The script itself compares with score(), in each process.
    for method in ("ablation", "path", "taylor"):
        _same(*(Scores.load(story.folder / f"{method}-{rank}.npz") for rank in (0, 1)))
    assert len(list((story.folder / "ablation").glob("shard-*.npz"))) == 15
    assert len(list((story.folder / "path").glob("shard-*.npz"))) == 5


def test_processes_with_different_networks_are_told_so(story: Story) -> None:
    for rank in (0, 1):
        words = (story.folder / f"error-{rank}").read_text()
        assert "got others in [1] than in process 0" in words


def test_merged_parts_are_the_whole() -> None:
    effects = 1e6 + torch.randn(29, 5, dtype=torch.float64)
    parts = [PairedMean(5) for _ in range(4)]
    for part, rows in zip(parts, effects.split([13, 0, 1, 15]), strict=True):
        part.update(rows)
    merged, again = PairedMean(5), PairedMean(5)
    for part in parts:
        merged.merge(part)
        again.merge(PairedMean.of_state(part.state()))
    assert merged.n == 29 and torch.equal(merged.state(), again.state())
    torch.testing.assert_close(merged.mean, effects.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.mean_absolute, effects.abs().mean(0), rtol=1e-14, atol=0)
    expected = effects.std(0) / 29**0.5
    torch.testing.assert_close(merged.standard_error, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("method", ["ablation", "path", "taylor"])
@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_alone_it_is_score(method: str, name: str, tmp_path: Path) -> None:
    model = networks.ALL[name]()
    settings = {"batch_size": 6, "max_images": 20, "confidence": 0.9, "outcome": "margin"}
    expected = score(model, (X, Y), method, **settings)
    for shards in (None, tmp_path / "new" / "shards", tmp_path / "new" / "shards"):
        _same(score_sharded(model, (X, Y), method, shards=shards, **settings), expected)


def test_do_mean_is_the_mean_over_all_images(tmp_path: Path) -> None:
    model = networks.lenet()
    expected = score(model, (X, Y), "ablation", batch_size=6, intervention="mean")
    found = score_sharded(
        model, (X, Y), "ablation", batch_size=6, intervention="mean", shards=tmp_path
    )
    _same(found, expected)


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    calls = []

    def counted(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(logits))
        return F.cross_entropy(logits, targets, reduction="none")

    model, shards = networks.lenet(), tmp_path / "shards"
    first = score_sharded(model, (X, Y), "ablation", counted, batch_size=8, shards=shards)
    n_calls = len(calls)
    again = score_sharded(model, (X, Y), "ablation", counted, batch_size=8, shards=shards)
    assert n_calls > 0 and len(calls) == n_calls
    _same(again, first)
    lost = sorted(shards.glob("shard-*.npz"))[5]
    lost.unlink()
    _same(score_sharded(model, (X, Y), "ablation", counted, batch_size=8, shards=shards), first)
    assert lost.exists() and n_calls < len(calls) < 2 * n_calls


def _brighter(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.sum(1)


def _darker(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.sum(1)


_darker.__qualname__ = _brighter.__qualname__


@pytest.mark.parametrize("change", ["weights", "statistics", "images", "targets", "cut", "outcome"])
def test_shards_of_another_job_are_refused(change: str, tmp_path: Path) -> None:
    model, x, y = networks.residual(), X.clone(), Y.clone()
    settings = {"outcome": _brighter, "batch_size": 8}
    score_sharded(model, (x, y), "path", shards=tmp_path, **settings)
    with torch.no_grad():
        if change == "weights":
            model.stem.weight[0, 0, 0, 0] += 1e-3
        elif change == "statistics":
            model.bn.running_mean[1] += 1e-3
        elif change == "images":
            x[22, 0, 3, 3] += 1e-3
        elif change == "targets":
            y[3] = 1 - y[3].clamp(max=1)
        elif change == "cut":
            settings["batch_size"] = 7
        else:
            settings["outcome"] = _darker
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RecordError, match="belongs to another job"):
        score_sharded(model, (x, y), "path", shards=tmp_path, **settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model = networks.mlp()
    score_sharded(model, (X, Y), "path", shards=tmp_path / "a", batch_size=8)
    score_sharded(model, (X, Y), "taylor", shards=tmp_path / "b", batch_size=8)
    name = "shard-000001-0000.npz"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(RecordError, match=r"shard-000001-0000.npz' is of another job"):
        score_sharded(model, (X, Y), "path", shards=tmp_path / "a", batch_size=8)
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes()[:200])
    with pytest.raises(RecordError, match="expected a finished shard"):
        score_sharded(model, (X, Y), "path", shards=tmp_path / "a", batch_size=8)
    (tmp_path / "b" / "job.json").write_text("{}")
    with pytest.raises(RecordError, match="expected a job's fingerprint"):
        score_sharded(model, (X, Y), "taylor", shards=tmp_path / "b", batch_size=8)


def test_a_loader_that_shuffles_gives_every_pass_the_same_images() -> None:
    model = networks.mlp()
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)
    found = score_sharded(model, loader, "ablation", seed=5)
    _same(found, score(model, loader, "ablation", seed=5))


def test_images_that_change_between_passes_are_refused() -> None:
    class Noisy(Dataset[tuple[Tensor, Tensor]]):
        passes = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.passes += index == 0
            return X[index] + (0.1 * self.passes if index == 3 else 0.0), Y[index]

    with pytest.raises(DataError, match="same images in the same batches on every pass"):
        score_sharded(networks.mlp(), Noisy(), "path", batch_size=2)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y

    with pytest.raises(DataError, match="read twice"):
        score_sharded(networks.mlp(), stream(), "path")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "l1"}, InvalidArgumentError, "expected one of ablation, .*path, taylor"),
        ({"method": "banzhaf"}, InvalidArgumentError, "'banzhaf' is no sum over images"),
        ({"method": "ablation", "budget": 100.0}, InvalidArgumentError, "budget: expected None"),
        (
            {"method": "ablation", "intervention": "resample"},
            InvalidArgumentError,
            "'resample' draws in the order of the runs",
        ),
        ({"method": "path", "edges": True}, InvalidArgumentError, "edges: method 'path' cannot"),
        ({"method": "path", "depth": 3}, UnknownNameError, "unknown option of method 'path'"),
        ({"method": "magic"}, UnknownNameError, "unknown scoring method 'magic'"),
    ],
)
def test_what_is_no_sum_over_images_is_refused(
    arguments: dict, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        score_sharded(networks.mlp(), (X, Y), shards=tmp_path / "shards", **arguments)
    assert not (tmp_path / "shards").exists()


def test_a_registered_method_can_be_sharded_with_the_options_it_names(tmp_path: Path) -> None:
    @register_method("brightness", shards=("scale",))
    def brightness(job, *, scale=1.0):
        tally = Tally(job, by_group=True)
        for batch in tally.batches():
            for group in tally.groups():
                effects = scale * batch.inputs.flatten(1)[:, : group.n_units]
                for rows in effects.split(3):  # several times per batch and group
                    tally.add(group.name, rows, cost=0.5)
        return tally.scores()

    try:
        found = score_sharded(
            networks.mlp(), (X, Y), "brightness", scale=2.0, batch_size=7, shards=tmp_path
        )
        _same(found, score(networks.mlp(), (X, Y), "brightness", scale=2.0, batch_size=7))
        rows = found.frame[found.frame["group"] == found.frame["group"][0]]
        expected = 2 * X.flatten(1).double().mean(0)[: len(rows)]
        torch.testing.assert_close(torch.tensor(rows["effect"].tolist()).double(), expected)
        # Batches of 7, 7, 7 and 2 images, in calls of three images each.
        assert (rows["cost"] == 0.5 * (3 + 3 + 3 + 1)).all()
        with pytest.raises(RecordError, match="another job"):
            score_sharded(
                networks.mlp(), (X, Y), "brightness", scale=3.0, batch_size=7, shards=tmp_path
            )
    finally:
        METHODS.pop("brightness")


def test_a_group_of_ones_own_is_used_and_left_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = score_sharded(networks.mlp(), (X, Y), "taylor", process_group=dist.group.WORLD)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    _same(found, score(networks.mlp(), (X, Y), "taylor"))


def test_a_process_that_ended_is_named_by_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object, **options: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4242\nstack")

    monkeypatch.setattr(dist, "all_reduce", closed)
    words = r"another process of the job ended .*\(Connection closed by peer \[127.0.0.1\]:4242\)"
    with pytest.raises(ProcessGroupError, match=words):
        Workers(rank=0, n=2).sum_bits(torch.zeros(3, dtype=torch.int64))
