"""What becomes of a look that alarms: a record, the text of an issue, and a POST to an address of one's own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..evidence import once_in
from ..serialization import write_bytes_atomic, write_json_atomic
from ..suspects.errors import NetworkError
from .keys import key_name
from .settings import WatchSettings
from .table import Table


WHAT_A_CLAIM_NEEDS = (
    "This is a self-check: it is as good as the word of whoever holds the key folder. A claim that others can check needs a statement whose commitment "
    "is dated before the suspect appeared, and one opened sub-key: `hf-watermark publish` makes the first, `hf-watermark open` the second, and a judge "
    "runs `hf-watermark judge`. Found is lineage, never theft: the licence may allow the copy."
)
ISSUE = """# {repo} carries the mark of {key}

* commit: `{revision}` (last changed {modified})
* log2 p = {log2_p:.1f}: an unrelated key does as well once in 10^{digits} looks at unrelated models
* log2 e = {log2_e:.1f}, {matches} of {trials} bits agree{aligned}
* look number {look}, which may spend {alpha:.3g} of the budget of {budget:g} false alarms in all looks ever
* what was read: {bytes:,} bytes of {size:,}; SHA-256 of names, shapes and numbers: `{digest}`

{needs}

Before anything else:

1. Repeat it on the whole model: `hf-watermark verify {repo}@{revision} --key KEY_FOLDER --report report.html`
2. Look at the repository's card and licence: is it a use that you allowed?
3. Keep a copy: `hf download {repo} --revision {revision}`; whoever is asked may delete it.
"""


def alarm_number(row: Mapping[str, Any]) -> str:
    return f"{row['look']:09d}"


def record_alarms(
    settings: WatchSettings, number: int, tell: Callable[[dict[str, Any]], None] = lambda alarm: None
) -> list[dict[str, Any]]:
    """
    Writes down and sends every alarm of an entered batch that was not sent before; returns those that it has sent.

    An alarm is marked as sent after the address has taken it: whoever is killed in between sends it once more, and none is lost.
    """
    table = Table(settings.folder)
    if not table.is_done(number):
        return []
    rows = [row for row in table.looks(first=number).to_pylist() if row["batch"] == number]
    sent = []
    for row in rows:
        if not (row["alarm"] or row["discovery"]):
            continue
        place = settings.folder / "alarms" / alarm_number(row)
        if place.with_suffix(".sent").exists():
            continue
        alarm = alarm_of(settings, table, row)
        write_json_atomic(place.with_suffix(".json"), alarm)
        write_bytes_atomic(place.with_suffix(".md"), issue_of(settings, row).encode())
        tell(alarm)
        if not settings.webhook or post(settings.webhook, alarm):
            write_bytes_atomic(place.with_suffix(".sent"), b"")
            sent.append(alarm)
    return sent


def alarm_of(settings: WatchSettings, table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The record: the row, the whole evidence, and what it is worth."""
    number = list(settings.keys).index(row["key"]) if row["key"] in settings.keys else -1
    evidence = table.batch_folder(row["batch"]) / f"evidence-{row['place']}-{number}.json"
    said = dict(row) | {"key": key_name(row["key"], settings.keys)}
    return said | {
        "basis": "self-check",
        "what_a_claim_needs": WHAT_A_CLAIM_NEEDS,
        "evidence": json.loads(evidence.read_bytes()) if evidence.exists() else None,
    }


def issue_of(settings: WatchSettings, row: Mapping[str, Any]) -> str:
    """The text of an issue for one's own tracker."""
    said = dict(row) | {"key": key_name(row["key"], settings.keys)}
    aligned = ", after undoing what leaves the answers as they are" if row["aligned"] else ""
    return ISSUE.format(
        **said | {"aligned": aligned}, digits=once_in(row["log2_p"]), needs=WHAT_A_CLAIM_NEEDS, budget=settings.budget
    )


def post(address: str, alarm: Mapping[str, Any]) -> bool:
    """Whether the address took it. No token goes there, and no redirect is followed."""
    from huggingface_hub.utils import get_session

    try:
        answer = get_session().post(address, json=dict(alarm), timeout=20.0, follow_redirects=False)
    except (NetworkError, ConnectionError, OSError):
        return False
    return bool(answer.is_success)


def failed_posts(folder: Path) -> list[str]:
    """Numbers of the alarms that no address has taken yet."""
    written = {path.stem for path in (folder / "alarms").glob("*.json")}
    return sorted(written - {path.stem for path in (folder / "alarms").glob("*.sent")})


def send_again(settings: WatchSettings, tell: Callable[[dict[str, Any]], None] = lambda alarm: None) -> None:
    """Alarms of earlier runs that were not taken, or whose run was killed before it came to them."""
    table = Table(settings.folder)
    columns = table.looks(["batch", "look", "alarm", "discovery"]).to_pylist()
    due = {
        row["batch"]
        for row in columns
        if (row["alarm"] or row["discovery"])
        and not (settings.folder / "alarms" / f"{alarm_number(row)}.sent").exists()
    }
    for number in sorted(due):
        record_alarms(settings, number, tell)


__all__ = ["WHAT_A_CLAIM_NEEDS", "failed_posts", "issue_of", "post", "record_alarms", "send_again"]
