"""The house: which room may import which, what stays lazy, and what must be documented."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "causalprune"
SOURCE = REPOSITORY / "csrc"

# Imports run downwards only. Rooms of one floor do not import each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("reports",),
    ("analysis",),
    ("experiments",),
    ("pruning",),
    ("measures",),
    ("scoring", "nn"),
    ("graph",),
    ("ops",),
    ("reference", "_native"),
    ("errors", "files"),
)
FLOOR = {room: len(FLOORS) - k for k, rooms in enumerate(FLOORS) for room in rooms}
RECORD_READERS = ("analysis", "reports")  # they never touch torch
# Imported by the functions that use them, so that causalprune installs and starts without them.
OPTIONAL = {
    "captum",
    "cpuinfo",
    "dowhy",
    "econml",
    "jinja2",
    "matplotlib",
    "networkx",
    "psutil",
    "pygraphviz",
    "pynvml",
    "ray",
    "sklearn",
    "statsmodels",
    "torchvision",
}
MAY_INCLUDE = {
    "common": {"common"},
    "kernels": {"kernels", "common"},
    "cpu": {"cpu", "kernels", "common"},
    "cuda": {"cuda", "kernels", "common"},
    "bindings": {"bindings", "cuda", "kernels", "common"},
}


# ---- reading the imports -------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    target: str  # dotted name of the module
    line: int
    at_import: bool  # runs when the module is imported: in no function, not for type checkers only


def module_name(path: Path) -> str:
    parts = ("causalprune", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a module of this package; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def is_type_checking(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(
    node: ast.AST, at_import: bool = True
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        elif isinstance(child, ast.If) and is_type_checking(child):
            for part in child.body:
                yield from import_nodes(ast.Module([part], []), False)
            for part in child.orelse:
                yield from import_nodes(ast.Module([part], []), at_import)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from import_nodes(child, at_import and not in_function)


def targets(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    # `from package import module` imports that module, other names only the package.
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else base for name in names]


def is_module(name: str) -> bool:
    return name in MODULES or name == "causalprune._core"


def imports_in(text: str, package: str) -> tuple[Import, ...]:
    return tuple(
        Import(target, node.lineno, at_import)
        for node, at_import in import_nodes(ast.parse(text))
        for target in targets(node, package)
    )


@functools.cache
def imports_of(module: str) -> tuple[Import, ...]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imports_in(path.read_text(encoding="utf-8"), package)


def own(target: str) -> bool:
    return target == "causalprune" or target.startswith("causalprune.")


def where(module: str, found: Import) -> str:
    return f"{MODULES[module].relative_to(PACKAGE.parent)}:{found.line} imports {found.target}"


def test_the_reader_of_imports_sees_them_all() -> None:
    text = """
import torch.nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas
else:
    import numpy
try:
    from causalprune import _native, _core
except ImportError:
    pass
class A:
    import json
    def f(self):
        from causalprune.scoring import score
        if True:
            import dowhy
