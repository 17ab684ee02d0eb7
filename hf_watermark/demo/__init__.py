"""
The app of the Space and of `hf-watermark demo`: check any published model, judge a claim; on your own machine also with folders and a key.

Nothing that a visitor types is executed, written to disk or logged. In public the app sends no Hub token, so it sees public repositories
only. The report is handed over inside the page, so that no copy stays behind.
"""

from .app import build_demo, launch
from .checks import check_repository, judge_claim
from .page import in_page, shown


__all__ = ["build_demo", "check_repository", "in_page", "judge_claim", "launch", "shown"]
