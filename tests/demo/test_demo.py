"""The app of the Space, in a headless Chromium, against the loopback Hub."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from browser_fixtures import DESK, MEASURE, PHONE, SCREENSHOTS, TABLET
from safetensors.torch import load_file, save, save_file

from hf_watermark import InvalidInput
from hf_watermark.claims import Disclosure
from hf_watermark.demo import check_repository, in_page, judge_claim, shown
from hf_watermark.demo.app import BURNT, FOOT, KEEP
from hf_watermark.demo.page import CHECKS, page_of, sample_page
from hf_watermark.serialization import SafetensorsFolder
from hf_watermark.suspects.source import FolderSource


def quietly(line: str) -> None:
    pass


@pytest.fixture
def repos(hub, dated, tmp_path):
    """`me/model` with everything, `you/copy` (its weights under another name), `you/tampered`, `you/plain` without a statement."""
    hub.add_folder("me/model", dated.folder)
    tensors = load_file(dated.folder / "model.safetensors")
    save_file({name: tensor + 1e-3 * torch.ones_like(tensor) if tensor.is_floating_point() else tensor
               for name, tensor in tensors.items()}, tmp_path / "changed.safetensors")  # fmt: skip
    weights = {"model.safetensors": dated.folder / "model.safetensors"}
    hub.add_repo("you/copy", weights)
    hub.add_folder("you/tampered", tampered(dated.folder, tmp_path / "tampered"))
    hub.add_repo("you/plain", weights | {"README.md": b"# A model"})
    hub.add_repo("you/private", weights, private=True)
    return hub


def tampered(folder: Path, place: Path) -> Path:
    """Somebody edits the statement in their favour."""
    shutil.copytree(folder, place)
    path = place / "watermark" / "statement.json"
    document = json.loads(path.read_text())
    document["statement"]["created"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    return place


NONCE = "2026-11-court-4711"


def opening_of(dated, index: int = 1) -> str:
    return json.dumps(Disclosure.make(dated.shop.key, dated.shop.owner, index, NONCE).to_dict())


# --- Without a browser ------------------------------------------------------------------------------------------------


def test_a_good_repository(repos):
    lines: list[str] = []
    outcome = check_repository("me/model", lines.append)
    assert outcome.headline == "Mark found" and outcome.state == "good"
    assert [line[:2] for line in lines] == ["Re", "V0", "V1", "V2", "V3"]
    assert all(not request.authenticated for request in repos.requests)
    # Sub-key 0 is read by ranges: no weight file is downloaded.
    assert not [
        r for r in repos.requests if r.path.endswith("model.safetensors") and (r.method == "HEAD" or not r.range)
    ]
    page = in_page(outcome)
    assert page.count("<svg") == 4 and "download=" in page and "<script" not in page


def test_tampered_and_absent_statements(repos):
    outcome = check_repository("you/tampered", quietly)
    assert outcome.headline == "The statement does not hold" and "V0" in outcome.text
    assert check_repository("you/plain", quietly).headline == "No statement"
    for name, message in {
        "you/private": "does not exist, or is private",
        "you/nothing": "does not exist",
        "x": "no name of",
    }.items():
        with pytest.raises(InvalidInput, match=message):
            check_repository(name, quietly)
    with pytest.raises(InvalidInput, match=r"this page reads at most 0.0 GiB; run `hf-watermark statement check"):
        check_repository("me/model", quietly, most=1000)


def test_paths_are_never_opened(repos, dated, tmp_path, monkeypatch):
    """The page opens repositories: not a path, and not a folder of the app that is named like a repository."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dated.folder, tmp_path / "user" / "model")
    shutil.copytree(dated.folder, tmp_path / "me" / "model@main")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(dated.folder)
    paths = [str(dated.folder), "user/model", "user/model@main", "./user/model", "../model", "me/model@main", "a/link"]
    paths += ["", ".", "..", "~", "/", "/etc/passwd", "user", "user/..", "user/model/", "file:///etc/passwd"]
    opened = []
    monkeypatch.setattr(SafetensorsFolder, "__init__", lambda *arguments: opened.append(arguments))
    monkeypatch.setattr(FolderSource, "__init__", lambda *arguments: opened.append(arguments))
    asked = len(repos.requests)
    for path in paths:
        for attempt in (
            lambda path: check_repository(path, quietly),
            lambda path: judge_claim(path, "you/copy", opening_of(dated), quietly, NONCE),
            lambda path: judge_claim("me/model", path, opening_of(dated), quietly, NONCE),
        ):
            with pytest.raises(InvalidInput, match="no name of a repository on the Hub|also the name of a file"):
                attempt(path)
    assert not opened and len(repos.requests) == asked


