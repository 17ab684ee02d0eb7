"""Watching the Hub for one's marks, with an error budget that lasts for ever (extra `watch`)."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "Budget": "budget",
    "ListedRepo": "listing",
    "Summary": "watching",
    "Watch": "watching",
    "WatchSettings": "settings",
    "watch_repos": "watching",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .budget import Budget as Budget
    from .listing import ListedRepo as ListedRepo
    from .settings import WatchSettings as WatchSettings
    from .watching import Summary as Summary
    from .watching import Watch as Watch
    from .watching import watch_repos as watch_repos
