"""Studies on a Ray cluster: every trial once, whatever is killed; what is refused, and how fast."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from causalprune.cli import app
from causalprune.errors import (
    ClusterError,
    InvalidArgumentError,
    MissingDependencyError,
    UnknownNameError,
)
from causalprune.experiments import study_ray
from causalprune.experiments.prepared import Prepared
from causalprune.experiments.ray_cluster import TaskSize
from causalprune.experiments.ray_trial import files_in, task
from causalprune.experiments.records import MEASURED_COLUMNS
from causalprune.experiments.store import StudyStore
from causalprune.experiments.study import Study
from causalprune.experiments.study_progress import Follower
from causalprune.experiments.study_spec import study_cells
from causalprune.experiments.study_work import prepared_block, study_row
from causalprune.experiments.trial_artefacts import TrialArtefacts

TEXT = """\
methods: [l1, bn_scale]  # LeNet-5 has no batch norm: failed trials, which stay so
ratios: [0.0, 0.3, 0.5, 0.8]
checkpoints: 1
epochs: 4
retrain_epochs: 1
calibration: 40
train_limit: 340
test_limit: 90
latency_repeats: 1
latency_batch: 2
device: cpu
shifts: ["contrast:5"]
blocks:
- {network: lenet5}
- {network: lenet300, methods: [l1], ratios: [0.5]}
"""
SCRIPT = Path(__file__).parent / "ray_study_script.py"

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (causalprune[cluster])"
)


def study_in(folder: Path) -> Study:
    (folder / "small.yaml").write_text(TEXT)
    return Study.from_file(folder / "small.yaml")


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the script's study, and what it saw."""
    pytest.importorskip("psutil", reason="psutil is not installed (causalprune[system])")
    folder = tmp_path_factory.mktemp("ray")
    study_in(folder)
    (folder / "wide.yaml").write_text(TEXT + "threads: 64\n")
    # Ray's workers look first where the driver runs, and there may lie sources without the
    # compiled extension.
    (folder / "causalprune").mkdir()
    (folder / "causalprune" / "__init__.py").write_text("raise ImportError('not compiled')\n")
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if ended.returncode != 75:  # the cluster started, and the study was begun
            break
    assert ended.returncode == 0, ended.stdout[-4000:]
    return folder, json.loads((folder / "seen.json").read_text())


@needs_ray
def test_with_a_node_killed_the_table_is_that_of_the_local_executor(
    disturbed: tuple[Path, dict[str, Any]],
) -> None:
    folder, seen = disturbed
    assert seen["after"] == "none" and seen["after counts"] == [5, 4, 0, 0]
    _, _, running, _ = seen["counts when killed"]
    assert running == 2  # of three: a third waits while one runs on either node
    assert seen["second node is gone"]
    local = study_in(folder).run(progress=False)
    cluster = Study.open(folder / "cluster")
    frame = cluster.frame()
    assert sorted(frame["trial"]) == list(range(9)) and cluster.doctor() == []
    same = [name for name in frame.columns if name not in MEASURED_COLUMNS]
    for one, other in ((frame, local), (local, frame)):
        assert list(one.columns) == list(other.columns)
    pd.testing.assert_frame_equal(
        frame.sort_values("trial")[same].reset_index(drop=True),
        local.sort_values("trial")[same].reset_index(drop=True),
    )


