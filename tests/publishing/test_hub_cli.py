"""The commands from precommit to dispute, as an owner, a reader and a judge type them."""

import contextlib
import hashlib
import json
import shutil
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from authority import Authority, AuthorityServer
from commands import refused, run
from cryptography.hazmat.primitives import serialization
from safetensors.torch import load_file
from shops import small_model, write_files
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import TrainingArguments

from hf_watermark import (
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    WatermarkKey,
    plan_key,
)
from hf_watermark.claims import check
from hf_watermark.claims.judgement import TRANSCRIPT_DOMAIN
from hf_watermark.cli import judge as judging
from hf_watermark.keys import is_signed_by
from hf_watermark.publishing import Precommit
from hf_watermark.publishing.signing import new_signing_key
from hf_watermark.serialization import canonical_json


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """A process of its own imports everything again; one test below does without this."""
    if "real_process" not in request.fixturenames:
        monkeypatch.setattr(judging, "confined", lambda work, arguments, *limits: work(**arguments))


@pytest.fixture
def real_process():
    pass


@pytest.fixture
def desk(tmp_path):
    """An owner's desk before training: identity, key, and two authorities in `trust.pem`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        owner = Owner.create()
        owner.save(tmp_path / "owner.json")
        trainer(tmp_path, owner=owner).key.save(tmp_path / "keys")
    return tmp_path


def trainer(place, model=None, **fields):
    arguments = TrainingArguments(output_dir=str(place / "output"), use_cpu=True, report_to="none", save_strategy="no")
    config = GreedyResidualsConfig(bits=256, group_size=32, subkeys=3, strength=1.0)
    return GreedyResidualsTrainer(model=model or small_model(), args=arguments, watermark=config, **fields)


def train(place, key):
    made = trainer(place, key=key)
    optimizer = torch.optim.Adam(made.model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        made.watermark_loss().backward()
        optimizer.step()
    made.model.save_pretrained(place / "model")


def test_from_precommit_to_judgement(hub, desk):
    first, second = Authority("First"), Authority("Second")
    (desk / "trust.pem").write_bytes(first.pem + second.pem)
    first.now = second.now = datetime.now(UTC) - timedelta(minutes=2)
    sign = desk / "sign.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    sign.write_bytes(new_signing_key().private_bytes(encoding, form, serialization.NoEncryption()))
    (desk / "survival.json").write_text(
        json.dumps({"rows": [{"attack": "prune", "accuracy": 0.9, "log2_p": -99.5, "verdict": "mark found"}]})
    )
    with AuthorityServer(first) as one, AuthorityServer(second) as two:
        done = run(
            "precommit", "--key", desk / "keys", "--repo-id", "me/model", "--output", desk / "public",
            "--timestamp", one, "--timestamp", two, "--beacon", "timestamp",
        )  # fmt: skip
        assert "published: " in done.stdout and "(rfc3161)" in done.stdout
        assert set(hub.files("me/model")) == {f"watermark/precommit.{part}" for part in ("json", "0.tsr", "1.tsr")}
        assert (desk / "public" / "watermark" / "precommit.1.tsr").is_file()
        key = WatermarkKey.load(desk / "keys")
        assert key.beacon_source == "rfc3161" and any(key.beacon)
        Precommit.parse((desk / "public" / "watermark" / "precommit.json").read_bytes())
        assert "is bound to a beacon already" in refused(
            "precommit", "--key", desk / "keys", "--timestamp", one, "--beacon", "drand"
        )
        train(desk, key)
        first.now = second.now = None
        done = run(
            "publish", desk / "model", "--key", desk / "keys", "--repo-id", "me/model", "--owner", desk / "owner.json",
            "--timestamp", one, "--timestamp", two, "--dataset", "digits", "--accuracy", 0.93, "--twin-accuracy", 0.94,
            "--seeds", 3, "--survival", desk / "survival.json", "--sign", sign,
        )  # fmt: skip
    assert "published: " in done.stdout and "model.sig" in hub.files("me/model")
    assert json.loads(run("statement", "show", "me/model").stdout)["statement"]["model_id"] == "me/model"

    trust = ("--trust", desk / "trust.pem")
    report = json.loads(run("statement", "check", "me/model", *trust, "--json").stdout)
    assert report["reached"] == "V3" and report["levels"][1]["facts"]["model signature"] == "fits"
    table = run("statement", "check", "me/model", *trust).stdout
    assert "level V3 reached" in table and "passed" in table

    opening = desk / "opening.json"
    done = run(
        "open", "--key", desk / "keys", "--subkey", 2, "--nonce", "court-1", "--output", opening, "--owner", desk / "owner.json"
    )  # fmt: skip
    assert "send it to the judge only" in done.stdout and opening.stat().st_mode & 0o077 == 0
    again = ("open", "--key", desk / "keys", "--subkey", 2, "--nonce", "court-2", "--owner", desk / "owner.json")
    assert "proves nothing any more; open another one of 1, " in refused(*again, "--output", desk / "second.json")
    assert "is left as it is" in refused(*again, "--output", opening)

    hub.add_repo("you/suspect", {"model.safetensors": desk / "model" / "model.safetensors"})
    judge = ("judge", "--opening", opening, "--suspect", "you/suspect", "--statement", "me/model", *trust)
    done = run(
        *judge, "--nonce", "court-1", "--drawn", "--suspect-date", "2030-01-01T00:00:00Z", "--output", desk / "transcript.json",
        "--sign-as", desk / "owner.json",
    )  # fmt: skip
    assert "mark found" in done.stdout and "level B was asked for; 2 looks were charged" in done.stdout
    assert json.loads((desk / "transcript.json").read_text())["transcript"]["verdict"] == "mark found"
    replayed = run(*judge, "--nonce", "court-2", "--json", status=4)
    assert "it is a replay" in json.loads(replayed.stdout)["reason"]
    unknown = json.loads(run(*judge, "--nonce", "court-1", "--json").stdout)
    assert unknown["ledger"]["level"] == "N" and unknown["ledger"]["looks"] == 6
    # The opening also serves `verify`.
    run("verify", desk / "model", "--opening", opening)
    # The next publication tells that the sub-key is spent.
    run("publish", desk / "model", "--key", desk / "keys", "--repo-id", "me/model", "--owner", desk / "owner.json")
    statement = json.loads(hub.files("me/model")["watermark/statement.json"])["statement"]
    assert statement["disclosed"] == [{"subkey": 2, "nonce_sha256": hashlib.sha256(b"court-1").hexdigest()}]
    # ... in other disputes: an opening does not spoil the one that it was made for.
    assert "mark found" in run(*judge, "--nonce", "court-1", "--drawn").stdout
    second = desk / "second.json"
    run(*again, "--again", "--output", second)
    spent = ("judge", "--opening", second, *judge[3:])
    assert "opened in an earlier dispute" in run(*spent, "--nonce", "court-2", status=4).stdout


def test_files_of_strangers_are_read_in_another_process(hub, dated, tmp_path, real_process):
    shutil.copytree(dated.shop.keys, tmp_path / "keys")
    owner = dated.shop.keys.parent / "owner.json"
    opening = tmp_path / "opening.json"
    run(
        "open", "--key", tmp_path / "keys", "--subkey", 1, "--nonce", "n", "--output", opening, "--owner", owner
    )  # fmt: skip
    hub.add_folder("you/suspect", dated.folder)
    judge = ("judge", "--opening", opening, "--suspect", "you/suspect", "--statement", dated.folder, "--nonce", "n")
    signed = ("--output", tmp_path / "transcript.json", "--sign-as", owner)
    done = run(*judge, *signed, "--json")
    document = json.loads(done.stdout)
    assert document["transcript"]["verdict"] == "mark found" and document == json.loads(
        (tmp_path / "transcript.json").read_text()
    )
    message = TRANSCRIPT_DOMAIN + canonical_json(document["transcript"])
    assert is_signed_by(bytes.fromhex(document["judge"]), message, bytes.fromhex(document["signature"]))
    # A file that takes too long costs that process.
    assert "given up: the files took more than" in refused(*judge, "--max-minutes", 0.001)


def test_encrypted_secrets(hub, desk, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = WatermarkKey.load(desk / "keys")
    key.save(desk / "locked", passphrase="a long enough passphrase")
    secret = tmp_path / "passphrase"
    secret.write_text("a long enough passphrase\n")
    secret.chmod(0o600)
    value = "07" * 32
    run(
        "precommit",
        "--key",
        desk / "locked",
        "--passphrase-file",
        secret,
        "--output",
        tmp_path / "p",
        "--beacon",
        f"{value}:a newspaper",
    )
    bound = WatermarkKey.load(desk / "locked", "a long enough passphrase")
    assert bound.beacon.hex() == value and bound.beacon_source == "a newspaper"
    assert "is encrypted; give its passphrase" in refused(
        "precommit", "--key", desk / "locked", "--output", tmp_path / "q"
    )


def test_publish_refuses(hub, desk, tmp_path):
    small_model(seed=4).save_pretrained(tmp_path / "plain")
    arguments = ("--key", desk / "keys", "--repo-id", "me/model", "--owner", desk / "owner.json")
    done = run("publish", tmp_path / "plain", *arguments, status=1)
    assert "not published: not found" in done.stderr and hub.count("POST", "create") == 0
    train(desk, WatermarkKey.load(desk / "keys"))
    assert "give --accuracy and --dataset together" in refused(
        "publish", desk / "model", *arguments, "--accuracy", 0.5
    )
    (desk / "rows.json").write_text("{}")
    assert "holds no survival table" in refused(
        "publish", desk / "model", *arguments, "--survival", desk / "rows.json"
    )
    (desk / "model" / "log.txt").write_text(WatermarkKey.load(desk / "keys").seed.hex())
    assert "log.txt: holds the seed of the key; nothing was uploaded" in refused("publish", desk / "model", *arguments)
    assert hub.requests == []
    assert "nothing to do" in refused("precommit", "--key", desk / "keys")
    assert "is made from a timestamp" in refused(
        "precommit", "--key", desk / "keys", "--repo-id", "me/m", "--beacon", "timestamp"
    )
    assert "write 'timestamp', 'drand', or 64" in refused(
        "precommit", "--key", desk / "keys", "--output", desk / "x", "--beacon", "sunspots"
    )


def test_check_says_what_it_cannot_read(hub, dated, tmp_path):
    hub.add_repo("you/plain", {"model.safetensors": dated.folder / "model.safetensors"})
    said = run("statement", "check", "you/plain", status=3).stdout
    assert said == "you/plain: watermark/statement.json is missing: this model makes no claim\n"
    assert "makes no claim" in refused("statement", "show", "you/plain")
    assert "does not exist, or is private; check the name" in refused("statement", "check", "you/nothing")
    (tmp_path / "you").mkdir()
    with contextlib.chdir(tmp_path):
        assert "and the folder you on this machine holds nothing of that name" in refused(
            "statement", "check", "you/nothing"
        )
    hub.add_repo("you/hidden", {"a": "b"}, private=True)
    assert "does not exist, or is private" in refused("statement", "check", "you/hidden")
    assert "no file of PEM certificates" in refused(
        "statement", "check", dated.folder, "--trust", dated.folder / "config.json"
    )
    assert "write 64 hexadecimal digits" in refused("statement", "check", dated.folder, "--beacon", "zz")
    assert "cannot be looked up here" in refused("statement", "check", dated.folder, "--beacon", "drand")
    copied = tmp_path / "copied"
    shutil.copytree(dated.folder, copied)
    (copied / "config.json").write_text("{}")
    assert "level V0 reached" in run("statement", "check", copied, status=1).stdout


def test_hostile_words_do_not_reach_the_terminal(hub, dated, tmp_path):
    """D10: right-to-left marks, control characters and markup in a repository's documents."""
    document = json.loads((dated.folder / "watermark" / "statement.json").read_text())
    document["statement"]["architecture"] = "\u202e\x1b[31m[red]<b>"
    write_files(tmp_path, {"watermark/statement.json": json.dumps(document).encode()})
    shown = run("statement", "check", tmp_path, status=1).stdout
    assert "\x1b" not in shown and "\u202e" not in shown and "architecture" in shown
    assert "\u202e" not in refused("statement", "show", tmp_path)


