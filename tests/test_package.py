"""Packages whose names load on first use: the table says what type checkers read, and every name is there."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import hf_watermark
from hf_watermark.package import on_first_use


ROOT = Path(hf_watermark.__file__).parent
PACKAGES = sorted(path for path in ROOT.rglob("__init__.py") if "on_first_use" in path.read_text())


def named(path: Path) -> str:
    return ".".join(["hf_watermark", *path.parent.relative_to(ROOT).parts])


@pytest.mark.parametrize("path", PACKAGES, ids=named)
def test_a_package(path):
    package = import_module(named(path))
    [block] = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == package._NAMES
    assert dir(package) == sorted(typed)
    for name in package.__all__:
        assert getattr(package, name) is not None
    # A submodule of the same name would take the place of what the table says.
    assert not [name for name in typed if (path.parent / f"{name}.py").exists() or (path.parent / name).is_dir()]
    with pytest.raises(AttributeError, match=f"module '{named(path)}' has no attribute 'nobody'"):
        _ = package.nobody


def test_there_are_some():
    assert len(PACKAGES) > 8


def test_nothing_is_imported_before_it_is_asked_for():
    get, names = on_first_use("hf_watermark", {"VERSION": "package", "broken": "no_such_module"})
    assert get("VERSION") == hf_watermark.__version__ and names() == ["VERSION", "broken"]
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        get("broken")
