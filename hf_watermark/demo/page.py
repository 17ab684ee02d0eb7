"""What the app shows: progress, a result with its report inside, or what the visitor can put right."""

import base64
import html
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ..evaluation.glossary import explained
from ..evaluation.report import environment
from ..evaluation.verdict_report import plots_of, render_verdict, verdict_cards
from ..serialization.confined import EXPECTED
from .checks import Progress, Result, check_repository, judge_claim, without_options


TITLES = {"bits": "Evidence of each sub-key", "decoys": "The true key among decoy keys"}
WORDS = ("beacon", "decoy key", "level", "log2 p", "opening", "statement", "sub-key")
# A result that `examples/space/sample.py` recorded.
SAMPLE = "sample.json"


def in_page(outcome: Result, sample: bool = False) -> str:
    """The result as an HTML fragment, with the report inside a link. A `sample` says that it is one."""
    record = outcome.evidence
    plots = plots_of(record) if record else {}
    return (
        environment()
        .get_template("demo.html.jinja")
        .render(
            outcome=outcome,
            sample=sample,
            cards=[card for card in verdict_cards(record) if card["title"] != "Verdict"] if record else [],
            levels=outcome.levels,
            plots=[(TITLES[kind], plot) for kind, plot in plots.items()],
            glossary=explained(*WORDS),
            report=base64.b64encode(report_of(outcome).encode()).decode(),
            name="".join(letter if letter.isalnum() else "-" for letter in outcome.subject)[:80],
        )
    )


def sample_page() -> str:
    """A recorded result, so that a visitor sees at once what the app answers."""
    return in_page(Result(**json.loads((files(__package__) / SAMPLE).read_text())), sample=True)


def report_of(outcome: Result) -> str:
    record = outcome.evidence
    if record is None:
        record = {
            "verdict": outcome.headline, "reason": outcome.text, "trials": 0, "warnings": [], "bound_to_beacon": False, "details": {}
        }  # fmt: skip
    return render_verdict(record, outcome.subject, outcome.levels)


# Visitors choose what is read, so it is read in a process of its own (PROTOCOL.md §4.2).
CHECKS: dict[str, Callable[..., Result]] = {"repository": check_repository, "claim": judge_claim}


def page_of(check: str, arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What this process answers: one of [`CHECKS`] as a page."""
    try:
        return {"page": in_page(CHECKS[check](**arguments, progress=progress))}
    except EXPECTED:
        raise
    except Exception as error:
        return {"page": _bug(error)}


def shown(action: Callable[[Progress], str]) -> Iterator[str]:
    """Runs `action` in a thread: first its progress, line by line, then its page or what the visitor can put right."""
    queue: SimpleQueue[tuple[bool, str]] = SimpleQueue()

    def run() -> None:
        try:
            page = action(lambda line: queue.put((False, line)))
        except EXPECTED as error:
            page = box("plain", "This could not be checked", without_options(str(error)))
        except Exception as error:
            page = _bug(error)
        queue.put((True, page))

    Thread(target=run, daemon=True).start()
    lines: list[str] = []
    while True:
        done, text = queue.get()
        if done:
            yield text
            return
        lines.append(text)
        yield _working(lines)


def _working(lines: list[str]) -> str:
    done = "".join(f"<li class='done'>{html.escape(line)}</li>" for line in lines[:-1])
    return f"<div class='hfw'><ol class='steps' role='status'>{done}<li class='now'>{html.escape(lines[-1])} ...</li></ol></div>"


def _bug(error: Exception) -> str:
    """A bug must not show a visitor's input in a traceback."""
    return box("plain", "This could not be checked", f"an error inside the app ({type(error).__name__})")


def box(state: str, headline: str, text: str) -> str:
    return f"<div class='hfw'><div class='verdict {state}' role='alert'><b>{html.escape(headline)}</b><p>{html.escape(text)}</p></div></div>"
