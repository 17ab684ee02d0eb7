"""Facts about transformers, timm and accelerate that break a naive watermark trainer (hf_facts.md 1), as they reach our code."""

import ast
import hashlib
import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import hf_watermark
from hf_watermark import FunctionCoupledTrainer, GreedyResidualsConfig, GreedyResidualsTrainer, verify, wrap_timm
from hf_watermark.backbones import backbone_record, live_weights, run_on_backbone
from hf_watermark.serialization import SafetensorsFolder, tensor_set_digest


CONFIG = GreedyResidualsConfig(bits=64, subkeys=1, group_size=8, strength=0.1)
RATE = 0.1


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
        )
    )


def vit():
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, num_channels=1, num_hidden_layers=2, num_labels=4))


def timm_resnet():
    arguments = {"channels": [8, 8, 16, 16], "in_chans": 1}
    return wrap_timm(timm.create_model("resnet18", num_classes=4, **arguments), "resnet18", 4, **arguments)


BUILDERS = {"resnet": resnet, "vit": vit, "timm": timm_resnet}


def fresh(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = BUILDERS[name]()
    for layer in model.modules():  # dropout would differ from run to run
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return model


def one_image_many_times(name: str) -> list[dict]:
    # Every micro-batch is the same whatever its size, so BatchNorm cannot tell accumulation from one large batch.
    side = 64 if name == "timm" else 16  # BatchNorm needs more than one pixel in the last stage
    image = torch.randn(1, side, side, generator=torch.Generator().manual_seed(3))
    return [{"pixel_values": image, "labels": 1} for _ in range(32)]


def one_step(name: str, owner, arguments, accumulation: int, **changes) -> tuple[GreedyResidualsTrainer, dict]:
    fields = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": RATE,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    fields |= {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = GreedyResidualsTrainer(
        model=fresh(name),
        args=arguments(**fields | {"logging_steps": 1} | changes),
        train_dataset=one_image_many_times(name),
        watermark=CONFIG,
        key=fixed_key(name, owner, arguments),
    )
    trainer.train()
    weights = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return trainer, {key: value.detach().clone() for key, value in weights}


def fixed_key(name: str, owner, arguments):
    planner = GreedyResidualsTrainer(model=fresh(name), args=arguments(), watermark=CONFIG, owner=owner)
    key = planner.key
    return type(key).create(
        owner, [(a.method, a.version, a.config, a.layout, len(a.subkeys)) for a in key.assignments], seed=bytes(32)
    )


def step_by_hand(name: str, owner, arguments) -> dict[str, torch.Tensor]:
    """`w - rate * (task gradient + penalty gradient)`, each once."""
    trainer = GreedyResidualsTrainer(
        model=fresh(name), args=arguments(), watermark=CONFIG, key=fixed_key(name, owner, arguments)
    )
    model = trainer.model.train()
    item = one_image_many_times(name)[0]
    images = item["pixel_values"].repeat(8, 1, 1, 1)
    loss = torch.nn.functional.cross_entropy(model(images).logits, torch.ones(8).long())
    (loss + trainer.watermark_loss()).backward()
    return {key: value.detach() - RATE * value.grad for key, value in model.named_parameters()}


# --- 1. The Trainer multiplies the loss of most vision models ---------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_trap_1_accumulation_multiplies_neither_task_nor_penalty(name, owner, arguments):
    expected = step_by_hand(name, owner, arguments)
    for accumulation in (1, 2, 4):
        trainer, weights = one_step(name, owner, arguments, accumulation)
        assert trainer.model_accepts_loss_kwargs is False
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-6, msg=f"{key} at {accumulation}")


# --- 2. training_args.bin is a pickle that gets published -------------------------------------------------------------


@pytest.mark.parametrize("method", ["greedy_residuals", "function_coupled"])
def test_trap_2_training_arguments_know_no_key(method, marked_by):
    marked = marked_by(method)
    assert (marked.output / "model.safetensors").exists()
    assert not list(marked.output.rglob("training_args.bin"))
    assert marked.key.seed not in pickle.dumps(marked.trainer.args)
    assert "seed" not in json.dumps(marked.trainer.state.trial_params) and "key" not in vars(marked.trainer.args)


# --- 3, 4. timm behind the transformers face --------------------------------------------------------------------------


def test_trap_3_saved_wrappers_load_in_transformers(tmp_path):
    model = timm_resnet().eval()
    model.save_pretrained(tmp_path)
    assert "num_classes" not in json.loads((tmp_path / "config.json").read_text())["model_args"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


def test_trap_4_wrapping_keeps_timms_initialisation():
    torch.manual_seed(0)
    module = timm.create_model("resnet18", num_classes=4)
    before = module.layer1[0].conv1.weight.detach().clone()
    wrapper = wrap_timm(module, "resnet18", 4)
    assert torch.equal(wrapper.timm_model.layer1[0].conv1.weight, before)
    assert before.std() > 0.04  # the constructor of the wrapper draws 0.02


# --- 5, 6. Two processes ----------------------------------------------------------------------------------------------


def _two_processes(folder: str) -> None:
    for state in (AcceleratorState, PartialState, GradientState):  # inherited from the parent by fork
        state._shared_state.clear()
    rank = None
    try:
        from transformers import TrainingArguments

        from hf_watermark import Owner

        def arguments(**changes):
            fields = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "seed": 0}
            return TrainingArguments(output_dir=f"{folder}/out", **fields | changes)

        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        owner = Owner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
        trainer, weights = one_step("resnet", owner, arguments, 2, per_device_train_batch_size=2)
        rank = trainer.accelerator.process_index
        assert trainer.accelerator.num_processes == 2
        save_file(weights, f"{folder}/rank{rank}.safetensors")
        # A key that was made inside the run is the same on both ranks.
        made = GreedyResidualsTrainer(model=fresh("resnet"), args=arguments(), watermark=CONFIG, owner=owner).key
        Path(f"{folder}/precommit{rank}").write_bytes(made.precommit)
    except BaseException:
        Path(f"{folder}/error{rank}").write_text(traceback.format_exc())
        raise


