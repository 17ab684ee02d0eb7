"""Evidence: levels, verdicts, and what combines how."""

import json

import pytest

from hf_watermark import InvalidInput
from hf_watermark.evidence import Access, Basis, Check, Evidence, SkipKind, Skipped, Verdict, combine, single
from hf_watermark.serialization import Unreadable
from hf_watermark.statistics import log2_binomial_tail, log2_e_beta_mixture
from hf_watermark.suspects import AccessError, BudgetExceeded, Suspect
from hf_watermark.verification.verifier import decoy_control, invalid_claim, total_of, with_skipped


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
    # 330 of 512 bits are strong for the owner's monitoring only; three such sub-keys together make a claim.
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
    assert "(10 bits charged for 1024 looks)" in str(often) and "looks" not in str(once)
    assert "(1 bit charged for 2 looks)" in combine([of_bits(400)], "m", looks=2).decide().reason


def test_the_smallest_value_that_is_quoted_is_said_to_be_one():
    assert "log2 p <= -256.0" in str(of_bits(512)) and "log2 p = -" in str(of_bits(400))
    assert "log2 p <= -255.0 (1 bit" in combine([of_bits(512)], "m", looks=2).decide().reason
    assert of_bits(512).to_dict()["log2_p"] == -256.0


def test_json_holds_the_counts():
    evidence = combine([of_bits(500), of_bits(12)], "m").decide()
    document = json.loads(evidence.to_json())
    assert document["verdict"] == "mark found" and document["parts"][1]["matches"] == 12
    assert document["matches"] == 512 and document["trials"] == 1024 and document["bound_to_beacon"] is False
    assert evidence.rate == 0.5 and str(evidence).startswith("mark found (self-check) [m]: log2 p <= -")


def test_refused_claims_stay_refused():
    evidence = invalid_claim(["the seal is broken", "the date is wrong"]).decide()
    assert evidence.verdict is Verdict.INVALID and evidence.reason == "the seal is broken; the date is wrong"
    assert evidence.rate == 0.0 and evidence.log2_p == 0.0


def test_decoys_fail_as_a_control_when_the_null_does_not_hold():
    # Limits so far out that a true mark of 1,024 sub-keys fails them once in 10^9 checks.
    healthy = decoy_control([of_bits(256 + shift % 20 - 10) for shift in range(100)])
    assert "failed" not in healthy and healthy["decoys"] == 100 and len(healthy["rates"]) == 100
    one_wild = decoy_control([of_bits(256)] * 99 + [of_bits(400)])
    assert "a decoy key reached" in one_wild["failed"]
    all_a_little = decoy_control([of_bits(280)] * 40 + [of_bits(256)] * 60)
    assert all_a_little["failed"] == "40 of 100 decoy keys pass 5 %"
    assert decoy_control([]) == {}
    a_little_luck = decoy_control([of_bits(256)] * 99 + [of_bits(330)])
    assert -45 < a_little_luck["best_log2_p"] < -20 and "failed" not in a_little_luck


# --- Sub-keys that others know, readings that cannot carry a claim, suspects that cannot be read -----------------------


def test_disclosed_subkeys_are_shown_and_add_nothing():
    planted = of_bits(512, subkey=0, disclosed=True, queries=3)
    others = [of_bits(256, subkey=index, queries=5) for index in (1, 2)]
    total = combine([planted, *others], "m").decide()
    assert total.verdict is Verdict.INCONCLUSIVE and total.log2_p > -1
    assert "only the public sub-key was found" in total.reason and "of the secret ones, log2 p = " in total.reason
    assert (total.matches, total.trials, total.queries, len(total.parts)) == (512, 1024, 10, 3)
    assert total.log2_e == pytest.approx(sum(part.log2_e for part in others))


