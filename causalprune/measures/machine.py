"""The machine a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine_info"]


def machine_info() -> dict[str, Any]:
    """Describe the machine: processor, memory, accelerator, versions.

    Returns
    -------
    dict
        JSON-able. ``name`` is a short label for tables; ``processor``, ``architecture``,
        ``cores`` (usable by this process), ``memory_bytes`` (None where the system does not
        say), ``system``, ``python``, ``torch``, ``cpu_capability`` (the vector instructions that
        torch uses), ``threads``, ``cuda`` (version torch was built for, or None) and
        ``accelerator`` (name of the first CUDA device, or None). Neither host name nor user.

    Examples
    --------
    >>> info = machine_info()
    >>> info["cores"] >= 1, info["name"].startswith(info["processor"])
    (True, True)
    """
    processor = _processor_name()
    cores = _usable_cores()
    has_cuda = torch.cuda.is_available()
    accelerator = torch.cuda.get_device_name(0) if has_cuda else None
    return {
        "name": f"{processor}, {cores} cores" + (f", {accelerator}" if accelerator else ""),
        "processor": processor,
        "architecture": platform.machine(),
        "cores": cores,
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "accelerator": accelerator,
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