def test_traps_5_and_6_two_processes_take_the_same_step(tmp_path, arguments):
    # `accelerate launch --cpu` starts one process; `debug_launcher` and torchrun start two. Unused parameters are searched for
    # (the Trainer's default), which a trainable tensor outside the model would break.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from hf_watermark import Owner

    owner = Owner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    expected = step_by_hand("resnet", owner, arguments)
    # In a process of its own: one whose autograd has started threads, as other tests may, cannot be forked.
    code = "import sys, accelerate, test_library_traps as t; accelerate.debug_launcher(t._two_processes, args=(sys.argv[1],), num_processes=2)"
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    launched = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": here},
        capture_output=True,
        text=True,
    )
    errors = [path.read_text() for path in tmp_path.glob("error*")]
    assert launched.returncode == 0, "\n".join(errors) or launched.stderr[-2000:]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(first[key], second[key])
    assert (tmp_path / "precommit0").read_bytes() == (tmp_path / "precommit1").read_bytes()


@pytest.mark.parametrize("method", ["greedy_residuals", "function_coupled"])
def test_trap_6_nothing_trainable_lies_outside_the_model(method, marked_by):
    trainer = marked_by(method).trainer
    inside = {id(parameter) for parameter in trainer.model.parameters()}
    groups = trainer.optimizer.param_groups
    assert {id(parameter) for group in groups for parameter in group["params"]} <= inside
    tensors = [value for value in vars(trainer).values() if isinstance(value, torch.Tensor)]
    assert tensors and not any(tensor.requires_grad for tensor in tensors)


# --- 7, 8. Files ------------------------------------------------------------------------------------------------------


def test_trap_7_file_hashes_are_no_fingerprint_and_tensor_digests_are(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    save_file(tensors, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file(dict(reversed(tensors.items())), tmp_path / "two.safetensors", metadata={"format": "pt", "note": "same"})
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 2
    assert len({tensor_set_digest(SafetensorsFolder(file)) for file in files}) == 1


def test_trap_8_our_public_files_do_not_depend_on_safetensors_metadata(marked_by, tmp_path):
    marked = marked_by("greedy_residuals")
    save_file(load_file(marked.output / "model.safetensors"), tmp_path / "model.safetensors")  # all metadata lost
    assert verify(tmp_path, marked.key, beacon=marked.key.beacon).found
    published = json.loads((marked.output / "watermark" / "precommit.json").read_text())
    assert published["precommit"] == marked.key.precommit.hex()
    assert set(SafetensorsFolder(marked.output)) == set(marked.model.state_dict())  # no buffer of ours to be dropped


# --- 9, 10. The Hub ---------------------------------------------------------------------------------------------------


def test_traps_9_and_10_nothing_is_uploaded_in_several_commits():
    # `upload_folder` may split into several commits; whatever we publish goes through one `create_commit`.
    called = set()
    for path in Path(hf_watermark.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                called.add(function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""))
    assert "parse_json" in called and not {"upload_folder", "upload_large_folder", "upload_file"} & called


# --- 11. Live names are not file names --------------------------------------------------------------------------------


def test_trap_11_a_vit_folder_is_read_by_file_names(owner, arguments, tmp_path):
    trainer, _ = one_step("vit", owner, arguments, 1, max_steps=60, optim="adamw_torch", learning_rate=1e-2)
    trainer.save_model(str(tmp_path))
    names = SafetensorsFolder(tmp_path).shapes.keys()
    assert not set(live_weights(trainer.model)) <= set(names)
    in_memory, in_file = verify(trainer.model, trainer.key), verify(tmp_path, trainer.key)
    assert (in_memory.matches, in_memory.log2_p) == (in_file.matches, in_file.log2_p) and in_file.matches >= 60
    rebuilt = run_on_backbone(backbone_record(trainer.model), SafetensorsFolder(tmp_path))
    assert verify(rebuilt, trainer.key).matches == in_file.matches


# --- The Trainer reseeds the global generators ------------------------------------------------------------------------


def test_the_mark_leaves_the_training_randomness_alone(owner, arguments, patterned, make_resnet, small_configs):
    """Drawing keys and triggers must not move the global generators, or the twin would see other batches."""
    states = []
    for method in ("greedy_residuals", "function_coupled"):
        trainer_class = hf_watermark.AutoTrainer.for_method(method)
        model, args = make_resnet(), arguments()
        torch.manual_seed(5)
        args.seed = 5
        trainer_class(model=model, args=args, train_dataset=patterned, watermark=small_configs[method], owner=owner)
        states.append(torch.get_rng_state())
    torch.manual_seed(5)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)
    assert issubclass(trainer_class, FunctionCoupledTrainer)
