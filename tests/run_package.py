"""
Builds the wheel and the sdist, compares both with the checkout, and uses the wheel as somebody else would: in a fresh environment, in another
folder, from the quickstart to a judge's verdict, against a Hub on this machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent / "support"))
from server import HubServer, environment  # noqa: E402


ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "uv"
EXTRAS = "plots,digits"
STEPS = """
hf-watermark --version
hf-watermark quickstart --output run
hf-watermark verify run/model --key run/key
hf-watermark publish run/model --key run/key --owner run/owner.json --repo-id me/my-model
hf-watermark statement check me/my-model
hf-watermark open --key run/key --owner run/owner.json --subkey 1 --nonce court-4711 --output opening.json
hf-watermark judge --opening opening.json --suspect me/my-model --statement me/my-model --nonce court-4711 --report judgement.html
hf watermark verify run/model --key run/key
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        scratch = Path(folder)
        wheel = build(scratch)
        fresh = install(wheel, scratch / "fresh", EXTRAS)
        home, work = scratch / "home", scratch / "work"
        work.mkdir()
        install_extension(home, fresh / "hf-watermark")
        variables = surroundings(fresh) | environment(hub.url, home / ".cache")
        variables |= {"HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        for command in STEPS.strip().splitlines():
            run(command.split(), work, variables)
    print("package: wheel and sdist agree with the checkout, and every command ran in a fresh environment")
    return 0


def run(command: list[str], where: Path, variables: Mapping[str, str] | None = None) -> None:
    """Every command must succeed; `verify` and `judge` do when the mark is found."""
    begin = time.perf_counter()
    print("---", *command, flush=True)
    subprocess.run(command, cwd=where, env=variables, check=True)
    print(f"    ({time.perf_counter() - begin:.0f} s)", flush=True)


def build(scratch: Path) -> Path:
    """The wheel that the sdist makes, when it is the wheel that the checkout makes and holds every file of the package."""
    run([UV, "build", "--quiet", "--system-certs", "--out-dir", str(scratch / "dist")], ROOT)
    run([UV, "build", "--quiet", "--system-certs", "--wheel", "--out-dir", str(scratch / "direct")], ROOT)
    [wheel], [direct] = (list((scratch / name).glob("*.whl")) for name in ("dist", "direct"))
    made = contents(wheel)
    if made != contents(direct):
        raise SystemExit("the wheel of the sdist is not the wheel of the checkout")
    package = {name: data for name, data in made.items() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "hf_watermark").rglob("*") if path.is_file() and path.suffix != ".pyc")
    checkout = {str(path.relative_to(ROOT)): path.read_bytes() for path in files}
    if package != checkout:
        raise SystemExit(f"wheel and checkout differ: {sorted(dict(package.items() ^ checkout.items()))}")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def install(wheel: Path, folder: Path, extras: str) -> Path:
    """The folder of commands of a new environment that holds the wheel and what it asks for, nothing else."""
    run([UV, "venv", "--quiet", "--python", sys.executable, str(folder)], ROOT)
    python = folder / "bin" / "python"
    wanted = f"hf-watermark[{extras}] @ {wheel.as_uri()}"
    run([UV, "pip", "install", "--quiet", "--system-certs", "--python", str(python), wanted], ROOT)
    return python.parent


def surroundings(commands: Path) -> dict[str, str]:
    """The variables of a process that sees these commands and the system's, and nothing of the environment that runs this script."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    return kept | {"PATH": f"{commands}{os.pathsep}{os.defpath}"}


def install_extension(home: Path, script: Path) -> None:
    """What `hf extensions install me/hf-watermark` leaves: a manifest that names the console script of the package."""
    folder = home / ".local" / "share" / "hf" / "extensions" / script.name
    folder.mkdir(parents=True)
    names = {
        "owner": "me",
        "repo": script.name,
        "repo_id": f"me/{script.name}",
        "short_name": script.name.removeprefix("hf-"),
    }
    manifest = names | {"executable_path": str(script), "type": "python", "installed_at": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    raise SystemExit(main())
