"""What a scan costs, by hand and from what was measured."""

import pytest

from hf_watermark.serialization import InvalidInput
from hf_watermark.watch import Watch
from hf_watermark.watch.budget import SpentForEver
from hf_watermark.watch.forecast import ScanInputs, costs_measured, forecast, forecast_of, shipped, with_measured_costs


COSTS = {
    "header_requests": 2.0, "header_bytes": 50.0, "header_seconds": 0.1,
    "read_requests": 10.0, "read_bytes": 10**6, "read_seconds": 1.5, "key_seconds": 0.5,
}  # fmt: skip


def test_the_scan_of_a_hub_by_hand():
    found = forecast(
        ScanInputs(repos=1000, keys=3, keys_each=2, matching=0.1, page=500, workers=4, addresses=2, **COSTS)
    )
    listing, headers, read = found["stages"]

    assert listing["requests"] == 2
    assert (headers["requests"], headers["bytes"]) == (900 * 2, pytest.approx(900 * 50))
    assert (read["requests"], read["bytes"]) == (1000, pytest.approx(100 * 10**6))
    assert read["core_hours"] == pytest.approx((100 * 1.5 + 100 * 0.5) / 3600)
    assert headers["hours"] == pytest.approx(1800 / 20 / 3600) and headers["limited_by"] == "requests"
    assert found["looks"] == 200 and found["last_look_needs_p"] == 0.01 * SpentForEver().gamma(200)
    assert found["total"]["requests"] == 2 + 1800 + 1000


def test_more_keys_cost_no_request():
    one, many = (forecast(ScanInputs(keys=keys, keys_each=keys, **COSTS)) for keys in (1, 50))

    assert one["total"]["requests"] == many["total"]["requests"]
    assert many["looks"] == 50 * one["looks"] and many["total"]["core_hours"] > one["total"]["core_hours"]
    assert one["false_alarms"] == many["false_alarms"]
    compared = forecast(ScanInputs(keys=50, header_key_seconds=0.01, **COSTS))
    assert compared["stages"][1]["core_hours"] == pytest.approx(one["stages"][1]["core_hours"] * (0.1 + 0.49) / 0.1)


def test_inputs_that_make_no_sense_are_refused():
    with pytest.raises(InvalidInput, match="`matching` is 2"):
        ScanInputs(matching=2)
    with pytest.raises(InvalidInput, match="`repos` is 0"):
        ScanInputs(repos=0)


def test_the_shipped_costs_are_measured_ones():
    inputs = with_measured_costs(repos=10)

    assert (
        inputs.repos == 10 and inputs.read_requests > inputs.header_requests > 0 and "repositories" in inputs.measured
    )
    assert set(shipped()["costs"]) <= set(ScanInputs.__dataclass_fields__)


def test_a_forecast_lists_and_reads_nothing(crowd, settings):
    found = forecast_of(settings(rate=5.0))

    assert crowd.count(part="resolve") == 0 and found["list"] == {
        "listed": 30,
        "discarded_by_the_list": 0,
        "list_complete": True,
    }
    assert found["inputs"]["repos"] == 30 and found["inputs"]["requests_per_second"] == 5.0


def test_a_table_of_enough_repositories_says_what_it_costs(crowd, settings, monkeypatch):
    watch = Watch(settings())
    watch.once()
    assert costs_measured(watch.table) is None
    monkeypatch.setattr("hf_watermark.watch.forecast.ENOUGH", 20)

    inputs = costs_measured(watch.table)

    assert 2 <= inputs.header_requests <= 3 < inputs.read_requests and 0.1 < inputs.matching < 0.3
    assert inputs.keys_each == 2.0 and "30 repositories" in inputs.measured
