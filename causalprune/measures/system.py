"""What the machine was doing while a block of code ran."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, TypeVar

from causalprune.errors import InvalidArgumentError
from causalprune.measures.counters import OpenCounters, open_counters, read_and_close
from causalprune.measures.energy import EnergyMeter, open_energy
from causalprune.measures.gpu import GpuReader, GpuSample, open_gpu

__all__ = ["SystemMonitor", "SystemStatistics"]

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class SystemStatistics:
    """System statistics over a block; None where there is no measurement, with the reason.

    Attributes
    ----------
    cpu_percent, memory_percent, swap_percent : float or None
        Means over the samples, of the whole machine, 0 to 100.
    cpu_frequency_mhz : float or None
        Mean over the samples.
    context_switches : int or None
        Of this process during the block, voluntary and not.
    instructions, cycles, branch_misses, l1d_misses, llc_misses : int or None
        Hardware events of this process in user space during the block.
    counters_reason : str or None
        Why any of the above is None.
    cpu_energy_joules : float or None
        Of all processor packages of the machine during the block
        (:func:`~causalprune.measures.energy.open_energy`).
    energy_reason : str or None
        Why it is None.
    gpu_memory_bytes, gpu_load_percent, gpu_power_watts : float or None
        Means over the samples, of the first GPU.
    gpu_energy_joules : float or None
        Of the first GPU during the block.
    gpu_reason : str or None
        Why any of the GPU's figures is None.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    swap_percent: float | None = None
    cpu_frequency_mhz: float | None = None
    context_switches: int | None = None
    instructions: int | None = None
    cycles: int | None = None
    branch_misses: int | None = None
    l1d_misses: int | None = None
    llc_misses: int | None = None
    counters_reason: str | None = None
    cpu_energy_joules: float | None = None
    energy_reason: str | None = None
    gpu_memory_bytes: float | None = None
    gpu_load_percent: float | None = None
    gpu_power_watts: float | None = None
    gpu_energy_joules: float | None = None
    gpu_reason: str | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the figures as the columns of a run table."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True)
class _Sample:
    cpu_percent: float | None
    memory_percent: float | None
    swap_percent: float | None
    cpu_frequency_mhz: float | None
    gpu: GpuSample | None


@dataclass
class _Probes:
    """Everything that is open while the block runs."""

    process: Any
    switches: int | None
    counters: OpenCounters
    gpu: GpuReader
    gpu_joules: float | None
    energy: EnergyMeter
    samples: list[_Sample] = field(default_factory=list)


class SystemMonitor:
    """Sample the machine in a thread while a ``with`` block runs.

    Nothing is imputed: what cannot be read is None, with a reason beside it.

    Parameters
    ----------
    interval_s : float
        Seconds between samples. One more sample is taken at the end, so that even a short block
        has one.

    Raises
    ------
    InvalidArgumentError
        ``interval_s`` is not positive.

    Examples
    --------
    >>> with SystemMonitor(interval_s=0.01) as monitor:
    ...     total = sum(range(100_000))
    >>> monitor.statistics.as_row()["context_switches"] is not None
    True
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        if not interval_s > 0:
            raise InvalidArgumentError(f"interval_s: expected a positive number, got {interval_s}")
        self._interval_s = interval_s
        self._probes: _Probes | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.statistics = SystemStatistics(
            counters_reason="the block has not ended",
            energy_reason="the block has not ended",
            gpu_reason="the block has not ended",
        )

    def __enter__(self) -> SystemMonitor:
        psutil = _psutil()
        process = psutil.Process() if psutil else None
        if psutil:
            psutil.cpu_percent(None)  # the first call starts the clock and returns nothing useful
        gpu = open_gpu()
        probes = _Probes(
            process, _switches(process), open_counters(), gpu, gpu.energy_joules(), open_energy()
        )
        self._probes = probes
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._sample_until_stopped, args=(probes,), name="system-monitor", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        probes, thread = self._probes, self._thread
        if probes is None or thread is None:
            return
        self._stop.set()
        thread.join()
        _sample(probes)
        self.statistics = _summarise(probes)
        probes.gpu.close()
        self._probes = self._thread = None

    def _sample_until_stopped(self, probes: _Probes) -> None:
        while not self._stop.wait(self._interval_s):
            _sample(probes)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _switches(process: Any) -> int | None:
    if process is None:
        return None
    count = process.num_ctx_switches()
    return int(count.voluntary + count.involuntary)


def _sample(probes: _Probes) -> None:
    probes.samples.append(_read(probes.gpu))
    probes.energy.update()


def _read(gpu: GpuReader) -> _Sample:
    psutil = _psutil()
    if psutil is None:
        return _Sample(None, None, None, None, gpu.read())
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        frequency = None
    return _Sample(
        float(psutil.cpu_percent(None)),
        float(psutil.virtual_memory().percent),
        float(psutil.swap_memory().percent),
        float(frequency.current) if frequency is not None and frequency.current else None,
        gpu.read(),
    )


def _summarise(probes: _Probes) -> SystemStatistics:
    samples = probes.samples
    events, event_reasons = read_and_close(probes.counters)
    switches = _difference(_switches(probes.process), probes.switches)
    frequency = _mean(sample.cpu_frequency_mhz for sample in samples)
    reasons = _grouped_reasons(event_reasons)
    if probes.process is None:
        reasons.append("system statistics: psutil is not installed (extra: system)")
    elif frequency is None:
        reasons.append("cpu_frequency_mhz: the system does not say")
    readings = [sample.gpu for sample in samples if sample.gpu is not None]
    gpu: dict[str, Any] = {
        "gpu_memory_bytes": _mean(reading.memory_bytes for reading in readings),
        "gpu_load_percent": _mean(reading.load_percent for reading in readings),
        "gpu_power_watts": _mean(reading.power_watts for reading in readings),
        "gpu_energy_joules": _difference(probes.gpu.energy_joules(), probes.gpu_joules),
    }
    silent = [name for name, value in gpu.items() if value is None]
    gpu_reason = probes.gpu.reason
    if gpu_reason is None and silent:
        gpu_reason = f"the driver does not report {', '.join(silent)}"
    return SystemStatistics(
        cpu_percent=_mean(sample.cpu_percent for sample in samples),
        memory_percent=_mean(sample.memory_percent for sample in samples),
        swap_percent=_mean(sample.swap_percent for sample in samples),
        cpu_frequency_mhz=frequency,
        context_switches=switches,
        counters_reason="; ".join(reasons) or None,
        cpu_energy_joules=probes.energy.joules(),
        energy_reason=probes.energy.reason,
        gpu_reason=gpu_reason,
        **gpu,
        **events,
    )


def _grouped_reasons(reasons: dict[str, str]) -> list[str]:
    names_of: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_of.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in names_of.items()]


def _difference(after: Number | None, before: Number | None) -> Number | None:
    return None if after is None or before is None else after - before


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
