"""`hf-watermark verify` on addresses, in steps, with a report."""

import json
import re
import shutil

import pytest
from inference_server import InferenceServer

from hf_watermark.keys.burnt import burn, burnt_log, burnt_subkeys


@pytest.fixture
def address(shop, monkeypatch):
    """The model of two methods behind an address."""
    from huggingface_hub import constants
    from transformers import AutoModelForImageClassification

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = InferenceServer(AutoModelForImageClassification.from_pretrained(shop / "both"))
    yield server.url
    server.close()


@pytest.fixture
def key(shop, tmp_path):
    """A copy of the key folder: asking notes sub-keys in it."""
    return shutil.copytree(shop / "keys" / "both", tmp_path / "key")


def test_an_address_in_steps(run, key, address, tmp_path):
    report = tmp_path / "report.html"
    check = ["verify", address, "--key", key, "--mean", "0", "--std", "1"]
    result = run(*check, "--sequential", "--budget", 200, "--report", report)
    assert result.exit_code == 1 and re.search(r"queries: \d+ of 200", result.stdout), result.output
    assert "not found" in result.stdout and "Evidence as the questions were asked" in report.read_text()


def test_a_budget_that_cannot_show_the_mark_burns_nothing(refused, key, address):
    check = ["verify", address, "--key", key, "--mean", "0", "--std", "1"]
    assert "5 images cannot reach 128 bits" in refused(*check, "--budget", 5)  # and no file was touched


@pytest.mark.parametrize("way", ["--sequential", "--all"])
def test_a_wrong_normalisation_burns_nothing(refused, key, address, way):
    check = ["verify", address, "--key", key, "--mean", "5", "--std", "1", way]
    assert "images of the key are no pictures under mean 5 and std 1" in refused(*check)


def test_a_check_that_broke_goes_on_at_the_same_host_only(run, key, address):
    check = ["verify", address, "--key", key, "--mean", "0", "--std", "1", "--json"]
    first, second = json.loads(run(*check).stdout), json.loads(run(*check).stdout)
    assert second["queries"] == first["queries"] > 0 and second["log2_p"] == first["log2_p"]
    before = "127.0.0.1 was asked sub-keys 1 before: this goes on with them"
    assert any(before in text for text in second["warnings"]) and not any(before in text for text in first["warnings"])
    assert len(burnt_log(key)) == 1
    burn(key, 1, "asked:example.org")
    third = json.loads(run(*check).stdout)
    assert third["queries"] == 0 and "disclosed before (1)" in third["reason"]


def test_asking_all_at_once_is_noted(run, key, address):
    run("verify", address, "--key", key, "--mean", "0", "--std", "1", "--all")
    assert burnt_subkeys(key) and address.split("/")[2].split(":")[0] in (key / "burnt.json").read_text()


def test_an_address_needs_the_owners_normalisation(refused, key, address):
    assert "give --mean and --std" in refused("verify", address, "--key", key)
    assert "--std 'x' is no list of numbers" in refused("verify", address, "--key", key, "--mean", "0", "--std", "x")
    assert "`api` is 'soap'" in refused("verify", address, "--key", key, "--mean", "0", "--std", "1", "--api", "soap")


def test_steps_need_a_black_box_method(refused, shop):
    assert "no method that can be asked in steps" in refused(
        "verify", shop / "marked", "--key", shop / "keys" / "open", "--sequential"
    )
    assert "--beacon 'xyz' is not hexadecimal" in refused(
        "verify", shop / "marked", "--key", shop / "keys" / "open", "--beacon", "xyz"
    )


def test_reports_are_never_overwritten(refused, shop, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("mine")
    assert "report.html exists" in refused(
        "verify", shop / "marked", "--key", shop / "keys" / "open", "--report", report
    )
    assert report.read_text() == "mine"
