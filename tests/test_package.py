"""The package about itself: names that load on first use, its version, and the layout that `hf extensions` asks for."""

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import hf_watermark
from hf_watermark.package import on_first_use


ROOT = Path(hf_watermark.__file__).parent
CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
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


def test_the_version_stands_in_one_place_and_the_others_agree():
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    latest = re.search(r"^## (\S+)", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert latest is not None and latest[1] == citation["version"] == hf_watermark.__version__
    assert citation["license"] == PROJECT["license"]


def test_hf_takes_the_repository_for_an_extension():
    """`hf extensions install OWNER/hf-NAME` installs the repository and needs a console script `hf-NAME` of it (`make package` runs that script)."""
    assert PROJECT["name"] == "hf-watermark" and PROJECT["name"] in PROJECT["scripts"]
    # A file of this name at the top would be downloaded alone, and run instead of the package.
    assert not (CHECKOUT / PROJECT["name"]).exists()


def test_types_are_announced():
    assert (ROOT / "py.typed").is_file() and "Typing :: Typed" in PROJECT["classifiers"]
