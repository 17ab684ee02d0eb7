"""`hf-watermark open`."""

from pathlib import Path
from typing import Annotated

import typer

from ..serialization import InvalidInput, write_bytes_atomic, write_json_atomic
from .options import refuse_output
from .passphrase import PassphraseFd, PassphraseFile, read_passphrase
from .secrets import KeyOption, OwnerFd, OwnerFile, OwnerOption, load_key, load_owner


EXAMPLE = (
    "Example:\n\nhf-watermark open --key keys/my-model --subkey 3 --nonce 2026-11-court-4711 --output opening.json"
)
POOL_SUFFIX = ".pool.safetensors"


def disclose(
    key: KeyOption,
    subkey: Annotated[int, typer.Option("--subkey", min=0, metavar="I", help="The sub-key that the judge drew.")],
    nonce: Annotated[
        str, typer.Option("--nonce", metavar="N", help="The judge's name for this dispute, at most 96 characters.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", metavar="FILE", help="New file for the opening. Whoever reads it knows the sub-key."),
    ],
    owner: OwnerOption = None,
    again: Annotated[bool, typer.Option("--again", help="Open a sub-key that was opened before.")] = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
    owner_passphrase_fd: OwnerFd = None,
    owner_passphrase_file: OwnerFile = None,
) -> None:
    """
    Open one sub-key for one dispute, signed over the judge's nonce. It proves nothing in any other dispute; the key folder notes it.
    """
    refuse_output(output)
    secret, owner_secret = (
        read_passphrase(passphrase_fd, passphrase_file),
        read_passphrase(owner_passphrase_fd, owner_passphrase_file),
    )

    from ..claims.disclosure import Disclosure
    from ..keys import burn, burnt_log

    loaded, _ = load_key(key, secret)
    if subkey in loaded.public:
        raise InvalidInput(
            f"sub-key {subkey} is public: anybody could have planted its mark, so it proves nothing before a judge; open another one "
            f"({loaded.subkeys_in_words})"
        )
    if any(entry.subkey == subkey and entry.nonce != nonce for entry in burnt_log(key)) and not again:
        left = sorted(set(loaded.used) - loaded.disclosed)
        other = f"open another one of {', '.join(map(str, left))}" if left else "no other one is left"
        raise InvalidInput(f"sub-key {subkey} was opened before and proves nothing any more; {other}, or add --again")
    disclosure = Disclosure.make(loaded, load_owner(owner, owner_secret), subkey, nonce)
    # Noted first: an opening that exists without a note would be reused.
    burn(key, subkey, nonce)
    if disclosure.opening.pool:
        from safetensors.torch import save

        write_bytes_atomic(pool_path(output), save(disclosure.opening.pool), mode=0o600, overwrite=False)
    write_json_atomic(output, disclosure.to_dict(), mode=0o600, overwrite=False)
    typer.echo(
        f"wrote {output}: sub-key {subkey} of {disclosure.opening.assignment.method}; send it to the judge only"
    )


def pool_path(opening: Path) -> Path:
    """Where the source images of an opening lie: beside it."""
    return opening.with_suffix(POOL_SUFFIX)
