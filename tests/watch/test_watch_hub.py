"""A watch over a Hub that can be listed: what it finds, what it asks for, and what it does a second time."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from many_repos import GeneratedRepo
from server import Refused

from hf_watermark.serialization import InvalidInput
from hf_watermark.suspects.errors import HubError
from hf_watermark.watch import ListedRepo, Watch, watch_repos
from hf_watermark.watch.alarms import record_alarms
from hf_watermark.watch.table import Table


MARKED = {("thief/plain", "mine"), ("thief/tuned", "mine"), ("thief/both", "mine"), ("thief/both", "second")}


def alarms_of(summary):
    return {(row["repo"], row["key"].rpartition("/")[2]) for row in summary.alarms}


def rows_of(watch):
    return {(row["repo"], (row["key"] or "").rpartition("/")[2]): row for row in watch.table.looks().to_pylist()}


def test_all_copies_are_found_and_nothing_else(crowd, settings):
    watch = Watch(settings())

    summary = watch.once()

    assert alarms_of(summary) == MARKED
    assert summary.repositories == 30 and summary.outcomes["discarded"] > 20
    rows = watch.table.looks().to_pylist()
    read, discarded = ([row for row in rows if row["outcome"] == name] for name in ("look", "discarded"))
    assert all(row["requests"] <= 3 for row in discarded if not is_sharded(crowd, row["repo"]))
    # Two keys, one read: its requests are those of one.
    assert all(row["requests"] <= 12 for row in read if row["repo"].startswith("user"))
    assert sorted(row["look"] for row in read) == list(range(1, len(read) + 1))
    clear = [row for row in read if (row["repo"], row["key"].rpartition("/")[2]) not in MARKED]
    assert clear and all(row["log2_p"] > -20 and not row["alarm"] for row in clear)
    assert sum(request.sent for request in crowd.requests) < 0.08 * sum(row["size"] for row in rows if row["size"])


def is_sharded(hub, name):
    repo = hub.repos["models", name]
    return isinstance(repo, GeneratedRepo) and repo.shards > 1


def test_keys_of_one_layout_share_what_is_read(many, copies, settings):
    many.add_marked("thief/plain", copies.folder / "plain", 1)
    Watch(settings(keys=copies.keys[:1], output=f"{settings().output}-one")).once()
    alone = many.count()
    many.forget()

    watch = Watch(settings())
    watch.once()

    assert many.count() <= alone + 2
    rows = rows_of(watch)
    assert rows["thief/plain", "mine"]["alarm"] and not rows["thief/plain", "second"]["alarm"]
    assert rows["thief/plain", "mine"]["digest"] == rows["thief/plain", "second"]["digest"] != ""


def test_a_second_run_looks_at_what_changed(crowd, copies, settings):
    Watch(settings()).once()
    crowd.forget()

    nothing = Watch(settings()).once()
    assert nothing.repositories == 0 and crowd.count(part="resolve") == 0

    crowd.add_marked("user3/model-3", copies.folder / "plain", 600)
    again = Watch(settings()).once()
    assert again.repositories == 1 and alarms_of(again) == {("user3/model-3", "mine")}
    assert again.looks == 2 and again.looks_ever > 2


def test_looks_are_counted_on_and_thresholds_fall(crowd, settings):
    watch = Watch(settings())
    watch.once()

    alphas = [row["alpha"] for row in watch.table.looks().to_pylist() if row["look"]]

    assert alphas == sorted(alphas, reverse=True) and sum(alphas) < 0.01


@pytest.mark.parametrize("change", [{"budget": 0.5}, {"fdr": 0.2}])
def test_the_budget_of_a_folder_stays(crowd, settings, change):
    watch = Watch(settings(keys=settings().keys[:1]))
    watch.settings.save()

    with pytest.raises(InvalidInput, match="were counted with"):
        Watch(settings(**change))
    assert Watch(settings()).settings.keys == settings().keys  # a further key is further looks


def test_repositories_that_cannot_be_read_are_named_and_are_no_looks(many, copies, settings):
    weights = (copies.folder / "plain" / "model.safetensors").read_bytes()
    many.add_repo("closed/gated", {"model.safetensors": weights}, gated=True)
    many.add_repo("old/pickled", {"pytorch_model.bin": b"x"})
    many.add_repo("new/empty", {"README.md": "nothing"})
    many.add_repo("lora/adapter", {"adapter_config.json": "{}", "adapter_model.safetensors": weights})
    many.add_repo("bad/header", {"model.safetensors": b"\xff" * 200})
    many.add_repo("mine/private", {"model.safetensors": weights}, private=True)

    watch = Watch(settings())
    summary = watch.once()

    rows = {repo: row for (repo, _), row in rows_of(watch).items()}
    assert {repo: row["outcome"] for repo, row in rows.items()} == {
        "closed/gated": "skipped",
        "old/pickled": "skipped",
        "new/empty": "discarded",
        "lora/adapter": "discarded",
        "bad/header": "unreadable",
    }
    assert "gated" in rows["closed/gated"]["reason"] and summary.looks == 0
    assert many.count(part="resolve") == 1 and many.count(part="cdn") == 1  # only the damaged header was asked for


def test_a_name_in_the_list_is_no_path(many, settings):
    many.add_repo("good/model", {"README.md": "x"})
    assert ListedRepo.of({"id": "../../etc/passwd"}) is None and ListedRepo.of({"id": 7}) is None
    assert ListedRepo.of({"id": "a/b", "sha": "main", "siblings": [{"rfilename": 3}]}).revision == ""


def test_offline_is_said(crowd, settings, offline_client):
    with pytest.raises(HubError, match="offline"):
        Watch(settings()).once()


@pytest.fixture
def offline_client(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_reordered_channels_are_found_with_a_reference_and_strangers_are_not_aligned(many, copies, settings):
    from safetensors.torch import save_file
    from transformers import AutoModelForImageClassification

    from hf_watermark.attacks.table import make_attack

    model = AutoModelForImageClassification.from_pretrained(copies.folder / "plain")
    images = [{"pixel_values": __import__("torch").rand(3, 64, 64), "labels": 0} for _ in range(2)]
    permuted = make_attack("permute")(model, images)
    place = copies.folder / "permuted"
    place.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in permuted.state_dict().items()}, place / "model.safetensors"
    )
    many.add_marked("thief/permuted", place, 3)
    many.generate(4, ["resnet10t"])

    plain = Watch(settings(keys=copies.keys[:1], output=f"{settings().output}-plain")).once()
    watch = Watch(settings(keys=copies.keys[:1], references={copies.keys[0]: str(copies.folder / "start")}))
    aligned = watch.once()

    assert not plain.alarms
    assert alarms_of(aligned) == {("thief/permuted", "mine")} and aligned.alarms[0]["aligned"]
    strangers = [row for row in watch.table.looks().to_pylist() if row["repo"].startswith("user")]
    assert all(row["bytes"] < 0.1 * row["size"] for row in strangers)


def test_alarms_are_posted_once_and_again_where_nobody_took_them(crowd, copies, settings, tmp_path):
    taken, answers = [], [500, 200, 200, 200, 200, 200]

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            taken.append(
                (json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.headers.get("Authorization"))
            )
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chosen = settings(webhook=f"http://127.0.0.1:{server.server_port}/alarm")
        watch = Watch(chosen, alarm=lambda number: record_alarms(chosen, number) and None)
        watch.once()
        assert len(taken) == 4
        for number in range(1, 4):
            record_alarms(chosen, number)
        server.shutdown()
    assert len(taken) == 5 and taken[0][0]["look"] == taken[4][0]["look"]
    alarm, authorization = taken[1]
    assert alarm["basis"] == "self-check" and "judge" in alarm["what_a_claim_needs"] and authorization is None
    assert [part["controls"]["decoys"] for part in alarm["evidence"]["parts"] if not part["disclosed"]] == [100] * 3
    issue = next((tmp_path / "watch" / "alarms").glob("*.md")).read_text()
    assert issue.startswith("# thief/") and "hf-watermark verify thief/" in issue


def test_named_repositories_are_looked_at_at_once(crowd, settings):
    summary = watch_repos(settings(), [ListedRepo("thief/plain")])

    assert alarms_of(summary) == {("thief/plain", "mine")} and summary.repositories == 1
    assert Watch(settings()).once().looks_ever > summary.looks_ever


def test_a_repository_deleted_after_the_listing_is_gone_and_a_rewritten_one_is_read_anew(crowd, settings):
    watch = Watch(settings())
    batches = []

    def spoil(chosen, number):
        from hf_watermark.watch.engine import run_batch

        if not batches:
            repos = [repo.repo for repo in watch.table.batch(number).repos]
            name = next(repo for repo in repos if crowd.repos["models", repo].number % 4 == 2)
            other = next(repo for repo in repos if crowd.repos["models", repo].number % 4 == 2 and repo != name)
            batches.extend([name, other])
            del crowd.repos["models", name]
            crowd.repos["models", other].commits[:] = []
            crowd.add_repo(other, {"README.md": "rewritten"})
        run_batch(chosen, number)

    watch.run = spoil
    watch.once()
    rows = {repo: row for (repo, _), row in rows_of(watch).items()}
    assert rows[batches[0]]["outcome"] == rows[batches[1]]["outcome"] == "unreached"

    later = Watch(settings())
    later.once()
    last = {row["repo"]: row["outcome"] for row in later.table.looks().to_pylist()}
    assert last[batches[0]] == "gone" and last[batches[1]] == "discarded"


def test_a_storm_of_refusals_loses_nothing(crowd, settings):
    left = [8]

    def storm(method, path):
        if "resolve" in path and left[0] > 0:
            left[0] -= 1
            return Refused(429, None, "too many requests", {"Retry-After": "1"})
        return None

    crowd.refuse = storm
    limits = Table(settings().folder)
    watch = Watch(settings())
    watch.once()
    crowd.refuse = None
    summary = Watch(settings()).once()

    found = {row["repo"] for row in limits.looks().to_pylist() if row["alarm"]}
    assert found == {"thief/plain", "thief/tuned", "thief/both"}
    assert "unreached" not in summary.outcomes


@pytest.mark.parametrize("fault", ["drop", "truncate"])
def test_broken_connections_are_asked_again(crowd, settings, fault):
    for number in range(5, 120, 9):
        crowd.drop_at(number, after=number % 2 == 0) if fault == "drop" else crowd.truncate_at(number)

    Watch(settings()).once()
    watch = Watch(settings())
    watch.once()

    found = {(row["repo"], row["key"].rpartition("/")[2]) for row in watch.table.looks().to_pylist() if row["alarm"]}
    assert found == MARKED
    last = {row["repo"]: row["outcome"] for row in watch.table.looks().to_pylist()}
    assert "unreached" not in last.values() and len(last) == 30


def test_secrets_of_addresses_and_tokens_are_not_written(many, copies, settings):
    many.add_marked("thief/plain", copies.folder / "plain", 1)
    many.refuse = lambda method, path: (
        Refused(403, None, "no: https://cdn/x?Signature=abc123 hf_loopback") if "resolve" in path else None
    )

    watch = Watch(settings())
    watch.once()

    text = b"".join(path.read_bytes() for path in settings().folder.rglob("*") if path.is_file())
    reason = watch.table.looks().to_pylist()[0]["reason"]
    assert "refused" in reason and b"hf_loopback" not in text and b"abc123" not in text
