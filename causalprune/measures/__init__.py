"""What a network costs, and what pruning it preserves and loses.

Costs: parameters, multiply-accumulates, memory, time, and the machine's state. Losses: the measures
of "Lost in Pruning" (Liebenwein et al. 2021), agreement of outputs, calibration, and who is hurt.

What works on tables alone needs no torch; the other names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from causalprune.measures.class_counts import ClassLosses, class_losses_of_counts
from causalprune.measures.excess_error import (
    ExcessErrorTrend,
    excess_error,
    excess_error_trend,
    excess_errors,
)
from causalprune.measures.guidelines import Recommendation, recommend
from causalprune.measures.prune_potential import (
    PrunePotentials,
    prune_potential,
    prune_potentials,
)
from causalprune.measures.system import SystemMonitor, SystemStatistics

if TYPE_CHECKING:
    from causalprune.measures.agreement import (
        CalibrationError,
        OutputAgreement,
        calibration_error,
        output_agreement,
    )
    from causalprune.measures.feature_information import (
        InformativeFeatures,
        cross_confidence,
        informative_features,
    )
    from causalprune.measures.information import info
    from causalprune.measures.latency import (
        Latency,
        interleaved_latency_ms,
        latency_ms,
        torch_threads,
    )
    from causalprune.measures.losses_by_class import class_losses
    from causalprune.measures.machine import machine_info
    from causalprune.measures.memory import peak_activation_bytes
    from causalprune.measures.process_memory import (
        PeakMemory,
        peak_gpu_bytes,
        peak_process_bytes,
    )
    from causalprune.measures.similarity_under_noise import NoiseSimilarity, noise_similarity
    from causalprune.measures.size import (
        count_layer_weights,
        count_macs,
        count_nonzero_macs,
        count_parameters,
        parameter_bytes,
    )
    from causalprune.measures.uniform_noise import add_uniform_noise

# No module here may have the name of what it holds: importing it would hide that.
_HOME = {
    "CalibrationError": "agreement",
    "InformativeFeatures": "feature_information",
    "Latency": "latency",
    "NoiseSimilarity": "similarity_under_noise",
    "OutputAgreement": "agreement",
    "PeakMemory": "process_memory",
    "add_uniform_noise": "uniform_noise",
    "calibration_error": "agreement",
    "class_losses": "losses_by_class",
    "count_layer_weights": "size",
    "count_macs": "size",
    "count_nonzero_macs": "size",
    "count_parameters": "size",
    "cross_confidence": "feature_information",
    "info": "information",
    "informative_features": "feature_information",
    "interleaved_latency_ms": "latency",
    "latency_ms": "latency",
    "machine_info": "machine",
    "noise_similarity": "similarity_under_noise",
    "output_agreement": "agreement",
    "parameter_bytes": "size",
    "peak_activation_bytes": "memory",
    "peak_gpu_bytes": "process_memory",
    "peak_process_bytes": "process_memory",
    "torch_threads": "latency",
}

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
    "class_losses_of_counts",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
