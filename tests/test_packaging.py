"""What the installed package must hold, and that its stub tells the truth about the extension."""

from __future__ import annotations

import ast
import re
from importlib import resources

import pytest

import causalprune
from causalprune import _core, _native

CUDA_ONLY = {
    "channel_conv2d_cuda",
    "channel_update_cuda",
    "cuda_status",
    "histogram_information_cuda",
    "histogram_information_cuda_workspace",
    "path_effects_cuda",
    "path_effects_cuda_workspace",
    "relative_sensitivity_cuda",
    "relative_sensitivity_cuda_workspace",
    "sparse_conv2d_cuda",
}


def stub() -> ast.Module:
    return ast.parse(resources.files("causalprune").joinpath("_core.pyi").read_text())


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi", "reports/templates/report.html"])
def test_package_data_is_installed(name: str) -> None:
    assert resources.files("causalprune").joinpath(name).is_file()


def test_the_stub_names_what_the_extension_has() -> None:
    declared = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.name
        for node in stub().body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign))
    }
    expected = declared if _native.with_cuda else declared - CUDA_ONLY
    assert {name for name in dir(_core) if not name.startswith("_")} == expected


def test_the_stub_has_the_extensions_arguments() -> None:
    for node in stub().body:
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                assert isinstance(method, ast.FunctionDef)
                _same_arguments(method, getattr(getattr(_core, node.name), method.name))
        elif isinstance(node, ast.FunctionDef) and hasattr(_core, node.name):
            _same_arguments(node, getattr(_core, node.name))


def _same_arguments(node: ast.FunctionDef, found: object) -> None:
    if node.decorator_list:
        assert isinstance(found, property), node.name
        return
    signature = str(found.__doc__).splitlines()[0]
    documented = re.findall(r"(\w+): ", signature)
    assert documented == [argument.arg for argument in node.args.args], node.name


def test_versions_agree() -> None:
    assert causalprune.__version__ == _native.version
