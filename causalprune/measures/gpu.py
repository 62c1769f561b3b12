"""Memory, load, power and energy of an NVIDIA GPU through NVML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["GpuReader", "GpuSample", "open_gpu"]


@dataclass(frozen=True)
class GpuSample:
    """One reading of a GPU; None where the driver does not say."""

    memory_bytes: int | None
    load_percent: float | None
    power_watts: float | None


@dataclass(frozen=True)
class GpuReader:
    """A handle on the first GPU, or the reason why there is none.

    Attributes
    ----------
    library, handle : object or None
        NVML's module and device handle.
    reason : str or None
        Why there is nothing to read.
    """

    library: Any = None
    handle: Any = None
    reason: str | None = None

    def read(self) -> GpuSample | None:
        """Read the GPU once; None without a GPU."""
        if self.handle is None:
            return None
        nvml, handle = self.library, self.handle
        return GpuSample(
            _ask(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
            _ask(nvml, lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            _ask(nvml, lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000.0),
        )

    def energy_joules(self) -> float | None:
        """Return the energy since the driver was loaded; None where the driver does not say."""
        if self.handle is None:
            return None
        nvml, handle = self.library, self.handle
        joules: float | None = _ask(
            nvml, lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
        )
        return joules

    def close(self) -> None:
        """Give the library back."""
        if self.handle is not None:
            _ask(self.library, self.library.nvmlShutdown)


def open_gpu() -> GpuReader:
    """Look for an NVIDIA GPU.

    Returns
    -------
    GpuReader
        With a ``reason`` instead of a handle where there is no GPU, driver or library.

    Examples
    --------
    >>> reader = open_gpu()
    >>> (reader.read() is None) == (reader.reason is not None)
    True
    >>> reader.close()
    """
    try:
        import pynvml
    except ImportError:
        return GpuReader(reason="nvidia-ml-py is not installed (extra: system)")
    try:
        pynvml.nvmlInit()
        return GpuReader(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as error:
        return GpuReader(reason=f"no NVIDIA GPU to read: {error}")


def _ask(nvml: Any, question: Any) -> Any:
    try:
        return question()
    except nvml.NVMLError:
        return None