def test_a_dispute(hub, dated, shop, tmp_path):
    from hf_watermark.publishing import publish

    publish(shop.folder, "me/other", shop.key, shop.owner, shop.read)
    openings = []
    for name, owner in (("a", dated.shop), ("b", shop)):
        shutil.copytree(owner.keys, tmp_path / name)
        openings.append(tmp_path / f"{name}.json")
        run(
            "open",
            "--key",
            tmp_path / name,
            "--subkey",
            1,
            "--nonce",
            "n",
            "--output",
            openings[-1],
            "--owner",
            owner.keys.parent / "owner.json",
        )
    common = (
        "--opening-a",
        openings[0],
        "--statement-a",
        dated.folder,
        "--opening-b",
        openings[1],
        "--statement-b",
        "me/other",
        "--nonce",
        "n",
    )
    done = run("dispute", "--suspect", dated.folder, *common, "--drawn", "--output", tmp_path / "dispute.json")
    assert "the suspect descends from A's mark" in done.stdout
    assert json.loads((tmp_path / "dispute.json").read_text())["upstream"] == ["A"]
    small_model(seed=3).save_pretrained(tmp_path / "plain")
    assert (
        json.loads(run("dispute", "--suspect", tmp_path / "plain", *common, "--json", status=1).stdout)["verdict"]
        == "no finding"
    )