def test_the_public_subkey_alone_is_no_mark():
    planted = of_bits(512, subkey=0, disclosed=True)
    assert planted.decide().verdict is Verdict.INCONCLUSIVE
    total = combine([planted], "m").decide()
    assert total.verdict is Verdict.INCONCLUSIVE and total.disclosed
    assert "only the public sub-key was found" in total.reason and "anybody could have planted it" in total.reason
    opened = combine([of_bits(512, subkey=3, disclosed=True)], "m").decide()
    assert "only sub-key 3, which was disclosed, was found" in opened.reason
    empty = combine([of_bits(256, subkey=0, disclosed=True)], "m").decide()
    assert empty.verdict is Verdict.INCONCLUSIVE and "prove nothing" in empty.reason


def test_no_subkey_counts_twice():
    with pytest.raises(InvalidInput, match="sub-key 7 is counted twice"):
        combine([of_bits(300, subkey=7) for _ in range(300)], "m")


def test_a_capped_reading_is_a_self_check_at_most():
    capped = of_bits(512, capped="nobody dated the reference")
    assert capped.level == "self-check"
    own = combine([capped], "m").decide()
    assert own.verdict is Verdict.INCONCLUSIVE and "as a self-check only: nobody dated" in own.reason
    claim = combine([of_bits(512, capped="nobody dated the reference", basis=Basis.CLAIM)], "m").decide()
    assert claim.verdict is Verdict.INCONCLUSIVE and "nobody dated the reference" in claim.reason


def test_the_weakest_basis_is_the_basis_of_the_whole():
    parts = [of_bits(400, basis=Basis.CLAIM), of_bits(400, basis=Basis.SELF_CHECK)]
    assert combine(parts, "m").basis is Basis.SELF_CHECK
    assert combine(parts[:1], "m").basis is Basis.CLAIM and combine(parts[:1], "m").to_dict()["basis"] == "claim"


def test_not_found_needs_something_that_was_read():
    nothing = single("m", 0, 0, 0.0, "null", Access.WEIGHTS).decide()
    assert nothing.verdict is Verdict.INCONCLUSIVE and "could not have been seen" in nothing.reason


@pytest.mark.parametrize(("unusable", "verdict"), [(10, Verdict.NOT_FOUND), (11, Verdict.INCONCLUSIVE)])
def test_not_found_needs_answers_that_could_be_used(unusable, verdict):
    evidence = of_bits(256, queries=100, unusable=unusable).decide()
    assert evidence.verdict is verdict
    if verdict is Verdict.INCONCLUSIVE:
        assert "11 of 100 answers could not be used" in evidence.reason
    assert of_bits(512, queries=100, unusable=unusable).decide().found


def test_the_evidence_of_each_method():
    first = combine([of_bits(500, subkey=0)], "first").decide()
    assert first.by_method == {"first": first} and first.access == {Access.WEIGHTS}
    asked = single("second", 40, 50, -30.0, "null", Access.LABELS, subkey=1)
    total = total_of([first, second := combine([asked], "second")], Check())
    assert total.by_method == {"first": first, "second": second}
    assert total.access == {Access.WEIGHTS, Access.LABELS} and total.to_dict()["access"] == "labels+weights"


def test_what_was_skipped_has_a_kind():
    errors = {
        "far": AccessError("needs labels"),
        "long": BudgetExceeded("asks 9 images"),
        "odd": Unreadable("stored in a format of its own"),
        "bad": InvalidInput("no such config"),
    }
    suspect = Suspect.open(lambda images: images)
    total = with_skipped(combine([of_bits(256)], "m"), errors, suspect, Check())
    assert [skipped.kind for skipped in total.skipped] == list(SkipKind)
    assert total.skipped[0] == Skipped("far", "needs labels", SkipKind.ACCESS)
    # People read the same; "not found" is not said where one method could not be read.
    assert total.warnings == [str(skipped) for skipped in total.skipped]
    assert total.verdict is Verdict.INCONCLUSIVE and "odd could not be read" in total.reason
    assert total.to_dict()["skipped"][1] == {"method": "long", "reason": "asks 9 images", "kind": "budget"}
