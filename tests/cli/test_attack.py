"""`hf-watermark attack`."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    ViTImageProcessor,
)

from hf_watermark.attacks import ATTACKS


FINETUNE = ["--option", "epochs=1", "--option", "batch_size=10"]


def picture(seed: int, size: int = 16) -> Picture.Image:
    return Picture.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def imagefolder(tmp_path):
    for row in range(20):
        folder = tmp_path / "images" / f"class{row % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(row).save(folder / f"{row}.png")
    return tmp_path / "images"


def write_parquet(path, rows, labels=10):
    features = Features({"image": Image(), "label": Value("int64")})
    table = {"image": [picture(row) for row in range(rows)], "label": [row % labels for row in range(rows)]}
    Dataset.from_dict(table, features=features).to_parquet(path)
    return path


@pytest.fixture
def model(shop, tmp_path):
    """A copy of the marked model that may be spoilt."""
    return shutil.copytree(shop / "marked", tmp_path / "model")


def test_weight_attack_with_options(run, shop, tmp_path):
    output = tmp_path / "noisy"
    options = ["--option", "relative_std=0.3", "--option", "seed=4"]
    result = run("attack", "weight_noise", shop / "marked", "--output", output, *options)
    assert result.exit_code == 0
    assert "WeightNoise(relative_std=0.3, seed=4)" in result.stdout
    original = AutoModelForImageClassification.from_pretrained(shop / "marked")
    expected = ATTACKS["weight_noise"](relative_std=0.3, seed=4)(original).state_dict()
    written = load_file(output / "model.safetensors")
    assert all(torch.equal(written[name], expected[name]) for name in written)


def test_options_get_the_type_of_their_field(run, shop, tmp_path):
    arguments = ["--option", "scope=layer", "--option", "amount=0.25", "--option", "progress=false"]
    result = run("attack", "magnitude_prune", shop / "marked", "--output", tmp_path / "pruned", *arguments)
    assert result.exit_code == 0
    assert "amount=0.25, scope='layer'" in result.stdout and "progress=False" in result.stdout


def test_finetune_on_an_imagefolder(run, shop, tmp_path, imagefolder):
    output = tmp_path / "tuned"
    result = run("attack", "finetune", shop / "marked", "--output", output, "--data", imagefolder, *FINETUNE)
    assert result.exit_code == 0, result.output
    before, after = (load_file(folder / "model.safetensors") for folder in (shop / "marked", output))
    assert not torch.equal(before["classifier.1.weight"], after["classifier.1.weight"])
    assert run("verify", output, "--key", shop / "keys" / "open").exit_code == 0


def test_finetune_on_parquet_with_the_preprocessor_of_the_model(run, model, tmp_path):
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(model)
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", 20)
    write_parquet(folder / "test-00000-of-00001.parquet", 5)
    output = tmp_path / "tuned"
    result = run("attack", "finetune", model, "--output", output, "--data", folder, *FINETUNE)
    assert result.exit_code == 0, result.output
    assert (output / "preprocessor_config.json").read_bytes() == (model / "preprocessor_config.json").read_bytes()


def test_images_are_resized_scaled_and_normalised(shop, model, tmp_path):
    from hf_watermark.cli.data import load_images

    source = str(write_parquet(tmp_path / "rows.parquet", 3))
    loaded = AutoModelForImageClassification.from_pretrained(shop / "marked")
    preprocessor = model / "preprocessor_config.json"
    grey = np.asarray(picture(0).convert("L"), dtype=np.float32) / 255
    plain = load_images(source, loaded, preprocessor, None, 10)
    assert len(plain) == 3 and plain[1]["labels"] == 1
    torch.testing.assert_close(plain[0]["pixel_values"], torch.tensor(grey)[None])
    assert load_images(source, loaded, preprocessor, 8, 10)[0]["pixel_values"].shape == (1, 8, 8)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.25]).save_pretrained(model)
    normalised = load_images(source, loaded, preprocessor, None, 10)[0]["pixel_values"]
    torch.testing.assert_close(normalised, (torch.tensor(grey)[None] - 0.5) / 0.25)
    assert load_images(source, loaded, preprocessor, 8, 10)[0]["pixel_values"].shape == (1, 8, 8)


def test_digits(run, refused, tiny, shop, tmp_path):
    output = tmp_path / "new-statistics"
    attack = ["attack", "reestimate_batchnorm", "--data", "digits", "--option", "batches=1"]
    result = run(*attack, shop / "marked", "--output", output)
    assert result.exit_code == 0, result.output
    before, after = (load_file(folder / "model.safetensors") for folder in (shop / "marked", output))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("running_" in name or "num_batches" in name for name in moved)
    tiny(num_channels=3).save_pretrained(tmp_path / "colour")
    message = refused(*attack, tmp_path / "colour", "--output", tmp_path / "out")
    assert "digits have 1 channel(s), the model takes 3" in message


def test_unknown_names_and_options(refused, shop, tmp_path):
    def attempt(name, *options):
        arguments = [item for option in options for item in ("--option", option)]
        return refused("attack", name, shop / "marked", "--output", tmp_path / "out", *arguments)

    message = attempt("magic")
    assert all(name in message for name in ATTACKS)
    assert "no option 'power': choose one of relative_std, seed" in attempt("weight_noise", "power=9")
    assert "'relative_std=much'" in attempt("weight_noise", "relative_std=much")
    assert "relative_std=-1.0 is not usable" in attempt("weight_noise", "relative_std=-1")
    assert "key=value" in attempt("weight_noise", "relative_std")
    assert "each key once" in attempt("weight_noise", "seed=1", "seed=2")
    assert "'scope=some'" in attempt("magnitude_prune", "scope=some")
    assert "give --data" in attempt("finetune")


def test_output_must_be_new(refused, run, shop, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    assert run("attack", "cast_dtype", shop / "marked", "--output", output).exit_code == 0
    assert "exists and is left as it is" in refused("attack", "cast_dtype", shop / "marked", "--output", output)
    file = tmp_path / "file"
    file.write_text("precious")
    assert "exists and is left as it is" in refused("attack", "cast_dtype", shop / "marked", "--output", file)


def test_models_that_cannot_be_read(refused, shop, model, tmp_path):
    def attempt(folder):
        return refused("attack", "cast_dtype", folder, "--output", tmp_path / "out")

    assert "no such folder; download the model first" in attempt("microsoft/resnet-18")
    tensors = load_file(model / "model.safetensors")
    tensors["classifier.1.bias"][0] = torch.nan
    save_file(tensors, model / "model.safetensors")
    assert "classifier.1.bias has NaN" in attempt(model)
    (model / "model.safetensors").write_bytes(b"\x10")
    assert "truncated" in attempt(model)
    (model / "model.safetensors").unlink()
    assert "holds a config.json, and no weights in safetensors" in attempt(model)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-type"}', '{"model_type": "bert"}'])
def test_unusable_config(refused, model, tmp_path, content):
    (model / "config.json").write_text(content)
    assert str(model) in refused("attack", "cast_dtype", model, "--output", tmp_path / "out")


def test_weights_must_fit_their_config(refused, model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    names = {"id2label": {str(i): str(i) for i in range(5)}, "label2id": {str(i): i for i in range(5)}}
    (model / "config.json").write_text(json.dumps(config | names))
    message = refused("attack", "cast_dtype", model, "--output", tmp_path / "out")
    assert "2 tensors that config.json asks for are missing or of another shape, first 'classifier.1.bias'" in message
    (model / "config.json").write_text(json.dumps(config | {"depths": [1, 2]}))
    message = refused("attack", "cast_dtype", model, "--output", tmp_path / "out")
    assert "are missing or of another shape" in message


def test_data_that_cannot_be_used(refused, shop, tmp_path):
    def attempt(data):
        return refused("attack", "finetune", shop / "marked", "--output", tmp_path / "out", "--data", data)

    assert "no such file or folder" in attempt(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "empty" in attempt(tmp_path / "empty")
    assert "no data" in attempt(write_parquet(tmp_path / "none.parquet", 0))
    assert "has the label 10, the model knows 0 to 9" in attempt(
        write_parquet(tmp_path / "many.parquet", 12, labels=12)
    )
    Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / "text.parquet")
    assert "columns text, label" in attempt(tmp_path / "text.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert "broken.parquet" in attempt(tmp_path / "broken.parquet")


def test_data_of_another_task_is_fine_where_the_attack_makes_new_labels(run, shop, tmp_path):
    data = write_parquet(tmp_path / "many.parquet", 24, labels=12)
    result = run("attack", "transfer", shop / "marked", "--output", tmp_path / "out", "--data", data, *FINETUNE)
    assert result.exit_code == 0, result.output
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").num_labels == 2


def test_a_segmentation_model_keeps_its_head(run, tmp_path):
    config = MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=4)
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    result = run("attack", "magnitude_prune", tmp_path / "model", "--output", tmp_path / "pruned")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["architectures"] == [
        "MobileNetV2ForSemanticSegmentation"
    ]


def test_a_filter_is_saved_as_a_model(run, shop, tmp_path, imagefolder):
    output = tmp_path / "served"
    options = ["--option", "transform=median", "--option", "amount=3"]
    result = run("attack", "preprocess_input", shop / "marked", "--output", output, "--data", imagefolder, *options)
    assert result.exit_code == 0, result.output
    served = AutoModelForImageClassification.from_pretrained(output)
    assert type(served).__name__ == "PreprocessedModelForImageClassification" and served.config.amount == 3
    assert run("verify", output, "--key", shop / "keys" / "open").exit_code == 0


def test_merging_takes_a_folder(run, refused, shop, tmp_path):
    base = tmp_path / "base"
    assert run("attack", "weight_noise", shop / "marked", "--output", base).exit_code == 0
    output = tmp_path / "merged"
    result = run("attack", "merge", shop / "marked", "--output", output, "--option", f"other={base}")
    assert result.exit_code == 0, result.output
    ours, theirs, merged = (load_file(folder / "model.safetensors") for folder in (shop / "marked", base, output))
    name = "classifier.1.weight"
    torch.testing.assert_close(merged[name], (ours[name] + theirs[name]) / 2)
    message = refused("attack", "merge", shop / "marked", "--output", tmp_path / "out")
    assert "other=None is not usable" in message


def test_labels_of_the_data_matter_only_to_attacks_that_read_them(run, refused, shop, tmp_path):
    many = write_parquet(tmp_path / "rows.parquet", 24, labels=12)
    attack = [shop / "marked", "--data", many, "--option", "epochs=1", "--option", "batch_size=8"]
    assert run("attack", "knockoff", *attack, "--output", tmp_path / "student").exit_code == 0
    assert "label" in refused("attack", "attention_distill", *attack, "--output", tmp_path / "out")


def test_data_sets_are_given_in_python(refused, shop, tmp_path, imagefolder):
    arguments = ["--data", imagefolder, "--output", tmp_path / "out", "--option", "images=folder"]
    assert "images='folder' is not usable" in refused("attack", "knockoff", shop / "marked", *arguments)
