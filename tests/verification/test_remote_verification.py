"""White-box verification of repos: what it reads, when it stops, what it says."""

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from server import Blob, environment
from tiny import patterned_images, training_arguments
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from hf_watermark import (
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Opening,
    Owner,
    Suspect,
    WatermarkKey,
    WaterMASConfig,
    WaterMASTrainer,
    verify,
)
from hf_watermark.attacks import MagnitudePrune
from hf_watermark.backbones import describe, find_carriers
from hf_watermark.methods.watermas import WaterMASEmbedding
from hf_watermark.verification.portions import MOST_BYTES, Block, owned_blocks, plan_readings
from hf_watermark.verification.ranged import RangedReader


def resnet50():
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=10))


def timm_resnet50():
    import timm

    from hf_watermark.backbones import wrap_timm

    torch.manual_seed(0)
    module = timm.create_model("resnet50", num_classes=10, zero_init_last=False)
    return wrap_timm(module, "resnet50", 10)


def vit_small():
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    return ViTForImageClassification(ViTConfig(num_labels=10, **sizes))


def embed(model, folder: Path, trainer_class=GreedyResidualsTrainer, config=None) -> WatermarkKey:
    """Minimises the penalty alone, which takes a fraction of a second."""
    config = config or GreedyResidualsConfig(strength=1.0)
    args = training_arguments(folder)
    trainer = trainer_class(model=model, args=args, watermark=config, owner=Owner.create())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(10):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    model.save_pretrained(folder)
    return trainer.key


