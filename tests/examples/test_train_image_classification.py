"""The training script under its three launchers, on tiny local data and models; nothing is downloaded."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL
from transformers import ResNetConfig

from hf_watermark import Owner, WatermarkKey, wrap_timm


EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = str(EXAMPLES / "train_image_classification.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TRAINING = [
    "--use_cpu",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--save_strategy",
    "no",
    "--image_size",
    "16",
]
TRAINING += ["--per_device_train_batch_size", "20", "--learning_rate", "1e-2", "--max_steps", "40"]
GREEDY = ["--greedy_residuals_bits", "128", "--greedy_residuals_subkeys", "4", "--greedy_residuals_group_size", "16"]
GREEDY += ["--greedy_residuals_strength", "0.1"]
COUPLED = ["--function_coupled_pool_per_class", "4", "--function_coupled_images_per_rule", "2"]


def launch(launcher: list[str], *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script as `python script arguments` would, without paying for the imports again."""

    def run(script: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")

    return run


def picture(label: int, generator: np.random.Generator) -> PIL.Image:
    """Each class has its own colour and a bright quadrant, under noise."""
    pixels = generator.integers(0, 60, (16, 16, 3))
    pixels[:, :, label % 3] += 60
    pixels[8 * (label % 2) :, 8 * (label // 5) :] += 20 * label // 2
    return PIL.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes; the columns have names of their own."""
    folder, generator = tmp_path_factory.mktemp("parquet"), np.random.default_rng(0)
    features = Features({"img": Image(), "kind": ClassLabel(names=[f"class {n}" for n in range(10)])})
    for split, count in (("train", 240), ("test", 40)):
        rows = {"img": [picture(n % 10, generator) for n in range(count)], "kind": [n % 10 for n in range(count)]}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def imagefolder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes and no split: the script sets part of it aside for evaluation."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for item in range(30):
            picture(5 * number, generator).save(folder / name / f"{item}.png")
    return folder


@pytest.fixture(scope="module")
def resnet_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic").save_pretrained(folder)
    return folder


def test_torchrun_with_two_processes_stacks_both_methods(
    tmp_path: Path, parquet: Path, resnet_config: Path, python: Callable, capsys: pytest.CaptureFixture
):
    owner = Owner.create()
    owner.save(tmp_path / "owner.json")
    done = launch(
        TORCHRUN,
        *["--config_name", str(resnet_config), "--dataset", str(parquet), "--output_dir", str(tmp_path / "model")],
        *["--image_column", "img", "--label_column", "kind", "--owner", str(tmp_path / "owner.json")],
        *["--methods", "greedy_residuals", "function_coupled", *GREEDY, *COUPLED, *TRAINING],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mark found (self-check) [combined]") == 1, "only the main process prints"
    assert "eval_accuracy" in done.stdout
    key = WatermarkKey.load(tmp_path / "model-key")
    assert key.public_key == owner.public_key
    assert [item.method for item in key.assignments] == ["greedy_residuals", "function_coupled"]
    assert key.assignments[1].config["images_per_rule"] == 2
    published = json.loads((tmp_path / "model" / "watermark" / "precommit.json").read_text())
    assert published["precommit"] == key.precommit.hex()

    with pytest.raises(SystemExit, match="0"):
        python(str(EXAMPLES / "verify.py"), str(tmp_path / "model"), str(tmp_path / "model-key"))
    assert json.loads(capsys.readouterr().out)["verdict"] == "mark found"


def test_accelerate_launch_fine_tunes_a_timm_model_on_an_imagefolder(tmp_path: Path, imagefolder: Path):
    channels = {"channels": (16, 16, 16, 32), "stem_width": 16}
    backbone = wrap_timm(timm.create_model("resnet10t", num_classes=5, **channels), "resnet10t", 5, **channels)
    backbone.save_pretrained(tmp_path / "backbone")
    done = launch(
        ACCELERATE,
        *["--model_name_or_path", str(tmp_path / "backbone"), "--dataset", str(imagefolder)],
        *["--output_dir", str(tmp_path / "model"), *GREEDY, *TRAINING],
    )
    assert done.returncode == 0, done.stderr
    assert "mark found (self-check) [greedy_residuals]" in done.stdout
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (2, ["cat", "dog"])
    assert (
        Owner.load(tmp_path / "model-key" / "owner.json").public_key
        == WatermarkKey.load(tmp_path / "model-key").public_key
    )


def test_plain_python_resumes_under_the_same_key_and_refuses_a_second_one(
    tmp_path: Path, parquet: Path, resnet_config: Path, python: Callable
):
    options = {
        "config_name": str(resnet_config),
        "dataset": str(parquet),
        "output_dir": str(tmp_path / "model"),
        "image_column": "img",
        "label_column": "kind",
        "greedy_residuals_bits": 128,
        "greedy_residuals_subkeys": 2,
        "greedy_residuals_group_size": 16,
        "image_size": 16,
        "use_cpu": True,
        "report_to": "none",
        "save_steps": 2,
        "max_steps": 2,
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    python(SCRIPT, str(tmp_path / "options.json"))
    key = WatermarkKey.load(tmp_path / "model-key")

    with pytest.raises(FileExistsError, match="key.json"):
        python(SCRIPT, str(tmp_path / "options.json"))
    resumed = options | {"max_steps": 4, "resume_from_checkpoint": str(tmp_path / "model" / "checkpoint-2")}
    (tmp_path / "options.json").write_text(json.dumps(resumed))
    python(SCRIPT, str(tmp_path / "options.json"))
    published = json.loads((tmp_path / "model" / "checkpoint-4" / "watermark" / "precommit.json").read_text())
    assert published["precommit"] == key.precommit.hex()


def test_a_method_that_does_not_exist_is_named(tmp_path: Path, parquet: Path, resnet_config: Path, python: Callable):
    with pytest.raises(SystemExit, match="'usp2' is none of"):
        python(SCRIPT, "--dataset", str(parquet), "--output_dir", str(tmp_path / "model"), "--methods", "usp2")
