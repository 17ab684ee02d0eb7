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
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

import hf_watermark
from hf_watermark.cli.main import app


ROOT = Path(__file__).parents[1]
GUIDES = ("*.md", "hf_watermark/**/*.md", "examples/**/*.md", "model_cards/*.md")
LINK = re.compile(r"(\]\(|\bsrc=\")([^)\"#:\s]+)")
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


def folder_page(name: str, folder: Path) -> str:
    inside = "\n".join(f"* `{path.name}`" for path in sorted(folder.iterdir()) if path.is_file())
    return f"# `{name}`\n\nA folder of the repository, with\n\n{inside}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    guides = {path.relative_to(ROOT).as_posix(): path for pattern in GUIDES for path in sorted(ROOT.glob(pattern))}
    links = {(path.parent / link).resolve() for path in guides.values() for _, link in LINK.findall(path.read_text())}
    linked = {path.relative_to(ROOT).as_posix(): path for path in links if path.is_relative_to(ROOT)}
    made = dict(api_pages()) | {"commands.md": commands()}
    for name, path in (linked | guides).items():
        if path.is_file():
            files.append(File.generated(config, name, abs_src_path=str(path)))
        elif path.is_dir() and f"{name}/README.md" not in guides:
            made[f"{name}/README.md"] = folder_page(name, path)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    config.nav = [
        "README.md",
        {"Guides": [name for name in guides if "/" in name]},
        {"Public names": [name for name in made if name.startswith("api/")]},
        "commands.md",
        {"The project": [name for name in guides if "/" not in name and name != "README.md"]},
    ]
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """A link to a folder leads to the folder's page."""
    here = (ROOT / page.file.src_uri).parent

    def to_page(found: re.Match[str]) -> str:
        return f"{found[0].rstrip('/')}/README.md" if (here / found[2]).is_dir() else found[0]

    return LINK.sub(to_page, markdown)


class References(griffe.Extension):
    """Docstrings as transformers writes them, for a parser that knows Google's: [`Owner`], ``owner ([`Owner`], *optional*):``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


KNOWN = {path.rpartition(".")[-1]: path for names in rooms().values() for path in names}


def readable(docstring: str) -> str:
    for pattern, replacement in (
        # Two names that share a line.
        (r"^    (\w+), (\w+)( \(.*?\))?:(.*)$", r"    \1\3: See `\2`.\n    \2\3:\4"),
        # Types and defaults of arguments are those of the signature; what is returned or raised is a plain name.
        (r"^    (\w+) \(.*\):$", r"    \1:"),
        (r"^    \[?`~?(?:\w+\.)*(\w+)`\]?: ", r"    \1: "),
        (r"^Example:$", "**Example:**"),
    ):
        docstring = re.sub(pattern, replacement, docstring, flags=re.MULTILINE)
    return re.sub(r"\[`~?([\w.]+)`\]", _reference, docstring)


def _reference(found: re.Match[str]) -> str:
    *_, owner, name = ["", *found[1].split(".")]
    if name in KNOWN:
        return f"[`{name}`][{KNOWN[name]}]"
    return f"[`{owner}.{name}`][{KNOWN[owner]}.{name}]" if owner in KNOWN else f"`{name}`"
