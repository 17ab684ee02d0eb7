"""The site of `make docs`: complete, from one host, and refused where a link is broken."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

import hf_watermark
from hf_watermark.cli.main import app


ROOT = Path(__file__).parents[1]
CONFIG = ROOT / ".mkdocs" / "mkdocs.yml"
TOOLS = ("mkdocs", "material", "mkdocstrings", "griffe")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, TOOLS)), reason="the site needs mkdocs: pip install 'hf-watermark[docs]'"
)
# What a page makes a browser fetch by itself; plain links may lead anywhere.
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\"")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = build(CONFIG, folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_public_name_has_its_place(site):
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    names = [name for name in hf_watermark.__all__ if name != "__version__"]
    assert [name for name in names if f'id="hf_watermark.{name}"' not in pages] == []


def test_every_command_has_its_place(site):
    page = (site / "commands.html").read_text()
    commands = get_command(app).commands
    below = [f"{name} {sub}" for name, one in commands.items() for sub in getattr(one, "commands", ())]
    assert [path for path in [*commands, *below] if f"<code>hf-watermark {path}</code>" not in page] == []


def test_every_guide_can_be_searched(site):
    found = {entry["location"] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}
    guides = [*ROOT.glob("*.md"), *ROOT.glob("hf_watermark/**/*.md"), *ROOT.glob("model_cards/*.md")]
    pages = [path.relative_to(ROOT).with_suffix(".html").as_posix().replace("README", "index") for path in guides]
    assert [page for page in pages if page not in found] == []


def test_nothing_is_fetched_from_another_host(site):
    fetched = {first or second for page in site.rglob("*.html") for first, second in FETCHED.findall(page.read_text())}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert any(address.endswith(".js") for address in fetched)
    assert [address for address in fetched if re.match(r"(https?:)?//", address)] == []
    assert re.findall(r"@import|url\(\"?(?:https?:)?//[^)]*\)", styles) == []


@pytest.mark.parametrize("link", ["no-such-page.md", "index.md#no-such-place", "../outside.md"])
def test_a_broken_link_ends_the_build(tmp_path, link):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# A page\n\n[a link]({link})\n")
    # The same demands on links, without what takes time.
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {CONFIG}\ndocs_dir: pages\nhooks: []\nplugins: []\nextra_css: []\n"
    )
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "Aborted with 1 warnings in strict mode" in built.stdout + built.stderr
