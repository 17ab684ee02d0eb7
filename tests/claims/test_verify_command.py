"""`hf-watermark verify` on repos."""

import json
import re

from typer.testing import CliRunner

from hf_watermark.cli.main import app


def test_a_repo(shop, hub, tmp_path):
    hub.add_folder("you/suspect", shop.folder)
    report = tmp_path / "report.html"
    result = CliRunner().invoke(
        app, ["verify", "you/suspect", "--key", str(shop.keys), "--json", "--report", str(report)]
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["verdict"] == "mark found"
    assert hub.count("HEAD") == 0
    page = report.read_text()
    assert "Mark found" in page and "<svg" in page and "you/suspect" in page and "sub-key 0" in page
    # Self-contained: nothing is fetched, nothing runs.
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|@import|url\((?!#)", page)


def test_a_repo_that_is_not_there(shop, hub, tmp_path):
    result = CliRunner().invoke(
        app, ["verify", "you/nothing", "--key", str(shop.keys), "--report", str(tmp_path / "r.html")]
    )
    assert result.exit_code == 2 and "you/nothing: does not exist, or is private" in result.stderr
    assert not (tmp_path / "r.html").exists()
