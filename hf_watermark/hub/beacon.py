"""Public random values that did not exist when a precommit was published (protocol.md §2.2)."""

import hashlib
import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from huggingface_hub.utils import get_session

from ..serialization import InvalidInput, parse_json
from .errors import hub_errors


# Genesis and seconds per round of the public chains of the League of Entropy, by chain hash.
CHAINS = {
    "52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971": (1692803367, 3),  # quicknet
    "8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce": (1595431050, 30),  # default
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
    A round of a drand chain; the latest by default. That the value belongs to the chain is what its relay says, and anybody can ask
    another relay; the BLS signature is not checked here.

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
        honest = hashlib.sha256(bytes.fromhex(document["signature"])).digest() == value and type(place) is int
    except (KeyError, TypeError, ValueError):
        honest = False
    if not honest or place != (number or place):
        raise InvalidInput(f"{url}: the answer is no round of this chain")
    return Beacon(value, f"drand:{chain}:{place}", round_time(chain, place))


def round_after(moment: datetime, url: str = DRAND) -> int:
    """Number of the first round of a known chain at or after a moment."""
    genesis, period = CHAINS[url.rstrip("/").rsplit("/", 1)[-1]]
    return max(1, math.ceil((moment.timestamp() - genesis) / period) + 1)


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
    genesis, period = CHAINS[chain]
    return datetime.fromtimestamp(genesis, UTC) + timedelta(seconds=period * (number - 1))


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
