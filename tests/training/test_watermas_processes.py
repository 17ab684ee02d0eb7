"""WaterMAS under accumulation, bf16, DDP and FSDP2: the carriers of one process, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
import watermas_runs
from safetensors.torch import load_file
from together import run_together
from trainer_runs import arguments, build
from watermas_runs import CASES, CONFIG, NETS, by_hand, seen, train

from hf_watermark import Owner, WatermarkKey, WaterMASTrainer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one key per net."""
    folder = tmp_path_factory.mktemp("watermas")
    for net in NETS:
        trainer = WaterMASTrainer(
            model=build(net), args=arguments(folder / "out"), watermark=CONFIG, owner=Owner.create()
        )
        with pytest.warns(UserWarning, match="without a passphrase"):
            trainer.key.save(folder / f"key-{net}")
    return folder


@pytest.fixture(scope="module")
def two_processes(shared: Path) -> Path:
    """The folder into which two processes (gloo) wrote what they saw."""
    run_together(watermas_runs.__file__, str(shared))
    return shared


def compare(folder: Path, name: str, alone: WaterMASTrainer, tolerance: float) -> None:
    """Carriers equal to the last bit, on both ranks; other weights equal up to the order of sums."""
    ranks = [load_file(folder / f"{name}-rank{rank}.safetensors") for rank in (0, 1)]
    wanted = seen(alone)
    assert any(key.startswith("carriers.") for key in wanted) and wanted.keys() == ranks[0].keys()
    start = {f"weight.{key}": weight for key, weight in build(name.split("-")[0]).named_parameters()}
    for key, value in wanted.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        if key.startswith("carriers."):
            assert torch.equal(ranks[0][key], value), key
        elif not key.endswith(
            ("k_proj.bias", "key.bias")
        ):  # softmax does not see it: its gradient is nothing but rounding
            assert near(ranks[0][key], value, start[key], tolerance), key


def near(seen: torch.Tensor, wanted: torch.Tensor, start: torch.Tensor, tolerance: float) -> bool:
    """Equal up to a share of the way that training went."""
    return bool((seen - wanted).norm() <= tolerance * ((wanted - start).norm() + 1e-3))


@pytest.mark.parametrize(("net", "accumulation", "precision"), CASES)
def test_two_processes(shared: Path, two_processes: Path, tmp_path: Path, net: str, accumulation: int, precision: str):
    alone = train(net, accumulation, precision, WatermarkKey.load(shared / f"key-{net}"), tmp_path)
    name = f"{net}-{accumulation}-{precision}"
    assert alone.evidence.matches == 192
    compare(two_processes, name, alone, tolerance=1e-2 if precision == "fp32" else 0.5)
    for rank in (0, 1):
        assert json.loads((shared / f"verdicts-rank{rank}.json").read_text())[name] == 192


@pytest.mark.parametrize("net", NETS)
def test_fully_sharded(shared: Path, two_processes: Path, tmp_path: Path, net: str):
    alone = by_hand(net, WatermarkKey.load(shared / f"key-{net}"), tmp_path, shard=False)
    compare(two_processes, f"{net}-fsdp2", alone, tolerance=1e-2)
    for rank in (0, 1):
        verdict = json.loads((shared / f"verdicts-rank{rank}.json").read_text())[f"{net}-fsdp2"]
        assert verdict == [192, ["DTensor"]]


def test_accumulation_is_one_step(shared: Path, tmp_path: Path):
    key, start = WatermarkKey.load(shared / "key-vit"), dict(build("vit").named_parameters())
    once, often = (train("vit", count, "fp32", key, tmp_path) for count in (1, 2))
    for name, weight in once.model.named_parameters():
        assert near(often.model.get_parameter(name), weight, start[name], 1e-2), name
