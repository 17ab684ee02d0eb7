"""Games with the statistics: inputs for which a p-value would be smaller than its chance. Every forgery is built for real."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from tiny import tiny_resnet

from hf_watermark import CertifiedConfig, InvalidInput, Owner, USPConfig, Verdict, WatermarkKey, WaterMASConfig, verify
from hf_watermark.backbones import backbone_record, describe
from hf_watermark.evidence import Access, Basis, Check, combine, single
from hf_watermark.keys import ModelContext, pool_digest, start_digest
from hf_watermark.mapping import AutoVerifier
from hf_watermark.suspects import Suspect
from hf_watermark.verifying import run_check, self_check


def certified_key(labels: torch.Tensor, classes: int, family: str, count: int = 220) -> WatermarkKey:
    """A properly committed `certified` key with source labels of the forger's choice."""
    images = torch.rand(len(labels), 1, 16, 16).half()
    ends = torch.tensor([[0.0], [1.0]]).half()
    pool = {"certified.images": images, "certified.labels": labels, "certified.range": ends}
    config = CertifiedConfig(family=family, triggers=count, subkeys=1).to_dict()
    layout = {"classes": classes, "scales": {"weight": 0.1}, "pool_sha256": pool_digest(pool)}
    return WatermarkKey.create(Owner.create(), [("certified", "1", config, layout, 1)], pool=pool)


