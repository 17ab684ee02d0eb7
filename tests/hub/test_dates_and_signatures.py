"""Tokens of timestamp authorities, public beacons, and signatures of the files: each with its ways of going wrong."""

import base64
import hashlib
import json
import shutil
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from authority import Authority, AuthorityServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from shops import write_files

from hf_watermark import InvalidInput
from hf_watermark.claims import check
from hf_watermark.hub import Extras, publish
from hf_watermark.hub import beacon as beacons
from hf_watermark.hub.beacon import DELAY, beacon_time, drand_round, look_up, round_after, wait_for_round
from hf_watermark.hub.signing import check_signature, new_signing_key, public_point, read_signing_key, sign_files
from hf_watermark.hub.timestamp import read_roots, read_token, request_token, token_beacon


MESSAGE = b"what is to be dated"


# --- RFC 3161 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return Authority("Test")


def test_a_token_from_an_authority(hub, authority):
    with AuthorityServer(authority) as url:
        raw = request_token(url, MESSAGE)
        time = read_token(raw, MESSAGE, [authority.root])
        assert abs(time.moment - datetime.now(UTC)) < timedelta(seconds=5) and "Root" in time.authority
        assert token_beacon(raw) != token_beacon(request_token(url, MESSAGE))
        authority.refuse = True
        with pytest.raises(InvalidInput, match="the authority refused"):
            request_token(url, MESSAGE)
        authority.refuse = False
    with pytest.raises(InvalidInput, match="connection broke"):
        request_token("http://127.0.0.1:9/tsr", MESSAGE)


def test_an_answer_to_another_question(hub, authority, monkeypatch):
    monkeypatch.setattr(authority, "reply", lambda query: authority.token(MESSAGE))
    with AuthorityServer(authority) as url, pytest.raises(InvalidInput, match="is not an answer to this question"):
        request_token(url, MESSAGE)
    monkeypatch.setattr(authority, "reply", lambda query: b"<html>")
    with AuthorityServer(authority) as url, pytest.raises(InvalidInput, match="not a timestamp token"):
        request_token(url, MESSAGE)


def test_the_beacon_is_the_signature_alone(authority):
    """Everything else in the file could be varied by the claimant until the beacon suits him."""
    raw = authority.token(MESSAGE)
    again = authority.token(MESSAGE, datetime.now(UTC) - timedelta(days=1))
    assert token_beacon(raw) == token_beacon(raw) != token_beacon(again) and len(token_beacon(raw)) == 32


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not here")
def test_openssl_agrees(authority, tmp_path):
    write_files(tmp_path, {"token.tsr": authority.token(MESSAGE), "message": MESSAGE, "root.pem": authority.pem})
    command = ["openssl", "ts", "-verify", "-in", "token.tsr", "-data", "message", "-CAfile", "root.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_roots(authority, tmp_path):
    (tmp_path / "two.pem").write_bytes(authority.pem + Authority("Other").pem)
    assert len(read_roots([tmp_path / "two.pem"])) == 2
    with pytest.raises(InvalidInput, match="no file of PEM certificates"):
        read_roots([tmp_path / "nothing.pem"])


# --- Beacons ---------------------------------------------------------------------------------------------------------

CHAIN = "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971"


@pytest.fixture
def relay(hub, monkeypatch):
    """A drand relay on the loopback interface; `relay["change"]` spoils its answers."""
    state = {"change": lambda document: document}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = self.path.rsplit("/", 1)[-1]
            number = 1000 if place == "latest" else int(place)
            signature = hashlib.sha384(str(number).encode()).digest()
            document = {
                "round": number,
                "randomness": hashlib.sha256(signature).hexdigest(),
                "signature": signature.hex(),
            }
            body = json.dumps(state["change"](document)).encode()
            self.send_response(200 if number <= 10**9 else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(beacons, "DRAND", f"http://127.0.0.1:{server.server_port}/{CHAIN}")
    yield state
    server.shutdown()
    server.server_close()


def test_drand(relay):
    found = drand_round(beacons.DRAND)
    assert found.source == f"drand:{CHAIN}:1000" and look_up(found.source) == found
    assert found.moment == beacon_time(found.source) == datetime.fromtimestamp(1692803367 + 3 * 999, UTC)
    assert beacon_time("a newspaper") is None
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    number = round_after(moment)
    assert beacon_time(f"drand:{CHAIN}:{number}") >= moment > beacon_time(f"drand:{CHAIN}:{number - 1}")
    assert DELAY.total_seconds() == 60


def test_waiting_for_a_round(relay, monkeypatch):
    slept = []
    monkeypatch.setattr(beacons.time, "sleep", slept.append)
    number = round_after(datetime.now(UTC) + timedelta(seconds=60))
    assert wait_for_round(number, beacons.DRAND).source.endswith(f":{number}")
    assert 55 < slept[0] < 70


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d | {"randomness": "00" * 32},
        lambda d: d | {"round": 7},
        lambda d: {"round": d["round"]},
        lambda d: d | {"signature": "zz"},
    ],
)
def test_relays_that_lie(relay, change):
    relay["change"] = change
    with pytest.raises(InvalidInput, match="is no round of this chain"):
        drand_round(beacons.DRAND, 1000)


