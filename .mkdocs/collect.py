"""
Collects the pages of the site: every guide that the repository holds, public names room by room, and the commands.

Guides keep their paths, so that a link which works on a code host works here. What else they link to is copied beside them.
"""

import re
from pathlib import Path
from typing import Any

import click
import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import hf_watermark
from hf_watermark.cli.main import app


ROOT = Path(__file__).parents[1]
GUIDES = ("*.md", "hf_watermark/**/*.md", "examples/*.md", "examples/benchmarks/*.md", "model_cards/*.md")
LINK = re.compile(r"(?:\]\(|\bsrc=\")([^)\"#:\s]+)")
PUBLIC = [name for name in hf_watermark.__all__ if not name.startswith("_")]


def bases() -> list[str]:
    """Classes of the package that public ones inherit from, where they are not public themselves."""
    classes = [item for name in PUBLIC if isinstance(item := getattr(hf_watermark, name), type)]
    found = {base for item in classes for base in item.__mro__ if base.__module__.startswith("hf_watermark.")}
    return sorted(f"{base.__module__}.{base.__name__}" for base in found if base.__name__ not in PUBLIC)


def rooms() -> dict[str, list[str]]:
    """Documented names by the room that holds them."""
    found: dict[str, list[str]] = {}
    for name in PUBLIC:
        room = hf_watermark._NAMES[name].removeprefix("methods.").partition(".")[0]
        found.setdefault(room, []).append(f"hf_watermark.{name}")
    return dict(sorted(found.items())) | {"base_classes": bases()}


def api_pages() -> list[tuple[str, str]]:
    listed, pages = [], []
    for room, names in rooms().items():
        links = ", ".join(f"[`{path.rpartition('.')[-1]}`][{path}]" for path in names)
        listed.append(f"* [{room}]({room}.md): {links}")
        blocks = "\n\n".join(f"::: {path}" for path in names)
        pages.append((f"api/{room}.md", f"# {room.replace('_', ' ').capitalize()}\n\n{blocks}\n"))
    return [("api/index.md", "# All names\n\n" + "\n".join(listed) + "\n"), *pages]


def commands() -> str:
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command), name="hf-watermark", title="Commands")
    # The examples behind the options are lines of a shell.
    return re.sub(r"^(hf-watermark .*)$", r"    \1", text, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    guides = {path.relative_to(ROOT).as_posix(): path for pattern in GUIDES for path in sorted(ROOT.glob(pattern))}
    links = [(path.parent / link).resolve() for path in guides.values() for link in LINK.findall(path.read_text())]
    linked = {
        path.relative_to(ROOT).as_posix(): path for path in links if path.is_file() and path.is_relative_to(ROOT)
    }
    for name, path in (linked | guides).items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    made = dict(api_pages()) | {"commands.md": commands()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    config.nav = [
        "README.md",
        {"Guides": [name for name in guides if "/" in name]},
        {"Public names": [name for name in made if "/" in name]},
        "commands.md",
        {"The project": [name for name in guides if "/" not in name and name != "README.md"]},
    ]
    return files


class References(griffe.Extension):
    """Docstrings as transformers writes them, for a parser that knows Google's: [`Owner`], ``owner ([`Owner`], *optional*):``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


KNOWN = {path.rpartition(".")[-1]: path for names in rooms().values() for path in names}


def readable(docstring: str) -> str:
    # Types and defaults of arguments are those of the signature; what is returned or raised is a plain name.
    docstring = re.sub(r"^(    \w+) \(.*\):$", r"\1:", docstring, flags=re.MULTILINE)
    docstring = re.sub(r"^    \[?`~?(?:\w+\.)*(\w+)`\]?: ", r"    \1: ", docstring, flags=re.MULTILINE)
    docstring = re.sub(r"^Example:$", "**Example:**", docstring, flags=re.MULTILINE)
    return re.sub(r"\[`~?([\w.]+)`\]", _reference, docstring)


def _reference(found: re.Match[str]) -> str:
    *_, owner, name = ["", *found[1].split(".")]
    if name in KNOWN:
        return f"[`{name}`][{KNOWN[name]}]"
    return f"[`{owner}.{name}`][{KNOWN[owner]}.{name}]" if owner in KNOWN else f"`{name}`"
