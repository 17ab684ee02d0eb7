"""`hf-watermark watch`."""

import json as json_format
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..serialization import InvalidInput
from .loading import silence_loading
from .options import JsonOption, printable
from .passphrase import PassphraseFile
from .progress import begin


if TYPE_CHECKING:
    from ..watch import Summary, WatchSettings


EXAMPLE = """Examples:

hf-watermark watch --key keys/my-model --output watch --filter image-classification --since 2026-11-01 --dry-run

hf-watermark watch --key keys/my-model --reference my-model-before=keys/my-model --output watch --workers 4 --every 6h

hf-watermark watch --key keys/a --key keys/b --output watch --executor slurm --slurm-partition cpu --workers 64
"""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def watch(
    key: Annotated[list[Path], typer.Option("--key", metavar="DIR", help="A key folder; may be repeated.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the table of looks; the same one goes on.")
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="DIR[=KEYDIR]",
            help="Your model as it was when the key was made: reordered channels are undone by it. Costs one bit per look.",
        ),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="DATE", help="Leave out what was last changed before, as 2026-11-22.")
    ] = "",
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="TAG", help="Only repositories with this tag of the Hub; may be repeated."),
    ] = None,
    author: Annotated[str, typer.Option("--author", metavar="NAME", help="Only this user's or organisation's.")] = "",
    search: Annotated[str, typer.Option("--search", metavar="TEXT", help="Only with this in their name.")] = "",
    budget: Annotated[
        float, typer.Option("--budget", help="Expected number of false alarms of all looks ever, at most.")
    ] = 0.01,
    fdr: Annotated[float, typer.Option("--fdr", help="False discovery rate of the discoveries, at most.")] = 0.05,
    executor: Annotated[str, typer.Option("--executor", help="local, ray or slurm.")] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Tasks that run at once.")] = 1,
    rate: Annotated[
        float, typer.Option("--rate", help="Requests per second to one host, of all workers together.")
    ] = 10.0,
    batch: Annotated[int, typer.Option("--batch", help="Repositories that are entered together, at most 1000.")] = 500,
    largest: Annotated[
        float, typer.Option("--largest", help="Leave out more parameters than this many times the key's carriers.")
    ] = 20.0,
    webhook: Annotated[str, typer.Option("--webhook", metavar="URL", help="Alarms are posted there, as JSON.")] = "",
    once: Annotated[bool, typer.Option("--once", help="End after one listing (the default).")] = False,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Begin again so often: 30m, 6h, 1d.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List, and forecast requests, bytes and hours; nothing is read.")
    ] = False,
    slurm_partition: Annotated[str, typer.Option("--slurm-partition", help="For --executor slurm.")] = "",
    slurm_time: Annotated[str, typer.Option("--slurm-time", help="For --executor slurm: of one batch.")] = "04:00:00",
    passphrase_file: PassphraseFile = None,
    json: JsonOption = False,
) -> None:
    """
    Look for your marks in the Hub's repositories, with an error budget that lasts for ever.

    New and changed repositories are listed, those whose shapes cannot hold the marks are discarded by their headers, and of the others a few
    ranges are read. Every look is counted in the output folder. A second run looks only at what changed; a killed one goes on.

    Exit status: 0 nothing found, 1 an alarm, 2 bad input or the Hub could not be asked.
    """
    if once and every:
        raise InvalidInput("give one of --once and --every")
    pause = seconds_of(every) if every else None
    begin("Watching")
    silence_loading()
    from ..watch import WatchSettings

    folders = tuple(str(folder.resolve()) for folder in key)
    settings = WatchSettings(
        keys=folders,
        output=str(output.resolve()),
        references=references_of(reference or [], folders),
        passphrase_file="" if passphrase_file is None else str(passphrase_file.resolve()),
        since=since,
        filters=tuple(filter or ()),
        author=author,
        search=search,
        budget=budget,
        fdr=fdr,
        executor=executor,
        workers=workers,
        rate=rate,
        batch=batch,
        largest=largest,
        webhook=webhook,
        slurm={"partition": slurm_partition, "time": slurm_time} if slurm_partition else None,
    )
    if dry_run:
        show_forecast(settings, json)
        return
    if pause is None:
        raise typer.Exit(1 if run_once(settings, json).alarms else 0)
    from ..suspects.errors import HubError

    while True:
        try:
            run_once(settings, json)
        except HubError as error:  # the next time the network may be there again
            typer.echo(f"{printable(str(error))}; tried again in {every}", err=True)
        time.sleep(pause)


def run_once(settings: "WatchSettings", json: bool) -> "Summary":
    """One listing: progress and alarms on stderr, what it came to on stdout."""
    from ..watch import Watch
    from ..watch.alarms import failed_posts, record_alarms, send_again
    from ..watch.keys import open_keys
    from ..watch.report import write_watch_report
    from ..watch.watching import one_line

    def tell(text: str) -> None:
        typer.echo(printable(text), err=True)

    def told(alarm: dict[str, Any]) -> None:
        tell(one_line(alarm))

    def alarm(number: int) -> None:
        record_alarms(over_the_hub.settings, number, told)

    over_the_hub = Watch(settings, tell=tell, alarm=alarm)
    open_keys(over_the_hub.settings)  # what is wrong with a key is said before anything is asked for
    summary = over_the_hub.once()
    send_again(over_the_hub.settings, told)
    report = write_watch_report(over_the_hub.settings)
    if json:
        typer.echo(json_format.dumps(vars(summary), indent=2, default=str))
        return summary
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(summary.outcomes.items())) or "nothing new"
    typer.echo(
        f"{summary.repositories} repositories ({outcomes}), {summary.requests} requests, {summary.bytes:,} bytes"
    )
    typer.echo(
        f"{summary.looks} looks, {summary.looks_ever} in all; {len(summary.alarms)} alarm{'s' * (len(summary.alarms) != 1)}"
    )
    if unsent := failed_posts(settings.folder):
        typer.echo(f"{len(unsent)} alarms were not taken by the webhook: the next run sends them again", err=True)
    typer.echo(f"report: {report}")
    return summary


def show_forecast(settings: "WatchSettings", json: bool) -> None:
    from ..watch.forecast import forecast_of

    found = forecast_of(settings)
    if json:
        typer.echo(json_format.dumps(found, indent=2))
        return
    from .plan import show_scan

    show_scan(found)


def references_of(given: list[str], keys: tuple[str, ...]) -> dict[str, str]:
    """`DIR` for the only key, or `DIR=KEYDIR`."""
    found: dict[str, str] = {}
    for text in given:
        folder, _, of = text.partition("=")
        if not of and len(keys) > 1:
            raise InvalidInput(f"--reference {text}: there are {len(keys)} keys; write {folder}=KEYDIR")
        name = str(Path(of).resolve()) if of else keys[0]
        if name not in keys:
            raise InvalidInput(f"--reference {text}: {of} is none of the --key folders")
        if not Path(folder).is_dir():
            raise InvalidInput(f"--reference {folder}: no such folder")
        found[name] = str(Path(folder).resolve())
    return found


def seconds_of(text: str) -> int:
    match = re.fullmatch(r"(\d{1,5})([smhd])", text)
    if not match or int(match[1]) == 0:
        raise InvalidInput(f"--every {text!r}: write 30m, 6h or 1d")
    return int(match[1]) * UNITS[match[2]]
