"""What the README files say: figures come from results files, commands and links exist, and the first page stays one page."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from hf_watermark.attacks import ATTACKS
from hf_watermark.cli.main import app


ROOT = Path(__file__).parents[2]
GUIDES = [
    ROOT / "README.md",
    *sorted((ROOT / "hf_watermark").rglob("README.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    ROOT / "model_cards" / "README.md",
]
METHODS = [path for path in GUIDES if path.parent.parent.name == "methods"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)
# A number with a unit is a measurement; settings stand in code.
MEASURED = re.compile(r"\d[\d.,]*\s*(?:%|×|points?\b|bits\b|seconds\b|minutes\b|ms\b|MB\b|GB\b)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def tables():
    """The script that writes the figures, with the folder of its neighbours on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "benchmarks")
        import tables

        yield tables


def test_every_figure_is_what_the_results_say(tables):
    differing = [name(path) for path, text in tables.made().items() if path.read_text() != text]
    assert not differing, "run `python examples/benchmarks/tables.py --write`"


def test_a_figure_that_was_changed_by_hand_is_noticed(tables):
    text = (ROOT / "README.md").read_text()
    block = GENERATED.search(text).group()
    digit = re.search(r"\d/\d", block).group()
    assert tables.with_blocks(text.replace(digit, "9/9")) == text


def test_every_table_is_on_the_page(tables):
    assert sorted(" ".join(tables.PARTS.values()).split()) == sorted(tables.SECTIONS)


def test_every_attack_belongs_to_a_family(tables):
    assert set(ATTACKS) <= set(tables.table_matrix.FAMILY)


def test_models_that_an_attack_ruined_are_not_counted(tables):
    matrix = tables.table_matrix
    ruined = [
        item for item in matrix.matrix()[1] if item.attack == "quantize_2bit" and item.method == "greedy_residuals"
    ]
    # The mark is found in it, and it is no merit.
    assert [item.removed for item in ruined] == [False] and not matrix.counted(ruined[0])
    counted = matrix.of_family("greedy_residuals", "quantisation")
    assert counted and not set(ruined) & set(counted)


@pytest.mark.parametrize("path", [ROOT / "README.md", *METHODS], ids=name)
def test_no_figure_is_typed(path):
    text = FENCE.sub("", GENERATED.sub("", path.read_text()))
    assert MEASURED.findall(text) == []


def test_the_first_page_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 400


def test_cells_of_the_first_table_are_short():
    block = GENERATED.search((ROOT / "README.md").read_text()).group()
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert max(len(cell.split()) for row in rows for cell in row.strip("|").split(" | ")) <= 8


def commands(text: str) -> Iterator[str]:
    """Every `hf-watermark ...` of a guide: lines of its blocks, continued ones as one, and what stands in code in its sentences."""
    for _, code in FENCE.findall(text):
        for line in code.replace("\\\n", " ").splitlines():
            if line.removeprefix("$ ").startswith("hf-watermark "):
                yield line.removeprefix("$ ")
    for code in re.findall(r"`(hf-watermark [^`]+)`", FENCE.sub("", text)):
        yield code


GIVEN = [(name(path), command) for path in GUIDES for command in dict.fromkeys(commands(path.read_text()))]


@pytest.mark.parametrize(("guide", "line"), GIVEN, ids=[f"{guide}: {line[:60]}" for guide, line in GIVEN])
def test_commands_of_the_guides_exist(guide, line):
    check_command(line)


def check_command(line: str) -> None:
    """Raises when a command or one of its options does not exist, or when an option lacks its value."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    parser = command.make_parser(command.context_class(command))
    parser.ignore_unknown_options = False
    parser.parse_args(words)


@pytest.mark.parametrize("line", ["hf-watermark fly", "hf-watermark verify x --fast", "hf-watermark verify x --key"])
def test_commands_that_do_not_exist_are_noticed(line):
    with pytest.raises(Exception, match="fly|--fast|--key"):
        check_command(line)


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if file.startswith(("http:", "https:")):
            continue
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if heading:
            assert heading in {anchor(line) for line in found.read_text().splitlines() if line.startswith("#")}, target


def anchor(line: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
