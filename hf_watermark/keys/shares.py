"""
A secret as n lists of words of which any k restore it: SLIP-39 (Shamir's scheme, extra `backup`). Fewer than k are of no use.

The secret is split with a digest over it and its kind. So shares of different splits, a share that was made up, and shares of something else
are told from a secret that was restored, by the words alone.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from ..serialization import InvalidInput
from .folders import SHARE_FORMAT
from .owner import Owner


# One share would be a copy, and where one is enough SLIP-39 checks nothing.
FEWEST, MOST = 2, 16
OWNER, BACKUP = "owner", "key-backup"
IN_WORDS = {OWNER: "an owner", BACKUP: "the passphrase of a key's backup"}
TAG_BYTES = 4
SHARE_BYTES = 4096


def _library() -> Any:
    try:
        import shamir_mnemonic
    except ImportError:
        raise ImportError("shares need the extra `backup`: pip install 'hf-watermark[backup]'") from None
    return shamir_mnemonic


def split_secret(secret: bytes, kind: str, shares: int, threshold: int) -> list[str]:
    """
    Args:
        secret (`bytes`):
            An even number of bytes, 16 or more.
        kind (`str`):
            What it is: `OWNER` or `BACKUP`.
        shares, threshold (`int`):
            How many shares there will be, and how many of them restore the secret.

    Returns:
        `list[str]`: words of each share, separated by spaces.

    Raises:
        [`~serialization.InvalidInput`]: when the numbers make no sense.
        `ImportError`: without the extra `backup`.
    """
    if not FEWEST <= threshold <= shares <= MOST:
        raise InvalidInput(
            f"{threshold} of {shares} shares: give at least {FEWEST} and at most {MOST} shares, and a threshold from {FEWEST} to their number"
        )
    # No passphrase of SLIP-39: with a wrong one it restores another secret without a word.
    [words] = _library().generate_mnemonics(
        1, [(threshold, shares)], secret + _tag(secret, kind), iteration_exponent=0
    )
    return list(words)


def join_shares(shares: Sequence[str], kind: str) -> bytes:
    """
    The secret that was split.

    Args:
        shares (`Sequence[str]`):
            Words of at least as many shares as the threshold says, in any order. Those beyond it must fit as well.

    Raises:
        [`~serialization.InvalidInput`]: when a share is mistyped, there are too few, or they do not belong together. No message quotes a word.
        `ImportError`: without the extra `backup`.
    """
    library = _library()
    parsed = [_parsed(library, words, number) for number, words in enumerate(shares, 1)]
    if not parsed:
        raise InvalidInput("no share was given")
    for number, share in enumerate(parsed, 1):
        if share.group_parameters() != parsed[0].group_parameters():
            raise InvalidInput(f"share {number} belongs to another secret than share 1: they were not split together")
    different = list(dict.fromkeys(parsed))
    needed = parsed[0].member_threshold
    if len(different) < needed or needed < FEWEST:
        raise InvalidInput(f"{len(different)} different shares were given, {max(needed, FEWEST)} are needed")
    first, others = different[: needed - 1], different[needed - 1 :]
    found = {_joined(library, [*first, last]) for last in others}
    if len(found) != 1:
        raise InvalidInput("the shares do not belong together: at least one of them was changed or made up")
    [tagged] = found
    secret, tag = tagged[:-TAG_BYTES], tagged[-TAG_BYTES:]
    if not hmac.compare_digest(_tag(secret, kind), tag):
        raise InvalidInput(f"the shares do not restore {IN_WORDS[kind]}, but something else")
    return secret


def split_owner(owner: Owner, shares: int, threshold: int) -> list[str]:
    """An identity as shares, see [`split_secret`]. They need no other file: any `threshold` of them are the owner."""
    return split_secret(owner.private_bytes(), OWNER, shares, threshold)


def join_owner(shares: Sequence[str]) -> Owner:
    """The identity that [`split_owner`] split, see [`join_shares`]."""
    return Owner.of(join_shares(shares, OWNER))


def share_text(words: str, number: int, shares: int, threshold: int, what: str) -> str:
    """A share as it is written or printed: a line that says what it is, and its words."""
    return f"# {SHARE_FORMAT}: share {number} of {shares} of {what}; any {threshold} of them restore it\n{words}\n"


def words_of(text: str) -> str:
    """The words of [`share_text`], or of words that were typed alone."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return " ".join(" ".join(lines).lower().split())


def _parsed(library: Any, words: str, number: int) -> Any:
    try:
        share = library.Share.from_mnemonic(words_of(words))
    except (library.MnemonicError, ValueError, IndexError):
        raise InvalidInput(
            f"share {number}: a word is missing, mistyped or out of place; compare it with its paper"
        ) from None
    # A stranger's exponent would cost hours.
    if (share.group_threshold, share.group_count, share.iteration_exponent) != (1, 1, 0):
        raise InvalidInput(f"share {number}: was made by another program")
    return share


def _joined(library: Any, shares: Sequence[Any]) -> bytes:
    try:
        return library.combine_mnemonics([share.mnemonic() for share in shares])
    except library.MnemonicError:
        raise InvalidInput("the shares do not belong together: at least one of them was changed or made up") from None


def _tag(secret: bytes, kind: str) -> bytes:
    return hashlib.sha256(f"{SHARE_FORMAT}/{kind}".encode() + b"\x00" + secret).digest()[:TAG_BYTES]
