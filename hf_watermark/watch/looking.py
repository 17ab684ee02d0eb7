"""One repository under all keys: what the list says, then its headers, then a few ranges of its weights, and no more than it takes."""

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..backbones import LayoutMismatch, find_places
from ..evidence import SELF_CHECK, Evidence, Verdict, combine
from ..serialization import InvalidInput, Unreadable
from ..serialization.kinds import is_adapter
from ..suspects import Suspect
from ..suspects.errors import HubError
from ..suspects.remote import Listed, RangesIgnored
from ..verification.verifier import summary as with_verdict
from ..verification.verifier import total_of, unreadable, verify_claims
from .keys import WatchedKey
from .kinship import align
from .listing import ListedRepo
from .settings import scrubbed
from .shared import SharedWeights
from .table import DISCARDED, GONE, LOOK, SKIPPED, UNREACHED, UNREADABLE


# A number may be stored in half a byte, and the Hub may count what holds eight of them as one.
MOST_PACKED = 8
# Sets of names and shapes of which is remembered whether a key's carriers have a place in them.
MOST_KNOWN = 20_000
OTHER_FORMATS = (".gguf", ".onnx", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")


class Looker:
    """
    Looks at repositories under all keys of a watch.

    Args:
        keys (`Sequence[WatchedKey]`):
            As [`open_keys`] gives them.
        largest (`float`):
            Repositories with more parameters than this many times the largest key's carriers are left out.
    """

    def __init__(self, keys: Sequence[WatchedKey], largest: float):
        self.keys = list(keys)
        self.most = largest * max(key.parameters for key in keys)
        # With a reference, channels that were taken out are brought back: then a suspect may be smaller than the carriers.
        self.least = 0 if any(key.reference for key in keys) else min(key.parameters for key in keys) / MOST_PACKED
        self.adapters = any(key.of_adapter for key in keys)
        self._known: dict[tuple[bytes, int], str | None] = {}

    def rows(self, repo: ListedRepo) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """
        What the table says of a repository: one row, or where it was tested one per key that fits; and the whole evidence of strong looks, by
        key folder.
        """
        start = time.perf_counter()
        weights: list[SharedWeights] = []
        evidence: dict[str, dict[str, Any]] = {}
        try:
            looks = self._look(repo, weights, evidence)
        except RangesIgnored as error:
            looks = [ended(UNREACHED, error)]
        except HubError as error:
            looks = [ended(UNREACHED if self._may_come_back(repo, error) else GONE, error)]
        except Unreadable as error:
            looks = [ended(UNREADABLE, error)]
        except InvalidInput as error:
            looks = [ended(UNREADABLE, error)]
        read = weights[0] if weights else None
        shared = {
            "repo": repo.repo,
            "revision": read.revision if read else repo.revision,
            "modified": repo.modified,
            "requests": read.requests if read else _asked(looks),
            "bytes": read.bytes_read if read else 0,
            "size": read.size if read else 0,
            "digest": read.digest if read else "",
            "seconds": round(time.perf_counter() - start, 4),
            "tries": repo.tries,
        }
        return [shared | look for look in looks], evidence

    def _look(
        self, repo: ListedRepo, weights: list[SharedWeights], evidence: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        if (said := self.discarded_by_list(repo)) is not None:
            return [said]
        listed = Listed(repo.revision, frozenset(repo.files)) if repo.revision and repo.files else None
        read = SharedWeights(repo.repo if listed is None else f"{repo.repo}@{repo.revision}", listed)
        weights.append(read)
        looks = []
        reasons: dict[str, None] = {}
        for key in self.keys:
            # A suspect of its own, since a key's readers remember what they read of one.
            suspect = Suspect.of_stored(read.for_one_key())
            why = self._why_not(key, suspect)
            if why is not None:
                found = align(key, suspect, read, unreadable(why, key.check)) if key.reference else None
                if found is None:
                    reasons[why] = None
                else:
                    looks.append(self._entered(key, found, evidence, aligned=True))
                continue
            found, aligned = look(key, suspect), False
            if key.reference and found.log2_p > SELF_CHECK:
                better = align(key, suspect, read, found)
                if better is not None and better.log2_p < found.log2_p:
                    found, aligned = better, True
            looks.append(self._entered(key, found, evidence, aligned))
        return looks or [{"outcome": DISCARDED, "reason": "; ".join(list(reasons)[:3])}]

    def _why_not(self, key: WatchedKey, suspect: Suspect) -> str | None:
        """
        Why a suspect has no place for a key's carriers; `None` where it has. Most repositories have the names and shapes of one that was seen
        before, so it is worked out once for each.
        """
        for reader in key.verifiers:
            try:
                shapes = reader.seen(suspect).shapes
            except InvalidInput as error:
                return said_of(error)
            name = digest_of_shapes(shapes), id(reader)
            if name not in self._known:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                try:
                    find_places(reader.carriers, shapes)
                    self._known[name] = None
                except InvalidInput as error:
                    self._known[name] = said_of(error)
            if self._known[name] is not None:
                return self._known[name]
        return None

    def _entered(
        self, key: WatchedKey, found: Evidence, evidence: dict[str, dict[str, Any]], aligned: bool
    ) -> dict[str, Any]:
        if found.log2_p <= SELF_CHECK:
            evidence[key.folder] = found.to_dict()
        # A failed control says that the null does not hold on this suspect; disclosed sub-keys could have been planted.
        counts = not found.controls.get("failed") and not found.disclosed
        return {
            "outcome": LOOK,
            "reason": found.reason,
            "key": key.folder,
            "log2_p": round(min(0.0, found.log2_p), 6) if counts else 0.0,
            "log2_e": round(found.log2_e - math.log2(key.check.looks), 6) if counts else -1000.0,
            "matches": found.matches,
            "trials": found.trials,
            "verdict": str(found.verdict),
            "aligned": aligned,
        }

    def discarded_by_list(self, repo: ListedRepo) -> dict[str, Any] | None:
        """Why nothing of a repository needs to be asked for; `None` where something has to be."""
        if repo.closed:
            return {"outcome": SKIPPED, "reason": f"{repo.closed}: only those who were let in can read it"}
        if not repo.files:
            return None
        if is_adapter(frozenset(repo.files)) and not self.adapters:
            return {"outcome": DISCARDED, "reason": "an adapter, and no key marks one"}
        if not any(name.endswith(".safetensors") and "/" not in name for name in repo.files):
            others = sorted({suffix for suffix in OTHER_FORMATS if any(name.endswith(suffix) for name in repo.files)})
            if others:
                return {
                    "outcome": SKIPPED,
                    "reason": f"no safetensors, but {', '.join(others)}: `hf-watermark verify {repo.repo}` says more",
                }
            return {"outcome": DISCARDED, "reason": "no weights"}
        if repo.parameters and repo.parameters < self.least:
            return {
                "outcome": DISCARDED,
                "reason": f"{repo.parameters} parameters: too few to hold the carriers of any key",
            }
        if repo.parameters > self.most:
            return {"outcome": SKIPPED, "reason": f"{repo.parameters} parameters: more than --largest allows"}
        return None

    def _may_come_back(self, repo: ListedRepo, error: HubError) -> bool:
        """Whether to ask again another day: not where the Hub knows no such repository, and its name was looked up just now."""
        return bool(repo.revision) or not re.search(r"does not exist, or is private|is gated", str(error))


def look(key: WatchedKey, suspect: Suspect) -> Evidence:
    """
    A look of one key: first without decoys, and where that alone would alarm, once more with all controls. What was read is at hand, so the
    second time asks for nothing.
    """
    try:
        parts = [
            with_verdict(combine(reader.verify(suspect, key.check, decoys=0), reader.method))
            for reader in key.verifiers
        ]
        total = total_of(parts, key.check)
        if total.log2_p > SELF_CHECK:
            return total
        return verify_claims(key.verifiers, suspect, key.check)
    except LayoutMismatch as error:
        # It was read and the mark was not seen: a look like any other, and its p-value is replaced by a larger one.
        return Evidence(
            key.verifiers[0].method, 0, 0, 0.0, -1000.0, "not seen", frozenset(), looks=key.check.looks, reason=str(error),
            verdict=Verdict.INCONCLUSIVE,
        )  # fmt: skip


def digest_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    return hashlib.sha256(repr(list(shapes.items())).encode()).digest()


def ended(outcome: str, error: Exception) -> dict[str, Any]:
    return {"outcome": outcome, "reason": said_of(error)}


def said_of(error: Exception) -> str:
    return scrubbed(str(error))[:500]


def _asked(looks: Sequence[dict[str, Any]]) -> int:
    """Requests of a repository that failed before its headers were read: one at least, if any was made."""
    return 0 if looks[0]["outcome"] in (DISCARDED, SKIPPED) else 1
