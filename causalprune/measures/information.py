"""What this installation consists of."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from causalprune import _native
from causalprune.measures.machine import machine_info

__all__ = ["info"]

_REQUIRED = ("torch", "numpy", "pandas", "rich", "scipy", "typer")
_OPTIONAL = (
    "dowhy",
    "econml",
    "statsmodels",
    "scikit-learn",
    "matplotlib",
    "jinja2",
    "torchvision",
    "pillow",
    "psutil",
    "nvidia-ml-py",
    "ray",
)


def info() -> dict[str, Any]:
    """Describe the build, the instruction sets, the machine and the versions.

    Returns
    -------
    dict
        JSON-able. ``version``; ``build`` (the native core's version, compiler, whether it has
        OpenMP and CUDA kernels, and, with those, how many devices the CUDA runtime sees or why it
        sees none); ``isa`` (the instruction set that the kernels use) and
        ``available_isas``; ``machine`` (see ``machine_info``); ``versions`` by distribution, None
        for an optional one that is not installed.

    Examples
    --------
    >>> facts = info()
    >>> facts["isa"] in facts["available_isas"]
    True
    """
    return {
        "version": _version("causalprune") or _native.version,
        "build": {
            "version": _native.version,
            "compiler": _native.compiler,
            "openmp": _native.with_openmp,
            "cuda": _native.with_cuda,
            **_cuda_devices(),
        },
        "isa": _native.chosen_isa(),
        "available_isas": list(_native.available_isas()),
        "machine": machine_info(),
        "versions": {name: _version(name) for name in (*_REQUIRED, *_OPTIONAL)},
    }


def _cuda_devices() -> dict[str, Any]:
    if not _native.with_cuda:
        return {}
    _, devices, message = _native.cuda_status()
    return {"cuda_devices": devices, "cuda_message": message or None}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
