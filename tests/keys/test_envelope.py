"""The envelope of secrets on disk: round trip, refusals, and damage of every kind."""

import base64
import json
import os
import re
import stat
import warnings

import pytest

from hf_watermark import InvalidInput, Owner
from hf_watermark.keys import WrongPassphrase, envelope
from hf_watermark.keys.envelope import read_envelope, seal, unseal, write_envelope


PAYLOAD = {"kind": "test", "seed": "00ff" * 8, "layout": {"scale": 0.5, "items": [1, None]}}
PASSPHRASE = "correct horse battery"


@pytest.fixture
def cheap(monkeypatch):
    """Argon2id with the least memory, so that hundreds of derivations take a moment."""
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


def test_encrypted_round_trip(tmp_path):
    path = tmp_path / "new folder" / "key.json"
    write_envelope(path, PAYLOAD, PASSPHRASE, overwrite=False)
    assert read_envelope(path, PASSPHRASE) == PAYLOAD
    assert b"00ff" not in path.read_bytes() and b"layout" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_default_derivation_is_expensive():
    assert json.loads(seal(PAYLOAD, PASSPHRASE))["kdf"].items() >= {"memory_kib": 65_536, "iterations": 3}.items()


def test_two_seals_share_neither_salt_nor_nonce(cheap):
    first, second = (json.loads(seal(PAYLOAD, PASSPHRASE)) for _ in range(2))
    assert first["kdf"]["salt"] != second["kdf"]["salt"]
    assert first["nonce"] != second["nonce"] and first["ciphertext"] != second["ciphertext"]


def test_wrong_and_missing_passphrase(cheap):
    raw = seal(PAYLOAD, PASSPHRASE)
    with pytest.raises(WrongPassphrase, match="this passphrase does not open it"):
        unseal(raw, PASSPHRASE + "!")
    with pytest.raises(WrongPassphrase, match="is encrypted; give its passphrase"):
        unseal(raw, None)
    with pytest.raises(ValueError, match="the passphrase has 5 characters; use at least 12"):
        seal(PAYLOAD, "short")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Schl\u00fcsselwort-lang",
            "Schlu\u0308sselwort-lang",
        ),  # an umlaut as one character, and as a letter with two dots
        ("A\u030angstro\u0308m of glass", "\u212bngstr\u00f6m of glass"),  # the sign of the unit is the letter
        ("\uac00\ub098\ub2e4 horse battery", "\u1100\u1161\u1102\u1161\u1103\u1161 horse battery"),  # Hangul
    ],
)
def test_a_passphrase_opens_however_it_was_typed(cheap, tmp_path, one, other):
    assert one.encode() != other.encode()
    for sealed, typed in ((one, other), (other, one)):
        assert unseal(seal(PAYLOAD, sealed), typed) == PAYLOAD
        path = tmp_path / f"owner-{len(sealed)}.json"
        owner = Owner.create()
        owner.save(path, sealed)
        assert Owner.load(path, typed).public_key == owner.public_key
    with pytest.raises(WrongPassphrase):
        unseal(seal(PAYLOAD, one), one.casefold() + "ue")


def test_the_length_is_that_of_the_normal_form(cheap):
    with pytest.raises(ValueError, match="the passphrase has 7 characters; use at least 12"):
        seal(PAYLOAD, "u\u0308" * 7)
    assert unseal(seal(PAYLOAD, "u\u0308" * 12), "\u00fc" * 12) == PAYLOAD


def test_a_passphrase_that_is_no_text_is_not_quoted(cheap):
    for work in (lambda: seal(PAYLOAD, "correct horse \udcff"), lambda: unseal(seal(PAYLOAD, PASSPHRASE), "\udcff")):
        with pytest.raises(InvalidInput, match="the passphrase is not Unicode text; type it again") as caught:
            work()
        assert "\\udcff" not in str(caught.value)


