"""Work on files from strangers in a process of its own, with limits, so that a hostile file costs a process and not the machine."""

import json
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from safetensors import SafetensorError

from .files import InvalidInput


# What a user can put right. `InvalidInput` with all its subclasses is a `ValueError`; training that diverges raises `FloatingPointError`, and a
# missing optional library `ImportError`.
EXPECTED = (ValueError, OSError, SafetensorError, FloatingPointError, ImportError)
ANSWER_BYTES = 64 * 2**20
GIB, MINUTES = 16.0, 120.0


def one_line(error: BaseException) -> str:
    """The message without line breaks and without control characters, which a hostile file could send to the terminal."""
    words = " ".join((str(error) or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)


class Crashed(RuntimeError):
    """The other process ended with a bug of ours; its traceback is on stderr."""


def confined(
    work: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    gib: float = GIB,
    minutes: float = MINUTES,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """
    Calls `work(**arguments)` in a fresh process and returns its answer. Memory and processor time are limited there, and it leaves no core
    dump; files and network are those of the user. The answer comes back as JSON: nothing that the other process says is executed here.

    Args:
        work (`Callable`):
            A function of a module, from arguments that can be pickled to JSON.
        gib, minutes (`float`, *optional*, defaults to 16 and 120):
            Limits; 0 for none. Windows knows no such limits, macOS none of memory.
        progress (`Callable`, *optional*):
            Gets the lines that `work` hands to its argument of this name.

    Raises:
        [`~serialization.InvalidInput`]: with the message of the error that `work` raised, or when a limit was reached.
        [`Crashed`]: when it ended otherwise.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(sender, work, arguments, gib, minutes, progress is not None), daemon=True
    )
    process.start()
    sender.close()
    answer: dict[str, Any] = {}
    try:
        while "result" not in answer and "error" not in answer:
            answer = json.loads(receiver.recv_bytes(ANSWER_BYTES))
            if "progress" in answer and progress is not None:
                progress(answer["progress"])
    except (EOFError, OSError):
        answer = {}
    finally:
        receiver.close()  # before waiting: a process that still writes would wait for us
    process.join()
    if not answer:
        raise _ended(process.exitcode, gib, minutes)
    if "error" in answer:
        raise InvalidInput(answer["error"])
    return answer["result"]


def _ended(exitcode: int | None, gib: float, minutes: float) -> Exception:
    if sys.platform != "win32" and exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return InvalidInput(
            f"given up: the files took more than {minutes:g} minutes of processor time (--max-minutes) or the machine's memory"
        )
    if sys.platform != "win32" and exitcode in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        return InvalidInput(f"{_too_much(gib)}, or broke a library")
    return Crashed(f"the process that reads the files ended with status {exitcode}")


def _too_much(gib: float) -> str:
    return f"given up: the files took more than {gib:g} GiB of memory (--max-memory)"


def _run(
    sender: Connection,
    work: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    gib: float,
    minutes: float,
    tells: bool,
) -> None:
    def tell(line: str) -> None:
        sender.send_bytes(json.dumps({"progress": line}).encode())

    try:
        _limit(gib, minutes)
        if tells:
            arguments = arguments | {"progress": tell}
        answer: dict[str, Any] = {"result": work(**arguments)}
    except MemoryError:
        answer = {"error": _too_much(gib)}
    except EXPECTED as error:
        answer = {"error": one_line(error)}
    except RuntimeError as error:
        # torch has no type of its own for memory that it does not get; nothing of ours raises this bare one.
        if type(error) is not RuntimeError:
            raise
        answer = {"error": f"{_too_much(gib)}, or broke a library: {one_line(error)[:300]}"}
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()


def _limit(gib: float, minutes: float) -> None:
    try:
        import resource
    except ImportError:
        return  # Windows
    limits = {resource.RLIMIT_CORE: 0}
    if gib:
        # Private memory, not addresses: libraries reserve many of those without using them.
        limits[resource.RLIMIT_DATA] = int(gib * 2**30)
    if minutes:
        limits[resource.RLIMIT_CPU] = max(1, int(60 * minutes))
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