def test_sources_that_cannot_be_looked_up(relay):
    with pytest.raises(InvalidInput, match="no such round yet"):
        drand_round(beacons.DRAND, 10**10)
    with pytest.raises(InvalidInput, match="ends with no known chain"):
        drand_round("http://127.0.0.1/00")
    for source in ("rfc3161", "drand:00:1", f"drand:{'0' * 64}:1"):
        with pytest.raises(InvalidInput, match="cannot be looked up here"):
            look_up(source)


# --- OpenSSF Model Signing (the defects of protocol.md §4.4) ---------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("signed"), new_signing_key()
    write_files(
        folder,
        {"model.safetensors": b"weights", "config.json": b"{}", "README.md": b"card", "watermark/a.json": b"{}"},
    )
    files = {name: folder / name for name in ("model.safetensors", "config.json")}
    return folder, sign_files(files, key), public_point(key.public_key())


def listed(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def copied(signed, tmp_path):
    shutil.copytree(signed[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_signed_files_fit(signed, tmp_path):
    folder = copied(signed, tmp_path)
    check_signature(listed(folder), *signed[1:])
    (folder / "README.md").write_text("edited later, as people do")
    (folder / "watermark" / "b.json").write_text("{}")
    check_signature(listed(folder), *signed[1:])
    assert not list(tmp_path.glob(".hf-watermark-*"))


@pytest.mark.parametrize("spoil", ["bit", "extra code", "rename", "missing"])
def test_spoilt_files_do_not_fit(signed, tmp_path, spoil):
    folder = copied(signed, tmp_path)
    if spoil == "bit":
        (folder / "model.safetensors").write_bytes(b"weightt")
    elif spoil == "extra code":
        (folder / "modeling.py").write_text("evil")
    elif spoil == "rename":
        (folder / "config.json").rename(folder / "config2.json")
    else:
        (folder / "config.json").unlink()
    with pytest.raises(InvalidInput, match="model.sig: does not fit these files"):
        check_signature(listed(folder), *signed[1:])


def test_only_the_pinned_key_counts(signed):
    stranger = public_point(new_signing_key().public_key())
    with pytest.raises(InvalidInput, match="does not fit these files"):
        check_signature(listed(signed[0]), signed[1], stranger)
    bundle = json.loads(signed[1])
    bundle["verificationMaterial"]["publicKey"] = {}  # the hint is gone: the pinned key still decides
    check_signature(listed(signed[0]), json.dumps(bundle).encode(), signed[2])
    with pytest.raises(InvalidInput, match="a key that does not exist"):
        check_signature(listed(signed[0]), signed[1], "02" + "ff" * 32)


def test_exempt_files_are_refused(signed):
    bundle = json.loads(signed[1])
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["serialization"]["ignore_paths"] = ["model.safetensors"]
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    with pytest.raises(InvalidInput, match="exempts 'model.safetensors' from the signature"):
        check_signature(listed(signed[0]), json.dumps(bundle).encode(), signed[2])


@pytest.mark.parametrize(
    "bundle",
    [b"", b"{}", b"[]", b"{" * 1000, b'{"dsseEnvelope": {"payload": "x", "signatures": []}}', b'{"a":' * 9000],
)
def test_hostile_bundles(signed, bundle):
    with pytest.raises(InvalidInput):
        check_signature(listed(signed[0]), bundle, signed[2])


def test_signing_keys(tmp_path):
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "locked.pem").write_bytes(new_signing_key().private_bytes(encoding, form, locked))
    assert read_signing_key(tmp_path / "locked.pem", b"secret")
    with pytest.raises(InvalidInput, match="its passphrase is wrong"):
        read_signing_key(tmp_path / "locked.pem")
    other = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "p384.pem").write_bytes(other.private_bytes(encoding, form, serialization.NoEncryption()))
    with pytest.raises(InvalidInput, match="not a P-256 key"):
        read_signing_key(tmp_path / "p384.pem")


def test_published_with_a_signature(hub, shop, tmp_path):
    key = new_signing_key()
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.evidence, Extras(signing_key=key))
    report = check("me/model")
    assert report["V1"].facts["model signature"] == "fits" and report.reached == "V1"
    write_files(tmp_path, hub.files("me/model"))
    (tmp_path / "model.sig").unlink()
    assert "model.sig is missing: it was stripped" in check(tmp_path)["V1"].reasons[0]
    write_files(tmp_path, hub.files("me/model") | {"modeling.py": b"evil"})
    assert "does not fit these files" in check(tmp_path)["V1"].reasons[0]
