"""Names in messages: the one that was probably meant, and those that there are."""

from collections.abc import Iterable
from difflib import get_close_matches


def known_names(given: object, known: Iterable[str]) -> str:
    """The end of a sentence about a name that does not exist: the nearest known one, if one is near, and all of them."""
    names, wanted = list(known), str(given)[:100].casefold()
    by_lower_case = {name.casefold(): name for name in names}
    longer = [name for name in by_lower_case if wanted and wanted in name]
    near = [*get_close_matches(wanted, by_lower_case, n=1), *longer]
    meant = f"did you mean {by_lower_case[near[0]]!r}? " if near else ""
    return f"{meant}choose one of {', '.join(names)}"
