"""datatrove's executor for this machine, of which nothing stays behind when a run is killed."""

import os
import threading
import time
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor


_main: int | None = None


class LocalExecutor(LocalPipelineExecutor):
    """As datatrove's, and the process that it forks for its queues ends with this one."""

    def run(self) -> Any:
        global _main
        _main = os.getpid()
        try:
            return super().run()
        finally:
            _main = None


def _end_with_main() -> None:
    """In the process that datatrove forks for its queues, which would stay for ever, with all that was in memory, when a run is killed."""
    main = _main

    def watch() -> None:
        while os.getppid() == main:
            time.sleep(1)
        os._exit(1)

    if main is not None:
        threading.Thread(target=watch, daemon=True).start()


os.register_at_fork(after_in_child=_end_with_main)


__all__ = ["LocalExecutor"]
