"""Null tables: honest counts, strict reading, and a control that can only take away."""

import copy
import json
import math

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import Evidence, GreedyResidualsConfig, InvalidInput, USPConfig, Verdict, verify
from hf_watermark.evaluation.matrix.data import LoadedData
from hf_watermark.evaluation.nulls import measure_null_table, null_scores
from hf_watermark.evidence import Access, combine, single
from hf_watermark.serialization.schema import validated
from hf_watermark.statistics import log2_binomial_tail
from hf_watermark.verification.null_table import (
    TABLE_BYTES,
    NullTable,
    entry_of,
    find_null_table,
    read_null_table,
    shipped_null_tables,
    with_null_control,
    write_null_table,
)
from hf_watermark.verification.verifier import summary


CONFIG = GreedyResidualsConfig(bits=128, subkeys=2, group_size=16)  # as `marked_by` uses


def table(log2_ps, method="greedy_residuals", config=CONFIG) -> NullTable:
    entry = entry_of(method, config.to_dict(), log2_ps, [0.5] * len(log2_ps))
    fields = {"schema": "hf-watermark/null-table/v1", "backbone": "net", "data": "pictures", "models": 1}
    fields |= {"keys": len(log2_ps), "library_version": "0.1.0", "hardware": "one core", "entries": [entry.plain()]}
    return validated(NullTable, fields, "table")


def uniform(count: int) -> list[float]:
    """log2 of the p-values that a perfect test gives."""
    return [math.log2((place + 0.5) / count) for place in range(count)]


@pytest.fixture(scope="module")
def measured() -> NullTable:
    data = LoadedData(patterned_images(), patterned_images(50, seed=2), 10, (1, 16, 16))
    return measure_null_table([tiny_resnet()], data, {"greedy_residuals": CONFIG}, 60, ("tiny", "patterns"))


def test_counts_are_those_of_the_scores(monkeypatch):
    scores = [-0.5, -4.0, -7.0, -11.0, -30.0]

    entry = entry_of("greedy_residuals", {}, scores, [0.5] * 5)

    assert {row.p: row.count for row in entry.exceedances} == {0.1: 4, 0.01: 3, 0.001: 2, 0.0001: 1}
    assert entry.smallest_log2_p == -30.0 and entry.pairs == 5


def test_an_unmarked_model_gives_no_alarm(measured):
    [entry] = measured.entries

    assert entry.pairs == 60 and entry.config == CONFIG.to_dict()
    assert entry.alarm() is None and 0.4 < entry.mean_rate < 0.6


def test_the_keys_of_a_null_are_not_the_same():
    scores = null_scores(
        USPConfig(features=16, pool_per_class=10), tiny_resnet(), patterned_images(), keys=12, decoys=6
    )

    assert len(scores) == 12 and len({rate for _, rate in scores}) > 3


def found(log2_p: float = -140.0) -> Evidence:
    part = single("greedy_residuals", 140, 140, log2_p, "binomial", Access.WEIGHTS)
    return summary(combine([part.decide()], "greedy_residuals"))


def test_a_sound_table_changes_nothing_but_the_controls():
    plain, checked = found(), with_null_control(found(), table(uniform(1000)), {"greedy_residuals": CONFIG.to_dict()})

    assert (checked.log2_p, checked.log2_e, checked.verdict) == (plain.log2_p, plain.log2_e, Verdict.FOUND)
    assert checked.controls["null_models"]["pairs"] == 1000
    assert checked.controls["null_models"]["shares"]["0.01"] == pytest.approx(0.01)


def test_a_table_that_exceeds_its_thresholds_takes_the_verdict_away():
    too_many = [-20.0] * 50 + uniform(950)
    assert log2_binomial_tail(50, 1000, 1e-4) < math.log2(1e-6)

    checked = with_null_control(found(), table(too_many), {"greedy_residuals": CONFIG.to_dict()})

    assert checked.verdict is Verdict.INCONCLUSIVE and "unmarked (model, key) pairs" in checked.reason
    assert checked.log2_p == found().log2_p


@pytest.mark.parametrize("log2_p", [0.0, -1.0, -40.0, -100.0])
def test_no_table_makes_evidence_stronger(log2_p):
    order = [Verdict.NOT_FOUND, Verdict.INCONCLUSIVE, Verdict.FOUND]
    for scores in (uniform(1000), [0.0] * 1000, [-0.1] * 10):
        plain, checked = (
            found(log2_p),
            with_null_control(found(log2_p), table(scores), {"greedy_residuals": CONFIG.to_dict()}),
        )
        assert checked.log2_p == plain.log2_p and checked.log2_e == plain.log2_e
        assert order.index(checked.verdict) <= order.index(plain.verdict)


def test_a_table_of_another_config_is_named_and_no_control():
    other = CONFIG.to_dict() | {"bits": 64}

    checked = with_null_control(found(), table([-20.0] * 100), {"greedy_residuals": other})

    assert checked.found and "another config" in checked.warnings[-1] and "null_models" not in checked.controls


def test_verify_takes_a_table(marked_by, measured):
    marked = marked_by("greedy_residuals")
    beacon = marked.key.beacon

    evidence = verify(marked.model, marked.key, beacon=beacon, null_table=measured)

    assert evidence.found and evidence.controls["null_models"]["pairs"] == 60
    assert evidence.log2_p == verify(marked.model, marked.key, beacon=beacon).log2_p


def test_a_table_survives_the_disk_and_is_not_overwritten(tmp_path, measured):
    write_null_table(measured, tmp_path / "null.json")

    assert read_null_table(tmp_path / "null.json") == measured == find_null_table(str(tmp_path / "null.json"))
    with pytest.raises(FileExistsError):
        write_null_table(measured, tmp_path / "null.json")


def changed(path, value):
    document = copy.deepcopy(table(uniform(1000)).plain())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], "v0", "schema"),
        (["models"], 2, "1000 pairs are not 2 models x 1000 keys"),
        (["models"], -1, "models"),
        (["keys"], 10**12, "keys"),
        (["entries", 0, "pairs"], 999, "999 pairs"),
        (["entries", 0, "exceedances", 0, "count"], 2000, "2000 of 1000"),
        (["entries", 0, "exceedances", 3, "count"], 5, "contradicts"),
        (["entries", 0, "smallest_log2_p"], -80.0, "contradicts"),
        (["entries", 0, "smallest_log2_p"], 3.0, "smallest_log2_p"),
        (["entries", 0, "mean_rate"], 2, "mean_rate"),
        (["entries"], [], "entries"),
        (["hardware"], "a\x1b[31m", "hardware"),
        (["note"], "x", "note"),
    ],
)
def test_a_tampered_table_is_refused(tmp_path, path, value, message):
    (tmp_path / "t.json").write_text(json.dumps(changed(path, value)))

    with pytest.raises(InvalidInput, match=r"t\.json") as caught:
        read_null_table(tmp_path / "t.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": NaN}', b"[" * 9000, b" " * (TABLE_BYTES + 1)])
def test_malformed_tables_raise_one_exception(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)

    with pytest.raises(InvalidInput, match=r"t\.json"):
        read_null_table(tmp_path / "t.json")


def test_shipped_tables_are_sound():
    shipped = shipped_null_tables()

    assert "digits_small_resnet" in shipped
    for name, each in shipped.items():
        for entry in each.entries:
            assert entry.alarm() is None, (name, entry.method)
            assert entry.pairs >= 1000
    with pytest.raises(InvalidInput, match="there are: digits_small_resnet"):
        find_null_table("nonesuch")
