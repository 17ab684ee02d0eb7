"""Public random values that did not exist when a precommit was published (PROTOCOL.md §2.2)."""

import hashlib
import math
import re
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from huggingface_hub.utils import get_session

from ..serialization import InvalidInput, parse_json
from ..suspects.errors import hub_errors
from .drand import is_signed_round


class Chain(NamedTuple):
    """A drand chain: Unix time of its first round, seconds per round, and the key that signs the rounds."""

    genesis: int
    period: int
    public_key: bytes


# The public chains of the League of Entropy, by the hash of all that fixes them.
CHAINS = {
    "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971": Chain(  # quicknet
        1692803367,
        3,
        bytes.fromhex(
            "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
            "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
        ),
    ),
    "8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce": Chain(  # default
        1595431050,
        30,
        bytes.fromhex(
            "868f005eb8e6e4ca0a47c8a77ceaa5309a47978a7c71bc5cce96366b5d7a569937c529eeda66c7293784a9402801af31"
        ),
    ),
}
DRAND = "https://api.drand.sh/52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971"
# Between the precommit's date and the round: longer than the clocks of authority and chain may differ.
DELAY = timedelta(minutes=1)
_SOURCE = re.compile(r"drand:([0-9a-f]{64}):([1-9][0-9]{0,11})")


@dataclass(frozen=True)
class Beacon:
    """A public random value, where it comes from, and when it came into the world (if its source tells)."""

    value: bytes
    source: str
    moment: datetime | None = None


def drand_round(url: str = DRAND, number: int | None = None) -> Beacon:
    """
    A round of a drand chain; the latest by default. With the extra `beacon` (py_ecc) the chain's signature is checked; without it, that
    the value belongs to the chain is what the relay says, and a warning tells so.

    Args:
        url (`str`): Address of one chain at a relay, such as `DRAND`.

    Raises:
        [`~serialization.InvalidInput`]: when the relay cannot be reached or answers nonsense.
    """
    chain = url.rstrip("/").rsplit("/", 1)[-1]
    if chain not in CHAINS:
        raise InvalidInput(f"{url}: ends with no known chain; known are {', '.join(CHAINS)}")
    with hub_errors(url):
        answer = get_session().get(f"{url.rstrip('/')}/public/{number or 'latest'}", timeout=30)
    if answer.status_code != 200:
        raise InvalidInput(f"{url}: no such round yet (HTTP {answer.status_code})")
    document = parse_json(answer.content, max_bytes=4096)
    try:
        place, value = document["round"], bytes.fromhex(document["randomness"])
        signature, previous = (bytes.fromhex(document.get(name, "")) for name in ("signature", "previous_signature"))
        honest = hashlib.sha256(signature).digest() == value and type(place) is int and 0 < place < 2**53
    except (KeyError, TypeError, ValueError):
        honest = False
    if not honest or place != (number or place):
        raise InvalidInput(f"{url}: the answer is no round of this chain")
    try:
        signed = is_signed_round(CHAINS[chain].public_key, place, signature, previous)
    except ImportError as error:
        warnings.warn(f"{url}: round {place} is taken at the relay's word ({error})", stacklevel=2)
    else:
        if not signed:
            raise InvalidInput(f"{url}: round {place} is not signed by this chain; ask another relay")
    return Beacon(value, f"drand:{chain}:{place}", round_time(chain, place))


def round_after(moment: datetime, url: str = DRAND) -> int:
    """Number of the first round of a known chain at or after a moment."""
    chain = CHAINS[url.rstrip("/").rsplit("/", 1)[-1]]
    return max(1, math.ceil((moment.timestamp() - chain.genesis) / chain.period) + 1)


def wait_for_round(number: int, url: str = DRAND) -> Beacon:
    """Sleeps until the round exists (a minute, as a rule), then reads it."""
    chain = url.rstrip("/").rsplit("/", 1)[-1]
    left = (round_time(chain, number) - datetime.now(UTC)).total_seconds()
    if left > 0:
        time.sleep(left + 1)
    return drand_round(url, number)


def beacon_time(source: str) -> datetime | None:
    """When the value of a source came into the world; `None` where the source's name does not tell."""
    match = _SOURCE.fullmatch(source)
    return round_time(match[1], int(match[2])) if match and match[1] in CHAINS else None


def round_time(chain: str, number: int) -> datetime:
    known = CHAINS[chain]
    return datetime.fromtimestamp(known.genesis, UTC) + timedelta(seconds=known.period * (number - 1))


def look_up(source: str) -> Beacon:
    """
    The value that a statement's `beacon_source` names, as the network gives it.

    Raises:
        [`~serialization.InvalidInput`]: when the source is none that can be looked up, or cannot be reached.
    """
    match = _SOURCE.fullmatch(source)
    if match is None or match[1] not in CHAINS:
        raise InvalidInput(
            f"beacon source {source[:80]!r} cannot be looked up here; find the value and give it as hexadecimal digits"
        )
    return drand_round(f"{DRAND.rsplit('/', 1)[0]}/{match[1]}", int(match[2]))
