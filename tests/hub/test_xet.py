"""Large files through Xet, as on the real Hub: the store is a local folder, the protocol around it is the real one."""

import os
import subprocess
import sys

import pytest
from server import environment


pytest.importorskip("hf_xet", reason="hf_xet is not installed on this platform")

PROGRAM = """
import sys, json, hashlib
from hf_watermark import InvalidInput, Owner, WatermarkKey, verify
from hf_watermark.claims import check
from hf_watermark.hub import publish
from hf_watermark.hub.source import Source
folder, keys, identity = sys.argv[1:]
key, owner = WatermarkKey.load(keys), Owner.load(identity)
publish(folder, "me/model", key, owner, verify(folder, key))
report = check("me/model")
fetched = Source.open("me/model").path("model.safetensors")
assert hashlib.sha256(fetched.read_bytes()).digest() == hashlib.sha256(open(f"{folder}/model.safetensors", "rb").read()).digest()
assert verify("me/model", key).found  # this store serves no ranges, so the client downloads
print(json.dumps({level.name: str(level.outcome) for level in report.levels}))
"""


def test_publish_and_check_through_xet(hub, shop, tmp_path):
    hub.xet = tmp_path / "store"
    hub.xet.mkdir()
    variables = environment(hub.url, tmp_path / "home") | {
        "HF_HUB_DISABLE_XET": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(shop.folder), str(shop.keys), str(shop.keys.parent / "owner.json")]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"V0": "passed", "V1": "passed", "V2": "open", "V3": "passed"}\n'
    assert hub.count("GET", "xet-write-token") == 1 and hub.count("GET", "xet-read-token") >= 1
    assert hub.count("PUT") == 0 and hub.count("POST", "lfs") == 0
