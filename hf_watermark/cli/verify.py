"""`hf-watermark verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..serialization import InvalidInput, write_json_atomic
from .addresses import burning, going_on, is_address, open_address
from .errors import leave
from .loading import silence_loading
from .options import OwnerKeyOption, RevocationOption, TrustOption, refuse_output, refuse_report
from .passphrase import PassphraseFd, PassphraseFile, open_secret, read_passphrase
from .progress import begin
from .secrets import warn_of_keys


if TYPE_CHECKING:
    from ..evidence import Evidence
    from ..keys import Opening, WatermarkKey
    from ..verification.null_table import NullTable

EXAMPLE = """Example:

hf-watermark verify suspect-folder --key keys/my-model --output evidence.json

hf-watermark verify user/suspect@main --key keys/my-model --report report.html

hf-watermark verify user/suspect --key keys/my-model --statement me/my-model --trust authority.pem --suspect-date 2026-11-22T12:00:00Z

hf-watermark verify merged-folder --key keys/my-adapter --base base-folder

hf-watermark verify https://example.com/classify --key keys/my-model --budget 500
"""


def verify(
    suspect: Annotated[
        str,
        typer.Argument(
            help="What to check: a model folder or .safetensors file, a Hub repo user/repo[@revision], or the address (https://...) of an "
            "Inference Endpoint or Gradio app."
        ),
    ],
    key: Annotated[Path | None, typer.Option("--key", metavar="DIR", help="The owner's key folder.")] = None,
    opening: Annotated[
        Path | None, typer.Option("--opening", metavar="FILE", help="One disclosed sub-key, instead of --key.")
    ] = None,
    looks: Annotated[
        int, typer.Option("--looks", min=1, help="How many variants of this check were or will be tried.")
    ] = 1,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", min=1, help="Most images that the suspect may be asked.")
    ] = None,
    sequential: Annotated[
        bool | None,
        typer.Option(
            "--sequential/--all",
            help="Ask a few images at a time and stop as soon as the evidence suffices (for an address by default), or ask all at once.",
        ),
    ] = None,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored",
            help="Ask mirrored images, for a suspect that mirrors its inputs: a second check, for which --looks is doubled.",
        ),
    ] = False,
    beacon: Annotated[
        str | None,
        typer.Option(
            "--beacon", metavar="HEX", help="The key's public beacon as you looked it up: then level B is enough."
        ),
    ] = None,
    api: Annotated[
        str | None, typer.Option("--api", metavar="NAME", help="For an address: `inference` (default) or `gradio`.")
    ] = None,
    api_name: Annotated[
        str | None, typer.Option("--api-name", metavar="NAME", help="For a Gradio app: the function to call.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--mean", metavar="M,M,M", help="For an address: the owner's normalisation, per channel."),
    ] = None,
    std: Annotated[str | None, typer.Option("--std", metavar="S,S,S", help="For an address: see --mean.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="DIR",
            help="The model that the key was made for, before the mark: permuted, scaled, rotated or added channels of the suspect are undone "
            "by it. By another one, such as the marked model, it is a self-check only.",
        ),
    ] = None,
    own_reference: Annotated[
        bool,
        typer.Option(
            "--own-reference",
            help="You made the reference yourself and know that it is older than the suspect: then it counts.",
        ),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="The model that the key was made for: an adapter is put on it, or it is taken away from a merged model to see what an adapter "
            "changed.",
        ),
    ] = None,
    statement: Annotated[
        str | None,
        typer.Option(
            "--statement",
            metavar="SOURCE",
            help="The owner's published model: its statement is verified first, and makes the result a claim instead of a self-check. It is "
            "the reference, too.",
        ),
    ] = None,
    trust: TrustOption = None,
    owner_key: OwnerKeyOption = None,
    suspect_date: Annotated[
        str | None,
        typer.Option(
            "--suspect-date",
            metavar="DATE",
            help="With --statement: earliest appearance of the suspect that you believe.",
        ),
    ] = None,
    revocation: RevocationOption = None,
    null_table: Annotated[
        str | None,
        typer.Option(
            "--null-table",
            metavar="FILE",
            help="Control: what hf-watermark calibrate wrote, or a shipped table's name.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the evidence as JSON and nothing else.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Also write a self-contained HTML page with plots.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Also write the evidence to this new JSON file.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Check whether a model carries the mark of a key.

    Of a Hub repo, white-box checks read only the tensors they need; black-box checks download it and run it on the owner's architecture.

    Exit status: 0 mark found, 1 not found, 2 bad usage or unreadable input, 3 inconclusive, 4 invalid claim.
    """
    if (key is None) == (opening is None):
        raise InvalidInput("give exactly one of --key DIR and --opening FILE")
    begin(f"Checking {suspect}")
    if output is not None:
        refuse_output(output)
    if report is not None:
        refuse_report(report)
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    address = is_address(suspect)
    stepwise = address if sequential is None else sequential
    if reference is not None and (stepwise or address):
        raise InvalidInput("--reference needs the suspect's weights; leave out --sequential and addresses")
    if base is not None and (address or mirrored):
        raise InvalidInput("--base needs the suspect's weights as they are; leave out addresses and --mirrored")
    if null_table is not None and stepwise:
        raise InvalidInput("--null-table is about the full check; leave out --sequential, or add --all for an address")
    if statement is not None and (stepwise or null_table is not None):
        raise InvalidInput(
            "--statement is about the full check of a model; leave out addresses, --sequential and --null-table"
        )
    if revocation and statement is None:
        raise InvalidInput("--revocation is about a claim; give --statement as well")
    silence_loading()
    warn_of_keys((suspect, reference, base, statement), key)
    claim = _load_claim(key, opening, passphrase)
    known = None if beacon is None else read_beacon(beacon)
    source: Any = suspect
    endpoint: Any = None
    notes: list[str] = []
    if address:
        endpoint, notes = open_address(suspect, claim, api, api_name, mean, std)
        source = endpoint
        claim, before = going_on(claim, key, endpoint.name)
        notes += before
    if mirrored:
        from ..suspects import Suspect

        source = Suspect.open(source, claim.backbone).mirrored()
        looks *= 2
    with Console(stderr=True).status("Checking ..."):
        if stepwise:
            from ..verifying import verify_sequentially

            asking = burning(key, endpoint.name) if address else burning(None, "")
            evidence = verify_sequentially(source, claim, budget, known, looks, asking, base).evidence
        elif statement is not None:
            evidence = _verify_claim(
                source,
                claim,
                statement,
                trust,
                owner_key,
                known,
                suspect_date,
                looks,
                budget,
                reference,
                revocation,
                base,
            )
        else:
            from ..evidence import Access
            from ..mapping import method_entry
            from ..verifying import verify as check

            asked = [
                place for place in claim.claims() if method_entry(place.assignment.method).access != Access.WEIGHTS
            ]
            if address:
                note, shown = burning(key, endpoint.name), [subkey for place in asked for subkey in place.subkeys]
                endpoint.before_sending = lambda: [note(subkey) for subkey in shown]
            evidence = check(
                source,
                claim,
                looks=looks,
                beacon=known,
                budget=budget,
                reference=reference,
                null_table=None if null_table is None else read_null_table(null_table),
                own_reference=own_reference,
                base=base,
            )
    evidence.warnings = [*notes, *evidence.warnings]
    if output is not None:
        write_json_atomic(output, evidence.to_dict(), overwrite=False)
    if report is not None:
        from ..evaluation.verdict_report import write_verdict

        write_verdict(report, evidence, suspect)
    if json:
        typer.echo(evidence.to_json())
    else:
        show_evidence(evidence)
    leave(evidence.verdict)