@pytest.mark.parametrize("family", ["unrelated", "noise", "embedded"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_sources_that_are_partly_known(family, classes):
    """Freedom: source labels. One unknown among known ones makes the stated chance 1/C where it is 1/(C-1)."""
    labels = torch.tensor([-1] + [0] * 219)
    evidence = verify(
        lambda images: torch.ones(len(images), dtype=torch.int64), certified_key(labels, classes, family)
    )
    assert evidence.verdict is Verdict.INVALID


@pytest.mark.parametrize("label", [0, -1, 5, -2])
def test_two_classes_never_end_in_a_bare_error(label):
    """Freedom: the number of classes. With two, a known source leaves one label, which has no chance to be wrong."""
    key = certified_key(torch.full((220,), label), 2, "unrelated" if label < 0 else "noise")
    evidence = verify(lambda images: torch.ones(len(images), dtype=torch.int64), key)
    assert evidence.verdict in (Verdict.INVALID, Verdict.NOT_FOUND)


def test_one_picture_as_every_trigger():
    """Freedom: the pool. The same picture 220 times, which any model answers with one class: labels are still drawn one by one."""
    key = certified_key(torch.full((220,), -1), 10, "unrelated")
    verifier = AutoVerifier.for_method("certified")(key.claims()[0])
    place = key.claims()[0].subkeys[0]
    answers = verifier.observe(Suspect.open(lambda images: torch.full((len(images),), 7)), place)
    scores = np.array([verifier.score(answers, place.decoy()).log2_p for _ in range(2000)])
    for level in (0.05, 0.01, 0.001):
        assert (scores <= np.log2(level)).sum() <= binom.ppf(1 - 1e-6, 2000, level)


def test_a_readout_reference_that_tilts_everything(marked_by):
    """Freedom: the pool's reference answers. They are taken off before the signs are known, so they can move nothing for a key."""
    key = marked_by("usp").key
    reference = torch.zeros_like(key.pool["usp.reference"])
    reference[:, 0] = 60.0
    pool = {**key.pool, "usp.reference": reference}
    layout = key.assignments[0].layout | {"pool_sha256": pool_digest(pool)}
    forged = WatermarkKey.create(Owner.create(), [("usp", "1", key.assignments[0].config, layout, 1)], pool=pool)
    verifier = AutoVerifier.for_method("usp")(forged.claims()[0])
    place = forged.claims()[0].subkeys[0]
    reading = verifier.observe(Suspect.open(tiny_resnet()), place)
    scores = np.array([verifier.score(reading, place.decoy()).log2_p for _ in range(1000)])
    for level in (0.05, 0.01, 0.001):
        assert (scores <= np.log2(level)).sum() <= binom.ppf(1 - 1e-6, 1000, level)


def test_one_part_counted_twice():
    """Freedom: the list of evidences. A sub-key multiplied with itself would double its bits."""
    part = single("m", 60, 64, -40.0, "law", Access.LABELS, subkey=3)
    with pytest.raises(InvalidInput, match="counted twice"):
        combine([part, replace(part)], "m")


def test_disclosed_parts_add_nothing():
    """Freedom: to pile public sub-keys on a weak secret one."""
    weak = single("m", 5, 10, -1.0, "law", Access.LABELS, subkey=1)
    strong = single("m", 256, 256, -256.0, "law", Access.LABELS, subkey=0, disclosed=True)
    total = combine([weak, strong], "m").decide()
    assert total.log2_p == -1.0 and total.verdict is Verdict.INCONCLUSIVE and "only the public" in total.reason


def reference_from(victim, key):
    """The suspect itself with permuted channels, so that its carriers say the key's bits: the same function, and another reference."""
    state = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    verifier = AutoVerifier.for_method("watermas")(key.claims()[0])
    subkey = key.claims()[0].subkeys[0]
    places, signs = verifier.places(subkey), verifier.signs(subkey).numpy()
    bits = len(signs)
    carrier, row, column = (t[:bits].numpy() for t in (places.carrier, places.row, places.column))
    layer = "resnet.encoder.stages.{}.layers.0.layer.{}."
    outer, inner = [], []
    for stage in range(len(verifier.carriers)):
        weight = state[layer.format(stage, 1) + "convolution.weight"]
        norm = state[layer.format(stage, 1) + "normalization.weight"].sign()
        sign = (weight.sign() * norm[:, None, None, None]).numpy()
        here = carrier == stage
        rows, inputs, kernel, wanted = row[here], column[here] // 9, column[here] % 9, signs[here]
        out, into = np.arange(sign.shape[0]), np.arange(sign.shape[1])
        for _ in range(6):
            gain = np.zeros((len(out), len(out)))
            for a, b, k, s in zip(rows, inputs, kernel, wanted, strict=True):
                gain[a] += s * sign[:, into[b], k // 3, k % 3]
            out = linear_sum_assignment(-gain)[1]
            gain = np.zeros((len(into), len(into)))
            for a, b, k, s in zip(rows, inputs, kernel, wanted, strict=True):
                gain[b] += s * sign[out[a], :, k // 3, k % 3]
            into = linear_sum_assignment(-gain)[1]
        outer.append(torch.from_numpy(out))
        inner.append(torch.from_numpy(into))

    def rows_of(name, order):
        for part in state:
            if part.startswith(name) and state[part].ndim:
                state[part] = state[part][order]

    def columns_of(name, order):
        state[name] = state[name][:, order]

    rows_of("resnet.embedder.embedder.", outer[0])
    for stage in range(len(outer)):
        before = outer[max(stage - 1, 0)]
        columns_of(layer.format(stage, 0) + "convolution.weight", before)
        rows_of(layer.format(stage, 0), inner[stage])
        columns_of(layer.format(stage, 1) + "convolution.weight", inner[stage])
        rows_of(layer.format(stage, 1), outer[stage])
        shortcut = f"resnet.encoder.stages.{stage}.layers.0.shortcut."
        if shortcut + "convolution.weight" in state:
            columns_of(shortcut + "convolution.weight", before)
            rows_of(shortcut, outer[stage])
    columns_of("classifier.1.weight", outer[-1])
    reference = copy.deepcopy(victim)
    reference.load_state_dict(state)
    return reference


def test_a_reference_made_from_the_suspect(innocent):
    """Freedom: the reference. Permuting the suspect's channels makes one under which any model matches; no control sees it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in innocent.state_dict().items()}
    layout = {"carriers": [carrier.to_dict() for carrier in describe(shapes)]}
    config = WaterMASConfig(bits=160, subkeys=1).to_dict()
    key = WatermarkKey.create(
        Owner.create(), [("watermas", "1", config, layout, 1)], backbone=backbone_record(innocent)
    )
    reference = reference_from(innocent, key)
    images = torch.rand(8, 1, 16, 16)
    assert torch.allclose(reference(images).logits, innocent(images).logits, atol=1e-4), "the same function"
    evidence = verify(innocent, key, reference=reference)
    assert evidence.log2_p <= -64, "the attack itself must work, else this test shows nothing"
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.level == "self-check"
    assert "self-check only" in evidence.reason
    claim = run_check(innocent, key, replace(self_check(key), basis=Basis.CLAIM), reference)
    assert claim.verdict is Verdict.INCONCLUSIVE


def test_a_reference_made_from_a_common_ancestor(innocent):
    """
    Freedom: the public model that both started from. Reordered until it says the key's bits, it is older than every fine-tune that is accused.
    The start is committed before the bits are drawn: whoever commits to the reordered model gets other bits.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in innocent.state_dict().items()}
    plan = (
        "watermas",
        "1",
        WaterMASConfig(bits=160, subkeys=1).to_dict(),
        {"carriers": [c.to_dict() for c in describe(shapes)]},
        1,
    )
    owner, seed, record = Owner.create(), bytes(32), backbone_record(innocent)

    def key_from(start):
        context = ModelContext.of(record, start=start_digest(start.state_dict()))
        return WatermarkKey.create(owner, [plan], seed=seed, context=context)

    key = key_from(innocent)
    reordered = reference_from(innocent, key)
    accused = copy.deepcopy(innocent)
    for parameter in accused.parameters():
        parameter.data += 0.001 * torch.randn(parameter.shape)
    forged = verify(accused, key, reference=reordered)
    assert forged.log2_p <= -64 and forged.verdict is Verdict.INCONCLUSIVE
    honest = verify(accused, key, reference=innocent)
    assert honest.details["alignment"]["committed_reference"] and honest.verdict is Verdict.NOT_FOUND
    again = key_from(reordered)
    later = verify(accused, again, reference=reordered)
    assert later.details["alignment"]["committed_reference"] and later.verdict is Verdict.NOT_FOUND


def test_a_caller_who_writes_the_basis():
    """Freedom: what a caller says about himself. `verify` knows one basis; only verified statements make the other."""
    assert (
        self_check(WatermarkKey.create(Owner.create(), [("usp", "1", USPConfig().to_dict(), {}, 1)])).basis
        == "self-check"
    )
    assert Check().basis is Basis.SELF_CHECK
