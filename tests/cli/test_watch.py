"""`hf-watermark watch`: what it prints, its exit status, and what it says of bad input."""

import json
import re

import pytest
from commands import refused, run

from hf_watermark.cli.watch import references_of, seconds_of
from hf_watermark.serialization import InvalidInput


def arguments(copies, output, *more):
    return ["watch", *(f"--key={key}" for key in copies.keys), "--output", output, "--rate", "1000000", *more]


def test_alarms_are_an_exit_status_and_a_report(crowd, copies, tmp_path):
    first = run(*arguments(copies, tmp_path / "w", "--batch", "12"), status=1)

    assert "30 repositories" in first.stdout and "4 alarms" in first.stdout
    said = [line for line in first.stderr.splitlines() if "carries the mark" in line]
    assert len(said) == 4 and all("self-check" in line for line in said)
    page = (tmp_path / "w" / "report.html").read_text()
    assert (
        "thief/both" in page
        and "<svg" in page
        and "<script" not in page
        and not re.search(r'(src|href)="(https?:)?//', page)
    )
    assert "for ever" in page and "hf-watermark judge" in page

    second = run(*arguments(copies, tmp_path / "w", "--json"), status=0)
    summary = json.loads(second.stdout)
    assert summary["repositories"] == 0 and summary["looks_ever"] > 0 and summary["alarms"] == []


def test_a_dry_run_forecasts(crowd, copies, tmp_path):
    result = run(*arguments(copies, tmp_path / "w", "--dry-run"))

    assert "stage" in result.stdout and "limited by" in " ".join(result.stdout.split())
    assert "assumption" in result.stdout and "30" in result.stdout
    assert crowd.count(part="resolve") == 0


def test_names_of_strangers_are_escaped_in_the_report(many, copies, settings):
    from hf_watermark.watch import Watch
    from hf_watermark.watch.report import render_watch

    many.refuse = lambda method, path: None
    watch = Watch(settings())
    watch.table.enter(1, [{"place": 0, "repo": "<b>x</b>/y", "outcome": "unreached", "reason": "<script>1</script>", "requests": 1,
                           "bytes": 0, "size": 0, "seconds": 0.0, "tries": 0}])  # fmt: skip

    page = render_watch(watch.settings)

    assert "<script>1" not in page and "&lt;script&gt;1" in page and "<b>x" not in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "2"], "`budget` is 2"),
        (["--executor", "cloud"], "`executor` is 'cloud'"),
        (["--every", "often"], "--every 'often'"),
        (["--once", "--every", "1h"], "one of --once and --every"),
        (["--since", "yesterday"], "`since` is 'yesterday'"),
        (["--reference", "nowhere"], "there are 2 keys"),
        (["--webhook", "ftp://x"], "`webhook` is no address"),
        (["--batch", "5000"], "`batch` is 5000"),
    ],
)
def test_bad_input_is_one_line(copies, tmp_path, more, words):
    assert words in refused(*arguments(copies, tmp_path / "w", *more))
    assert not (tmp_path / "w").exists()


def test_a_folder_that_holds_no_key_is_named(tmp_path, crowd):
    (tmp_path / "no-key").mkdir()
    assert "no-key" in refused("watch", "--key", tmp_path / "no-key", "--output", tmp_path / "w")
    assert crowd.count() == 0


def test_one_key_twice_is_refused(copies, tmp_path, crowd):
    import shutil

    shutil.copytree(copies.keys[0], tmp_path / "copy")
    said = refused("watch", "--key", copies.keys[0], "--key", tmp_path / "copy", "--output", tmp_path / "w")
    assert "the same key" in said


def test_offline_mode_is_said(copies, tmp_path, hub, offline):
    assert "offline" in refused(*arguments(copies, tmp_path / "w"))


def test_times_and_references(tmp_path):
    assert [seconds_of(text) for text in ("30s", "5m", "6h", "1d")] == [30, 300, 21_600, 86_400]
    (tmp_path / "start").mkdir()
    key = str(tmp_path / "key")
    assert references_of([str(tmp_path / "start")], (key,)) == {key: str(tmp_path / "start")}
    assert references_of([f"{tmp_path}/start={key}"], (key, "/other")) == {key: str(tmp_path / "start")}
    with pytest.raises(InvalidInput, match="none of the --key folders"):
        references_of([f"{tmp_path}/start=/elsewhere"], (key,))
