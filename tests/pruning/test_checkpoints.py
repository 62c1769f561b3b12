"""Checkpoints: a run that is killed, fails or runs out of disk goes on to the same result."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import causalprune.pruning.checkpoints as checkpoints
from causalprune.errors import CheckpointError, RecordError
from causalprune.pruning import Step, Trace, prune
from causalprune.pruning.retraining import SgdRecipe

X = networks.images(30, seed=5)


def labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X).argmax(1)


def noisy(network: nn.Module) -> None:
    """A training that draws from every global generator."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) * float(np.random.rand()))


def progressive(model: nn.Module, **options: Any) -> tuple[nn.Module, Trace]:
    data = X, labels(model)
    arguments = {"guard": True, "tolerance": 0.4, "chunk": 0.2, "schedule": "progressive"}
    arguments.update(options)
    return prune(model, data, "taylor", 0.5, "units", "loss", return_trace=True, **arguments)


def iterative(model: nn.Module, **options: Any) -> tuple[nn.Module, Trace]:
    arguments = {"schedule": "iterative", "rounds": 2, "retrain": noisy}
    return prune(model, X, "l1", 0.5, "units", return_trace=True, **{**arguments, **options})


RUNS = {"progressive": progressive, "iterative": iterative}


def untimed(trace: Trace) -> dict[str, Any]:
    content = json.loads(trace.to_json())
    for step in content["steps"]:
        step["seconds"] = 0
    return content


def assert_same(one: tuple[nn.Module, Trace], other: tuple[nn.Module, Trace]) -> None:
    first, second = (network.state_dict() for network, _ in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert untimed(one[1]) == untimed(other[1])


def seed() -> None:
    torch.manual_seed(11)
    np.random.seed(11)


class Interrupted(Exception):
    """What a callback raises."""


def interrupting(at: int) -> Callable[[Step], None]:
    seen: list[Step] = []

    def on_step(step: Step) -> None:
        seen.append(step)
        if len(seen) == at:
            raise Interrupted

    return on_step


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_interrupted_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    model = networks.mlp()
    seed()
    whole = RUNS[name](model)
    assert len(whole[1].steps) > 2
    for at in (1, 2, len(whole[1].steps)):
        folder = tmp_path / str(at)
        seed()
        with pytest.raises(Interrupted):
            RUNS[name](model, checkpoint=folder, on_step=interrupting(at))
        assert len(checkpoints.read_checkpoint(folder).trace.steps) == at
        torch.manual_seed(99)
        assert_same(RUNS[name](model, checkpoint=folder), whole)
        # One network, one trace, and what names them: nothing piles up.
        assert len(list(folder.iterdir())) == 3


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.mlp()
    first = progressive(model, checkpoint=tmp_path)
    monkeypatch.setattr("causalprune.pruning.run.Run.scores", lambda *args, **options: 1 / 0)
    seen: list[Step] = []
    assert_same(progressive(model, checkpoint=tmp_path, on_step=seen.append), first)
    assert seen == []


# ---- killed --------------------------------------------------------------------------------------

KILLED = """
import os, resource, signal, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("cases", {here!r})
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from causalprune.errors import CheckpointError
from causalprune.pruning import checkpoints
real = checkpoints.replace_file

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying_at(number, before):
    count = [0]
    def replace_file(path, content):
        count[0] += 1
        if count[0] == number and before:
            die()
        found = real(path, content)
        if count[0] == number:
            die()
        return found
    return replace_file

def child(run, model, folder, number, before):
    checkpoints.replace_file = dying_at(number, before)
    cases.seed()
    cases.RUNS[run](model, checkpoint=folder)

def full_disk(run, model, folder, number, before):
    def on_step(step):
        # Room for the trace, none for the network.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    cases.seed()
    try:
        cases.RUNS[run](model, checkpoint=folder, on_step=on_step)
    except CheckpointError as error:
        if "checkpoint after step 1 is intact" in str(error) and error.network is not None:
            die()

def forked(function, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

model = cases.networks.mlp()
for run in ("progressive", "iterative"):
    cases.seed()
    whole = cases.RUNS[run](model)
    trials = [(child, n, n % 2 == 0) for n in (3, 4, 5, 8)] + [(full_disk, 0, False)]
    for place, (function, number, before) in enumerate(trials):
        folder = Path({folder!r}) / run / str(place)
        code = forked(function, run, model, folder, number, before)
        assert code == -signal.SIGKILL, (run, function.__name__, number, code)
        cases.seed()
        cases.assert_same(cases.RUNS[run](model, checkpoint=folder), whole)
print("all went on")
"""


def test_a_run_killed_at_any_write_goes_on_to_the_same_result(tmp_path: Path) -> None:
    tests = str(Path(networks.__file__).parent)
    code = KILLED.format(tests=tests, here=__file__, folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all went on\n"


# ---- failing -------------------------------------------------------------------------------------


def test_a_training_that_raises_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    model = networks.mlp()
    seed()
    whole = iterative(model)
    calls: list[nn.Module] = []

    def noisy_at_first(network: nn.Module) -> None:
        calls.append(network)
        noisy(network)
        if len(calls) == 2:
            raise ZeroDivisionError("diverged")

    noisy_at_first.__module__, noisy_at_first.__qualname__ = noisy.__module__, noisy.__qualname__
    seed()
    with pytest.raises(ZeroDivisionError, match="diverged") as caught:
        iterative(model, checkpoint=tmp_path, retrain=noisy_at_first)
    note = "".join(caught.value.__notes__)
    assert "after step 3" in note and str(tmp_path) in note and "same arguments" in note
    if sys.version_info >= (3, 11):
        assert note in "".join(traceback.format_exception(caught.value))
    kept = checkpoints.read_checkpoint(tmp_path)
    assert [step.verdict for step in kept.trace.steps] == ["kept", "retrained", "kept"]
    assert_same(iterative(model, checkpoint=tmp_path), whole)


def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = networks.mlp()
    whole = progressive(model)
    real, written = checkpoints.replace_file, list[Path]()

    def replace_file(path: Path, content: bytes | str) -> Path:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "replace_file", replace_file)
        message = f"step 2 cannot be written to {tmp_path}: .*No space left .* step 1 is intact"
        with pytest.raises(CheckpointError, match=message) as caught:
            progressive(model, checkpoint=tmp_path)
    assert len(caught.value.trace.steps) == 2
    sizes = [caught.value.network[k].out_features for k in (1, 3)]
    assert sizes == [row.kept for row in caught.value.trace.plan.table]
    # What was written of the step that failed does not take the room that is missing.
    assert len(list(tmp_path.iterdir())) == 3
    assert_same(progressive(model, checkpoint=tmp_path), whole)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match=r"cannot be written .*; there is none"):
        progressive(networks.mlp(), checkpoint=tmp_path / "file" / "folder")


