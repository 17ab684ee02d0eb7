"""`survival_table` over attacks of every family: each attacked model can be verified, and each row says what it cost."""

import json

import pytest

from hf_watermark.attacks import (
    Attack,
    Int4Quantize,
    Knockoff,
    LoraFineTune,
    Merge,
    OnnxRoundTrip,
    PreprocessInput,
    Stack,
    TriggerUnlearn,
    WeightNoise,
)
from hf_watermark.evaluation import survival_table


QUICK = {"epochs": 1, "batch_size": 100, "learning_rate": 1e-3}


@pytest.fixture
def battery(make_resnet) -> dict[str, Attack]:
    return {
        "jpeg": PreprocessInput("jpeg", 65),
        "onnx": OnnxRoundTrip(),
        "int4": Int4Quantize(),
        "lora": LoraFineTune(**QUICK),
        "merge": Merge(make_resnet(), weight=0.1),
        "unlearn": TriggerUnlearn(**QUICK, inversion_steps=2),
        "knockoff": Knockoff(**QUICK, queries=100),
        "stack": Stack((WeightNoise(0.05), PreprocessInput("flip"))),
        "no base": Merge(WeightNoise(0.1)(make_resnet(hidden_sizes=[8, 8]))),
    }


@pytest.mark.parametrize("method", ["greedy_residuals", "function_coupled"])
def test_rows_of_every_family(method, battery, marked_by, patterned):
    marked = marked_by(method)
    rows = {
        row["attack"]: row for row in survival_table(marked.model, marked.key, battery, patterned, patterned[:100])
    }
    json.dumps(rows)
    for label, row in rows.items():
        assert row["budget"] == battery[label].budget(patterned)
        assert row["options"]["name"] == battery[label].name
        if label != "no base":
            assert row["verdict"] in ("mark found", "inconclusive", "not found") and not row["not_checked"]
            assert 0 <= row["accuracy"] <= 1
    assert rows["no base"]["verdict"] == "n/a" and "merging needs the same architecture" in rows["no base"]["reason"]
    assert rows["unlearn"]["budget"]["steps"] == 10 * 2 + 4
    assert rows["knockoff"]["budget"]["queries"] == 100
    # Positive control and its counterpart: a student of one epoch has nothing of the mark, exported weights all of it.
    assert rows["knockoff"]["verdict"] == "not found"
    assert (
        rows["onnx"]["verdict"] == "mark found" or rows["onnx"]["log2_p"] <= -120
    )  # one sub-key counts; looks are charged
    assert (
        rows["onnx"]["methods"][method]["matches"] == rows["onnx"]["methods"][method]["trials"]
        or method != "greedy_residuals"
    )


def test_a_filter_hides_no_mark_in_the_weights(battery, marked_by, patterned):
    marked = marked_by("greedy_residuals")
    (row,) = survival_table(marked.model, marked.key, {"jpeg": battery["jpeg"]}, patterned, patterned[:20])
    found = row["methods"]["greedy_residuals"]
    assert (found["matches"], found["trials"]) == (marked.evidence.matches, marked.evidence.trials)