def spoil(model, share: float) -> None:
    """Flips the sign of this share of the rows of every carrier, and so of the bits in them."""
    _, carriers = find_carriers({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    for found in carriers.values():
        weight = model.get_parameter(found.weight).data
        weight[torch.rand(len(weight), generator=generator) < share] *= -1


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A marked ResNet-50 (94 MB) in a folder, and its key."""
    folder = tmp_path_factory.mktemp("large")
    model = resnet50()
    return folder, embed(model, folder), model


@pytest.mark.parametrize("cdn", [False, True])
def test_a_large_checkpoint_is_verified_from_three_per_cent_of_it(hub, large, cdn):
    folder, key, _ = large
    size = (folder / "model.safetensors").stat().st_size
    hub.cdn = cdn
    hub.add_folder("you/suspect", folder)
    evidence = verify("you/suspect", key)
    assert evidence.found and size > 80e6
    assert hub.bytes_sent <= 0.03 * size and len(hub.requests) <= 12
    part = evidence.parts[0]
    assert (
        part.details["requests"] == len(hub.requests)
        and part.details["bits_read"] == part.trials < part.details["bits"]
    )
    assert hub.bytes_sent - 2000 < part.details["bytes_read"] <= hub.bytes_sent  # the list of files is no weight
    counted = [part for part in evidence.parts if not part.disclosed]
    assert len(evidence.parts) == 8 and len(counted) == 7
    assert all(len(part.controls["rates"]) == 100 for part in counted)


@pytest.mark.parametrize("build", [timm_resnet50, vit_small])
def test_other_spellings_and_families(hub, tmp_path, build):
    key = embed(build(), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    hub.cdn = True
    hub.add_folder("you/suspect", tmp_path)
    assert verify("you/suspect", key).found and size > 80e6
    assert hub.bytes_sent <= 0.03 * size and len(hub.requests) <= 12
    before, asked = hub.bytes_sent, len(hub.requests)
    assert verify("you/suspect", Opening.of(key, 3)).found
    assert hub.bytes_sent - before <= 0.02 * size and len(hub.requests) - asked <= 12


def test_single_weights_are_read_by_range_too(hub, tmp_path):
    """WaterMAS replaces single weights; here without the training that follows."""
    model, args = vit_small(), training_arguments(tmp_path)
    trainer = WaterMASTrainer(model=model, args=args, watermark=WaterMASConfig(), owner=Owner.create())
    trainer.embedding(WaterMASEmbedding).substitute_when_due()  # no step is planned, so it is due
    model.save_pretrained(tmp_path)
    assert verify(tmp_path, trainer.key).found
    size = (tmp_path / "model.safetensors").stat().st_size
    hub.add_folder("you/suspect", tmp_path)
    evidence = verify("you/suspect", trainer.key)
    assert evidence.found and evidence.parts[0].details["bits_read"] < 512
    assert hub.bytes_sent <= 0.03 * size and len(hub.requests) <= 12


def test_an_unmarked_checkpoint_is_not_read_to_the_end(hub, large, tmp_path):
    _, key, _ = large
    torch.manual_seed(5)
    ResNetForImageClassification(ResNetConfig(num_labels=10)).save_pretrained(tmp_path)
    hub.add_folder("you/independent", tmp_path)
    evidence = verify("you/independent", key)
    assert evidence.verdict == "not found" and evidence.log2_p > -20
    assert hub.bytes_sent <= 0.03 * (tmp_path / "model.safetensors").stat().st_size and len(hub.requests) <= 12


def test_a_weak_mark_is_read_on_until_the_evidence_is_in(hub, large, tmp_path):
    _, key, model = large
    weak = copy.deepcopy(model)
    spoil(weak, 0.28)
    weak.save_pretrained(tmp_path)
    hub.add_folder("you/weak", tmp_path)
    evidence = verify("you/weak", key)
    local = verify(tmp_path, key)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert evidence.found and local.found and 0.68 < evidence.rate < 0.76
    assert hub.bytes_sent > 0.03 * size and evidence.trials < local.trials
    # Read to the end, a remote checkpoint gives the counts of the local one.
    everything = patient(key, Suspect.open("you/weak"))
    assert [part.matches for part in everything] == [part.matches for part in local.parts]
    assert [round(part.log2_e, 6) for part in everything] == [round(part.log2_e, 6) for part in local.parts]


def patient(key, suspect):
    """What a reader finds that never stops."""
    from hf_watermark.methods.greedy_residuals import GreedyResidualsVerifier
    from hf_watermark.methods.greedy_residuals.residuals import greedy_mean

    [claim] = key.claims()
    verifier = GreedyResidualsVerifier(claim)
    groups = [verifier.members(subkey) for subkey in claim.subkeys]
    owned = owned_blocks(verifier.carriers, range(verifier.subkeys), verifier.subkeys)
    order = random.Random(0)
    reader = RangedReader(
        suspect.weights, verifier.carriers, owned, order, groups, lambda values: greedy_mean(values, 0.5)
    )
    with torch.no_grad():
        while reader.read_on():
            pass
    return [verifier.score(reader.result(place), subkey) for place, subkey in enumerate(claim.subkeys)]


def test_one_opened_subkey(hub, large):
    folder, key, _ = large
    hub.add_folder("you/suspect", folder)
    size = (folder / "model.safetensors").stat().st_size
    evidence = verify("you/suspect", Opening.of(key, 1))
    assert evidence.found and len(evidence.parts) == 1 and evidence.log2_p <= -128
    assert hub.bytes_sent <= 0.02 * size and len(hub.requests) <= 10


def test_a_small_checkpoint_and_shards(hub, marked_by, tmp_path):
    marked = marked_by("greedy_residuals")
    marked.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    hub.add_folder("you/sharded", tmp_path)
    remote, local = verify("you/sharded", marked.key), verify(tmp_path, marked.key)
    assert remote.found and local.found and remote.matches == local.matches
    # Read in one go, nothing could be stopped early: the exact test of the bits. What cannot count is not read.
    counted = [(part, own) for part, own in zip(remote.parts, local.parts, strict=True) if not own.disclosed]
    assert counted and all(part.log2_p == own.log2_p for part, own in counted)


@pytest.mark.parametrize("method", ["greedy_residuals", "watermas"])
def test_a_pruned_checkpoint_reads_the_same_from_afar(hub, marked_by, tmp_path, method):
    """A weight that was set to zero says nothing; counted as a wrong bit it would hide the mark from a reader of ranges."""
    marked = marked_by(method)
    pruned = MagnitudePrune(0.6)(marked.model, patterned_images(1))
    pruned.save_pretrained(tmp_path)
    hub.add_folder("you/pruned", tmp_path)
    remote, local = verify("you/pruned", marked.key), verify(tmp_path, marked.key)
    assert (remote.matches, remote.trials) == (local.matches, local.trials) and remote.verdict is local.verdict
    assert method != "watermas" or local.trials < 128  # so that this shows something


def test_another_architecture_is_no_verdict_and_its_weights_are_not_read(hub, large, tmp_path):
    _, key, _ = large
    ResNetForImageClassification(ResNetConfig(hidden_sizes=[64, 128, 256, 512], num_labels=10)).save_pretrained(
        tmp_path
    )
    hub.add_folder("you/other", tmp_path)
    evidence = verify("you/other", key)
    assert evidence.verdict == "inconclusive" and "the suspect has another architecture" in evidence.reason
    assert len(hub.requests) == 2


def test_black_box_checks_download_the_tensors_and_use_the_owners_architecture(hub, marked_by):
    marked = marked_by("function_coupled")
    hub.add_repo(
        "you/suspect", {"model.safetensors": marked.output / "model.safetensors", "config.json": b"no config"}
    )
    evidence = verify("you/suspect", marked.key, beacon=marked.key.beacon)
    assert evidence.found and hub.count("GET", "config.json") == 0
    assert evidence.matches == verify(marked.output, marked.key).matches


# --- Which rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_carriers", [1, 3, 9])
def test_portions_hold_every_row_once(first_carriers):
    row_bytes, rows = [100, 4000, 2**21, 4], [7, 1000, 50, 3_000_000]
    owned = [Block(number, 0, count) for number, count in enumerate(rows)]
    portions = list(plan_readings(row_bytes, owned, 10_000_000, first_carriers, random.Random(first_carriers)))
    read = [[0] * count for count in rows]
    for block in (block for portion in portions for block in portion):
        for row in range(block.start, block.stop):
            read[block.carrier][row] += 1
    assert all(count == 1 for carrier in read for count in carrier)
    sizes = [sum((block.stop - block.start) * row_bytes[block.carrier] for block in portion) for portion in portions]
    assert sizes[0] <= 10_000_000 and max(sizes) <= MOST_BYTES
    assert len({block.carrier for block in portions[0]}) == min(first_carriers, 4)


def test_neighbouring_slots_are_read_as_one_block():
    carriers = describe(
        {f"resnet.encoder.stages.{n}.layers.0.layer.1.convolution.weight": (64, 32, 3, 3) for n in (0, 1)}
    )
    assert owned_blocks(carriers, range(8), 8) == [Block(0, 0, 64), Block(1, 0, 64)]
    assert owned_blocks(carriers, [3, 0], 8) == [Block(0, 0, 8), Block(0, 24, 32), Block(1, 8, 16), Block(1, 32, 40)]


# --- Size -------------------------------------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
import torch
from hf_watermark import WatermarkKey, verify
import hf_watermark.methods.greedy_residuals, huggingface_hub.hf_api
torch.set_num_threads(1)
key = WatermarkKey.load(sys.argv[1], "a long enough passphrase")

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

Path("/proc/self/clear_refs").write_text("5")  # the peak of importing and of opening the key is forgotten
before = peak()
evidence = verify("you/huge", key)
print(evidence.verdict, evidence.trials, evidence.parts[0].details["bytes_read"], peak() - before)
"""


class Noisy(Blob):
    """A sparse file whose holes read as random weights: zeros would say nothing about a mark."""

    weights = torch.randn(2**18, generator=torch.Generator().manual_seed(0)).numpy().tobytes()

    def read(self, begin: int, end: int) -> bytes:
        head = 8 + int.from_bytes(super().read(0, 8), "little")
        first = max(begin, head) - head
        noise = self.weights * (2 + (end - begin) // len(self.weights))
        place = first % len(self.weights)
        return super().read(begin, max(begin, min(end, head))) + noise[place : place + max(0, end - head - first)]


def huge_shards(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a vision transformer of 2 GB in five sparse files: headers, and holes that read as zeros."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(29):
        name = f"vit.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes[f"{name}.attention.attention.{part}.weight"] = (1280, 1280)
        shapes[f"{name}.intermediate.dense.weight"] = (5120, 1280)
        shapes[f"{name}.output.dense.weight"] = (1280, 5120)
    weight_map: dict[str, str] = {}
    for place in range(5):
        file, header, end = f"model-{place}.safetensors", {}, 0
        for name in list(shapes)[place::5]:
            begin, end = end, end + 4 * shapes[name][0] * shapes[name][1]
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begin, end]}
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return shapes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_gigabytes_in_five_shards_take_less_than_a_hundred_megabytes(hub, tmp_path):
    (tmp_path / "model").mkdir()
    layout = {"carriers": [carrier.to_dict() for carrier in describe(huge_shards(tmp_path / "model"))]}
    plan = ("greedy_residuals", "1", GreedyResidualsConfig().to_dict(), layout, 8)
    WatermarkKey.create(Owner.create(), [plan]).save(tmp_path / "key", passphrase="a long enough passphrase")
    repo = hub.add_folder("you/huge", tmp_path / "model")
    for path, blob in repo.head.files.items():
        if path.endswith(".safetensors"):
            blob = repo.head.files[path] = Noisy(blob.data, blob.lfs)
        blob.__dict__["sha256"] = "0" * 64  # hashing two gigabytes of zeros is not what is tested
    assert sum(blob.size for blob in repo.head.files.values()) > 2e9
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "key")],
        env=os.environ | environment(hub.url, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verdict, trials, read, kilobytes = done.stdout.rsplit(maxsplit=3)
    assert verdict == "not found" and int(trials) > 100
    assert 0 < int(kilobytes) < 100_000 and int(read) < 0.03 * 2e9 and len(hub.requests) <= 12
