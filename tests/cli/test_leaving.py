"""How the console script ends where torch was imported: nothing that was promised is left out."""

import subprocess
import sys


SCRIPT = """
import atexit, os, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
import torch
from hf_watermark.cli.main import leave

atexit.register(print, "put away")
pool = ThreadPoolExecutor(1)
pool.submit(lambda: (time.sleep(0.2), print("uploaded")))
threading.Thread(target=lambda: (time.sleep(0.1), print("noted"))).start()
folder = tempfile.TemporaryDirectory()
print(folder.name)
leave(3)
"""


def test_threads_exit_functions_and_temporary_folders(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n{SCRIPT}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    name, *said = done.stdout.splitlines()
    assert said == ["noted", "uploaded", "put away"]
    assert name.startswith(str(tmp_path)) and list(tmp_path.iterdir()) == []


def test_a_reader_that_went_away():
    script = "import os, sys, torch\nfrom hf_watermark.cli.main import leave\nprint('x')\nos.close(1)\nleave(1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode in (1, 120)  # 120: Python's own status of output that was lost
