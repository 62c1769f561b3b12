"""Peak memory in a fresh process: what is known to be there is seen; what fails has a reason."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.measures import peak_gpu_bytes, peak_process_bytes, process_memory

SLACK = 3 << 20  # bytes
needs_proc = pytest.mark.skipif(
    process_memory._cannot_measure() is not None, reason="no peak of a process here"
)
OTHER_NETWORKS = """
import os, time
from torch import nn

print("this must not get among the answers")

class Dies(nn.Module):
    def forward(self, images):
        os._exit(3)

class Sleeps(nn.Module):
    def forward(self, images):
        time.sleep(60)

class Trains(nn.Module):
    def forward(self, images):
        assert not self.training and not images.requires_grad
        return images
"""


def bytes_of(model: nn.Module, example: torch.Tensor) -> int:
    peak = peak_process_bytes(model, example)
    assert peak.bytes is not None and peak.reason is None, peak.reason
    return peak.bytes


@needs_proc
def test_parameters_batch_and_activations_are_seen() -> None:
    small = bytes_of(nn.Linear(1, 1), torch.zeros(1, 1))
    assert small < SLACK
    weights = nn.Linear(2_000, 5_000)
    assert abs(bytes_of(weights, torch.zeros(1, 2_000)) - 40_020_000 - small) < SLACK
    batch = torch.zeros(5_000_000, 1)  # 20 MB, its output again 20 MB
    assert abs(bytes_of(nn.Linear(1, 1), batch) - 40_000_000 - small) < SLACK


@needs_proc
def test_what_is_freed_on_the_way_counts_at_its_peak_and_repeats() -> None:
    layers = nn.Sequential(nn.Linear(1, 4), nn.AvgPool1d(4), nn.AvgPool1d(1))
    batch = torch.zeros(1, 1_000_000, 1)
    first, second = bytes_of(layers, batch), bytes_of(layers, batch)
    # input 4 MB, 16 MB behind the first layer, 4 MB behind the second
    assert abs(first - 24_000_000) < SLACK and abs(first - second) < 1 << 20


@needs_proc
def test_one_process_serves_and_outlives_what_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of(nn.Linear(1, 1), torch.zeros(1, 1))
    (server,) = process_memory._servers
    (tmp_path / "other_networks.py").write_text(OTHER_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    import other_networks  # type: ignore[import-not-found]

    image = torch.zeros(1, 1)
    bytes_of(other_networks.Trains().train(), image)
    died = peak_process_bytes(other_networks.Dies(), image)
    assert (died.bytes, died.reason) == (None, "the measuring process ended early (3)")
    bytes_of(nn.Linear(1, 1), image)
    assert process_memory._servers == [server] and server.process.poll() is None
    late = peak_process_bytes(other_networks.Sleeps(), image, timeout_s=0.3)
    assert (late.bytes, late.reason) == (None, "no answer within 0.3 s")
    assert server.process.poll() is not None
    bytes_of(nn.Linear(1, 1), image)  # by a new one


@needs_proc
def test_networks_that_cannot_be_measured_have_a_reason() -> None:
    class Local(nn.Module):
        pass

    image = torch.zeros(1, 1)
    assert "cannot be pickled" in (peak_process_bytes(Local(), image).reason or "")
    wrong = peak_process_bytes(nn.Linear(3, 2), image)
    assert wrong.bytes is None and "RuntimeError: mat1 and mat2" in (wrong.reason or "")
    elsewhere = peak_process_bytes(nn.Linear(1, 1, device="meta"), image)
    assert elsewhere.reason == "the network runs on cpu, meta, not the CPU"


@needs_proc
def test_it_ends_with_a_killed_process() -> None:
    code = """
import os, signal
from causalprune.measures import process_memory
process_memory.start_measuring_process()
print(process_memory._servers[0].process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(run.stdout)
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # nobody may have asked for its end yet


@needs_proc
def test_a_forked_process_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    process_memory.start_measuring_process()
    (of_the_parent,) = process_memory._servers
    monkeypatch.setattr(process_memory, "_servers", [of_the_parent])
    monkeypatch.setattr(process_memory.os, "getpid", lambda: 1)
    process_memory.start_measuring_process()
    (own,) = process_memory._servers
    assert own is not of_the_parent and of_the_parent.process.poll() is None
    process_memory._end()
    assert own.process.poll() is not None and of_the_parent.process.poll() is None


def test_where_nothing_can_be_measured_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        process_memory.start_measuring_process()
        peak = peak_process_bytes(nn.Linear(1, 1), torch.zeros(1, 1))
        assert peak.bytes is None and peak.reason is not None
        return peak.reason

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert "on Linux only" in reason()
    monkeypatch.setattr(sys, "platform", "linux")
    with monkeypatch.context() as patch:
        patch.setattr(process_memory, "_PEAK_IS_SET_BACK", Path("/proc/self/no_such_file"))
        assert reason() == "the kernel has no /proc/self/no_such_file"
    monkeypatch.setattr(process_memory, "_PEAK_IS_SET_BACK", Path(os.devnull))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "")
        assert "no Python interpreter" in reason()
    monkeypatch.setattr(process_memory, "_servers", [])
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "no process to measure in (FileNotFoundError" in reason()


def test_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match=r"example: expected a torch\.Tensor, got list"):
        peak_process_bytes(nn.Linear(1, 1), [1.0])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="threads: expected at least 1, got 0"):
        peak_process_bytes(nn.Linear(1, 1), torch.zeros(1, 1), threads=0)
    with pytest.raises(InvalidArgumentError, match="timeout_s: expected a positive number, got 0"):
        peak_process_bytes(nn.Linear(1, 1), torch.zeros(1, 1), timeout_s=0)
    with pytest.raises(InvalidArgumentError, match=r"example: expected a torch\.Tensor, got list"):
        peak_gpu_bytes(nn.Linear(1, 1), [1.0])  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_memory_is_the_networks_own() -> None:
    other = torch.zeros(10_000_000, device="cuda")  # lies there, and is nobody's
    model = nn.Sequential(nn.Linear(1, 4), nn.AvgPool1d(4)).cuda()
    peak = peak_gpu_bytes(model, torch.zeros(1, 1_000_000, 1, device="cuda"))
    assert len(other) and peak.reason is None and peak.bytes is not None
    # input 4 MB, 16 MB behind the first layer, 4 MB behind the second, and a matrix product's
    # workspace
    assert 24_000_000 <= peak.bytes < 24_000_000 + (80 << 20)
