"""Which key a published model carries: what a statement about a model made from it names (`derived_from`), and what a revocation revokes."""

from pathlib import Path

from ..keys import in_words
from ..serialization import InvalidInput
from ..suspects.source import Source
from .parts import Ancestor
from .precommit import PRECOMMIT, Precommit
from .statement import STATEMENT, SignedStatement


def key_in(place: Source | str | Path) -> tuple[Precommit, SignedStatement | None]:
    """
    The commitment of a published or saved model, and its statement, if there is one.

    Args:
        place (`str` or `Path`): A folder, or `owner/name[@revision]`.

    Raises:
        [`~serialization.InvalidInput`]: when there is no commitment, its owner did not sign it, or the statement is another key's.
    """
    source = Source.open(place)
    raw, stated = source.read(PRECOMMIT), source.read(STATEMENT)
    if raw is None:
        raise InvalidInput(f"{source.name}: has no {PRECOMMIT}, so no key of it is known")
    precommit = Precommit.parse(raw, f"{source.name}: {PRECOMMIT}")
    problems = precommit.problems()
    if problems:
        raise InvalidInput(f"{source.name}: {in_words(problems)}")
    if stated is None:
        return precommit, None
    signed = SignedStatement.parse(stated, f"{source.name}: {STATEMENT}")
    if not signed.is_signed or signed.statement.precommit != precommit.precommit:
        raise InvalidInput(f"{source.name}: {STATEMENT} is not the signed statement of the key in {PRECOMMIT}")
    return precommit, signed


def origin_in(place: Source | str | Path) -> Ancestor:
    """
    How the statement of a model that was made from this one names it; see [`key_in`].

    Example:

    ```python
    >>> from hf_watermark.publishing import Extras, publish

    >>> extras = Extras(derived_from=[origin_in("you/base-model")])
    >>> publish("my-model", "me/my-model", key, owner, lambda folder: verify(folder, key), extras)
    ```
    """
    precommit, signed = key_in(place)
    digest = None if signed is None else signed.statement.digest
    return Ancestor(precommit=precommit.precommit, public_key=precommit.public_key, statement_sha256=digest)


__all__ = ["key_in", "origin_in"]
