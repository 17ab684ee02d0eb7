"""`hf-watermark inspect`."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..serialization import InvalidInput
from .errors import leave
from .loading import silence_loading
from .options import JsonOption
from .passphrase import PassphraseFd, PassphraseFile, open_secret, read_passphrase
from .progress import begin


EXAMPLE = (
    "Examples:\n\nhf-watermark inspect suspect-folder --key keys/my-model\n\nhf-watermark inspect my-model --layout\n\n"
    "hf-watermark inspect timm:regnety_002 --layout"
)


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder or .safetensors file to read; for --layout also owner/name[@revision] or timm:ARCHITECTURE."
        ),
    ],
    key: Annotated[Path | None, typer.Option("--key", metavar="DIR", help="The owner's key folder.")] = None,
    layout: Annotated[
        bool,
        typer.Option(
            "--layout", help="Say where marks in weights would lie in this model, and how much fits. Needs no key."
        ),
    ] = False,
    json: JsonOption = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Read a multi-bit mark: the payload that error correction recovers, bit errors by layer, and the p-value. With --layout: which weights carry a mark,
    which ones only align, and how many sub-keys fit; of the model only its config is read.

    Exit status: 0 mark found, 1 not found, 2 bad usage or unreadable input, 3 inconclusive, 4 invalid claim.
    """
    if (key is None) != layout:
        raise InvalidInput("give exactly one of --key DIR, to read a mark, and --layout, to see where one would lie")
    begin(f"Reading {model}")
    if key is None:
        from .layouts import layout_of_model, show_layout

        silence_loading()
        places = layout_of_model(model)
        typer.echo(json_format.dumps(places, indent=2)) if json else show_layout(places)
        return
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..keys import WatermarkKey

    silence_loading()
    secret = open_secret(lambda words: WatermarkKey.load(key, words), passphrase)
    with Console(stderr=True).status("Reading ..."):
        found = read_marks(Path(model), secret)
    if json:
        typer.echo(json_format.dumps(found, indent=2))
    else:
        show(found)
    leave(found["verdict"])


def read_marks(model: Path, key: Any) -> dict[str, Any]:
    """Verdict, bit errors by layer and payload of the mark of a key that has bits by layer."""
    from ..mapping import AutoVerifier, method_entry
    from ..suspects import Suspect
    from ..verifying import verify

    claims = [claim for claim in key.claims() if method_entry(claim.assignment.method).facts.payload]
    if not claims:
        methods = ", ".join(claim.assignment.method for claim in key.claims())
        raise InvalidInput(
            f"this key marks with {methods}, which has no bits to print by layer; use hf-watermark verify"
        )
    method = claims[0].assignment.method
    evidence = verify(model, key)
    layers: dict[str, tuple[int, int]] = {}
    parts = [part for part in _leaves(evidence) if part.method == method]
    for part in parts:
        for role, (errors, bits) in part.details["bit_errors"].items():
            before = layers.get(role, (0, 0))
            layers[role] = (before[0] + errors, before[1] + bits)
    verifier: Any = AutoVerifier.for_method(method)(claims[0])
    reading = verifier.read_payload(Suspect.open(model))
    payload = None
    if reading is not None:
        committed = bytes(verifier.config.payload)
        payload = {
            "recovered": None if reading.payload is None else reading.payload.hex(),
            "committed": committed.hex(),
            "as_committed": reading.payload == committed,
            "wrong_bits": reading.wrong_bits,
            "bits": reading.bits,
        }
    return {
        "verdict": str(evidence.verdict),
        "reason": evidence.reason,
        "log2_p": round(evidence.log2_p, 3),
        "matches": sum(part.matches for part in parts),
        "bits": sum(part.trials for part in parts),
        "erased": sum(part.details["erased"] for part in parts),
        "subkeys": len(parts),
        "layers": {role: {"errors": errors, "bits": bits} for role, (errors, bits) in layers.items()},
        "payload": payload,
    }


def _leaves(evidence: Any) -> list[Any]:
    if not evidence.parts:
        return [evidence]
    return [leaf for part in evidence.parts for leaf in _leaves(part)]


def show(found: dict[str, Any]) -> None:
    console = Console()
    table = Table("layer", "bit errors", "bits", "error rate")
    rows = [*found["layers"].items(), ("all", {"errors": found["bits"] - found["matches"], "bits": found["bits"]})]
    for role, row in rows:
        table.add_row(role, str(row["errors"]), str(row["bits"]), f"{row['errors'] / max(row['bits'], 1):.3f}")
    console.print(table)
    if found["erased"]:
        console.print(f"{found['erased']} carriers are zero and say nothing")
    console.print(Text(f"{found['verdict']}: {found['reason']}"), soft_wrap=True)
    payload = found["payload"]
    if payload is None:
        console.print("payload: the key has none")
        return
    counts = f"{payload['wrong_bits']} of {payload['bits']} code bits wrong before correction"
    if payload["recovered"] is None:
        console.print(Text(f"payload: not readable, {counts}"), soft_wrap=True)
        return
    remark = "as committed" if payload["as_committed"] else "NOT the committed one"
    console.print(Text(f"payload: {bytes.fromhex(payload['recovered'])!r}, {remark}, {counts}"), soft_wrap=True)
