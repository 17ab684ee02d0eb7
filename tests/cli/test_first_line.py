"""A slow command says what it began before anything slow happens, on stderr; stdout stays what was asked for."""

import json
import subprocess
import sys

import pytest

from hf_watermark.evaluation.matrix.config import read_config


# Ends the command where it imports torch, which takes longer than all that comes before.
STOPPED = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("IMPORTS TORCH", file=sys.stderr)
            sys.exit(0)
sys.meta_path.insert(0, Stop())
from hf_watermark.cli.main import main
main()
"""
COMMANDS = {
    "verify": ("verify suspect --key keys", "Checking suspect ..."),
    "inspect": ("inspect suspect --key keys", "Reading suspect ..."),
    "survival": ("survival mine --key keys", "Attacking copies of mine ..."),
    "attack": ("attack int8_quantize mine --output out", "Attacking a copy of mine ..."),
    "benchmark": ("benchmark config.yaml --output runs", "Reading config.yaml ..."),
    "calibrate": ("calibrate --output table.json", "Trying keys on models without a mark ..."),
    "plan": ("plan --method greedy_residuals --rate 0.9 --backbone tiny_resnet", "Planning ..."),
    "quickstart": ("quickstart --output out", "Marking, attacking and verifying a small model in out ..."),
    "publish": ("publish mine --repo-id me/model --key keys", "Reading mine ..."),
    "certify": ("certify mine --key keys", "Certifying mine ..."),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_line_comes_before_torch(command, tmp_path):
    words, first = COMMANDS[command]
    (tmp_path / "config.yaml").write_text("name: x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "" and done.stderr.splitlines() == [first, "IMPORTS TORCH"], done.stderr


def test_verify_as_somebody_types_it_says_one_line_and_nothing_of_other_libraries(shop):
    words = ["verify", str(shop / "marked"), "--key", str(shop / "keys" / "open"), "--json"]
    done = subprocess.run([sys.executable, "-m", "hf_watermark.cli.main", *words], capture_output=True, text=True)
    assert json.loads(done.stdout)["verdict"] == "mark found"
    assert done.stderr == f"Checking {shop / 'marked'} ...\n"


def test_an_attack_that_imports_torchao_and_peft_says_nothing_of_them(shop, tmp_path):
    words = ["attack", "lora", str(shop / "marked"), "--output", str(tmp_path / "out"), "--data", "digits"]
    options = ["--option", "learning_rate=0.001", "--option", "epochs=0.05"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_watermark.cli.main", *words, *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"Attacking a copy of {shop / 'marked'} ...\n"


def test_a_config_to_start_from(run, refused, tmp_path):
    template = tmp_path / "my.yaml"
    said = run("benchmark", "--init", template)
    assert said.exit_code == 0
    assert said.stdout == f"wrote {template}; now run: hf-watermark benchmark {template} --output runs/my_benchmark\n"
    config = read_config(template)
    assert config.attack_list(config.data["digits"], seed=0) and config.seeds == [0]
    assert sum(line.lstrip().startswith("#") for line in template.read_text().splitlines()) > 10
    assert "exists and is left as it is" in refused("benchmark", "--init", template)
    assert "leave out the config and --output" in refused("benchmark", template, "--init", tmp_path / "b.yaml")
    assert "give a config and --output DIR, or" in refused("benchmark", template)
    assert "give a config and --output DIR, or" in refused("benchmark")
