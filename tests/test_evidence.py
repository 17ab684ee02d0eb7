"""Evidence: levels, verdicts, and what combines how."""

import json

import pytest

from hf_watermark.evidence import Access, Evidence, Verdict, combine, single
from hf_watermark.statistics import log2_binomial_tail, log2_e_beta_mixture
from hf_watermark.verifier import decoy_control, invalid_claim


def of_bits(matches: int, trials: int = 512, **fields) -> Evidence:
    fields = {"log2_e": log2_e_beta_mixture(matches, trials, 0.5)} | fields
    return single("m", matches, trials, log2_binomial_tail(matches, trials), "null", Access.WEIGHTS, **fields)


@pytest.mark.parametrize(
    ("log2_p", "level", "unbound", "bound"),
    [
        (0.0, "none", Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (-19.9, "none", Verdict.NOT_FOUND, Verdict.NOT_FOUND),
        (-20.0, "self-check", Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        (-63.9, "self-check", Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        (-64.0, "B", Verdict.INCONCLUSIVE, Verdict.FOUND),
        (-127.9, "B", Verdict.INCONCLUSIVE, Verdict.FOUND),
        (-128.0, "N", Verdict.FOUND, Verdict.FOUND),
        (-5000.0, "N", Verdict.FOUND, Verdict.FOUND),
    ],
)
def test_levels_and_verdicts(log2_p, level, unbound, bound):
    for is_bound, verdict in ((False, unbound), (True, bound)):
        evidence = single("m", 1, 1, log2_p, "null", Access.LABELS, bound=is_bound).decide()
        assert evidence.level == level and evidence.verdict is verdict
        assert evidence.found is (verdict is Verdict.FOUND) and f"{evidence.log2_p:.1f}" in evidence.reason


def test_nothing_smaller_than_the_floor_is_quoted():
    assert single("m", 1, 1, -5000.0, "null", Access.LABELS).log2_p == -256
    assert combine([of_bits(512) for _ in range(8)], "m").log2_p == -256


def test_a_failed_control_overrules_the_strongest_p():
    evidence = of_bits(512, controls={"failed": "a decoy key reached log2 p = -40.0"}).decide()
    assert evidence.verdict is Verdict.INCONCLUSIVE and "a control failed: a decoy key" in evidence.reason


def test_e_values_of_different_subkeys_multiply():
    # 330 of 512 bits are strong for the owner's radar only; three such sub-keys together make a claim.
    parts = [of_bits(330, bound=True).decide() for _ in range(3)]
    assert all(part.verdict is Verdict.INCONCLUSIVE for part in parts)
    total = combine(parts, "m").decide()
    assert total.log2_e == pytest.approx(3 * parts[0].log2_e) and total.log2_p == -total.log2_e
    assert total.found and (total.matches, total.trials) == (990, 1536)


def test_a_spoilt_subkey_costs_a_few_bits_only():
    good = of_bits(480)
    total = combine([good, of_bits(256), of_bits(256)], "m")
    assert good.log2_e - 12 < total.log2_e < good.log2_e


def test_one_part_keeps_its_exact_p():
    assert combine([of_bits(400)], "m").log2_p == of_bits(400).log2_p


def test_nothing_combines_to_nothing():
    with pytest.raises(ValueError, match="nothing to combine"):
        combine([], "m")


def test_one_unbound_part_unbinds_the_whole():
    assert not combine([of_bits(400, bound=True), of_bits(400)], "m").bound
    assert combine([of_bits(400, bound=True), of_bits(400, bound=True)], "m").bound


def test_looks_are_charged_in_bits():
    once, often = (combine([of_bits(400)], "m", looks=looks) for looks in (1, 2**10))
    assert often.log2_p == once.log2_p + 10 and often.looks == 1024
    assert "looks charged 10 bits" in str(often) and "looks" not in str(once)


def test_json_holds_the_counts():
    evidence = combine([of_bits(500), of_bits(12)], "m").decide()
    document = json.loads(evidence.to_json())
    assert document["verdict"] == "mark found" and document["parts"][1]["matches"] == 12
    assert document["matches"] == 512 and document["trials"] == 1024 and document["bound_to_beacon"] is False
    assert evidence.rate == 0.5 and str(evidence).startswith("mark found [m]: log2 p = -")


def test_refused_claims_stay_refused():
    evidence = invalid_claim(["the seal is broken", "the date is wrong"]).decide()
    assert evidence.verdict is Verdict.INVALID and evidence.reason == "the seal is broken; the date is wrong"
    assert evidence.rate == 0.0 and evidence.log2_p == 0.0


def test_decoys_fail_as_a_control_when_the_null_does_not_hold():
    healthy = decoy_control([of_bits(256 + shift % 20 - 10) for shift in range(100)])
    assert "failed" not in healthy and healthy["decoys"] == 100 and len(healthy["rates"]) == 100
    one_wild = decoy_control([of_bits(256)] * 99 + [of_bits(400)])
    assert "a decoy key reached" in one_wild["failed"]
    all_a_little = decoy_control([of_bits(280)] * 40 + [of_bits(256)] * 60)
    assert all_a_little["failed"] == "40 of 100 decoy keys pass 5 %"
    assert decoy_control([]) == {}