@needs_ray
def test_rows_and_records_name_the_machine(disturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = disturbed
    with StudyStore.open(folder / "cluster") as store:
        names = {machine["name"] for machine in store.machines().values()}
        assert set(store.read()["machine"]) == names


@needs_ray
def test_what_cannot_run_there_ends_the_study_and_holds_no_trial(
    disturbed: tuple[Path, dict[str, Any]],
) -> None:
    _, seen = disturbed
    assert seen["wide"] == ("ClusterError: no node has 64 CPUs; the nodes have: 1 CPUs, 1 CPUs")
    assert seen["wide counts"] == [0, 0, 0, 9]
    assert "expected 0.0.1 as here" in seen["version"]
    assert seen["version counts"] == [0, 0, 0, 9]
    assert seen["interrupted"].startswith("KeyboardInterrupt")
    assert seen["nodes are free again"]
    ok, failed, running, queued = seen["interrupted counts"]
    assert (ok + failed, running, queued) == (1, 0, 8)


@needs_ray
def test_only_the_ray_that_we_started_is_shut_down(
    disturbed: tuple[Path, dict[str, Any]],
) -> None:
    _, seen = disturbed
    assert seen["ours is shut down"] and seen["users is kept"]


class Here:
    """Ray as far as one task needs it, in this process: its reference is its result."""

    def options(self, **kwargs: object) -> Here:
        assert kwargs["num_gpus"] == 1
        return self

    def remote(self, found: str, stop: str, name: str, order: bytes, device: str) -> dict[str, Any]:
        assert device == "cuda"  # which no machine of these tests need have
        return task()(found, stop, name, order, "cpu")


def nothing_says_stop(name: str) -> str:
    raise ValueError(name)


@needs_ray
def test_a_block_prepared_on_a_node_is_the_one_prepared_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    study = study_in(tmp_path)
    number = 1
    quiet = Follower({}, lambda line: None)

    def work_in(name: str) -> Any:
        return SimpleNamespace(spec=study.spec, folder=tmp_path / name, follower=quiet)

    here = prepared_block(work_in("here"), number)
    assert isinstance(here, Prepared)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(ray, "get_actor", nothing_says_stop)
    run: Any = SimpleNamespace(ray=ray, work=work_in("there"), stop="stop", blocks=[])
    elsewhere = partial(study_ray._prepared_on_node, run, Here(), TaskSize(1, 1))
    there = prepared_block(work_in("there"), number, elsewhere)
    assert isinstance(there, Prepared)
    kept = [files_in(tmp_path / name / "blocks") for name in ("here", "there")]
    assert set(kept[0]) == set(kept[1]) and "1-lenet300/checkpoints/0.pt" in kept[0]
    assert there.setting.config == here.setting.config
    cell = next(entry for entry in study_cells(study.spec) if entry.block == number)
    rows = [
        study_row(study.spec.blocks[number], cell, block, TrialArtefacts())
        for block in (here, there)
    ]
    same = [name for name in rows[0] if name not in MEASURED_COLUMNS]
    assert rows[0]["status"] == "ok"
    assert {name: rows[0][name] for name in same} == {name: rows[1][name] for name in same}
    # What the folder holds is not made again, there either.
    again = prepared_block(work_in("there"), number, elsewhere)
    assert isinstance(again, Prepared)
    assert again.checkpoints[0].accuracy == there.checkpoints[0].accuracy
    assert files_in(tmp_path / "there" / "blocks") == kept[1]


@needs_ray
@pytest.mark.parametrize("kind", ["closed", "silent", "another"])
def test_an_address_without_ray_is_named_soon(tmp_path: Path, kind: str) -> None:
    study = study_in(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if kind == "closed":
            server.close()
        if kind == "another":
            threading.Thread(target=_greet, args=(server,), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(ClusterError, match=address):
            study.run(executor="ray", address=address, progress=False)
    assert time.monotonic() - start < 20
    assert not study.folder.exists()


def _greet(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"220 mail.example.org ready\r\n")


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1", "ray://", "http://a:1", "a:70000", ""])
def test_an_address_of_another_form_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address: expected 'host:port'"):
        study_in(tmp_path).run(executor="ray", address=address, progress=False)


def test_executors_that_do_not_fit(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'ray'"):
        study.run(executor="rey", progress=False)
    with pytest.raises(InvalidArgumentError, match="address: only executor 'ray'"):
        study.run(address="127.0.0.1:6379", progress=False)
    answer = CliRunner().invoke(
        app, ["study", "run", str(tmp_path / "small.yaml"), "--executor", "rey"]
    )
    assert answer.exit_code == 2 and "did you mean 'ray'" in answer.output
    assert not study.folder.exists()


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'causalprune\[cluster\]'"):
        study_in(tmp_path).run(executor="ray", progress=False)


def test_a_node_without_causalprune_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert "has causalprune none, expected 0.1.0" in task()("0.1.0", "stop", "none")["refused"]


@needs_ray
def test_tasks_end_themselves_when_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import ray

    from causalprune.experiments import ray_trial

    began, ended = threading.Event(), threading.Event()
    codes: list[int] = []

    def exit_with(code: int) -> None:
        codes.append(code)
        ended.set()

    def long_work() -> dict[str, bool]:
        began.set()
        return {"told": ended.wait(20)}

    def says_stop_once_begun(name: str) -> str:
        assert name == "stop"
        return name if began.is_set() else nothing_says_stop(name)

    monkeypatch.setattr(ray, "get_actor", says_stop_once_begun)
    monkeypatch.setattr(os, "_exit", exit_with)
    monkeypatch.setattr(ray_trial, "long_work", long_work, raising=False)
    work = threading.Thread(target=task(), args=("0.1.0", "stop", "long_work"), daemon=True)
    work.start()
    assert ended.wait(20) and codes == [1]
    assert task()("0.1.0", "stop", "long_work") == {"stopped": True}