def test_a_black_box_mark_with_its_pool(hub, small_configs, tmp_path):
    """The opening brings the source images along; the suspect runs on the claimant's architecture, as its statement binds it."""
    owner = Owner.create()
    fields = {"train_dataset": patterned_images(), "watermark": small_configs["function_coupled"]}
    arguments = training_arguments(tmp_path / "model", max_steps=180)
    planned = plan_key(tiny_resnet(), fields["train_dataset"], fields["watermark"], owner)
    key = planned.bind_beacon(b"\x07" * 32, "a value of a test")
    made = FunctionCoupledTrainer(model=tiny_resnet(), args=arguments, key=key, **fields)
    made.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_model()
        key.save(tmp_path / "keys")
        owner.save(tmp_path / "owner.json")
    arguments = ("--key", tmp_path / "keys", "--owner", tmp_path / "owner.json")
    run("publish", tmp_path / "model", "--repo-id", "me/fc", *arguments)
    used = [index for assignment in key.assignments for index in assignment.subkeys]
    published = "watermark/subkey0.json" in hub.files("me/fc")
    assert published is (len(used) > 1)
    if published:
        assert "needs the owner's source images" in check("me/fc")["V3"].reasons[0]
        run("publish", tmp_path / "model", "--repo-id", "me/fc", *arguments, "--publish-pool")
        assert str(check("me/fc", beacon=key.beacon)["V3"].outcome) == "passed"
    opening = tmp_path / "opening.json"
    run("open", *arguments, "--subkey", used[-1], "--nonce", "n", "--output", opening)
    assert load_file(Path(tmp_path / "opening.pool.safetensors"))
    judged = ("--opening", opening, "--suspect", tmp_path / "model", "--statement", "me/fc", "--nonce", "n")
    done = run("judge", *judged, "--json", status=None)
    transcript = json.loads(done.stdout)
    assert transcript["evidence"]["log2_p"] <= -64
    assert any(
        step["step"] == "scope" and "learned the marked behaviour" in step["detail"] for step in transcript["steps"]
    )
    (tmp_path / "opening.pool.safetensors").unlink()
    bare = run("judge", *judged, status=None)
    assert bare.exit_code == 4 and "source images" in bare.stdout
