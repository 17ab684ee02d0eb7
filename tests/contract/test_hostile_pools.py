"""Pools of strangers: whatever they hold, a verifier says that they cannot be used, and nothing else happens."""

import dataclasses

import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import AutoTrainer, AutoVerifier, InvalidInput, Owner, Suspect, Verdict, WatermarkKey, verify
from hf_watermark.keys import pool_digest
from hf_watermark.mapping import METHODS


WITH_POOL = [method for method, entry in METHODS.items() if entry.access != "weights"]
# Of the tensor beside images and labels that each method has.
OTHER = {"function_coupled": "fill", "certified": "range", "usp": "reference", "csp": "reference"}

CHANGES = {
    "images missing": ("images", None),
    "labels missing": ("labels", None),
    "the rest missing": ("other", None),
    "images of whole numbers": ("images", lambda x: x.to(torch.int64)),
    "boolean images": ("images", lambda x: x > 0),
    "complex images": ("images", lambda x: x.float().to(torch.complex64)),
    "images of eight bits": ("images", lambda x: x.float().to(torch.float8_e4m3fn)),
    "quantised images": ("images", lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)),
    "sparse images": ("images", lambda x: x.float().to_sparse()),
    "images without values": ("images", lambda x: x.to("meta")),
    "one number": ("images", lambda x: torch.tensor(1.0)),
    "one image": ("images", lambda x: x[0]),
    "flat images": ("images", lambda x: x.flatten(1)),
    "five dimensions": ("images", lambda x: x[None]),
    "no images": ("images", lambda x: x[:0]),
    "images without channels": ("images", lambda x: x[:, :0]),
    "images without pixels": ("images", lambda x: x[..., :0]),
    "other channels": ("images", lambda x: x.repeat(1, 5, 1, 1)),
    "very many channels": ("images", lambda x: x[..., :1, :1].repeat(1, 600, 1, 1)),
    "very wide images": ("images", lambda x: x[..., :1, :1].expand(-1, -1, 1, 9000)),
    "not a number": ("images", lambda x: x.index_fill(0, torch.tensor([3]), torch.nan)),
    "infinite": ("images", lambda x: x.index_fill(0, torch.tensor([3]), torch.inf)),
    "beyond float32": ("images", lambda x: x.double() + 1e300),
    "huge pixels": ("images", lambda x: x.float() + 1e30),
    "images half as many": ("images", lambda x: x[: len(x) // 2]),
    "labels of another type": ("labels", lambda x: x.int()),
    "labels with fractions": ("labels", lambda x: x.float()),
    "boolean labels": ("labels", lambda x: x > 3),
    "complex labels": ("labels", lambda x: x.to(torch.complex64)),
    "one label": ("labels", lambda x: x[0]),
    "no labels": ("labels", lambda x: x[:0]),
    "a table of labels": ("labels", lambda x: x[:, None]),
    "huge labels": ("labels", lambda x: x + 2**62),
    "the least label": ("labels", lambda x: x.clone().fill_(-(2**63))),
    "labels beyond the classes": ("labels", lambda x: x + 1000),
    "labels below zero": ("labels", lambda x: -x - 1),
    "labels of a class too many": ("labels", lambda x: torch.cat([x[:-1], torch.tensor([10])])),
    "the rest boolean": ("other", lambda x: x > 0),
    "the rest complex": ("other", lambda x: x.float().to(torch.complex64)),
    "the rest one number": ("other", lambda x: torch.tensor(0.0)),
    "the rest empty": ("other", lambda x: x[:0]),
    "the rest of another shape": ("other", lambda x: x[None]),
    "the rest not a number": ("other", lambda x: torch.full_like(x, torch.nan)),
    "the rest infinite": ("other", lambda x: torch.full_like(x, -torch.inf)),
    "the rest without values": ("other", lambda x: x.to("meta")),
}
# Odd, but a pool that some owner may have.
USABLE = {
    "black images": ("images", torch.zeros_like),
    "images of two pixels a side": ("images", lambda x: x[..., :2, :2]),
    "images in double precision": ("images", lambda x: x.double()),
    "images that want a gradient": ("images", lambda x: x.float().requires_grad_()),
    "images with swapped strides": ("images", lambda x: x.transpose(2, 3)),
}


@pytest.fixture(scope="module")
def claims(tmp_path_factory, small_configs):
    """A key of each method with a pool, never trained with."""
    keys = {}
    for method in WITH_POOL:
        data = patterned_images(variety=0.3 if METHODS[method].access == "probabilities" else 0.0)
        arguments = training_arguments(tmp_path_factory.mktemp(method))
        options = {"model": tiny_resnet(), "args": arguments, "train_dataset": data, "owner": Owner.create()}
        keys[method] = AutoTrainer.for_method(method)(watermark=small_configs[method], **options).key
    return keys


def changed(key, method, what, change):
    pool = dict(key.pool)
    name = f"{method}.{OTHER[method] if what == 'other' else what}"
    before = pool.pop(name)
    if change is not None:
        pool[name] = change(before)
    return pool


def outcome(key, method, pool):
    """Everything that reads a pool: the exact test and the sequential one."""
    claim = dataclasses.replace(key.claims()[0], pool=pool)
    verifier = AutoVerifier.for_method(method)(claim)
    evidence = verifier.verify(Suspect.open(tiny_resnet()))
    test = verifier.sequential(claim.subkeys[0], 100)
    return evidence, test


@pytest.mark.parametrize("method", WITH_POOL)
@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_pool_is_invalid_input(claims, method, name):
    with pytest.raises(InvalidInput) as caught:
        outcome(claims[method], method, changed(claims[method], method, *CHANGES[name]))
    assert "pool" in str(caught.value) or "cannot be asked" in str(caught.value)


@pytest.mark.parametrize("method", WITH_POOL)
@pytest.mark.parametrize("name", USABLE)
def test_an_odd_pool_is_read(claims, method, name):
    evidence, _ = outcome(claims[method], method, changed(claims[method], method, *USABLE[name]))
    assert all(part.verdict is not Verdict.FOUND for part in evidence)


def test_images_of_one_pixel_cannot_be_fused(claims):
    key = claims["function_coupled"]
    with pytest.raises(InvalidInput, match="two pixels a side"):
        outcome(key, "function_coupled", changed(key, "function_coupled", "images", lambda x: x[..., :1, :1]))


@pytest.mark.parametrize("method", WITH_POOL)
def test_a_committed_hostile_pool(claims, method, owner):
    """Whoever forges a key commits to the pool that he likes; it is still no pool."""
    key = claims[method]
    for name in ("images missing", "not a number", "huge labels", "other channels", "no images"):
        pool = changed(key, method, *CHANGES[name])
        [assignment] = key.assignments
        layout = assignment.layout | {"pool_sha256": pool_digest(pool)}
        plan = (method, assignment.version, assignment.config, layout, len(assignment.subkeys))
        with pytest.raises(InvalidInput):  # noqa: PT012
            forged = WatermarkKey.create(owner, [plan], pool=pool, context=key.context)
            evidence = verify(tiny_resnet(), forged)
            assert evidence.verdict is Verdict.INVALID
            raise InvalidInput("an invalid claim is as good")
