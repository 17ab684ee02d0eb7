"""Rounds of a drand chain: who signed them, what a relay says, and when they came into the world."""

import functools
import hashlib
import json
import struct
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from py_ecc.bls.hash_to_curve import hash_to_G1
from py_ecc.bls.point_compression import compress_G1, compress_G2
from py_ecc.optimized_bls12_381 import G2, multiply

from hf_watermark import InvalidInput
from hf_watermark.publishing import beacon as beacons
from hf_watermark.publishing.beacon import DELAY, beacon_time, drand_round, look_up, round_after, wait_for_round
from hf_watermark.publishing.drand import DST_G1, is_signed_round


CHAIN = "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971"


class Drand:
    """A chain of the tests' own: whoever has its secret can sign any round (`bls-unchained-g1-rfc9380`)."""

    def __init__(self, secret: int):
        self.secret = secret
        self.public_key = b"".join(half.to_bytes(48, "big") for half in compress_G2(multiply(G2, secret)))

    @functools.cache  # noqa: B019
    def sign(self, number: int) -> bytes:
        message = hash_to_G1(hashlib.sha256(number.to_bytes(8, "big")).digest(), DST_G1, hashlib.sha256)
        return int(compress_G1(multiply(message, self.secret))).to_bytes(48, "big")


@pytest.fixture
def relay(hub, monkeypatch):
    """A drand relay on the loopback interface; `relay["change"]` spoils its answers."""
    chain = Drand(0xC0FFEE)
    state = {"change": lambda document: document}
    monkeypatch.setitem(beacons.CHAINS, CHAIN, beacons.CHAINS[CHAIN]._replace(public_key=chain.public_key))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = self.path.rsplit("/", 1)[-1]
            number = 1000 if place == "latest" else int(place)
            signature = chain.sign(min(number, 10**9))
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


REAL = {
    "quicknet": (
        CHAIN,
        1000,
        "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39",
        "",
    ),
    "default": (
        "8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce",
        72785,
        "82f5d3d2de4db19d40a6980e8aa37842a0e55d1df06bd68bddc8d60002e8e959eb9cfa368b3c1b77d18f02a54fe047b8"
        "0f0989315f83b12a74fd8679c4f12aae86eaf6ab5690b34f1fddd50ee3cc6f6cdf59e95526d5a5d82aaa84fa6f181e42",
        "a609e19a03c2fcc559e8dae14900aaefe517cb55c840f6e69bc8e4f66c8d18e8a609685d9917efbfb0c37f058c2de88f"
        "13d297c7e19e0ab24813079efe57a182554ff054c7638153f9b26a60e7111f71a0ff63d9571704905d3ca6df0b031747",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_rounds_are_signed_by_their_chains(name):
    """Rounds that the League of Entropy published."""
    chain, number, *texts = REAL[name]
    signature, previous = map(bytes.fromhex, texts)
    key = beacons.CHAINS[chain].public_key
    assert is_signed_round(key, number, signature, previous)
    assert not is_signed_round(key, number + 1, signature, previous)
    other = next(beacons.CHAINS[other].public_key for other in beacons.CHAINS if other != chain)
    infinity, flipped = bytes([0xC0]) + bytes(len(signature) - 1), bytes([signature[0] ^ 0x20]) + signature[1:]
    for wrong_key, wrong in ((other, signature), (key, infinity), (key, flipped), (key, signature[1:]), (key, b"")):
        assert not is_signed_round(wrong_key, number, wrong, previous)
    if previous:
        assert not is_signed_round(key, number, signature, previous[1:])


@pytest.mark.parametrize(
    ("chain", "seed", "name"),
    [
        (CHAIN, "f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e", b"quicknet"),
        (REAL["default"][0], "176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a", b""),
    ],
)
def test_the_name_of_a_chain_fixes_its_key(chain, seed, name):
    """A chain hash is SHA-256 over period, genesis, key and the seed of its group: a wrong constant would show."""
    known = beacons.CHAINS[chain]
    fixed = struct.pack(">Iq", known.period, known.genesis) + known.public_key + bytes.fromhex(seed) + name
    assert hashlib.sha256(fixed).hexdigest() == chain


def test_a_relay_that_signs_itself(relay):
    """Value and signature fit each other, as the relay can always arrange, but the chain never signed them."""
    forged = Drand(0xBAD).sign(1000)
    relay["change"] = lambda d: d | {"signature": forged.hex(), "randomness": hashlib.sha256(forged).hexdigest()}
    with pytest.raises(InvalidInput, match="round 1000 is not signed by this chain"):
        drand_round(beacons.DRAND, 1000)


def test_without_the_extra_the_relay_is_believed_aloud(relay, monkeypatch):
    monkeypatch.setitem(sys.modules, "py_ecc.bls.hash_to_curve", None)
    with pytest.warns(UserWarning, match="at the relay's word .*pip install 'hf-watermark\\[beacon\\]'"):
        assert drand_round(beacons.DRAND, 1000).source.endswith(":1000")


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
