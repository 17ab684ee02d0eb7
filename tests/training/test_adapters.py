"""LoRA and DoRA in the trainers: the mark lies in what is saved, and is read from the adapter, from adapter and base, and from the merged model."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from adapted import GREEDY, LAYERS, Adapted, bare, marked_adapter, trainer_of, with_adapter
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import patterned_images
from transformers import Trainer

from hf_watermark import (
    GreedyResidualsConfig,
    InvalidInput,
    Owner,
    Suspect,
    Verdict,
    WatermarkKey,
    mark_model,
    plan_key,
    verify,
)
from hf_watermark.attacks import FineTune, WeightNoise
from hf_watermark.backbones import as_one, changes, plain_copy
from hf_watermark.claims import Disclosure, check, judge, verify_claim
from hf_watermark.methods.greedy_residuals.embedding import GreedyResidualsEmbedding
from hf_watermark.suspects.adapters import Base


KINDS = {
    "vit": {},
    "resnet": {},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "rslora": {"use_rslora": True, "alpha_pattern": {"fc1": 32}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    known: dict[str, Adapted] = {}

    def get(kind: str) -> Adapted:
        if kind not in known:
            net = kind if kind in LAYERS else "vit"
            known[kind] = marked_adapter(net, tmp_path_factory.mktemp(kind), **KINDS[kind])
        return known[kind]

    return get


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_every_form_shows_the_mark(kind: str, made):
    own = made(kind)
    assert sorted(file.name for file in own.adapter.glob("*.safetensors")) == ["adapter_model.safetensors"]
    for suspect, base in (
        (own.model, None),
        (own.adapter, None),
        (own.adapter, own.base),
        (own.merged, own.base),
        (own.merged_model(), own.fresh_base()),
    ):
        evidence = verify(suspect, own.key, base=base)
        assert evidence.verdict is Verdict.FOUND and evidence.log2_p <= -128, (suspect, evidence)
    assert own.trainer.evidence is not None and own.trainer.evidence.found


@every_kind
def test_what_is_not_marked_does_not_show_it(kind: str, made):
    own = made(kind)
    net = kind if kind in LAYERS else "vit"
    other = with_adapter(net, **KINDS[kind], init_lora_weights=False)
    assert verify(other, own.key).verdict is Verdict.NOT_FOUND
    assert verify(plain_copy(other.get_base_model()), own.key, base=own.base).verdict is Verdict.NOT_FOUND
    untouched = verify(own.base, own.key, base=own.base)
    assert untouched.verdict is Verdict.INCONCLUSIVE and untouched.trials == 0, (
        "nothing was changed, so nothing says a bit"
    )


def test_a_whole_model_without_its_base_is_not_judged(made):
    own = made("vit")
    evidence = verify(own.merged, own.key)
    assert evidence.verdict is Verdict.INCONCLUSIVE and "give the base that the key was made for" in evidence.reason


def test_factors_that_are_mixed_keep_the_mark(made):
    """Any invertible matrix between B and A, a turned sign of both included, leaves the adapter what it was."""
    own, model = made("vit"), with_adapter("vit")
    model.load_state_dict(own.model.state_dict())
    images = torch.stack([item["pixel_values"] for item in patterned_images(8)])
    before = own.model(pixel_values=images).logits
    with torch.no_grad():
        for change in changes(model.get_base_model()).values():
            a, b = change.layer.lora_A["default"].weight, change.layer.lora_B["default"].weight
            mix = torch.randn(len(a), len(a), generator=torch.Generator().manual_seed(0))
            a.copy_(mix @ a)
            b.copy_(b @ torch.linalg.inv(mix))
    assert torch.allclose(model.eval()(pixel_values=images).logits, before, atol=1e-3)
    assert verify(model, own.key).found


def test_a_merged_model_is_trained_again_scaled_and_given_another_head(made):
    own = made("vit")
    tuned = FineTune(learning_rate=3e-3, epochs=1, optimizer="adamw", batch_size=40)(
        own.merged_model(), patterned_images(seed=3)
    )
    assert verify(tuned, own.key, base=own.base).log2_p <= -64
    scaled = own.merged_model()
    with torch.no_grad():
        for name, weight in scaled.named_parameters():
            if name.endswith("fc1.weight"):
                weight.mul_(torch.linspace(-2, 3, len(weight))[:, None])
        scaled.classifier = torch.nn.Linear(32, 3)
    assert verify(scaled, own.key, base=own.base).found
    scaled.config.num_labels = 3
    assert verify(WeightNoise(relative_std=0.05)(scaled, None), own.key, base=own.base).found


def test_a_head_of_another_size_in_a_folder(made, tmp_path: Path):
    own, other = made("vit"), made("vit").merged_model()
    other.classifier = torch.nn.Linear(32, 3)
    other.save_pretrained(tmp_path)
    assert verify(tmp_path, own.key, base=own.base).found


def test_the_key_commits_to_the_base_without_the_adapter(made):
    own = made("vit")
    plain = plan_key(bare("vit"), None, {"method": "greedy_residuals", "bits": 32, "group_size": 8}, Owner.create())
    assert own.key.context.start == plain.context.start != ""
    state = as_one(own.model.get_base_model(), own.model.get_base_model().state_dict(), adapted=False)
    assert sorted(state) == sorted(bare("vit").state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in bare("vit").state_dict().items())
    assert own.key.backbone["model_type"] == "vit"


def test_a_plain_copy_is_what_peft_merges(made):
    for kind in KINDS:
        own = made(kind)
        plain, merged = plain_copy(own.model.get_base_model()).state_dict(), own.merged_model().state_dict()
        composed = Suspect.open(own.adapter, base=Base(own.fresh_base().state_dict())).weights
        assert sorted(plain) == sorted(composed) == sorted(merged)
        assert all(torch.allclose(plain[name], merged[name], atol=1e-5) for name in merged), kind
        assert all(torch.allclose(composed[name], merged[name], atol=1e-5) for name in merged), kind


def test_the_penalty_has_the_gradient_of_its_definition(made):
    """Against the plain chain of operations, at the first step, where every change is zero, and later."""
    for model in (with_adapter("vit"), with_adapter("vit", init_lora_weights=False)):
        key = plan_key(model, None, GREEDY, Owner.create())
        embedding = GreedyResidualsEmbedding(model.get_base_model(), key.claims()[0])
        penalty = embedding.penalty()
        penalty.backward()
        factors = [p for n, p in model.named_parameters() if "lora_" in n]
        assert penalty > 0 and any(p.grad is not None and p.grad.abs().sum() > 0 for p in factors)
        assert all(p.grad is None for n, p in model.named_parameters() if "base_layer" in n)


BLACK_BOX = {
    "function_coupled": {"trigger_ratio": 1.0, "images_per_rule": 4, "pool_per_class": 4},
    "certified": {
        "triggers": 80,
        "sigma": 0.1,
        "strength": 1.0,
        "trigger_ratio": 2.0,
        "draws": 200,
        "suspect_draws": 30,
    },
    "usp": {"features": 16, "pool_per_class": 10},
    "csp": {"features": 16, "pool_per_class": 10},
}


@pytest.mark.parametrize("method", BLACK_BOX)
def test_black_box_marks(method: str, tmp_path: Path):
    soft = method in ("usp", "csp")
    watermark = {"method": method} | BLACK_BOX[method]
    own = marked_adapter("resnet", tmp_path, watermark, 0.3 if soft else 0.0, 250, r=16)
    for suspect, base in ((own.model, None), (own.adapter, own.base), (own.merged, None)):
        evidence = verify(suspect, own.key, base=base)
        assert evidence.log2_p <= -64, (suspect, evidence)
    alone = verify(own.adapter, own.key)
    assert alone.verdict is Verdict.INCONCLUSIVE and "--base" in alone.reason


# --- Refused before the first step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 1, "target_modules": ["fc1"]}, "changes of these ranks bear about"),
        ({"init_lora_weights": "pissa"}, "takes a part out of the base"),
        ({"init_lora_weights": "olora"}, "takes a part out of the base"),
        (
            {"target_parameters": ["vit.layers.0.mlp.fc1.weight"], "target_modules": []},
            "could not be read again: the LoraConfig: `target_parameters` changes what the factors mean",
        ),
        ({"alpha_pattern": {"fc[12]": 4}}, "`alpha_pattern"),
        ({"lora_bias": True}, "`lora_bias` changes what the factors mean"),
    ],
)
def test_what_cannot_carry_is_refused(fields: dict, words: str):
    with pytest.raises(InvalidInput, match=words):
        plan_key(with_adapter("vit", **fields), None, GREEDY, Owner.create())


def test_other_adapters_are_refused(tmp_path: Path):
    model = get_peft_model(bare("vit"), IA3Config(target_modules=["fc1"], feedforward_modules=["fc1"]))
    with pytest.raises(InvalidInput, match="the adapter is of type IA3"):
        trainer_of(model, tmp_path)
    two = with_adapter("vit")
    two.add_adapter("second", LoraConfig(target_modules=["fc1"]))
    with pytest.raises(InvalidInput, match=r"holds 2 adapters \(default, second\)"):
        trainer_of(two, tmp_path)


def test_frozen_and_merged_adapters_are_refused():
    frozen = with_adapter("vit").requires_grad_(False)
    with pytest.raises(InvalidInput, match="do not train; load the adapter with `is_trainable=True`"):
        plan_key(frozen, None, GREEDY, Owner.create())
    merged = with_adapter("vit")
    merged.merge_adapter()
    with pytest.raises(InvalidInput, match="the adapter is merged into the weights"):
        plan_key(merged, None, GREEDY, Owner.create())


def test_sharded_factors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = Trainer.create_accelerator_and_postprocess

    def pretend(self: Trainer) -> None:
        original(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", pretend)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ValueError, match="shards of an adapter's factors"):
        trainer_of(with_adapter("vit"), tmp_path)


def test_methods_that_mark_the_base_are_refused():
    with pytest.raises(InvalidInput, match="`watermas` marks weights of the base, which an adapter does not save"):
        plan_key(with_adapter("vit"), None, {"method": "watermas", "bits": 64}, Owner.create())
    with pytest.raises(InvalidInput, match="a mark in an adapter has to be trained"):
        mark_model(with_adapter("vit"), GREEDY, Owner.create())
    with pytest.raises(InvalidInput, match="preset 'paper' marks the first convolution"):
        plan_key(with_adapter("vit"), None, GreedyResidualsConfig.paper(), Owner.create())


def test_layers_are_named_by_what_the_adapter_changes():
    config = GreedyResidualsConfig(
        bits=64, subkeys=1, group_size=8, layers=["vit.layers.0.mlp.fc1", "vit.layers.1.mlp.fc2.weight"]
    )
    layout = plan_key(with_adapter("vit"), None, config, Owner.create()).assignments[0].layout
    assert [item["name"] for item in layout["carriers"]] == [
        "vit.layers.0.mlp.fc1.weight",
        "vit.layers.1.mlp.fc2.weight",
    ]
    with pytest.raises(InvalidInput, match="which the adapter does not change"):
        plan_key(with_adapter("vit"), None, replace(config, layers=["classifier"]), Owner.create())


def test_statistics_that_are_not_saved_are_told(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        plan_key(with_adapter("resnet", modules_to_save=["classifier"]), None, GREEDY, Owner.create())
    assert "BatchNorms (first" in caplog.text and "`modules_to_save`" in caplog.text
    caplog.clear()
    plan_key(with_adapter("resnet"), None, GREEDY, Owner.create())
    assert "BatchNorms" not in caplog.text


# --- The life of a run ------------------------------------------------------------------------------------------------


def test_a_planned_key_and_a_saved_one(made, tmp_path: Path):
    key = plan_key(with_adapter("vit"), None, GREEDY, Owner.create())
    trainer = trainer_of(with_adapter("vit"), tmp_path, key=key, steps=1)
    trainer.train()
    key.save(tmp_path / "key", passphrase="a long enough passphrase")
    assert WatermarkKey.load(tmp_path / "key", "a long enough passphrase").precommit == key.precommit
    with pytest.raises(InvalidInput, match="another backbone or adapter"):
        trainer_of(with_adapter("vit", target_modules=["fc1"]), tmp_path, key=key)
    with pytest.raises(InvalidInput, match="another backbone or adapter"):
        trainer_of(bare("vit"), tmp_path, key=key)


def test_nothing_secret_is_saved(made):
    own = made("vit")
    names = {file.relative_to(own.adapter).as_posix() for file in own.adapter.rglob("*") if file.is_file()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "watermark/precommit.json", "watermark/subkey0.json",
    }  # fmt: skip
    assert all(
        "lora_" in name or "classifier" in name for name in load_file(own.adapter / "adapter_model.safetensors")
    )


def test_a_pushed_adapter(hub, tmp_path: Path):
    """The statement of an adapter, read from the repository like any other suspect's."""
    model = with_adapter("vit")
    trainer = trainer_of(model, tmp_path / "run", owner=Owner.create(), hub_model_id="me/adapter")
    trainer.train()
    trainer.push_to_hub()
    assert {"adapter_model.safetensors", "adapter_config.json", "watermark/statement.json"} <= set(
        hub.files("me/adapter")
    )
    report = check("me/adapter")
    assert report.reached == "V1" and str(report["V3"].outcome) == "passed"
    assert verify("me/adapter", trainer.key).found
    assert verify("me/adapter", trainer.key, base=bare("vit")).found
    assert verify_claim("me/adapter", trainer.key, "me/adapter").found
    merged = plain_copy(model.get_base_model())
    opened = Disclosure.make(trainer.key, trainer._owner, 1, "court-1")
    assert judge(opened, merged, "me/adapter", "court-1", start=bare("vit"), drawn=True).found
    for start in (None, merged):
        assert judge(opened, merged, "me/adapter", "court-1", start=start).verdict is Verdict.INCONCLUSIVE


def test_an_adapter_that_is_not_known_is_never_not_found(made):
    live = get_peft_model(bare("vit"), IA3Config(target_modules=["fc1"], feedforward_modules=["fc1"]))
    plain = plan_key(bare("vit"), None, {"method": "greedy_residuals", "bits": 32, "group_size": 8}, Owner.create())
    evidence = verify(live, plain)
    assert evidence.verdict is Verdict.INCONCLUSIVE and "adapter of a kind that cannot be read" in evidence.unread


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    key = plan_key(with_adapter("vit"), None, GREEDY, Owner.create())

    def run(folder: Path, resume: bool = False):
        trainer = trainer_of(with_adapter("vit"), folder, key=key, steps=4, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
        return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}

    whole, resumed = run(tmp_path), run(tmp_path, resume=True)
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
