"""One optimizer step is the task gradient plus the penalty gradient, once, whatever the accumulation, precision and process count."""

import json
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
import trainer_runs
from safetensors.torch import load_file
from together import run_together
from trainer_runs import (
    ACCUMULATION,
    GREEDY,
    MASKINGS,
    NETS,
    PRECISION,
    Run,
    arguments,
    build,
    images,
    micro_batch,
    train_greedy,
)
from transformers import PreTrainedModel

from hf_watermark import GreedyResidualsTrainer, Owner, WatermarkKey, wrap_timm
from hf_watermark.methods.greedy_residuals import GreedyResidualsEmbedding
from hf_watermark.methods.greedy_residuals.residuals import hinge, signs


CASES = list(product(NETS, ACCUMULATION, PRECISION))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one key per net."""
    folder = tmp_path_factory.mktemp("runs")
    for net in NETS:
        trainer = GreedyResidualsTrainer(
            model=build(net), args=arguments(folder / "out"), watermark=GREEDY, owner=Owner.create()
        )
        trainer.key.bind_beacon(b"\x07" * 32, "a value of a test").save(folder / f"key-{net}")
    return folder


@pytest.fixture(scope="module")
def one_process(shared: Path) -> dict[tuple, Run]:
    return {
        case: train_greedy(*case, WatermarkKey.load(shared / f"key-{case[0]}"), shared / "out-one") for case in CASES
    }


@pytest.fixture(scope="module")
def two_processes(shared: Path) -> Path:
    """The folder into which two processes (gloo, DDP) wrote what they saw."""
    run_together(trainer_runs.__file__, str(shared))
    return shared


def written(folder: Path, case: tuple, rank: int, kind: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / f"{'-'.join(map(str, case))}-rank{rank}.safetensors")
    return {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}


def chained_penalty(trainer: GreedyResidualsTrainer) -> torch.Tensor:
    """The penalty as a chain of differentiable operations on canonical weights."""
    message = torch.cat([signs(subkey, GREEDY.bits) for subkey in trainer.key.claims()[0].subkeys])
    embedding = trainer.embedding(GreedyResidualsEmbedding)
    return embedding.config.strength * hinge(embedding.residuals(), message, embedding.config.margin)


def expected_gradients(net: str, precision: str, key: WatermarkKey, folder: Path) -> dict[str, torch.Tensor]:
    """Task gradient of the one micro-batch in plain torch, plus the gradient of the penalty."""
    model = build(net).train()
    batch = micro_batch(net)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(
            pixel_values=torch.stack([item["pixel_values"] for item in batch]),
            labels=torch.tensor([item["labels"] for item in batch]),
        ).loss
    loss.backward()
    trainer = GreedyResidualsTrainer(model=model, args=arguments(folder), watermark=GREEDY, key=key)
    chained_penalty(trainer).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def assert_close(seen: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-5 of the whole gradient's norm, and of each tensor's where that is above rounding."""
    whole = torch.cat([value.flatten() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (seen[name] - value).norm() <= 1e-5 * max(value.norm(), 0.01 * whole), name


@pytest.mark.parametrize(("net", "accumulation", "precision"), CASES)
def test_one_process(one_process: dict, shared: Path, net: str, accumulation: int, precision: str):
    wanted = expected_gradients(net, precision, WatermarkKey.load(shared / f"key-{net}"), shared / "out-wanted")
    run = one_process[net, accumulation, precision]
    assert_close(run.gradients, wanted)
    assert run.verdict == "mark found"


@pytest.mark.parametrize(("net", "accumulation", "precision"), CASES)
def test_two_processes(one_process: dict, two_processes: Path, net: str, accumulation: int, precision: str):
    case = (net, accumulation, precision)
    alone = one_process[case]
    assert_close(written(two_processes, case, 0, "gradient"), alone.gradients)
    weights = [written(two_processes, case, rank, "weight") for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in alone.weights)
    for rank in (0, 1):
        facts = json.loads((two_processes / f"facts-rank{rank}.json").read_text())
        assert facts["-".join(map(str, case))] == {"verdict": alone.verdict, "matches": alone.matches}


@pytest.mark.parametrize("masking", MASKINGS)
def test_processes_that_ask_and_mask_differently_stay_equal(two_processes: Path, masking: str):
    first, second = (load_file(two_processes / f"{masking}-rank{rank}.safetensors") for rank in (0, 1))
    start = dict(build("resnet").named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in start)
    assert not any(torch.equal(first[name], start[name]) for name in start if name.endswith("convolution.weight"))


def test_both_processes_embed_the_key_of_the_first(two_processes: Path):
    facts = [json.loads((two_processes / f"facts-rank{rank}.json").read_text()) for rank in (0, 1)]
    precommits = [[fact[masking]["precommit"] for masking in MASKINGS] for fact in facts]
    assert precommits[0] == precommits[1]
    assert len(set(precommits[0])) == len(MASKINGS)


def vgg() -> PreTrainedModel:
    sizes = {"mlp_ratio": 0.01}
    return wrap_timm(timm.create_model("vgg11_bn", num_classes=10, **sizes), "vgg11_bn", 10, **sizes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("net", [*NETS, "vgg"])
def test_the_fused_penalty_is_the_chain_of_operations(tmp_path: Path, net: str, layout: torch.memory_format):
    """For every memory format, and where only every third input channel carries (VGG)."""
    model = (vgg() if net == "vgg" else build(net)).to(memory_format=layout)
    dead = next(layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.LayerNorm))
    dead.weight.data[::3] = 0
    trainer = GreedyResidualsTrainer(model=model, args=arguments(tmp_path), watermark=GREEDY, owner=Owner.create())
    fused, chained = trainer.watermark_loss(), chained_penalty(trainer)
    torch.testing.assert_close(fused, chained, rtol=1e-5, atol=0)
    weights = [weight for weight in model.parameters()]
    pairs = zip(
        torch.autograd.grad(fused, weights, allow_unused=True),
        torch.autograd.grad(chained, weights, allow_unused=True),
        strict=True,
    )
    marked = [(mine, theirs) for mine, theirs in pairs if theirs is not None and theirs.any()]
    assert len(marked) >= 2
    for mine, theirs in marked:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_evaluation_has_no_penalty(tmp_path: Path):
    trainer = GreedyResidualsTrainer(
        model=build("vit"), args=arguments(tmp_path), eval_dataset=images(8), watermark=GREEDY, owner=Owner.create()
    )
    model = trainer.model
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in images(8)]), "labels": torch.arange(8)}
    with torch.no_grad():
        plain = model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)
    assert trainer.compute_loss(model.train(), batch).item() == pytest.approx(
        plain + trainer.watermark_loss().item(), rel=1e-5
    )
