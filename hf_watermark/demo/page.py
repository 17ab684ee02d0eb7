"""The page: tabs, progress, and a report that is handed over inside of it."""

import base64
import html
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

from markupsafe import Markup

from ..evaluation.plots import NARROW
from ..evaluation.report import TEMPLATES, environment
from ..evaluation.verdict_report import plots_of, render_verdict, verdict_cards
from ..serialization.confined import EXPECTED, confined
from .checks import SPACE_BYTES, Progress, Result, check_repository, check_with_key, judge_claim, without_options


BURNT = (
    "**An opening that is typed into a public page is burnt.** It discloses one secret sub-key: whoever sees it can plant or remove this "
    "sub-key's mark, so it proves nothing in any later dispute. The other sub-keys stay secret. Do this only for a dispute that "
    "you want to settle in public; otherwise run `hf-watermark judge` on your own machine."
)


def in_page(outcome: Result) -> str:
    """The result as an HTML fragment, with the report inside a link."""
    report = report_of(outcome)
    cards = (
        [card for card in verdict_cards(outcome.evidence.to_dict()) if card["title"] != "Verdict"]
        if outcome.evidence
        else []
    )
    return (
        environment()
        .get_template("demo.html.jinja")
        .render(
            outcome=outcome,
            cards=cards,
            levels=outcome.levels,
            # Drawn twice, because a wide figure cannot be read on a phone.
            plots=[
                (title, Markup(wide), Markup(narrow))
                for (title, wide), (_, narrow) in zip(
                    plots_of(outcome.evidence), plots_of(outcome.evidence, NARROW), strict=True
                )
            ]
            if outcome.evidence
            else [],
            report=base64.b64encode(report.encode()).decode(),
            name="".join(letter if letter.isalnum() else "-" for letter in outcome.subject)[:80],
        )
    )


def report_of(outcome: Result) -> str:
    record: Any = outcome.evidence
    if record is None:
        record = {
            "verdict": outcome.headline, "reason": outcome.text, "trials": 0, "warnings": [], "bound_to_beacon": False, "details": {}
        }  # fmt: skip
    return render_verdict(record, outcome.subject, outcome.levels)


# Visitors choose what is read, so it is read in a process of its own (PROTOCOL.md §4.2).
CHECKS: dict[str, Callable[..., Result]] = {"repository": check_repository, "claim": judge_claim}
SPACE_LIMITS = {"gib": 8.0, "minutes": 10.0}


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
            page = _box("plain", "This could not be checked", without_options(str(error)))
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
    return _box("plain", "This could not be checked", f"an error inside the app ({type(error).__name__})")


def _box(state: str, headline: str, text: str) -> str:
    return f"<div class='hfw'><div class='verdict {state}' role='alert'><b>{html.escape(headline)}</b><p>{html.escape(text)}</p></div></div>"


def build_demo(public: bool = True) -> Any:
    """
    The app as `gradio.Blocks`.

    Args:
        public (`bool`, *optional*, defaults to `True`):
            For a Space: no Hub token is used, weights up to 2 GiB are read with at most 8 GiB of memory and ten minutes of processor time, and no
            key is asked for. `False` is for one's own machine.

    Raises:
        `ImportError`: without the extra `demo`.
    """
    try:
        import gradio as gr
    except ImportError:
        raise ImportError("the app needs gradio: pip install 'hf-watermark[demo]'") from None

    token, most = (False, SPACE_BYTES) if public else (None, 16 * 2**30)
    limits = SPACE_LIMITS if public else {}

    def apart(check: str, **arguments: Any) -> Iterator[str]:
        asked = {"check": check, "arguments": arguments | {"token": token, "most": most}}

        def page(progress: Progress) -> str:
            progress("Starting a process of its own")
            return confined(page_of, asked, progress=progress, **limits)["page"]

        yield from shown(page)

    def on_check(repo: str) -> Iterator[str]:
        if not repo.strip():
            yield _box("plain", "Which model?", "Enter the name of a repository, such as user/model.")
            return
        yield from apart("repository", repo=repo)

    def on_judge(statement: str, suspect: str, opening: str, agreed: bool) -> Iterator[str]:
        if not agreed:
            yield _box("bad", "Please read the warning first", "Tick the box below it if this opening may be burnt.")
            return
        yield from apart("claim", statement=statement, suspect=suspect, opening=opening)

    def on_key(suspect: str, folder: str, passphrase: str) -> Iterator[str]:
        yield from shown(lambda progress: in_page(check_with_key(suspect, folder, passphrase, progress)))

    # `private`: these functions are not offered as an API, where their inputs would be easy to log.
    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="hf_watermark: check a model", analytics_enabled=False) as demo:
        gr.Markdown(
            "# Whose model is this?\nA model that was marked with `hf_watermark` carries a secret of its owner in its weights. Here "
            "anybody can check what its owner published, and settle a claim about another model."
        )
        with gr.Tab("Check a model", id="check"):
            repo = gr.Textbox(
                label="Repository on the Hub",
                placeholder="user/model or user/model@revision",
                elem_id="repo",
                max_length=300,
            )
            button = gr.Button("Check", variant="primary", elem_id="check")
            result = gr.HTML(elem_id="result")
            for event in (button.click, repo.submit):
                event(on_check, repo, result, **quiet)
        with gr.Tab("Judge a claim", id="judge"):
            gr.Markdown(
                BURNT if public else BURNT.replace("typed into a public page", "shown to anybody"), elem_id="warning"
            )
            statement = gr.Textbox(
                label="Repository with the claimant's statement",
                placeholder="owner/model",
                elem_id="statement",
                max_length=300,
            )
            suspect = gr.Textbox(
                label="Suspect repository", placeholder="other/model", elem_id="suspect", max_length=300
            )
            agreed = gr.Checkbox(label="I understand that this opening is burnt afterwards", elem_id="agreed")
            opening = gr.Textbox(
                label="Opening (the content of opening.json)", lines=4, max_lines=8, elem_id="opening"
            )
            button = gr.Button("Judge", variant="primary", elem_id="judge-button")
            result = gr.HTML(elem_id="judge-result")
            button.click(on_judge, [statement, suspect, opening, agreed], result, **quiet)
        if not public:
            with gr.Tab("Check with your key", id="key"):
                gr.Markdown(
                    "On your own machine only: the key is read from its folder and nothing of it leaves this process."
                )
                suspect = gr.Textbox(label="Suspect: repository or folder", elem_id="own-suspect")
                folder = gr.Textbox(label="Key folder", elem_id="key-folder")
                passphrase = gr.Textbox(label="Passphrase", type="password", elem_id="passphrase")
                button = gr.Button("Check", variant="primary", elem_id="key-button")
                result = gr.HTML(elem_id="key-result")
                button.click(on_key, [suspect, folder, passphrase], result, **quiet)
        gr.Markdown(
            "A found mark shows lineage, never theft. “Not found” does not show independence. "
            "Nothing that you type here is kept.",
            elem_id="foot",
        )
    return demo


def launch(demo: Any, **options: Any) -> Any:
    """`demo.launch` without tracking, history and API pages."""
    style = (TEMPLATES / "demo.css").read_text()
    defaults: dict[str, Any] = {
        "css": style,
        "share": False,
        "footer_links": [],
        "run_history": False,
        "show_error": False,
    }
    return demo.launch(**(defaults | options))