# ---- other runs, broken files --------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model = networks.mlp()
    data = X, labels(model)
    arguments: dict[str, Any] = {"schedule": "iterative", "rounds": 2, "checkpoint": tmp_path}
    prune(model, data, "l1", 0.5, "units", **arguments)
    other = networks.settle(networks.mlp(), seed=1)
    recipe = SgdRecipe(epochs=1)
    for call, named in (
        (lambda: prune(model, data, "l1", 0.4, "units", **arguments), "ratio was 0.5, is 0.4"),
        (lambda: prune(model, data, "l2", 0.5, "units", **arguments), "method was 'l1', is 'l2'"),
        (lambda: prune(other, data, "l1", 0.5, "units", **arguments), "weights was "),
        (lambda: prune(model, (X + 1, data[1]), "l1", 0.5, "units", **arguments), "data was "),
        (
            lambda: prune(model, data, "l1", 0.5, "units", **{**arguments, "rounds": 3}),
            "rounds was 2, is 3",
        ),
        (
            lambda: prune(model, data, "l1", 0.5, "units", retrain=recipe, **arguments),
            "retrain was not given, is {'is': 'SgdRecipe'",
        ),
    ):
        with pytest.raises(CheckpointError, match="other arguments") as caught:
            call()
        assert named in str(caught.value) and str(tmp_path) in str(caught.value)
        assert str(caught.value).count(" was ") == 1


@pytest.mark.parametrize("kind", ["network", "trace", "checkpoint"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_broken_files_are_named(tmp_path: Path, kind: str, damage: str) -> None:
    model = networks.mlp()
    prune(model, X, "l1", 0.5, "units", checkpoint=tmp_path)
    (path,) = tmp_path.glob(f"{kind}*")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    if (kind, damage) == ("checkpoint", "gone"):
        prune(model, X, "l1", 0.5, "units", checkpoint=tmp_path)  # begins anew
        return
    with pytest.raises(RecordError, match="expected"):
        prune(model, X, "l1", 0.5, "units", checkpoint=tmp_path)


def test_nothing_is_a_pickle_of_objects(tmp_path: Path) -> None:
    prune(networks.mlp(), X, "l1", 0.5, "units", checkpoint=tmp_path)
    (network,) = tmp_path.glob("network*")
    assert torch.load(network, weights_only=True).keys() == networks.mlp().state_dict().keys()
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text())


def test_what_is_described_is_the_same_in_every_process() -> None:
    class Thing:
        pass

    described = checkpoints.described
    assert described(Thing()) == described(Thing()) and "0x" not in described(Thing())
    assert described(torch.zeros(2)) == described(torch.zeros(2)) != described(torch.zeros(3))
    assert described({"b": float("nan"), "a": {3, 1}}) == {"a": [1, 3], "b": "nan"}
    assert described(nn.Linear.forward) == "torch.nn.modules.linear.Linear.forward"
    json.dumps(described(SgdRecipe(epochs=2, augment=torch.flip)), allow_nan=False)
