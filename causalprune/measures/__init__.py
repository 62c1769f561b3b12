"""What a network costs: parameters, multiply-accumulates, memory, time, and the machine's state."""

from __future__ import annotations

from causalprune.measures.information import info
from causalprune.measures.latency import (
    Latency,
    interleaved_latency_ms,
    latency_ms,
    torch_threads,
)
from causalprune.measures.machine import machine_info
from causalprune.measures.memory import peak_activation_bytes
from causalprune.measures.size import (
    count_macs,
    count_nonzero_macs,
    count_parameters,
    parameter_bytes,
)
from causalprune.measures.system import SystemMonitor, SystemStatistics

__all__ = [
    "Latency",
    "SystemMonitor",
    "SystemStatistics",
    "count_macs",
    "count_nonzero_macs",
    "count_parameters",
    "info",
    "interleaved_latency_ms",
    "latency_ms",
    "machine_info",
    "parameter_bytes",
    "peak_activation_bytes",
    "torch_threads",
]
