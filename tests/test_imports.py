"""What a fresh process imports: whoever only verifies does not wait for libraries of training, plotting or data sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server import environment

from hf_watermark import Opening
from hf_watermark.claims import Disclosure
from hf_watermark.serialization import canonical_json


TRAINING = (
    "accelerate", "datasets", "matplotlib", "pandas", "peft", "sklearn", "timm", "torchao", "torchvision", "transformers",
)  # fmt: skip
# What a command that only prints text needs neither (typer itself takes pydantic).
NUMBERS = ("torch", "numpy", "scipy", "huggingface_hub", "httpx", *TRAINING)
REPORT = """
import atexit, sys
atexit.register(lambda: print("\\nimported:", *[name for name in {names!r} if name in sys.modules]))
"""


def imported(code: str, names: tuple[str, ...], status: int = 0, **variables: str) -> list[str]:
    """Which of these modules a fresh process has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(names=names) + code],
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    assert done.returncode == status, done.stdout + done.stderr
    begun = done.stderr.splitlines()  # slow commands say what they begin
    assert len(begun) <= 1 and all(line.endswith(" ...") for line in begun), done.stderr
    return done.stdout.rpartition("imported:")[2].split()


def command(*arguments: object) -> str:
    """The console script with these arguments."""
    given = ["hf-watermark", *map(str, arguments)]
    return f"sys.argv = {given!r}\nfrom hf_watermark.cli.main import main\nmain()\n"


@pytest.fixture(scope="module")
def greedy_key(marked_by, tmp_path_factory) -> Path:
    """The key folder of a marked model, without a passphrase."""
    folder = tmp_path_factory.mktemp("keys") / "greedy"
    with pytest.warns(UserWarning, match="without a passphrase"):
        marked_by("greedy_residuals").key.save(folder)
    return folder


def test_the_package():
    assert imported("import hf_watermark", (*NUMBERS, "typer", "rich", "pydantic", "cryptography")) == []


@pytest.mark.parametrize("arguments", [("methods",), ("methods", "--json"), ("--version",)])
def test_commands_that_print_a_table(arguments):
    assert imported(command(*arguments), NUMBERS) == []


def test_every_help():
    code = """
from typer.main import get_command
from typer.testing import CliRunner
from hf_watermark.cli.main import app

def paths(group, path=()):
    yield path
    for name, inner in getattr(group, "commands", {}).items():
        yield from paths(inner, (*path, name))

known = list(paths(get_command(app)))
assert len(known) > 25, known
for path in known:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, (path, result.output)
    heavy = [name for name in NAMES if name in sys.modules]
    assert not heavy, (path, heavy)
"""
    assert imported(code.replace("NAMES", repr(NUMBERS)), NUMBERS) == []


def test_bad_usage():
    assert (
        imported(
            f"sys.stderr = sys.stdout\n{command('verify', 'x', '--key', 'a', '--opening', 'b')}", NUMBERS, status=2
        )
        == []
    )


def test_verify_a_folder(marked_by, greedy_key):
    folder = marked_by("greedy_residuals").output
    assert imported(command("verify", folder, "--key", greedy_key, "--json"), TRAINING) == []


def test_verify_a_file_in_python(marked_by, greedy_key):
    file = marked_by("greedy_residuals").output / "model.safetensors"
    code = f"""
from hf_watermark import WatermarkKey, verify
assert verify({str(file)!r}, WatermarkKey.load({str(greedy_key)!r})).found
"""
    assert imported(code, TRAINING) == []


def test_verify_with_an_opening(marked_by, tmp_path):
    marked = marked_by("greedy_residuals")
    Opening.of(marked.key, 1).save(tmp_path / "opening.json")
    assert imported(command("verify", marked.output, "--opening", tmp_path / "opening.json"), TRAINING) == []


def test_verify_a_repository(marked_by, greedy_key, hub, tmp_path):
    hub.add_folder("you/renamed", marked_by("greedy_residuals").output)
    variables = environment(hub.url, tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
    assert imported(command("verify", "you/renamed", "--key", greedy_key), TRAINING, **variables) == []
    assert any(request.range for request in hub.requests)


def test_inspect(marked_by, tmp_path):
    marked = marked_by("watermas")
    with pytest.warns(UserWarning, match="without a passphrase"):
        marked.key.save(tmp_path / "key")
    assert imported(command("inspect", marked.output, "--key", tmp_path / "key"), TRAINING) == []


def test_judge_on_an_opening(dated, tmp_path):
    disclosure = Disclosure.make(dated.shop.key, dated.shop.owner, 1, "court-4711")
    (tmp_path / "opening.json").write_bytes(canonical_json(disclosure.to_dict()))
    # The process that reads the files, and the one that starts it.
    code = f"""
from pathlib import Path
from hf_watermark.cli.judge import judge_files
arguments = dict.fromkeys(["trust", "unmarked"], [])
arguments |= dict.fromkeys(["beacon", "owner_key", "suspect_date", "start", "log"])
arguments |= {{"opening": Path({str(tmp_path / "opening.json")!r}), "suspect": {str(dated.folder)!r}, "statement": {str(dated.folder)!r}}}
transcript = judge_files(**arguments, nonce="court-4711", drawn=True, looks=1, revocation=[])
assert transcript["verdict"] == "mark found", transcript["reason"]
"""
    assert imported(code, TRAINING) == []
    files = ("--opening", tmp_path / "opening.json", "--suspect", dated.folder, "--statement", dated.folder)
    assert imported(command("judge", *files, "--nonce", "court-4711", "--drawn"), NUMBERS) == []


def test_verifiers_know_no_trainer():
    code = """
from hf_watermark.mapping import METHODS, AutoVerifier
for method in METHODS:
    AutoVerifier.for_method(method)
    heavy = [name for name in NAMES if name in sys.modules]
    assert not heavy, (method, heavy)
"""
    assert imported(code.replace("NAMES", repr(TRAINING)), TRAINING) == []


@pytest.mark.slow
def test_wrappers_are_known_without_being_imported_and_torch_says_nothing_of_torchao():
    code = """
from hf_watermark.backbones.allowed import allowed_config
from hf_watermark.backbones.wrappers import WRAPPERS
for name in WRAPPERS:
    record = {"model_type": name, "backbone": {"model_type": "vit"}}
    assert allowed_config(record, "").model_type == name
"""
    assert "transformers" in imported(code, TRAINING)
