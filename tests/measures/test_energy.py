"""Energy by powercap: package counters added up, wrapped around, or missing with a reason."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from causalprune.errors import InvalidArgumentError
from causalprune.measures import SystemMonitor, system
from causalprune.measures.energy import EnergyMeter, open_energy

RANGE = 262_143_328_850


def zone(folder: Path, name: str, domain: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(f"{domain}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


@pytest.fixture
def two_sockets(tmp_path: Path) -> tuple[Path, list[Path]]:
    """What Linux shows of two sockets, whose parts and sums must not count beside them."""
    (tmp_path / "intel-rapl").mkdir()  # the control type, without a counter
    packages = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 1_000) for n in (0, 1)]
    others = [
        zone(tmp_path, "intel-rapl:2", "psys", 5),
        zone(tmp_path, "intel-rapl:0:0", "core", 5),
        zone(tmp_path, "intel-rapl:0:1", "dram", 5),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5),
    ]
    return tmp_path, [*packages, *others]


def add(counters: list[Path], microjoules: int) -> None:
    for counter in counters:
        counter.write_text(f"{int(counter.read_text()) + microjoules}\n")


def test_packages_count_once_each(two_sockets: tuple[Path, list[Path]]) -> None:
    folder, counters = two_sockets
    meter = open_energy(folder)
    meter.update()
    assert meter.joules() == 0
    add(counters[2:], 90_000_000)  # neither parts of packages nor sums over them
    add(counters[:1], 3_000_000)
    meter.update()
    add(counters[:2], 250_000)
    meter.update()
    assert meter.reason is None and meter.joules() == pytest.approx(3.5, abs=1e-9)


def test_counters_that_start_again_at_zero(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 500_000)
    meter = open_energy(tmp_path)
    for value in (1_500_000, 2_000_000, 7):
        counter.write_text(str(value))
        meter.update()
    whole_turn = (RANGE + 1) * 1e-6
    assert meter.joules() == pytest.approx(2.5 + whole_turn - 2.0 + 7e-6 + 1e-6, abs=1e-9)


def test_the_interface_in_memory_alone_serves_too(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl-mmio:0", "package-0-die-1", 0)
    meter = open_energy(tmp_path)
    counter.write_text("4000000")
    meter.update()
    assert meter.joules() == pytest.approx(4.0)


def test_no_package_is_a_reason(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        meter = open_energy(folder)
        meter.update()
        assert meter.joules() is None and "lists no package" in (meter.reason or "")


def test_what_only_root_may_read_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refused(path: Path, **how: str) -> str:
        if path.name == "energy_uj":  # as for every user but root
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **how)

    monkeypatch.setattr(Path, "read_text", refused)
    meter = open_energy(tmp_path)
    assert meter.joules() is None
    assert meter.reason == f"not permitted: {counter} is for root to read"


@pytest.mark.parametrize("content", [None, "much"])
def test_one_package_lost_on_the_way_leaves_no_partial_sum(
    two_sockets: tuple[Path, list[Path]], content: str | None
) -> None:
    folder, counters = two_sockets
    meter = open_energy(folder)
    if content is None:
        counters[1].unlink()
    else:
        counters[1].write_text(content)
    add(counters[:1], 1_000_000)
    meter.update()
    meter.update()
    assert meter.joules() is None
    assert ("cannot be read" if content is None else "no number") in (meter.reason or "")


def test_the_folder_must_be_a_path() -> None:
    with pytest.raises(InvalidArgumentError, match="folder: expected a Path, got '/sys'"):
        open_energy("/sys")  # type: ignore[arg-type]


def test_the_monitor_adds_up_while_it_runs(
    two_sockets: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counters = two_sockets
    monkeypatch.setattr(system, "open_energy", lambda: open_energy(folder))
    with SystemMonitor(interval_s=100.0) as monitor:
        add(counters[:2], 2_000_000)
    assert monitor.statistics.cpu_energy_joules == pytest.approx(4.0)
    assert monitor.statistics.energy_reason is None
    monkeypatch.setattr(system, "open_energy", lambda: EnergyMeter(reason="none here"))
    with SystemMonitor() as monitor:
        pass
    assert monitor.statistics.cpu_energy_joules is None
    assert monitor.statistics.energy_reason == "none here"


def test_a_gpu_s_energy_is_the_difference_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def fake(energies: list[int]) -> types.SimpleNamespace:
        def energy(handle: object) -> int:
            if not energies:
                raise NVMLError
            return energies.pop(0)

        return types.SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetHandleByIndex=lambda index: "handle",
            nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=1),
            nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=2),
            nvmlDeviceGetPowerUsage=lambda handle: 3,
            nvmlDeviceGetTotalEnergyConsumption=energy,
        )

    monkeypatch.setitem(sys.modules, "pynvml", fake([5_000, 7_500]))
    with SystemMonitor(interval_s=100.0) as monitor:
        pass
    assert monitor.statistics.gpu_energy_joules == 2.5 and monitor.statistics.gpu_reason is None
    monkeypatch.setitem(sys.modules, "pynvml", fake([]))  # GPUs before Volta have no counter
    with SystemMonitor(interval_s=100.0) as monitor:
        pass
    assert monitor.statistics.gpu_energy_joules is None
    assert monitor.statistics.gpu_reason == "the driver does not report gpu_energy_joules"
