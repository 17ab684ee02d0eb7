"""
The page of a judgement or a dispute, for people who decide and are no engineers: a platform's trust team, a lawyer.

The verdict stands at the top and nowhere else; then what was checked, what was not and why, the numbers, and what the words mean.
Self-contained, no script; every word that comes from a claimant is escaped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..claims import Outcome
from ..claims.judgement import CONTROL
from ..evidence import Verdict
from ..serialization import write_bytes_atomic
from .glossary import explained
from .report import environment, minus
from .verdict_report import STATES, by_chance


# What each step asks, as a sentence that is true where it passed.
STEPS = {
    "statement V0": "The claimant's statement about its own model is signed and consistent.",
    "statement V1": "The claimant's published files are those that the statement describes.",
    "statement V2": "The key was committed before the statement, and the dates are in order.",
    "consent": "The claimant opened this secret for this dispute, and signed that.",
    "commitment": "The opened secret belongs to the key that the statement commits to.",
    "source images": "The images that came along are those that were committed.",
    "sub-key": "The opened secret was not known to others before.",
    "origin": "What the claimant says of the origin of its own model.",
    "revocation": "The claimant did not revoke its key.",
    "dates": "The suspect is younger than the mark, and all dates are proven.",
    "log": "Earlier openings before this judge were looked up.",
    "looks": "All tries that the claimant could have made are charged.",
    "control: published model": "The mark is in the claimant's own published model.",
    "suspect": "The suspect could be read.",
    "start": "What was delivered as the model before the mark is the one that the key was made for.",
    "reference": "Reordered or rescaled channels of the suspect cannot hide the mark, and no reference was made for the occasion.",
    "common origin": "A common origin that is older than the claimant's model was excluded.",
    "scope": "The mark was read in the suspect's weights.",
}
# What every claim is asked; a claim that is refused early is not asked the rest.
ALWAYS = [
    name for name in STEPS if name not in ("origin", "revocation", "start", "reference", "common origin", "scope")
]
MEANINGS = {
    Verdict.FOUND: "The suspect carries a mark that the claimant committed to. It descends from a model with this mark, as far as the checks "
    "below reach. This is a finding about lineage: it says nothing about theft, and licence terms decide the rest.",
    Verdict.NOT_FOUND: "The claimant's mark was looked for where it could have been seen, and it is not there. This does not show that the suspect is "
    "independent: a mark can be removed, at a cost in accuracy.",
    Verdict.INCONCLUSIVE: "The checks decide neither way. The suspect is neither cleared nor shown to carry the mark.",
    Verdict.INVALID: "The claim itself does not hold, so the suspect was not compared. This says nothing about the suspect.",
}
NEVER = [
    "Who trained a model, on which data, and under which licence.",
    "Whether the claimant's signing key belongs to the person or company that it names.",
    "Whether the suspect is what its uploader says: it was read as it stood at the commit and digests below.",
]
WORDS = ("basis", "control", "level", "log2 p", "look", "opening", "reference", "statement", "sub-key")


def render_judgement(transcript: Mapping[str, Any]) -> str:
    """
    The page of one claim as text.

    Args:
        transcript (`Mapping`):
            What [`~claims.Judgement`] gives as `transcript`.
    """
    record = printable(transcript)
    return _render(
        title="Judgement of a watermark claim",
        subject=record["inputs"]["suspect"]["name"],
        date=record["date"],
        verdict=record["verdict"],
        reason=record["reason"],
        meaning=MEANINGS[record["verdict"]],
        state=STATES.get(record["verdict"], "plain"),
        answers={},
        notes=[],
        claims=[claim_of(None, record)],
    )


def render_dispute(result: Mapping[str, Any], suspect: str) -> str:
    """
    The page of a dispute as text.

    Args:
        result (`Mapping`):
            What [`~claims.DisputeResult`] gives as `to_dict`.
        suspect (`str`):
            What the dispute is about.
    """
    record = printable(result)
    claims = [claim_of(name, transcript) for name, transcript in record["transcripts"].items()]
    return _render(
        title="Dispute between two claimants",
        subject=printable(suspect),
        date=max(transcript["date"] for transcript in record["transcripts"].values()),
        verdict=_headline(record),
        reason=record["verdict"],
        meaning="“Upstream” is whose mark is older in this lineage. This is a finding about lineage: it says nothing about theft, and licence "
        "terms decide the rest.",
        state="good" if record["conclusive"] and record["upstream"] else "plain",
        answers=record["answers"],
        notes=record["notes"],
        claims=claims,
    )


def _headline(record: Mapping[str, Any]) -> str:
    if not record["conclusive"]:
        return "The order stays open" if record["upstream"] else "Inconclusive"
    if not record["upstream"]:
        return "No finding"
    return f"{record['upstream'][0]} is upstream"


def claim_of(name: str | None, transcript: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says about one claim: its steps in sentences, what is missing, and its numbers."""
    steps = [
        {"sentence": sentence(step), "outcome": step["outcome"], "detail": step["detail"]}
        for step in transcript["steps"]
    ]
    reached = {step["step"] for step in transcript["steps"]}
    open_ = [step for step in steps if step["outcome"] == Outcome.OPEN]
    return {
        "name": name,
        "steps": steps,
        "open": open_,
        "ask_next": transcript["ask_next"],
        "unreached": [STEPS[step] for step in ALWAYS if step not in reached],
        "numbers": numbers(transcript),
        "inputs": inputs(transcript),
    }


