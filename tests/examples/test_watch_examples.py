"""The examples around the watch: events, jobs, and cards against marks."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_watermark import verify
from hf_watermark.watch import Watch


EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(path):
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / path)))


@pytest.fixture(scope="module")
def webhook():
    return loaded("webhook/app.py")


def event(name="thief/plain", kind="model", private=False, action="update", scope="repo.content"):
    repo = SimpleNamespace(name=name, type=kind, private=private)
    return SimpleNamespace(repo=repo, event=SimpleNamespace(action=action, scope=scope))


def test_pushes_to_models_are_looked_at_and_nothing_else(webhook):
    assert webhook.named(event()).repo == "thief/plain"
    for other in (
        event(kind="dataset"),
        event(private=True),
        event(action="delete"),
        event(scope="discussion"),
        event(name="../../etc/passwd"),
    ):
        assert webhook.named(other) is None


def test_an_event_is_entered_into_the_table_of_the_watch(webhook, crowd, copies, tmp_path):
    environment = {"WATCH_KEYS": ":".join(copies.keys), "WATCH_OUTPUT": str(tmp_path / "watch")}

    summary = webhook.look_at(webhook.settings_from(environment), [webhook.named(event())])

    assert [row["repo"] for row in summary.alarms] == ["thief/plain"]
    assert (tmp_path / "watch" / "report.html").exists() and list((tmp_path / "watch" / "alarms").glob("*.sent"))
    assert Watch(webhook.settings_from(environment)).table.counted() == (2, 1)


def test_a_server_without_a_secret_does_not_start(webhook, monkeypatch):
    monkeypatch.delenv("WEBHOOK_SECRET", raising=False)
    with pytest.raises(SystemExit, match="WEBHOOK_SECRET"):
        webhook.main()


def test_a_job_holds_the_passphrase_as_a_secret_only(tmp_path):
    started = []
    api = SimpleNamespace(
        run_job=lambda **job: started.append(job), create_scheduled_job=lambda **job: started.append(job)
    )
    (tmp_path / "passphrase").write_text("a long enough passphrase\n")
    common = ["--key", "/watch/keys/my model", "--output", "/watch/table", "--volume", "hf://buckets/me/watch:/watch"]

    jobs = loaded("jobs/start.py")
    jobs.main([*common, "--passphrase-file", str(tmp_path / "passphrase"), "--every", "0 */6 * * *"], api)
    jobs.main([*common, "--", "--filter", "vision"], api)

    scheduled, once = started
    assert (
        scheduled["secrets"] == {"WATCH_PASSPHRASE": "a long enough passphrase"}
        and scheduled["schedule"] == "0 */6 * * *"
    )
    assert "long enough" not in json.dumps(scheduled["command"]) and "--passphrase-file" in scheduled["command"][-1]
    assert "'--key=/watch/keys/my model'" in once["command"][-1] and "--filter vision" in once["command"][-1]
    assert once["secrets"] is None and once["volumes"][0].mount_path == "/watch"
    with pytest.raises(SystemExit, match="--volume"):
        jobs.volume_of("me/watch")


def test_a_card_is_checked_against_the_marks(many, copies, tmp_path):
    action = loaded("action/check.py")
    weights = {"model.safetensors": copies.folder / "both" / "model.safetensors"}
    many.add_repo("a/honest", weights | {"README.md": "---\nbase_model:\n- me/first\n- me/second\n---\n"})
    many.add_repo("a/silent", weights | {"README.md": "---\nbase_model: me/second\n---\n"})
    many.add_repo("a/boastful", {"model.safetensors": copies.folder / "start" / "model.safetensors",
                                 "README.md": "---\nbase_model: me/first\n---\n"})  # fmt: skip
    keys = action.keys_from(f"me/first {copies.keys[0]}\nme/second {copies.keys[1]}\n")

    assert action.check("a/honest", keys) == []
    silent = action.check("a/silent", keys)
    assert [rule for rule, _ in silent] == ["undeclared-origin"] and "me/first" in silent[0][1]
    assert [rule for rule, _ in action.check("a/boastful", keys)] == ["declared-origin-not-seen"]
    sarif = action.sarif_of(silent)
    assert sarif["version"] == "2.1.0" and sarif["runs"][0]["results"][0]["level"] == "error"
    assert {rule["id"] for rule in sarif["runs"][0]["tool"]["driver"]["rules"]} >= {"undeclared-origin"}


def test_a_disclosed_mark_is_no_finding(copies):
    from hf_watermark import Opening

    action = loaded("action/check.py")
    evidence = verify(str(copies.folder / "plain"), Opening.of(copies.key(0), 0))
    assert evidence.disclosed and action.findings(set(), {"me/first": evidence}) == []
