"""Energy of the machine's processors, by the counters of Linux's powercap (RAPL).

The processors of Intel and of AMD count the energy of every package; Linux shows the counters as
files. Since 2020 only root may read them unless somebody has allowed it: they are then missing
with a reason, and never estimated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from causalprune.errors import InvalidArgumentError

__all__ = ["POWERCAP", "EnergyMeter", "open_energy"]

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl(-mmio)?:\d+")
_JOULES = 1e-6


@dataclass
class _Package:
    """A counter of microjoules that starts again at 0 beyond `wraps_at`."""

    counter: Path
    wraps_at: int
    last: int
    microjoules: int = 0

    def update(self) -> None:
        now = _number(self.counter)
        step = now - self.last
        self.microjoules += step if step >= 0 else step + self.wraps_at + 1
        self.last = now


@dataclass
class EnergyMeter:
    """Adds up what the packages' counters gain from reading to reading.

    A counter starts again at 0 after some hundred kilojoules, which a busy server uses in minutes:
    `update` has to be called more often than that.

    Attributes
    ----------
    reason : str or None
        Why there is no energy.
    """

    reason: str | None = None
    _packages: list[_Package] = field(default_factory=list)

    def update(self) -> None:
        """Read the counters; a counter that cannot be read ends the measurement."""
        if self.reason is not None:
            return
        try:
            for package in self._packages:
                package.update()
        except (OSError, ValueError) as error:
            self.reason = _explain(error)

    def joules(self) -> float | None:
        """Return the energy of all packages from opening to the last `update`, in joules."""
        if self.reason is not None:
            return None
        return sum(package.microjoules for package in self._packages) * _JOULES


def open_energy(folder: Path = POWERCAP) -> EnergyMeter:
    """Start counting the energy of the processors' packages.

    Parameters
    ----------
    folder : Path
        Linux's powercap class.

    Returns
    -------
    EnergyMeter
        Of the whole machine, not of this process. A package is everything in one socket (or die):
        its cores and what else is in it, which powercap lists once more below it, count once;
        memory modules and the platform's own sum (``psys``) are not part of it. One that appears
        under two interfaces (``intel-rapl`` and ``intel-rapl-mmio``) counts once. With a `reason`
        where there are no counters or one of them cannot be read.

    Raises
    ------
    InvalidArgumentError
        ``folder`` is no path.

    Examples
    --------
    >>> meter = open_energy()
    >>> meter.update()
    >>> (meter.joules() is None) == (meter.reason is not None)
    True
    """
    if not isinstance(folder, Path):
        raise InvalidArgumentError(f"folder: expected a Path, got {folder!r}")
    try:
        zones = _packages(folder)
        meter = EnergyMeter(
            _packages=[
                _Package(
                    zone / "energy_uj",
                    _number(zone / "max_energy_range_uj"),
                    _number(zone / "energy_uj"),
                )
                for zone in zones
            ]
        )
    except (OSError, ValueError) as error:
        return EnergyMeter(reason=_explain(error))
    if not zones:
        return EnergyMeter(reason=f"{folder} lists no package of a processor (usual in VMs)")
    return meter


def _packages(folder: Path) -> list[Path]:
    """Folders of the packages, each package once."""
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    # intel-rapl:0 sorts behind intel-rapl-mmio:0, another interface to the same counter.
    for zone in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if _ZONE.fullmatch(zone.name) is None:
            continue
        name = (zone / "name").read_text(encoding="ascii").strip()
        if name.startswith("package"):
            found[name] = zone
    return list(found.values())


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _explain(error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return f"not permitted: {error.filename} is for root to read"
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read ({error.strerror})"
    return f"an energy counter is no number ({error})"
