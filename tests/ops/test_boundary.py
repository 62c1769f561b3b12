from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from causalprune import _core, _native
from causalprune.ops import path_effects


class OnlyDlpack:
    """A tensor of some other library: all that is known of it is ``__dlpack__``."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self) -> object:
        return self._tensor.__dlpack__()


def inputs() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(2, 6, 5, 7, generator=random),
        "weight": torch.randn(17, 6, 3, 3, generator=random),
        "pre": torch.randn(2, 17, 3, 5, generator=random),
        "grad": torch.randn(2, 17, 3, 5, generator=random),
    }


def outputs() -> dict[str, Tensor]:
    return {
        "edge": torch.full((17, 6, 4), torch.nan, dtype=torch.float64),
        "unit": torch.full((2, 6), torch.nan, dtype=torch.float64),
    }


def call(threads: int = 1, **tensors: Any) -> None:
    _native.path_effects(**tensors, **OPTIONS, threads=threads)


OPTIONS = {
    "activation": "relu",
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
}


# ---- DLPack --------------------------------------------------------------------------------------


def test_objects_that_only_know_dlpack() -> None:
    given, results = inputs(), outputs()
    call(**{name: OnlyDlpack(tensor) for name, tensor in given.items()}, **results)
    wanted = path_effects(*given.values())
    assert torch.equal(results["edge"], wanted.edge) and torch.equal(results["unit"], wanted.unit)


def test_outputs_that_only_know_dlpack() -> None:
    given, results = inputs(), outputs()
    call(**given, **{name: OnlyDlpack(tensor) for name, tensor in results.items()})
    assert torch.equal(results["edge"], path_effects(*given.values()).edge)


def test_numpy_arrays() -> None:
    given = inputs()
    results = {name: tensor.numpy().copy() for name, tensor in outputs().items()}
    call(**{name: tensor.numpy() for name, tensor in given.items()}, **results)
    wanted = path_effects(*given.values())
    np.testing.assert_array_equal(results["edge"], wanted.edge.numpy())
    np.testing.assert_array_equal(results["unit"], wanted.unit.numpy())


def test_dlpack_with_strides() -> None:
    given, results = inputs(), outputs()
    wanted = path_effects(*given.values())
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    given["pre"] = given["pre"].transpose(2, 3).contiguous().transpose(2, 3)
    call(**{name: OnlyDlpack(tensor) for name, tensor in given.items()}, **results)
    torch.testing.assert_close(results["edge"], wanted.edge, rtol=1e-5, atol=1e-5)


def test_tensors_that_require_grad_are_read_as_they_are() -> None:
    given, results = inputs(), outputs()
    call(**{name: tensor.requires_grad_() for name, tensor in given.items()}, **results)
    with torch.no_grad():
        assert torch.equal(results["unit"], path_effects(*given.values()).unit)


def test_borrowed_for_the_call_only() -> None:
    given, results = inputs(), outputs()
    alive = [weakref.ref(tensor) for tensor in (*given.values(), *results.values())]
    borrowed = {name: OnlyDlpack(tensor) for name, tensor in (given | results).items()}
    call(**borrowed)
    given["x"] = torch.zeros(1)
    with pytest.raises(ValueError, match="x: expected 4 dimensions"):
        call(**{**borrowed, "x": OnlyDlpack(given["x"])})
    given.clear(), results.clear(), borrowed.clear()
    gc.collect()
    assert [reference() for reference in alive] == [None] * len(alive)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["x", "weight", "pre", "grad", "edge", "unit"])
def test_the_extension_checks_for_itself(name: str, wrapped: bool) -> None:
    good = inputs() | outputs()
    bad: dict[str, Any] = {
        "expected dtype": good[name].int(),
        "dimensions": good[name][None],
        "shape": torch.cat([good[name], good[name]], 1),
        "got list": [1.0],
        "got NoneType": None,
    }
    if name in ("weight", "edge", "unit"):
        bad["contiguous"] = torch.cat([good[name], good[name]], -1)[..., ::2]
    if name == "grad":
        del bad["got NoneType"]
    for part, value in bad.items():
        if wrapped and isinstance(value, Tensor):
            value = OnlyDlpack(value)
        # A wrong x shows where the weight does not fit it.
        at_fault = "weight" if name == "x" and part == "shape" else name
        with pytest.raises(ValueError, match=rf"^{at_fault}: .*{part}"):
            call(**{**good, name: value})


def test_a_used_capsule_is_refused() -> None:
    class Used(OnlyDlpack):
        def __dlpack__(self) -> object:
            capsule = super().__dlpack__()
            torch.utils.dlpack.from_dlpack(capsule)
            return capsule

    good = inputs() | outputs()
    with pytest.raises(ValueError, match="pre: expected an unused DLPack capsule"):
        call(**{**good, "pre": Used(good["pre"])})


def test_an_error_in_dlpack_is_passed_on() -> None:
    class Refuses:
        def __dlpack__(self) -> object:
            raise BufferError("not today")

    with pytest.raises(BufferError, match="not today"):
        call(**{**inputs(), **outputs(), "pre": Refuses()})


def test_the_isa_argument() -> None:
    given = inputs()
    for isa in _native.available_isas():
        results = outputs()
        call(**given, **results, isa=isa)
        wanted = path_effects(*given.values()).edge
        torch.testing.assert_close(results["edge"], wanted, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=r"isa: expected one of scalar.*'sse9'"):
        call(**given, **outputs(), isa="sse9")


# ---- the interpreter's lock ----------------------------------------------------------------------


@pytest.fixture
def no_forced_switches() -> Iterator[None]:
    """Threads pass the interpreter's lock on only where they give it up themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


