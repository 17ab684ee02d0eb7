"""Tokens of timestamp authorities and signatures of the files: each with its ways of going wrong."""

import base64
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from authority import Authority, AuthorityServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from shops import write_files

from hf_watermark import InvalidInput
from hf_watermark.claims import check
from hf_watermark.publishing import Extras, publish
from hf_watermark.publishing.signing import (
    check_signature,
    new_signing_key,
    public_point,
    read_signing_key,
    sign_files,
)
from hf_watermark.publishing.timestamp import read_roots, read_token, request_token, token_beacon


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


# --- OpenSSF Model Signing (the defects of PROTOCOL.md §4.4) ---------------------------------------------------------


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
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read, Extras(signing_key=key))
    report = check("me/model")
    assert report["V1"].facts["model signature"] == "fits" and report.reached == "V1"
    write_files(tmp_path, hub.files("me/model"))
    (tmp_path / "model.sig").unlink()
    assert "model.sig is missing: it was stripped" in check(tmp_path)["V1"].reasons[0]
    write_files(tmp_path, hub.files("me/model") | {"modeling.py": b"evil"})
    assert "does not fit these files" in check(tmp_path)["V1"].reasons[0]
