"""The segmentation script on tiny scenes; nothing is downloaded."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PIL
from transformers import EvalPrediction, MobileViTConfig
from typer.testing import CliRunner

from hf_watermark import WatermarkKey, suspects, verify
from hf_watermark.cli.main import app


SCRIPT = str(Path(__file__).parents[2] / "examples" / "train_semantic_segmentation.py")
COMMON = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
COMMON += ["--image_size", "32", "48", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2"]
COMMON += ["--mask_column", "mask", "--ignore_label", "7"]


def scene(generator: np.random.Generator) -> tuple[PIL.Image, PIL.Image]:
    """Dark sky of class 0 above two coloured fields of classes 1 and 2; unlabelled (7) at the border."""
    rows, columns = np.mgrid[:40, :60]
    mask = np.where(columns < generator.integers(15, 45), 1, 2) * (rows >= 12)
    pixels = generator.integers(0, 40, (40, 60, 3))
    pixels[mask == 1, 1] += 200
    pixels[mask == 2, 2] += 200
    mask[:, :2] = 7
    return PIL.fromarray(pixels.astype(np.uint8)), PIL.fromarray(mask.astype(np.uint8))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 8)):
        images, masks = zip(*(scene(generator) for _ in range(count)), strict=True)
        rows = {"image": list(images), "mask": list(masks)}
        table = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def mobilevit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    MobileViTConfig(
        hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 16, 24, 32, 40, 48], aspp_out_channels=16, output_stride=16
    ).save_pretrained(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    runpy.run_path(SCRIPT, run_name="__main__")


def test_both_white_box_methods_mark_a_segmentation_model(tmp_path, scenes, mobilevit, monkeypatch, capsys):
    run(
        monkeypatch,
        *["--config_name", str(mobilevit), "--dataset", str(scenes), "--output_dir", str(tmp_path / "model")],
        *["--methods", "watermas", "greedy_residuals", "--watermas_bits", "128", "--watermas_payload", "licence 1"],
        *["--watermas_repetition", "2", "--greedy_residuals_bits", "128", "--greedy_residuals_group_size", "16"],
        *["--greedy_residuals_strength", "1.0", "--greedy_residuals_subkeys", "2", "--max_steps", "30", *COMMON],
    )
    printed = capsys.readouterr().out
    assert "mark found (self-check) [combined]" in printed
    [reached] = re.findall(r"eval_mean_iou\s+=\s+([\d.]+)", printed)
    assert 0 < float(reached) <= 1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["MobileViTForSemanticSegmentation"] and len(config["id2label"]) == 3

    key = WatermarkKey.load(tmp_path / "model-key")
    assert key.backbone["architectures"] == ["MobileViTForSemanticSegmentation"]
    evidence = verify(tmp_path / "model", key)
    by_method = {part.method: part for part in evidence.parts}
    assert by_method["watermas"].matches == 128 and by_method["greedy_residuals"].level in ("B", "N")
    module = suspects.Suspect.open(tmp_path / "model", key.backbone).module()
    assert type(module).__name__ == "MobileViTForSemanticSegmentation"


def test_the_payload_is_printed(tmp_path, scenes, mobilevit, monkeypatch):
    run(
        monkeypatch,
        *["--config_name", str(mobilevit), "--dataset", str(scenes), "--output_dir", str(tmp_path / "model")],
        *["--watermas_bits", "128", "--watermas_payload", "licence 1", "--watermas_repetition", "2"],
        *["--max_steps", "1", "--watermas_switch_in", "0", *COMMON],
    )
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "model"), "--key", str(tmp_path / "model-key")])
    assert "payload: b'licence 1', as committed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "function_coupled"], "'function_coupled' is none of greedy_residuals, watermas"),
        (["--mask_column", "masks"], "no column 'masks'"),
    ],
)
def test_what_cannot_work_is_named(tmp_path, scenes, mobilevit, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(
            monkeypatch,
            *["--config_name", str(mobilevit), "--dataset", str(scenes), "--output_dir", str(tmp_path / "model")],
            *[*COMMON, *arguments],
        )


def test_scores_leave_unlabelled_pixels_and_absent_classes_out():
    script = runpy.run_path(SCRIPT)
    labels = np.array([[[0, 0, 1, 1], [0, 255, 1, 255]]])
    guess = np.array([[[0, 1, 1, 1], [0, 2, 1, 0]]])
    found = script["scores"](EvalPrediction(guess, labels), classes=4)
    assert found["pixel_accuracy"] == pytest.approx(5 / 6)
    assert found["mean_iou"] == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_logits_become_classes_at_the_size_of_the_labels():
    script = runpy.run_path(SCRIPT)
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, :, 0], logits[0, 2, :, 1] = 1, 1
    guess = script["to_classes"](logits, torch.zeros(1, 4, 4))
    assert guess.tolist() == [[[1, 1, 2, 2]] * 4]