def test_a_claim_about_a_suspect(repos, dated):
    outcome = judge_claim("me/model", "you/copy", opening_of(dated), quietly, NONCE)
    assert outcome.headline == "Mark found" and outcome.steps and outcome.evidence["verdict"] == "mark found"
    with pytest.raises(InvalidInput, match="no name of the dispute was given"):
        judge_claim("me/model", "you/copy", opening_of(dated), quietly, " ")
    replay = judge_claim("me/model", "you/copy", opening_of(dated), quietly, "another dispute")
    assert replay.headline == "Invalid claim" and "it is a replay" in in_page(replay)
    assert judge_claim("me/model", "you/copy", opening_of(dated, 0), quietly, NONCE).headline == "Invalid claim"
    assert "What to ask for next" not in in_page(outcome)
    other = load_file(dated.folder / "model.safetensors")
    repos.add_repo("you/other", {"model.safetensors": save({name: tensor.flip(0) for name, tensor in other.items()})})
    missed = judge_claim("me/model", "you/other", opening_of(dated), quietly, NONCE)
    assert missed.headline != "Mark found" and missed.ask_next and "What to ask for next" in in_page(missed)
    for text in ("", "{}", "[" * 100_000, "x" * 300_000):
        with pytest.raises(InvalidInput):
            judge_claim("me/model", "you/copy", text, quietly, NONCE)


def test_on_ones_own_machine_a_folder_is_a_model_too(repos, dated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dated.folder, tmp_path / "user" / "model")
    asked = len(repos.requests)
    for place in (str(dated.folder), "user/model", f" {tmp_path}/user/model "):
        assert check_repository(place, quietly, local=True).headline == "Mark found"
    judged = judge_claim(str(dated.folder), "user/model", opening_of(dated), quietly, NONCE, local=True)
    assert judged.headline == "Mark found" and len(repos.requests) == asked
    assert check_repository("me/model", quietly, local=True).headline == "Mark found"
    with pytest.raises(InvalidInput, match="and no folder of this machine; enter .*, or a folder"):
        check_repository(str(tmp_path / "nothing"), quietly, local=True)


def test_the_sample_is_a_recorded_check_and_says_so():
    page = sample_page()
    assert "An example, recorded earlier" in page and "example/digits" in page
    assert page.count("<b>Mark found</b>") == 1 and page.count("<svg") == 4 and "<details>" in page


def test_public_and_local_texts_do_not_contradict_themselves():
    assert "public page" in BURNT and "on your own machine" in BURNT
    assert "public" not in KEEP and "your own machine" not in KEEP, "the local app is one's own machine"
    assert "stores nothing" in FOOT


def test_what_goes_wrong_is_said_without_what_was_typed(monkeypatch):
    def broken(progress):
        raise RuntimeError("secret")

    [page] = shown(broken)
    assert "error inside the app (RuntimeError)" in page and "secret" not in page
    monkeypatch.setitem(CHECKS, "repository", lambda repo, progress: broken(progress))
    page = page_of("repository", {"repo": "me/model"}, quietly)[
        "page"
    ]  # in the process that reads, nothing is printed either
    assert "error inside the app (RuntimeError)" in page and "secret" not in page

    def refused(progress):
        progress("<b>one</b>")
        raise InvalidInput("<script>alert(1)</script>")

    first, last = shown(refused)
    assert "&lt;b&gt;one" in first and "<script" not in last and "&lt;script&gt;" in last


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def serve_demo(repos):
    pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    from hf_watermark.demo import build_demo, launch

    started = []

    def start(public: bool = True) -> str:
        demo = build_demo(public)
        started.append(demo)
        return launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]

    yield start
    for demo in started:
        demo.close()


