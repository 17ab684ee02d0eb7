"""Suspects behind an address, for `hf-watermark verify`: asked in steps, with the owner's class names and normalisation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..serialization import InvalidInput


if TYPE_CHECKING:
    from ..keys import Opening, SubKey, WatermarkKey
    from ..suspects.endpoints import Endpoint


def is_address(suspect: str) -> bool:
    return suspect.startswith(("http://", "https://"))


def open_address(
    url: str, claim: "WatermarkKey | Opening", api: str | None, api_name: str | None, mean: str | None, std: str | None
) -> "tuple[Endpoint, list[str]]":
    """
    The address as a suspect, and what a reader of the evidence should know. Class names and normalisation are the committed ones; only where
    the key holds no normalisation, the one on the command line is taken.

    Raises:
        [`~serialization.InvalidInput`]: when the key does not hold what is needed, or the command line contradicts it.
    """
    from ..suspects.endpoints import Endpoint

    context, values, notes = claim.context, [], []
    for name, text, known in (("mean", mean, context.mean), ("std", std, context.std)):
        given = None if text is None else _numbers(name, text)
        if known and given is not None and list(known) != given:
            raise InvalidInput(
                f"--{name} {text}: the key was made for {','.join(f'{value:g}' for value in known)}; leave the option out"
            )
        if not known and given is None:
            raise InvalidInput(
                f"give --mean and --std: the normalisation that the owner's image processor applies (image_{name} in its "
                "preprocessor_config.json); the key does not hold it"
            )
        values.append(list(known) if known else given or [])
    if not context.mean:
        notes.append("the normalisation is that of the command line: the key does not commit to one")
    if not context.labels:
        raise InvalidInput(
            "the key does not hold the owner's class names, so the answers of an address cannot be read"
        )
    return Endpoint(url, context.labels, values[0], values[1], api=api, api_name=api_name), notes


def going_on(
    claim: "WatermarkKey | Opening", folder: Path | None, host: str
) -> "tuple[WatermarkKey | Opening, list[str]]":
    """
    The key without the notes that this very host was asked, and what a reader should know of it: whoever runs the host saw images and no bits, so
    a further run goes on with the same test (PROTOCOL.md §3.8). For anybody else the sub-keys stay burnt.
    """
    from ..keys import Opening
    from ..keys.burnt import burnt_log

    if folder is None or isinstance(claim, Opening):
        return claim, []
    entries = burnt_log(folder)
    known = {entry.subkey for entry in entries if entry.nonce != asked_of(host)}
    here = sorted(claim.burnt & {entry.subkey for entry in entries} - known)
    if not here:
        return claim, []
    which = ", ".join(map(str, here))
    note = f"{host} was asked sub-keys {which} before: this goes on with them, and is no second look if it answers an image alike each time"
    return replace(claim, burnt=claim.burnt - set(here)), [note]


def asked_of(host: str) -> str:
    """The note in `burnt.json`."""
    return f"asked:{host}"


def burning(folder: Path | None, host: str) -> "Callable[[SubKey], None]":
    """What to do before a sub-key's triggers are shown to a host: note it in the key folder, so that it counts nowhere else."""

    def note(subkey: "SubKey") -> None:
        if folder is not None:
            from ..keys import burn

            burn(folder, subkey.index, asked_of(host))

    return note


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise InvalidInput(f"--{name} {text!r} is no list of numbers such as 0.485,0.456,0.406") from None
