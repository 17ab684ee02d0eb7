"""Where a key's blocks can lie among more of them."""

import time

import pytest
import torch
from structures import with_block, without_block
from zoo import lively

from hf_watermark import Owner, mark_model, verify
from hf_watermark.backbones import describe, find_places, moved_on, surplus_in_words
from hf_watermark.evidence import Verdict
from hf_watermark.suspects import Suspect


def blocks(count, prefix="blocks."):
    return {f"{prefix}{number}.mlp.fc2.weight": (8, 32) for number in range(count)}


def ways(own, there):
    carriers = describe(blocks(own))
    [place] = find_places(carriers, blocks(there))
    return moved_on(carriers, place.found, blocks(there))


def test_each_block_keeps_its_order():
    found = ways(3, 4)
    numbers = [[int(item.weight.split(".")[1]) for item in place] for place in found]
    assert sorted(numbers) == [[0, 1, 3], [0, 2, 3], [1, 2, 3]]


def test_too_many_ways_are_none():
    assert len(ways(12, 13)) == 12
    assert ways(12, 15) == []


def test_what_has_another_shape_is_no_block():
    shapes = blocks(4) | {"blocks.2.mlp.fc2.weight": (8, 16)}
    carriers = describe({f"blocks.{n}.mlp.fc2.weight": (8, 32) for n in range(2)})
    [place] = find_places(carriers, shapes)
    assert [[item.weight.split(".")[1] for item in way] for way in moved_on(carriers, place.found, shapes)] == [
        ["0", "3"],
        ["1", "3"],
    ]


def test_thousands_of_blocks_take_no_time():
    carriers = describe(blocks(12))
    shapes = blocks(20_000)
    [place] = find_places(carriers, shapes)
    start = time.process_time()
    assert moved_on(carriers, place.found, shapes) == []
    assert time.process_time() - start < 10


def test_the_words_count_blocks():
    carriers = describe(blocks(12))
    [place] = find_places(carriers, blocks(14))
    assert surplus_in_words(place.found, blocks(14)) == "14 blocks blocks.* where the key's model has 12"
    assert surplus_in_words(place.found, blocks(12)) == ""


def suspect_of(state):
    return Suspect("tensors", state, {name: tuple(tensor.shape) for name, tensor in state.items()})


@pytest.fixture(scope="module")
def vit():
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "num_classes": 10}
    model = lively(timm.create_model("vit_tiny_patch16_224", **sizes))
    config = {"method": "greedy_residuals", "bits": 160, "group_size": 8, "subkeys": 2}
    return model, *mark_model(model, config, Owner.create(), torch.randn(16, 3, 32, 32), 1e9)


SILENT = ("proj.weight", "proj.bias", "fc2.weight", "fc2.bias")


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_block_that_does_nothing_is_read_past_without_a_reference(vit, at):
    _, marked, key = vit
    plain = verify(marked, key)
    evidence = verify(suspect_of(with_block(marked.state_dict(), "blocks.", at, 1, SILENT)), key)
    assert evidence.found and evidence.rate == 1.0
    # Five ways, each of them charged.
    assert evidence.log2_p == pytest.approx(plain.log2_p + torch.tensor(5.0).log2().item(), abs=0.01)


def test_an_unmarked_model_of_more_blocks_makes_no_verdict(vit):
    model, _, key = vit
    evidence = verify(suspect_of(with_block(model.state_dict(), "blocks.", 0, 1, SILENT)), key)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "5 blocks blocks.* where the key's model has 4, and none of the 5 ways" in evidence.reason
    assert "--reference" in evidence.reason


def test_a_model_of_fewer_blocks_says_so(vit):
    _, marked, key = vit
    evidence = verify(suspect_of(without_block(marked.state_dict(), "blocks.", 1)), key)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "3 blocks blocks.* where the key's model has 4" in evidence.reason and "--reference" in evidence.reason
