"""System statistics: measured, or missing with a reason; never made up."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
import types

import pytest

from causalprune.errors import InvalidArgumentError
from causalprune.measures import SystemMonitor, SystemStatistics, counters, machine_info
from causalprune.measures.gpu import open_gpu

COUNTERS = counters.COUNTER_NAMES


def test_a_short_block_still_has_a_sample() -> None:
    with SystemMonitor(interval_s=100.0) as monitor:
        pass
    statistics = monitor.statistics
    assert statistics.cpu_percent is not None
    assert statistics.memory_percent is not None and 0 < statistics.memory_percent <= 100
    assert statistics.swap_percent is not None and 0 <= statistics.swap_percent <= 100
    assert statistics.context_switches is not None and statistics.context_switches >= 0


def test_every_missing_counter_has_a_reason() -> None:
    with SystemMonitor() as monitor:
        sum(range(10_000))
    statistics = monitor.statistics
    for name in COUNTERS:
        if getattr(statistics, name) is None:
            assert name in (statistics.counters_reason or "")
        else:
            assert getattr(statistics, name) > 0
    gpu = (statistics.gpu_memory_bytes, statistics.gpu_load_percent, statistics.gpu_power_watts)
    assert statistics.gpu_reason or None not in gpu
    assert (statistics.cpu_energy_joules is None) == (statistics.energy_reason is not None)


def test_an_error_in_the_block_passes_and_the_thread_ends() -> None:
    with pytest.raises(ZeroDivisionError), SystemMonitor(interval_s=0.01) as monitor:
        _ = 1 / 0
    assert monitor.statistics.memory_percent is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "system-monitor"]


def test_before_the_end_there_are_no_figures() -> None:
    monitor = SystemMonitor()
    assert monitor.statistics.cpu_percent is None
    assert monitor.statistics.counters_reason == "the block has not ended"


def test_without_psutil_the_figures_are_missing_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with SystemMonitor() as monitor:
        pass
    statistics = monitor.statistics
    assert statistics.cpu_percent is None and statistics.context_switches is None
    assert "psutil is not installed" in (statistics.counters_reason or "")


def test_a_gpu_is_read_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def no_power(handle: object) -> int:
        raise NVMLError

    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        types.SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetHandleByIndex=lambda index: "handle",
            nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=1_000),
            nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=25),
            nvmlDeviceGetPowerUsage=no_power,
            nvmlDeviceGetTotalEnergyConsumption=lambda handle: 4_000,
        ),
    )
    with SystemMonitor() as monitor:
        pass
    statistics = monitor.statistics
    assert (statistics.gpu_memory_bytes, statistics.gpu_load_percent) == (1_000, 25)
    assert statistics.gpu_power_watts is None
    assert statistics.gpu_reason == "the driver does not report gpu_power_watts"


def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reader = open_gpu()
    assert reader.read() is None and reader.reason is not None
    assert "nvidia-ml-py is not installed" in reader.reason


def _fake_descriptor(value: int, enabled: int, running: int) -> int:
    reading, writing = os.pipe()
    os.write(writing, struct.pack("QQQ", value, enabled, running))
    os.close(writing)
    return reading


def test_counts_of_all_threads_are_added() -> None:
    descriptors = (_fake_descriptor(5, 10, 10), _fake_descriptor(7, 3, 3))
    opened = counters.OpenCounters({"cycles": descriptors}, {})
    values, reasons = counters.read_and_close(opened)
    assert values["cycles"] == 12 and "cycles" not in reasons
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_counter_that_ran_part_of_the_time_is_not_scaled_up() -> None:
    opened = counters.OpenCounters({"cycles": (_fake_descriptor(5, 10, 4),)}, {})
    values, reasons = counters.read_and_close(opened)
    assert values["cycles"] is None and "shared" in reasons["cycles"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOENT, "no such hardware event"),
        (errno.EACCES, "perf_event_paranoid"),
        (errno.ENOSYS, "without perf_event_open"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_reasons_name_the_cause(code: int, words: str) -> None:
    assert words in counters._explain(code)


def test_other_systems_have_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    opened = counters.open_counters()
    assert set(opened.reasons) == set(COUNTERS) and not opened.descriptors


def test_interval_must_be_positive() -> None:
    with pytest.raises(InvalidArgumentError, match="interval_s"):
        SystemMonitor(interval_s=0)


def test_row_has_the_columns_of_the_run_table() -> None:
    from causalprune.experiments.records import TRIAL_COLUMNS

    assert set(SystemStatistics().as_row()) <= {column.name for column in TRIAL_COLUMNS}


def test_machine_is_described_without_its_name() -> None:
    text = json.dumps(machine_info())
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    assert machine_info()["memory_bytes"] is None or machine_info()["memory_bytes"] > 1 << 20