@pytest.fixture
def open_page(chromium, request):
    """`open_page(url, width=...)`; at the end nothing outside this machine was asked for, and no error was logged."""
    pages, strangers, errors = [], [], []

    def start(url: str, width: int = 1200, height: int = 900, dark: bool = False):
        page = chromium.new_page(
            viewport={"width": width, "height": height},
            accept_downloads=True,
            color_scheme="dark" if dark else "light",
        )
        page.set_default_timeout(60_000)
        page.route(
            re.compile(r"^https?://(?!127\.0\.0\.1)"),
            lambda route: (strangers.append(route.request.url), route.abort()),
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        pages.append(page)
        return page

    yield start
    for number, page in enumerate(pages):
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/{request.node.name}-{number}.png", full_page=True)
        page.close()
    assert not errors and not strangers, (errors, strangers)


def check_in(page, repo: str) -> str:
    page.fill("#repo textarea, #repo input", repo)
    page.click("button#check, #check button")
    page.wait_for_selector("#result .hfw:not(.sample) .verdict")
    return page.inner_text("#result")


@pytest.mark.browser
def test_a_visitor_checks_repositories(serve_demo, open_page):
    page = open_page(serve_demo())
    seen: list[str] = []
    page.expose_function("seen", lambda text: seen.append(text))
    page.wait_for_selector("#repo")
    page.evaluate(
        "() => { new MutationObserver(() => seen(document.body.innerText))"
        ".observe(document.body, {childList: true, subtree: true, characterData: true}) }"
    )
    text = check_in(page, "me/model")
    assert "Mark found" in text and text.count("passed") == 3 and "V2" in text and "log2 p" in text
    assert page.locator("#result svg:visible").count() == 2
    assert any("V1: the files are those of the statement ..." in line for line in seen), seen  # progress was shown
    with page.expect_download() as download:
        page.click("#result a.download")
    report = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "watermark-me-model.html"
    assert "Mark found" in text and "<b>Mark found</b>" in report and "<svg" in report and "sub-key 0" in report
    assert "The statement does not hold" in check_in_again(page, "you/tampered", "does not hold")
    assert "makes no claim" in check_in_again(page, "you/plain", "No statement")
    assert "does not exist, or is private" in check_in_again(page, "you/private", "could not be checked")


def check_in_again(page, repo: str, wanted: str) -> str:
    page.fill("#repo textarea, #repo input", repo)
    page.click("button#check, #check button")
    page.wait_for_selector(f"#result .verdict:has-text('{wanted}')")
    return page.inner_text("#result")


@pytest.mark.browser
def test_a_judge_is_warned_before_an_opening_is_burnt(serve_demo, open_page, dated):
    page = open_page(serve_demo())
    page.click("button[role=tab]:has-text('Judge'):visible")
    assert "is burnt" in page.inner_text("#warning")
    page.fill("#statement textarea, #statement input", "me/model")
    page.fill("#suspect textarea, #suspect input", "you/copy")
    page.fill("#opening textarea", opening_of(dated))
    page.click("button#judge-button, #judge-button button")
    page.wait_for_selector("#judge-result .verdict:has-text('Please read the warning first')")
    page.check("#agreed input")
    page.fill("#nonce textarea, #nonce input", "another dispute")
    page.click("button#judge-button, #judge-button button")
    page.wait_for_selector("#judge-result .verdict:has-text('Invalid claim')")
    page.fill("#nonce textarea, #nonce input", NONCE)
    page.click("button#judge-button, #judge-button button")
    page.wait_for_selector("#judge-result .verdict:has-text('Mark found')")
    assert "The mark is in the claimant's own published model." in page.inner_text("#judge-result")
    assert page.locator("button[role=tab]:has-text('Your key')").count() == 0


@pytest.mark.browser
def test_the_owner_uses_folders_and_a_key_on_a_phone_of_their_own(serve_demo, open_page, dated):
    page = open_page(serve_demo(public=False), width=PHONE, height=844, dark=True)
    assert "An example, recorded earlier" in page.inner_text("#result")
    page.fill("#repo textarea, #repo input", str(dated.folder))
    page.click("button#check, #check button")
    page.wait_for_selector("#result .hfw:not(.sample) .verdict:has-text('Mark found')")
    page.click("button[role=tab]:has-text('Judge'):visible")
    assert "public page" not in page.inner_text("#warning") and not page.locator("#agreed input:visible").count()
    page.click("button[role=tab]:has-text('Your key'):visible")
    page.fill("#own-suspect textarea, #own-suspect input", "you/copy")
    page.fill("#key-folder textarea, #key-folder input", str(dated.shop.keys))
    page.click("button#key-button, #key-button button")
    page.wait_for_selector("#key-result .verdict:has-text('Mark found')")
    assert page.evaluate(MEASURE)["width"] <= PHONE


@pytest.mark.browser
@pytest.mark.parametrize("width", [PHONE, TABLET, DESK])
def test_nothing_is_wider_than_the_window(serve_demo, open_page, width):
    page = open_page(serve_demo(), width=width, height=844)
    page.wait_for_selector("#result .sample svg:visible")
    check_in(page, "me/model")
    assert page.locator("#result svg:visible").count() == 2
    measured = page.evaluate(MEASURE)
    assert measured["width"] <= width and not [one for one in measured["wide"] if "hfw" in one or "<svg" in one]
    assert measured["letters"] >= 7
    assert page.locator("#check").first.bounding_box()["height"] >= 36
