"""
Runs every Python and shell block of Markdown files, in order, in one scratch folder for each file, against a Hub on this machine; a Python
block is a process of its own. Blocks marked `console` are only shown.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent / "support"))
from server import HubServer, environment  # noqa: E402


ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(guide: Path) -> bool:
    """Whether the blocks of one file ran."""
    blocks = BLOCK.findall(guide.read_text())
    if not blocks:
        print(f"{guide}: no Python or shell block found")
        return False
    with tempfile.TemporaryDirectory() as scratch, HubServer() as hub:
        variables = os.environ | environment(hub.url, Path(scratch) / ".cache")
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for number, (language, code) in enumerate(blocks, start=1):
            print(f"--- {guide}: block {number} of {len(blocks)} ({language})", flush=True)
            # `make` and relative paths of the repository need its root; Python blocks write, so they get the scratch folder.
            command = (
                [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
            )
            where = ROOT if language != "python" and "make " in code else Path(scratch)
            done = subprocess.run(command, cwd=where, env=variables, check=False)
            if done.returncode:
                print(f"{guide}: block {number} failed with exit status {done.returncode}:\n{code}")
                return False
    print(f"{guide}: {len(blocks)} blocks ran")
    return True


def main() -> int:
    return int(not all([run(Path(name)) for name in sys.argv[1:]]))


if __name__ == "__main__":
    raise SystemExit(main())
