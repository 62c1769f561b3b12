"""Hardware counters of this process through Linux's ``perf_event_open``.

Many virtual machines offer no hardware events and many systems forbid them; a counter is then
missing with a reason, and never estimated.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["COUNTER_NAMES", "OpenCounters", "open_counters", "read_and_close"]

_HARDWARE = 0
_HARDWARE_CACHE = 3
_L1D_READ_MISS = 0 | (0 << 8) | (1 << 16)

# name -> (type, config), see perf_event_open(2)
_EVENTS: Mapping[str, tuple[int, int]] = {
    "instructions": (_HARDWARE, 1),
    "cycles": (_HARDWARE, 0),
    "branch_misses": (_HARDWARE, 5),
    "l1d_misses": (_HARDWARE_CACHE, _L1D_READ_MISS),
    "llc_misses": (_HARDWARE, 3),
}
COUNTER_NAMES: tuple[str, ...] = tuple(_EVENTS)

_SYSCALL_NUMBER = {"x86_64": 298, "AMD64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319}
_ATTRIBUTE_BYTES = 112  # PERF_ATTR_SIZE_VER5
_READ_TIMES = 0b11  # time enabled and time running come with the value
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6
_CLOSE_ON_EXEC = 1 << 3


@dataclass(frozen=True)
class OpenCounters:
    """Counters that run: file descriptors per name, and why the others do not.

    Attributes
    ----------
    descriptors : Mapping[str, tuple[int, ...]]
        One descriptor for each thread that existed when the counters were opened.
    reasons : Mapping[str, str]
        Why a counter is missing, by name.
    """

    descriptors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def open_counters() -> OpenCounters:
    """Start counting user-space events of every thread of this process.

    Returns
    -------
    OpenCounters
        Threads started later are counted with the thread that starts them.

    Examples
    --------
    >>> counters = open_counters()
    >>> values, reasons = read_and_close(counters)
    >>> all((values[name] is None) == (name in reasons) for name in COUNTER_NAMES)
    True
    """
    if not sys.platform.startswith("linux"):
        reason = f"perf_event_open exists on Linux only, this is {platform.system()}"
        return OpenCounters(reasons=dict.fromkeys(COUNTER_NAMES, reason))
    number = _SYSCALL_NUMBER.get(platform.machine())
    if number is None:
        reason = f"perf_event_open: no system call number known for {platform.machine()}"
        return OpenCounters(reasons=dict.fromkeys(COUNTER_NAMES, reason))
    descriptors: dict[str, tuple[int, ...]] = {}
    reasons: dict[str, str] = {}
    threads = _thread_ids()
    for name, (kind, config) in _EVENTS.items():
        opened, error = _open_for_threads(number, kind, config, threads)
        if error:
            reasons[name] = error
        else:
            descriptors[name] = opened
    return OpenCounters(descriptors, reasons)


def read_and_close(counters: OpenCounters) -> tuple[dict[str, int | None], dict[str, str]]:
    """Read every counter once and give its descriptors back.

    Returns
    -------
    values : dict of str to int or None
        Counts by name, None where there is no exact count.
    reasons : dict of str to str
        Why a value is None, by name.
    """
    values: dict[str, int | None] = dict.fromkeys(COUNTER_NAMES)
    reasons = dict(counters.reasons)
    for name, descriptors in counters.descriptors.items():
        value, reason = _sum_of(descriptors)
        values[name] = value
        if reason:
            reasons[name] = reason
    return values, reasons


def _sum_of(descriptors: tuple[int, ...]) -> tuple[int | None, str | None]:
    total, reason = 0, None
    for descriptor in descriptors:
        try:
            value, enabled, running = struct.unpack("QQQ", os.read(descriptor, 24))
        except (OSError, struct.error) as error:
            reason = f"reading failed ({error})"
        else:
            total += value
            if running < enabled:
                # Scaling a share of the time up to the whole would be an estimate.
                reason = "the processor's counters were shared and did not run all the time"
        finally:
            os.close(descriptor)
    return (None, reason) if reason else (total, None)


def _thread_ids() -> list[int]:
    try:
        return sorted(int(entry.name) for entry in Path("/proc/self/task").iterdir())
    except OSError:
        return [0]


def _open_for_threads(
    number: int, kind: int, config: int, threads: list[int]
) -> tuple[tuple[int, ...], str | None]:
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    head = struct.pack("IIQQQQQ", kind, _ATTRIBUTE_BYTES, config, 0, 0, _READ_TIMES, flags)
    attribute = ctypes.create_string_buffer(head, _ATTRIBUTE_BYTES)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    opened: list[int] = []
    for thread in threads:
        descriptor = syscall(
            ctypes.c_long(number),
            attribute,
            ctypes.c_int(thread),
            ctypes.c_int(-1),
            ctypes.c_int(-1),
            ctypes.c_ulong(_CLOSE_ON_EXEC),
        )
        code = ctypes.get_errno()
        if descriptor >= 0:
            opened.append(int(descriptor))
        elif code != errno.ESRCH:  # a thread that ended meanwhile has nothing left to count
            for open_descriptor in opened:
                os.close(open_descriptor)
            return (), _explain(code)
    return tuple(opened), None


def _explain(code: int) -> str:
    if code in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "the kernel offers no such hardware event (usual in virtual machines)"
    if code in (errno.EACCES, errno.EPERM):
        return "not permitted (see kernel.perf_event_paranoid)"
    if code == errno.ENOSYS:
        return "the kernel was built without perf_event_open"
    return f"perf_event_open failed: {os.strerror(code)}"