def show_evidence(evidence: "Evidence") -> None:
    """A table with one row per method, then verdict, reason and warnings."""
    from ..evidence import BASIS_IN_WORDS, LEVEL_B, LEVEL_N, in_figures
    from ..statistics import LOG2_P_FLOOR

    console = Console()
    if evidence.trials:
        table = Table("method", "matches", "log2 p", "level", "verdict")
        for part in evidence.by_method.values():
            matches = f"{part.matches}/{part.trials}"
            table.add_row(part.method, matches, in_figures(part.log2_p, part.looks), part.level, str(part.verdict))
        console.print(table)
        console.print(
            f"log2 p: how often an unrelated key does as well, as a power of two (shown no lower than {LOG2_P_FLOOR:.0f}); level N asks for "
            f"{LEVEL_N:.0f}, level B for {LEVEL_B:.0f} and a key bound to a public beacon"
        )
    if evidence.details.get("queries") is not None:
        budget = evidence.details.get("budget")
        console.print(f"queries: {evidence.details['queries']}" + (f" of {budget}" if budget else ""))
    alignment = evidence.details.get("alignment")
    if alignment:
        undone = ", ".join(f"{kind} ({count})" for kind, count in alignment["undone"].items()) or "nothing"
        console.print(
            f"aligned to the reference: undone {undone}; {alignment['carriers_readable']:.1%} of the carriers readable"
        )
    style = "bold green" if evidence.found else "bold red"
    console.print(Text(f"{evidence.verdict}: ", style=style).append(evidence.reason, style="default"))
    console.print(Text(BASIS_IN_WORDS[evidence.basis]))
    for warning in evidence.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def read_null_table(name: str) -> "NullTable":
    from ..verification.null_table import find_null_table

    return find_null_table(name)


def read_beacon(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidInput(f"--beacon {text[:80]!r} is not hexadecimal") from None


def _verify_claim(
    suspect: Any,
    claim: "WatermarkKey | Opening",
    statement: str,
    trust: list[Path] | None,
    owner_key: str | None,
    beacon: bytes | None,
    suspect_date: str | None,
    looks: int,
    budget: int | None,
    reference: Path | None,
    revocation: list[Path] | None,
    base: Path | None,
) -> "Evidence":
    """The check of a claim: statement and key belong together, and the dates are in order."""
    from ..claims import verify_claim
    from ..publishing.timestamp import read_roots
    from .options import read_date, read_revocations

    return verify_claim(
        suspect,
        claim,
        statement,
        roots=read_roots(trust or []),
        public_key=owner_key,
        beacon=beacon,
        suspect_time=read_date(suspect_date),
        looks=looks,
        budget=budget,
        reference=True if reference is None else reference,
        revocations=read_revocations(revocation or []),
        base=base,
    )


def _load_claim(key: Path | None, opening: Path | None, passphrase: str | None) -> "WatermarkKey | Opening":
    from ..evidence import Access
    from ..keys import Opening, WatermarkKey
    from ..mapping import method_entry

    if opening is not None:
        disclosed = Opening.load(opening)
        access = method_entry(disclosed.assignment.method).access
        if access != Access.WEIGHTS:
            # An opening holds neither the owner's architecture nor source images, so nothing can be asked.
            raise InvalidInput(
                f"{opening}: is read from {access}, not from a folder; use verify(function, Opening.load(path, pool)) in Python"
            )
        return disclosed
    assert key is not None
    return open_secret(lambda secret: WatermarkKey.load(key, secret), passphrase)