def test_without_passphrase_a_warning_names_the_file(tmp_path):
    path = tmp_path / "key.json"
    with pytest.warns(UserWarning, match=re.escape(f"{path} is stored without a passphrase")):
        write_envelope(path, PAYLOAD, None, overwrite=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_envelope(path, None) == PAYLOAD == read_envelope(path, "any passphrase at all")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permission bits")
def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "owner.json"
    Owner.create().save(path, PASSPHRASE)
    path.chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        Owner.load(path, PASSPHRASE)


def test_an_existing_identity_is_not_overwritten(tmp_path):
    path = tmp_path / "owner.json"
    owner = Owner.create()
    owner.save(path, PASSPHRASE)
    with pytest.raises(FileExistsError):
        Owner.create().save(path, PASSPHRASE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is not written has no passphrase to warn of
        with pytest.raises(FileExistsError):
            Owner.create().save(path)
    assert Owner.load(path, PASSPHRASE).public_key == owner.public_key
    assert owner.fingerprint in repr(owner) and len(owner.fingerprint) == 16


def test_an_envelope_of_something_else_is_no_owner(tmp_path, cheap):
    write_envelope(tmp_path / "key.json", PAYLOAD, PASSPHRASE, overwrite=False)
    with pytest.raises(InvalidInput, match="holds a 'test', not an owner"):
        Owner.load(tmp_path / "key.json", PASSPHRASE)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_every_edited_byte_is_refused(cheap, passphrase):
    raw = seal({"seed": "00ff"}, passphrase)
    accepted = []
    for place in range(len(raw)):
        # A neighbour in the alphabet, a digit, and something that is no text at all.
        for byte in {raw[place] ^ 1, ord("7"), 0xFF} - {raw[place]}:
            try:
                unseal(raw[:place] + bytes([byte]) + raw[place + 1 :], passphrase)
            except InvalidInput:  # WrongPassphrase is one, too
                continue
            accepted.append((place, chr(byte)))
    assert accepted == []


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_every_truncation_is_refused(cheap, passphrase):
    raw = seal(PAYLOAD, passphrase)
    for size in range(len(raw)):
        with pytest.raises(InvalidInput):
            unseal(raw[:size], passphrase)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_kib": 2**19}, "memory_kib=524288 is outside"),
        ({"memory_kib": 2**18, "iterations": 4}, "kdf.iterations is 1048576, limit 786432"),
        ({"memory_kib": 7}, "memory_kib=7 is outside"),
        ({"iterations": 1_000_000}, "iterations=1000000 is outside"),
        ({"iterations": 0}, "iterations=0 is outside"),
        ({"lanes": 4096, "memory_kib": 2**18}, "lanes=4096 is outside"),
        ({"lanes": "4"}, "not a key file"),
        ({"salt": "c2hvcnQ="}, "not a key file"),
        ({"name": "scrypt"}, "authentication failed"),
    ],
)
def test_hostile_derivation_parameters_cost_nothing(cheap, change, message):
    document = json.loads(seal(PAYLOAD, PASSPHRASE))
    document["kdf"] |= change
    with pytest.raises(InvalidInput, match=message):
        unseal(json.dumps(document).encode(), PASSPHRASE)


@pytest.mark.parametrize("field", ["format", "kdf", "cipher", "nonce", "commit", "ciphertext"])
@pytest.mark.parametrize("value", [None, 5, [], {}, "", "****"])
def test_fields_of_a_wrong_type_are_invalid_input(cheap, field, value):
    document = json.loads(seal(PAYLOAD, PASSPHRASE))
    document[field] = value
    with pytest.raises(InvalidInput):
        unseal(json.dumps(document).encode(), PASSPHRASE)
    del document[field]
    with pytest.raises(InvalidInput):
        unseal(json.dumps(document).encode(), PASSPHRASE)


def test_newer_formats_are_named(cheap):
    document = json.loads(seal(PAYLOAD, PASSPHRASE)) | {"format": "hf-watermark/keyfile/v2"}
    with pytest.raises(InvalidInput, match=r"format is 'hf-watermark/keyfile/v2', expected"):
        unseal(json.dumps(document).encode(), PASSPHRASE)


def test_oversized_files_are_refused_unread(tmp_path):
    path = tmp_path / "key.json"
    path.write_bytes(b" " * (envelope.MAX_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match="is larger than"):
        read_envelope(path, None)


def test_the_encrypting_key_is_not_in_the_file(cheap):
    # SAP stored the encryption key next to the ciphertext.
    raw = seal(PAYLOAD, PASSPHRASE)
    document = json.loads(raw)
    key, _ = envelope._derive(PASSPHRASE, document["kdf"])
    for form in (key.hex().encode(), base64.b64encode(key), PASSPHRASE.encode()):
        assert form not in raw


def test_no_warning_with_a_passphrase(tmp_path, cheap):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_envelope(tmp_path / "key.json", PAYLOAD, PASSPHRASE, overwrite=False)