from . import capture
from ..errors import DataError
"""
    found = {(each.target, each.at_import) for each in imports_in(text, "causalprune.graph")}
    assert found == {
        ("torch.nn", True),
        ("typing", True),
        ("pandas", False),
        ("numpy", True),
        ("causalprune._native", True),
        ("causalprune._core", True),
        ("json", True),
        ("causalprune.scoring", False),
        ("dowhy", False),
        ("causalprune.graph.capture", True),
        ("causalprune.errors", True),
    }


# ---- Python --------------------------------------------------------------------------------------


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} - {""} <= FLOOR.keys()


def test_imports_run_one_way() -> None:
    wrong = [
        where(module, found)
        for module in MODULES
        if (room := room_of(module))
        for found in imports_of(module)
        if own(found.target)
        and found.target != "causalprune._core"
        and room != (other := room_of(found.target))
        and FLOOR.get(other, len(FLOORS)) >= FLOOR[room]
    ]
    assert wrong == []


def test_native_alone_imports_the_extension() -> None:
    importers = {
        module
        for module in MODULES
        for found in imports_of(module)
        if found.target.startswith("causalprune._core")
    }
    assert importers == {"causalprune._native"}


def test_the_package_itself_imports_nothing_but_the_standard_library() -> None:
    eager = {found.target for found in imports_of("causalprune") if found.at_import}
    assert {target.partition(".")[0] for target in eager} <= sys.stdlib_module_names


def test_optional_packages_are_imported_where_they_are_used() -> None:
    wrong = [
        where(module, found)
        for module in MODULES
        for found in imports_of(module)
        if found.at_import and found.target.partition(".")[0] in OPTIONAL
    ]
    assert wrong == []


def loaded_with(module: str) -> set[str]:
    """The modules of this package that importing one of them imports."""
    loaded: set[str] = set()
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each in loaded or each not in MODULES:
            continue
        loaded.add(each)
        waiting.append(each.rpartition(".")[0])
        waiting += [found.target for found in imports_of(each) if found.at_import]
    return loaded


def test_readers_of_records_never_touch_torch() -> None:
    readers = [module for module in MODULES if room_of(module) in RECORD_READERS]
    wrong = []
    for module in readers:
        for found in imports_of(module):
            # Also what their functions import, and all that comes with it.
            behind = {
                other.target
                for each in loaded_with(found.target)
                for other in imports_of(each)
                if other.at_import
            }
            if any(target.partition(".")[0] == "torch" for target in {found.target, *behind}):
                wrong.append(where(module, found))
    assert readers and wrong == []


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_readers_of_records_import_without_torch() -> None:
    modules = [module for module in MODULES if room_of(module) in RECORD_READERS]
    run_python(
        f"""
import importlib, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "_core"):
            raise ImportError("torch is not here")

sys.meta_path.insert(0, NoTorch())
for module in {modules!r}:
    importlib.import_module(module)
import causalprune
causalprune.analyze, causalprune.report
"""
    )


def test_importing_the_package_stays_light() -> None:
    rooms = [module for module in MODULES if module.count(".") <= 1]
    # torch looks for pynvml itself.
    optional = OPTIONAL - {"pynvml"}
    for modules, absent in ((["causalprune"], OPTIONAL | {"torch", "pandas"}), (rooms, optional)):
        loaded = run_python(f"import sys, {', '.join(modules)}\nprint(*sys.modules, sep='\\n')")
        assert absent & set(loaded.split()) == set()


# ---- C++ -----------------------------------------------------------------------------------------

needs_source = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the source tree")


def includes() -> Iterator[tuple[Path, str, str]]:
    """File, the mark behind #include, and what is included."""
    for path in sorted(SOURCE.rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        for mark, name in re.findall(r'^\s*#\s*include\s*([<"])([^">]+)[">]', text, re.MULTILINE):
            yield path.relative_to(SOURCE), mark, name


@needs_source
def test_cpp_rooms_include_one_way() -> None:
    found = list(includes())
    assert {path.parts[0] for path, _, _ in found} <= MAY_INCLUDE.keys()
    wrong = [
        f"{path} includes {name}"
        for path, mark, name in found
        if mark == '"' and Path(name).parts[0] not in MAY_INCLUDE[path.parts[0]]
    ]
    assert wrong == []
    assert all((SOURCE / name).is_file() for _, mark, name in found if mark == '"')


@needs_source
def test_bindings_alone_know_python() -> None:
    knowing = {
        path.parts[0] for path, _, name in includes() if re.match(r"pybind11|Python\.h", name)
    }
    assert knowing == {"bindings"}


# ---- what is public ------------------------------------------------------------------------------


def public_names() -> list[tuple[str, str]]:
    found = []
    for room in ("", *FLOOR):
        module = f"causalprune.{room}".rstrip(".")
        if module not in MODULES or room == "_native":
            continue
        names = getattr(importlib.import_module(module), "__all__", None)
        assert names is not None, f"{module} has no __all__"
        found += [(module, name) for name in names if name != "__version__"]
    return found


def test_everything_public_is_documented() -> None:
    undocumented = []
    for module, name in public_names():
        value = getattr(importlib.import_module(module), name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        text = (value.__doc__ or "").strip()
        # A dataclass without a docstring gets its signature for one.
        if not text or text.startswith(f"{value.__name__}("):
            undocumented.append(f"{module}.{name}")
    assert undocumented == []
