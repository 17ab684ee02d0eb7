"""
Runs every Python and shell block of a Markdown file, in order, in one scratch folder, against a Hub on this machine; a Python block is a
process of its own.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent / "support"))
from server import HubServer, environment  # noqa: E402


BLOCK = re.compile(r"^```(python|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    readme = Path(sys.argv[1]).resolve()
    blocks = BLOCK.findall(readme.read_text())
    if not blocks:
        print(f"{readme.name}: no Python or shell block found")
        return 1
    with tempfile.TemporaryDirectory() as scratch, HubServer() as hub:
        variables = os.environ | environment(hub.url, Path(scratch) / ".cache")
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for number, (language, code) in enumerate(blocks, start=1):
            print(f"--- README block {number} of {len(blocks)} ({language})", flush=True)
            # `make` and relative paths of the repository need its root; Python blocks write, so they get the scratch folder.
            command = (
                [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
            )
            where = readme.parent if language != "python" and "make " in code else Path(scratch)
            done = subprocess.run(command, cwd=where, env=variables, check=False)
            if done.returncode:
                print(f"README block {number} failed with exit status {done.returncode}:\n{code}")
                return 1
    print(f"README: {len(blocks)} blocks ran")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