def sentence(step: Mapping[str, Any]) -> str:
    """A step in words; further controls are named by whoever judged."""
    name = step["step"]
    if name in STEPS or not step["is_control"]:
        return STEPS.get(name, name)
    return f"The model “{name.removeprefix(CONTROL)}”, which should not carry the mark, does not."


def numbers(transcript: Mapping[str, Any]) -> dict[str, str]:
    ledger, evidence = transcript["ledger"], transcript["evidence"]
    limit = {"B": "−64", "N": "−128"}[ledger["level"]]
    found = {"level asked for": f"{ledger['level']}: log2 p of {limit} or less"}
    if evidence is None:
        return found
    if evidence["trials"]:
        found["log2 p"] = f"{minus(evidence['log2_p'])}: {by_chance(evidence['log2_p'])}"
        found["matches"] = f"{evidence['matches']} of {evidence['trials']} bits or answers"
    found |= {
        "looks charged": f"{ledger['looks']} (bits: {ledger['bits_charged']})",
        "basis": evidence["basis"],
        "method": evidence["method"].replace("_", " "),
        "sub-key": str(transcript["inputs"]["subkey"]),
    }
    for part in evidence["parts"]:
        if part["controls"].get("decoys"):
            best = minus(part["controls"]["best_log2_p"])
            found["control"] = f"best of {part['controls']['decoys']} random keys: log2 p = {best}"
    return found


def inputs(transcript: Mapping[str, Any]) -> dict[str, str]:
    """What fixes the inputs, so that others can repeat it."""
    given, signed = transcript["inputs"], transcript["statement"]["statement"]
    found = {
        "claimant's model": given["statement"]["source"],
        "its commit": given["statement"]["commit"],
        "its statement (SHA-256)": given["statement"]["sha256"],
        "owner's public key": signed["statement"]["public_key"] if signed else None,
        "statement dated by authorities": transcript["statement"]["statement_time"],
        "statement dated by its owner": signed["statement"]["created"] if signed else None,
        "opening (SHA-256)": given["opening_sha256"],
        "name of the dispute": given["nonce"],
        "suspect": given["suspect"]["name"],
        "suspect's commit": given["suspect"].get("commit"),
    }
    found |= {f"suspect: {path} (SHA-256)": digest for path, digest in given["suspect"].get("files", {}).items()}
    return {name: str(value) for name, value in found.items() if value is not None}


def printable(value: Any) -> Any:
    """Without control characters and marks that turn the direction of writing; a claimant could send them."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in value)
    if isinstance(value, Mapping):
        return {printable(name): printable(item) for name, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list | tuple) else value


def _render(**fields: Any) -> str:
    template = environment().get_template("judgement.html.jinja")
    return template.render(never=NEVER, glossary=explained(*WORDS), **fields)


def write_judgement(path: str | Path, transcript: Mapping[str, Any]) -> Path:
    """[`render_judgement`] into a new file."""
    write_bytes_atomic(path, render_judgement(transcript).encode(), overwrite=False)
    return Path(path)


def write_dispute(path: str | Path, result: Mapping[str, Any], suspect: str) -> Path:
    """[`render_dispute`] into a new file."""
    write_bytes_atomic(path, render_dispute(result, suspect).encode(), overwrite=False)
    return Path(path)
