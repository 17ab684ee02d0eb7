"""What a benchmark's YAML may say, and what the errors say."""

import copy
from pathlib import Path

import pytest
from matrix_runs import TINY

from hf_watermark import InvalidInput
from hf_watermark.evaluation import parse_config, read_config
from hf_watermark.evaluation.matrix.backbones import build_backbone
from hf_watermark.evaluation.matrix.cells import AttackCell, attack_cells, model_cells
from hf_watermark.evaluation.matrix.config import BackboneSpec
from hf_watermark.evaluation.matrix.table import read_stored_config, store_config


EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmarks"


def test_the_shipped_digits_benchmark_covers_every_method():
    from hf_watermark.mapping import METHODS

    config = read_config(EXAMPLES / "matrix_digits.yaml")

    assert {method for named in config.methods.values() for method in named} == set(METHODS)
    assert any(len(named) > 1 for named in config.methods.values())
    models = model_cells(config)
    assert len(models) == 1 + len(config.methods) and models[0].method == "unmarked"
    assert {cell.model.data for cell in attack_cells(config)} == {"digits"}


def test_the_shipped_cifar10_benchmark_is_read():
    config = read_config(EXAMPLES / "matrix_cifar10.yaml", {"cifar10": "elsewhere"})

    assert config.data["cifar10"].folder == "elsewhere" and len(config.seeds) == 2
    labels = config.attack_list(config.data["cifar10"], seed=0)
    assert labels["finetune_lr_1x"][1] == 5_000 and labels["distill_soft_same"][1] == 10_000


def with_change(path: str, value):
    document = copy.deepcopy(TINY)
    place = document
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seeds", [], "seeds"),
        ("seeds", [1, 1], "a seed is listed twice"),
        ("seeds", ["one"], "seeds.0"),
        ("precision_of", {"usp": "fp32"}, "precision_of.usp: is no method of this config"),
        ("methods.greedy", {"greedy": {}}, "method 'greedy' does not exist"),
        ("methods.greedy", {"greedy_residuals": {"bits": 0}}, "`bits` is 0"),
        ("methods.greedy", {"greedy_residuals": {"bites": 1}}, "unknown field 'bites'"),
        ("methods.greedy", {}, "names no method"),
        ("methods.no/slash", {"greedy_residuals": {}}, "methods.no/slash"),
        ("backbones.tiny", {"preset": "tiny_resnet", "timm": "resnet18"}, "exactly one of"),
        ("data.patterns.source", "imagenet", "data.patterns.source"),
        ("data.patterns.folder", "somewhere", "give `folder` with the source parquet"),
        ("data.patterns.training.epochs", -1, "data.patterns.training.epochs"),
        ("attacks.0.battery", "navy", "there is no battery 'navy'"),
        ("attacks.0.only", ["finetune_lr_7x"], "no attack of 'standard' is called 'finetune_lr_7x'"),
        ("attacks.0.options", {"epoch": 3}, "epoch"),
        ("attacks.1.attacks", {"noise": {"name": "nois"}}, "`name` is 'nois'"),
        ("attacks.1.attacks", {"noise": {"name": "weight_noise", "relative_std": -1}}, "relative_std"),
        ("attacks.1.attacks", {"finetune_lr_1x": {"name": "weight_noise"}}, "used twice"),
        ("colour", "blue", "colour"),
    ],
)
def test_errors_name_the_field(path, value, message):
    with pytest.raises(InvalidInput) as caught:
        parse_config(with_change(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "NoneType"),
        (b"- a\n- b\n", "holds a list"),
        (b"name: [", "no readable YAML"),
        (b"name: \xff", "no readable YAML"),
        (b"name: a\nname: b\n", "line 2: 'name' appears twice"),
        (b"a: &x [1]\nb: *x\n", "line 2: aliases"),
        (b"a: !!python/object/apply:os.system ['true']\n", "no readable YAML"),
        (b"? [1, 2]\n: 3\n", "no readable YAML"),
        (b"a: 2020-99-99\n", "no readable YAML"),
        (b"[" * 5000, "no readable YAML"),
        (b"#" * 300_000, "larger than"),
    ],
)
def test_malformed_yaml_raises_one_exception(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)

    with pytest.raises(InvalidInput, match=str(path)) as caught:
        read_config(path)
    assert message in str(caught.value)


