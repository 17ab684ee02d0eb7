"""The app itself: its tabs, and how it is started."""

from collections.abc import Iterator
from typing import Any

from ..evaluation.report import TEMPLATES
from ..serialization.confined import confined
from .checks import SPACE_BYTES, Progress, check_with_key
from .page import box, in_page, page_of, sample_page, shown


LOCAL_BYTES = 16 * 2**30
SPACE_LIMITS = {"gib": 8.0, "minutes": 10.0}
INTRODUCTION = (
    "# Does this model carry a mark?\nA model that was marked with `hf_watermark` carries a secret of its owner. Here you can check what an "
    "owner published about a model, and judge a claim about another one."
)
BURNT = (
    "**An opening that is typed into a public page is burnt.** It discloses one secret sub-key: whoever sees it can plant or remove this "
    "sub-key's mark, so it proves nothing in any later dispute. The other sub-keys stay secret. Do this only for a dispute that "
    "you want to settle in public; otherwise run `hf-watermark judge` on your own machine."
)
KEEP = "An opening discloses one secret sub-key to whoever sees it. It stays on this machine; show it to nobody else before the dispute is over."
FOOT = "A found mark shows lineage, never theft. “Not found” does not show independence. This app stores nothing that you enter."
# `private`: these functions are not offered as an API, where their inputs would be easy to log.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_demo(public: bool = True) -> Any:
    """
    The app as `gradio.Blocks`.

    Args:
        public (`bool`, *optional*, defaults to `True`):
            For a Space: no Hub token is used, no folder is opened, weights up to 2 GiB are read with at most 8 GiB of memory and ten minutes of
            processor time, and no key is asked for. `False` is for one's own machine.

    Raises:
        `ImportError`: without the extra `demo`.
    """
    try:
        import gradio as gr
    except ImportError:
        raise ImportError("the app needs gradio: pip install 'hf-watermark[demo]'") from None

    with gr.Blocks(title="hf_watermark: check a model", analytics_enabled=False) as demo:
        gr.Markdown(INTRODUCTION)
        # Short names: on a phone all of them stand beside each other.
        with gr.Tab("Check", id="check"):
            _check_tab(gr, public)
        with gr.Tab("Judge", id="judge"):
            _judge_tab(gr, public)
        if not public:
            with gr.Tab("Your key", id="key"):
                _key_tab(gr)
        gr.Markdown(FOOT, elem_id="foot")
    return demo


def _check_tab(gr: Any, public: bool) -> None:
    repo = gr.Textbox(
        label=_place("Published model", public),
        placeholder="user/model or user/model@revision",
        elem_id="repo",
        max_length=300,
    )
    button = gr.Button("Check", variant="primary", elem_id="check")
    result = gr.HTML(sample_page(), elem_id="result")

    def on_check(repo: str) -> Iterator[str]:
        if not repo.strip():
            yield box("plain", "Which model?", "Enter the name of a repository, such as user/model.")
            return
        yield from _apart("repository", public, repo=repo)

    for event in (button.click, repo.submit):
        event(on_check, repo, result, **QUIET)


def _judge_tab(gr: Any, public: bool) -> None:
    gr.Markdown(BURNT if public else KEEP, elem_id="warning")
    agreed = gr.Checkbox(label="I understand that this opening is burnt afterwards", elem_id="agreed", visible=public)
    statement, suspect = (
        gr.Textbox(label=_place(label, public), placeholder=example, elem_id=name, max_length=300)
        for label, example, name in (
            ("The claimant's published model", "owner/model", "statement"),
            ("Suspect", "other/model", "suspect"),
        )
    )
    nonce = gr.Textbox(
        label="Name of the dispute (nonce)",
        info="What the judge asked the claimant to sign. An opening that was made for another dispute is refused.",
        placeholder="2026-11-court-4711",
        elem_id="nonce",
        max_length=300,
    )
    opening = gr.Textbox(label="Opening (the content of opening.json)", lines=4, max_lines=8, elem_id="opening")
    button = gr.Button("Judge", variant="primary", elem_id="judge-button")
    result = gr.HTML(elem_id="judge-result")

    def on_judge(statement: str, suspect: str, nonce: str, opening: str, agreed: bool) -> Iterator[str]:
        if public and not agreed:
            yield box("bad", "Please read the warning first", "Tick the box below it if this opening may be burnt.")
            return
        yield from _apart("claim", public, statement=statement, suspect=suspect, nonce=nonce, opening=opening)

    button.click(on_judge, [statement, suspect, nonce, opening, agreed], result, **QUIET)


def _key_tab(gr: Any) -> None:
    gr.Markdown("For owners: look for your own mark. Nothing of the key leaves this machine.")
    suspect = gr.Textbox(label=_place("Suspect", False), elem_id="own-suspect")
    folder = gr.Textbox(label="Folder of your key", elem_id="key-folder")
    passphrase = gr.Textbox(label="Passphrase", type="password", elem_id="passphrase")
    button = gr.Button("Check", variant="primary", elem_id="key-button")
    result = gr.HTML(elem_id="key-result")

    def on_key(suspect: str, folder: str, passphrase: str) -> Iterator[str]:
        yield from shown(lambda progress: in_page(check_with_key(suspect, folder, passphrase, progress)))

    button.click(on_key, [suspect, folder, passphrase], result, **QUIET)


def _place(what: str, public: bool) -> str:
    return f"{what}: {'repository on the Hub' if public else 'repository on the Hub, or folder'}"


def _apart(check: str, public: bool, **arguments: str) -> Iterator[str]:
    """A check in a process of its own, because strangers choose what is read."""
    trust: dict[str, Any] = {"token": False, "most": SPACE_BYTES} if public else {"token": None, "most": LOCAL_BYTES}
    asked = {"check": check, "arguments": arguments | trust | {"local": not public}}

    def page(progress: Progress) -> str:
        progress("Starting a process of its own")
        return confined(page_of, asked, progress=progress, **(SPACE_LIMITS if public else {}))["page"]

    return shown(page)


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
