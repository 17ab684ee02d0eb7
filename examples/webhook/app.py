"""
A Space, or any machine with an address, that looks at a repository as soon as it changes.

Webhooks of the Hub name users, organisations and repositories, never the whole Hub: for the rest there is `hf-watermark watch --every 6h`, which may write
into the same folder. Set the same users in https://huggingface.co/settings/webhooks, and the secret here as WEBHOOK_SECRET.

    WATCH_KEYS=/data/keys/my-model WATCH_OUTPUT=/data/watch WEBHOOK_SECRET=... python examples/webhook/app.py
"""

import os
import re
import threading
from queue import Queue
from typing import Any

from huggingface_hub import WebhookPayload, WebhooksServer

from hf_watermark.watch import ListedRepo, Summary, Watch, WatchSettings, watch_repos
from hf_watermark.watch.alarms import record_alarms
from hf_watermark.watch.report import write_watch_report


REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
MOST_WAITING = 10_000


def settings_from(environment: Any) -> WatchSettings:
    """Key folders are separated by the colon of a path list."""
    return WatchSettings(
        keys=tuple(map(os.path.abspath, environment["WATCH_KEYS"].split(os.pathsep))),
        output=os.path.abspath(environment["WATCH_OUTPUT"]),
        passphrase_file=environment.get("WATCH_PASSPHRASE_FILE", ""),
        webhook=environment.get("WATCH_ALARMS_TO", ""),
    )


def named(payload: Any) -> ListedRepo | None:
    """The repository that an event is about; `None` for one that changes no weights of a model."""
    repo, event = payload.repo, payload.event
    changes = event.scope.startswith("repo") and event.action in ("create", "update", "move")
    if repo.type != "model" or repo.private or not changes or not REPO.fullmatch(repo.name):
        return None
    # The commit is looked up when it is read: the event may be late.
    return ListedRepo(repo.name)


def look_at(settings: WatchSettings, repos: list[ListedRepo]) -> Summary:
    """One batch of named repositories, entered into the watch's table."""
    watch = Watch(settings, alarm=lambda number: record_alarms(settings, number) and None)
    summary = watch_repos(settings, repos, watch)
    write_watch_report(settings)
    return summary


def work(settings: WatchSettings, waiting: Queue) -> None:
    """What arrives while a batch is read makes the next one: a hundred pushes are not a hundred batches."""
    while True:
        repos = {item.repo: item for item in [waiting.get(), *(waiting.get() for _ in range(waiting.qsize()))]}
        summary = look_at(settings, list(repos.values()))
        print(f"{summary.repositories} repositories, {len(summary.alarms)} alarms", flush=True)


def main() -> None:
    if not os.environ.get("WEBHOOK_SECRET"):
        raise SystemExit("set WEBHOOK_SECRET: without it anybody can make this machine read repositories")
    settings, waiting = settings_from(os.environ), Queue(MOST_WAITING)
    threading.Thread(target=work, args=(settings, waiting), daemon=True).start()
    app = WebhooksServer()

    @app.add_webhook("/watch")
    async def changed(payload: WebhookPayload) -> dict[str, bool]:
        repo = named(payload)
        if repo is not None and not waiting.full():
            waiting.put_nowait(repo)
        return {"taken": repo is not None}

    app.launch(share=False)


if __name__ == "__main__":
    main()
