"""The one place that imports the compiled extension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The extension needs libgomp; torch brings a copy under the same name, and importing torch first
# makes that copy the only one in the process.
import torch as _torch  # noqa: F401

from causalprune.errors import InvalidArgumentError, MissingDependencyError

try:
    from causalprune import _core
except ImportError as error:
    raise MissingDependencyError(
        f"the compiled extension of causalprune cannot be imported from {Path(__file__).parent} "
        f"({error}). In the source folder Python finds the sources before the installed package: "
        "start it elsewhere, or install with pip install -e ."
    ) from error

__all__ = [
    "PackedConvolution",
    "PackedLayout",
    "PackedProgram",
    "available_isas",
    "channel_conv2d_cuda",
    "channel_update",
    "channel_update_cuda",
    "chosen_isa",
    "compiler",
    "count_contingencies",
    "cuda_status",
    "histogram_information",
    "histogram_information_cuda",
    "histogram_information_cuda_workspace",
    "increments_per_second",
    "path_effects",
    "path_effects_cuda",
    "path_effects_cuda_workspace",
    "peak_gflops",
    "read_gigabytes_per_second",
    "relative_sensitivity",
    "relative_sensitivity_cuda",
    "relative_sensitivity_cuda_workspace",
    "spanning_tree_crossings",
    "sparse_conv2d_cuda",
    "version",
    "with_cuda",
    "with_openmp",
]

PackedConvolution = _core.PackedConvolution
PackedLayout = _core.PackedLayout
PackedProgram = _core.PackedProgram
available_isas = _core.available_isas
channel_update = _core.channel_update
compiler: str = _core.compiler
count_contingencies = _core.count_contingencies
histogram_information = _core.histogram_information
increments_per_second = _core.increments_per_second
path_effects = _core.path_effects
peak_gflops = _core.peak_gflops
read_gigabytes_per_second = _core.read_gigabytes_per_second
relative_sensitivity = _core.relative_sensitivity
spanning_tree_crossings = _core.spanning_tree_crossings
version: str = _core.version
with_cuda: bool = _core.with_cuda
with_openmp: bool = _core.with_openmp

# Present only in builds with CUDA kernels.
channel_conv2d_cuda: Any = getattr(_core, "channel_conv2d_cuda", None)
channel_update_cuda: Any = getattr(_core, "channel_update_cuda", None)
cuda_status: Any = getattr(_core, "cuda_status", None)
histogram_information_cuda: Any = getattr(_core, "histogram_information_cuda", None)
histogram_information_cuda_workspace: Any = getattr(
    _core, "histogram_information_cuda_workspace", None
)
path_effects_cuda: Any = getattr(_core, "path_effects_cuda", None)
path_effects_cuda_workspace: Any = getattr(_core, "path_effects_cuda_workspace", None)
relative_sensitivity_cuda: Any = getattr(_core, "relative_sensitivity_cuda", None)
relative_sensitivity_cuda_workspace: Any = getattr(
    _core, "relative_sensitivity_cuda_workspace", None
)
sparse_conv2d_cuda: Any = getattr(_core, "sparse_conv2d_cuda", None)


def chosen_isa() -> str:
    """Name the instruction set in use: the fastest, or what CAUSALPRUNE_ISA asks for.

    Raises
    ------
    InvalidArgumentError
        If CAUSALPRUNE_ISA names one that is unknown or cannot run here.
    """
    try:
        return _core.chosen_isa()
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