def test_other_python_threads_run_during_a_call(no_forced_switches: None) -> None:
    random = torch.Generator().manual_seed(5)
    tensors = {
        "x": torch.randn(2, 32, 34, 34, generator=random),
        "weight": torch.randn(64, 32, 3, 3, generator=random),
        "pre": torch.randn(2, 64, 32, 32, generator=random),
        "edge": torch.zeros(64, 32, 4, dtype=torch.float64),
        "unit": torch.zeros(2, 32, dtype=torch.float64),
    }
    grad = torch.ones_like(tensors["pre"])

    def first_to_run() -> str:
        order: list[str] = []
        inside = threading.Lock()
        inside.acquire()

        class LastArgument:
            def __dlpack__(self) -> object:
                capsule = grad.__dlpack__()
                inside.release()
                return capsule

        def work() -> None:
            call(**tensors, grad=LastArgument())
            order.append("the end of the call")

        worker = threading.Thread(target=work)
        worker.start()
        # From here this thread runs again only when the call lets go of the interpreter.
        inside.acquire()
        order.append("another thread")
        worker.join()
        assert len(order) == 2
        return order[0]

    # The call might be over before the system gives this thread a processor; not every time.
    assert any(first_to_run() == "another thread" for _ in range(50))


# ---- the file ------------------------------------------------------------------------------------

LIBRARIES_AFTER_A_CALL = """
import torch
from causalprune.ops import path_effects

torch.set_num_threads(2)
torch.ones(400, 400) @ torch.ones(400, 400)
x, weight = torch.ones(4, 32, 16, 16), torch.ones(32, 32, 3, 3)
path_effects(x, weight, torch.nn.functional.conv2d(x, weight))
with open("/proc/self/maps") as maps:
    files = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") > 0}
print("\\n".join(sorted(files)))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc/self/maps")
@pytest.mark.skipif(not _native.with_openmp, reason="built without OpenMP")
def test_one_openmp_runtime() -> None:
    # A fresh process: other tests may have loaded libraries that bring their own.
    run = subprocess.run(
        [sys.executable, "-c", LIBRARIES_AFTER_A_CALL], capture_output=True, text=True, check=True
    )
    names = [Path(line).name for line in run.stdout.splitlines()]
    assert any(name.startswith("_core.") for name in names)
    assert len([name for name in names if re.match(r"lib[gi]?omp", name)]) == 1


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
@pytest.mark.skipif(sys.platform != "linux", reason="needs an ELF extension")
def test_links_neither_torch_nor_python() -> None:
    run = subprocess.run(
        ["readelf", "--dynamic", "--wide", _core.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run.stdout)
    assert any(name.startswith("libstdc++") or name.startswith("libc++") for name in needed)
    assert [name for name in needed if re.search("torch|c10|python|cuda", name)] == []
