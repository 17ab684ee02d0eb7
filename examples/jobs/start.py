"""
Starts a watch as a scheduled Job of Hugging Face: the machine lives as long as one listing, the table in a bucket or a repository's volume.

    python examples/jobs/start.py --key /watch/keys/my-model --output /watch/table --volume hf://buckets/me/watch:/watch --every "0 */6 * * *"

The key folder is in a volume of yours. Whoever can read that volume has the key: use a private bucket, and an encrypted key with its passphrase as a secret
of the Job, written to a file there and nowhere else.
"""

import argparse
import shlex
from typing import Any

from huggingface_hub import HfApi, Volume


PASSPHRASE_FILE = "/tmp/passphrase"


def command_of(keys: list[str], output: str, options: list[str], encrypted: bool) -> list[str]:
    """What the Job runs. The passphrase goes from its secret into a private file of the machine: it stands in no argument."""
    watch = ["hf-watermark", "watch", "--output", output, *(f"--key={key}" for key in keys), *options]
    steps = ["pip install --quiet 'hf-watermark[watch]'"]
    if encrypted:
        steps.append(f'umask 077; printf "%s\\n" "$WATCH_PASSPHRASE" > {PASSPHRASE_FILE}; unset WATCH_PASSPHRASE')
        watch += ["--passphrase-file", PASSPHRASE_FILE]
    # An alarm has exit status 1, which is no failure of the Job.
    steps.append(f"{shlex.join(watch)} || [ $? -eq 1 ]")
    return ["bash", "-c", " && ".join(steps)]


def volume_of(text: str) -> Volume:
    """`hf://buckets/me/watch:/watch`."""
    source, separator, mount = text.removeprefix("hf://").rpartition(":")
    kind, _, name = source.partition("/")
    if not separator or not name or not mount.startswith("/"):
        raise SystemExit(f"--volume {text!r}: write hf://buckets/OWNER/NAME:/PATH")
    return Volume(type=kind.rstrip("s"), source=name, mount_path=mount)


def main(arguments: list[str] | None = None, api: Any = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", action="append", required=True, help="Key folder inside the volume; may be repeated.")
    parser.add_argument("--output", required=True, help="Folder of the table inside the volume.")
    parser.add_argument("--volume", action="append", required=True)
    parser.add_argument("--flavor", default="cpu-upgrade")
    parser.add_argument("--timeout", default="6h")
    parser.add_argument("--every", help="A schedule as cron writes it; once without it.")
    parser.add_argument("--passphrase-file", help="The passphrase of the keys, on this machine; sent as a secret.")
    parser.add_argument("options", nargs="*", help="Further options of `hf-watermark watch`, after --.")
    given = parser.parse_args(arguments)
    secrets = {}
    if given.passphrase_file:
        with open(given.passphrase_file) as file:
            secrets["WATCH_PASSPHRASE"] = file.readline().rstrip("\r\n")
    job = {
        "image": "python:3.12",
        "command": command_of(given.key, given.output, given.options, bool(secrets)),
        "flavor": given.flavor,
        "timeout": given.timeout,
        "volumes": list(map(volume_of, given.volume)),
        "secrets": secrets or None,
    }
    api = api or HfApi()
    return api.create_scheduled_job(schedule=given.every, **job) if given.every else api.run_job(**job)


if __name__ == "__main__":
    print(main())
