"""What a network costs, and what pruning it preserves and loses.

Costs: parameters, multiply-accumulates, memory, time, and the machine's state. Losses: the measures
of "Lost in Pruning" (Liebenwein et al. 2021), agreement of outputs, calibration, and who is hurt.
"""

from __future__ import annotations

from causalprune.measures.agreement import (
    CalibrationError,
    OutputAgreement,
    calibration_error,
    output_agreement,
)
from causalprune.measures.class_losses import ClassLosses, class_losses
from causalprune.measures.excess_error import (
    ExcessErrorTrend,
    excess_error,
    excess_error_trend,
    excess_errors,
)
from causalprune.measures.guidelines import Recommendation, recommend
from causalprune.measures.information import info
from causalprune.measures.informative_features import (
    InformativeFeatures,
    cross_confidence,
    informative_features,
)
from causalprune.measures.latency import (
    Latency,
    interleaved_latency_ms,
    latency_ms,
    torch_threads,
)
from causalprune.measures.machine import machine_info
from causalprune.measures.memory import peak_activation_bytes
from causalprune.measures.noise_similarity import NoiseSimilarity, noise_similarity
from causalprune.measures.process_memory import (
    PeakMemory,
    peak_gpu_bytes,
    peak_process_bytes,
)
from causalprune.measures.prune_potential import (
    PrunePotentials,
    prune_potential,
    prune_potentials,
)
from causalprune.measures.size import (
    count_layer_weights,
    count_macs,
    count_nonzero_macs,
    count_parameters,
    parameter_bytes,
)
from causalprune.measures.system import SystemMonitor, SystemStatistics
from causalprune.measures.uniform_noise import add_uniform_noise

__all__ = [
    "CalibrationError",
    "ClassLosses",
    "ExcessErrorTrend",
    "InformativeFeatures",
    "Latency",
    "NoiseSimilarity",
    "OutputAgreement",
    "PeakMemory",
    "PrunePotentials",
    "Recommendation",
    "SystemMonitor",
    "SystemStatistics",
    "add_uniform_noise",
    "calibration_error",
    "class_losses",
    "count_layer_weights",
    "count_macs",
    "count_nonzero_macs",
    "count_parameters",
    "cross_confidence",
    "excess_error",
    "excess_error_trend",
    "excess_errors",
    "info",
    "informative_features",
    "interleaved_latency_ms",
    "latency_ms",
    "machine_info",
    "noise_similarity",
    "output_agreement",
    "parameter_bytes",
    "peak_activation_bytes",
    "peak_gpu_bytes",
    "peak_process_bytes",
    "prune_potential",
    "prune_potentials",
    "recommend",
    "torch_threads",
]