def test_a_missing_file_and_an_unknown_data_set_are_named(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be opened"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match="no data set 'mnist'"):
        read_config(EXAMPLES / "matrix_digits.yaml", {"mnist": "x"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"preset": "huge"}, "there is no preset 'huge'"),
        ({"transformers": {"model_type": "nonesuch"}}, "no known model type"),
        ({"timm": "nonesuch"}, "timm cannot build 'nonesuch'"),
        ({"timm": "resnet18", "options": {"checkpoint_path": "x.pth"}}, "loads weights"),
        ({"preset": "efficientnet_lite0"}, "starts from weights: give `weights: FILE`"),
        ({"preset": "tiny_resnet", "weights": "x.safetensors"}, "`weights` goes with `timm`"),
    ],
)
def test_backbones_that_do_not_exist(spec, message):
    with pytest.raises(InvalidInput, match=message):
        build_backbone(BackboneSpec(**spec), 10, (3, 32, 32), seed=0)


def test_a_net_starts_from_the_weights_of_a_file(tmp_path):
    from safetensors.torch import save_file

    from hf_watermark.evaluation.matrix.backbones import backbone_identity

    start = build_backbone(BackboneSpec(timm="test_resnet"), 20, (3, 32, 32), seed=1).timm_model
    file = tmp_path / "start.safetensors"
    save_file(start.state_dict(), file)
    spec = BackboneSpec(timm="test_resnet", weights=str(file))
    same, other = (build_backbone(spec, classes, (3, 32, 32), seed=2).timm_model for classes in (20, 7))
    assert all(values.equal(same.state_dict()[name]) for name, values in start.state_dict().items())
    # Other labels: a new last layer on the same weights.
    assert other.fc.weight.shape[0] == 7 and other.state_dict()["conv1.0.weight"].equal(start.conv1[0].weight)
    before = backbone_identity(spec)
    assert before != backbone_identity(BackboneSpec(timm="test_resnet"))
    save_file({name: values for name, values in start.state_dict().items() if name != "conv1.1.bias"}, file)
    with pytest.raises(InvalidInput, match="give the weights of this architecture"):
        build_backbone(BackboneSpec(timm="test_convnext", weights=str(file)), 20, (3, 32, 32), seed=2)
    assert "weights" not in str(backbone_identity(BackboneSpec(preset="tiny_resnet")))


def test_every_preset_takes_the_shape_of_the_data():
    import torch

    for preset in ("tiny_resnet", "small_resnet", "small_vit"):
        model = build_backbone(BackboneSpec(preset=preset), 7, (1, 32, 32), seed=3)
        assert model(pixel_values=torch.zeros(2, 1, 32, 32)).logits.shape == (2, 7)


def test_twins_share_all_seeds_and_attacks_have_their_own_identity():
    models = model_cells(parse_config(TINY))
    marked = models[1]

    assert marked.seed_for("training") == marked.twin.seed_for("training")
    assert marked.secret("key") != marked.twin.secret("key") != models[2].secret("key")
    assert len({marked.seed_for(purpose) for purpose in ("training", "initialisation")}) == 2
    cells = [AttackCell(marked, "a", None, images) for images in (1, 2)]
    assert cells[0].id != cells[1].id


def test_a_method_of_another_precision_brings_its_own_twins():
    plain = model_cells(parse_config(TINY))
    mixed = model_cells(parse_config(TINY | {"precision_of": {"stacked": "bf16"}}))
    precisions = {"unmarked": "fp32", "greedy": "fp32", "stacked": "bf16"}

    assert [cell.method for cell in mixed] == ["unmarked", "unmarked", "greedy", "stacked"]
    assert {cell.id for cell in plain if cell.method != "stacked"} <= {cell.id for cell in mixed}
    assert all(cell.precision == cell.twin.precision == precisions[cell.method] for cell in mixed[2:])


def test_processes_that_read_the_stored_config_have_the_same_cells(tmp_path):
    config = read_config(EXAMPLES / "matrix_digits.yaml")  # stacks marks in an order of its own
    store_config(config, tmp_path)
    again = parse_config(read_stored_config(tmp_path))
    assert {cell.id for cell in attack_cells(config)} == {cell.id for cell in attack_cells(again)}
