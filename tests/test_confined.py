"""The process in which a judge reads files from strangers: what it gives back, and what ends it."""

import os
import sys

import pytest

from hf_watermark import InvalidInput
from hf_watermark.serialization.confined import Crashed, confined


# In the other process; this module is imported there, and only what is used.


def answer(question: str) -> dict:
    return {"answer": f"{question}: {os.getpid()}"}


def refuse(question: str) -> dict:
    raise InvalidInput(f"{question}: malformed\x1b[31m")


def eat(megabytes: int) -> dict:
    return {"bytes": len(bytearray(megabytes * 2**20))}


def eat_tensors(megabytes: int) -> dict:
    import torch

    return {"elements": torch.ones(megabytes, 2**18).numel()}


def spin() -> dict:
    while True:
        pass


def count(most: int, progress) -> dict:
    for number in range(most):
        progress(f"step {number}")
    return {"counted": most}


def stumble() -> dict:
    raise AssertionError("a bug of ours")


def stumble_over_a_type() -> dict:
    raise NotImplementedError("a bug of ours")  # a subclass of what torch raises


def limits() -> dict:
    import resource

    kinds = ("RLIMIT_CORE", "RLIMIT_DATA", "RLIMIT_CPU")
    return {kind: resource.getrlimit(getattr(resource, kind))[0] for kind in kinds}


posix = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system limits no memory of a process")


def test_an_answer_comes_from_another_process():
    text = confined(answer, {"question": "who"})["answer"]
    assert text.startswith("who: ") and text != f"who: {os.getpid()}"


def test_progress_comes_before_the_answer():
    lines: list[str] = []
    assert confined(count, {"most": 2}, progress=lines.append) == {"counted": 2}
    assert lines == ["step 0", "step 1"]


def test_an_error_keeps_its_words_and_loses_its_control_characters():
    with pytest.raises(InvalidInput, match=r"^opening.json: malformed\?\[31m$"):
        confined(refuse, {"question": "opening.json"})


@posix
def test_memory_is_limited():
    """An honest amount passes under the same limit."""
    assert confined(eat, {"megabytes": 10}, gib=1.0)
    for work in (eat, eat_tensors):
        with pytest.raises(InvalidInput, match=r"more than 1 GiB of memory \(--max-memory\)"):
            confined(work, {"megabytes": 2000}, gib=1.0)


@posix
def test_processor_time_is_limited():
    with pytest.raises(InvalidInput, match=r"minutes of processor time \(--max-minutes\)"):
        confined(spin, {}, minutes=1 / 60)


@posix
def test_limits_are_set_and_can_be_left_out():
    found = confined(limits, {}, gib=2, minutes=3)
    assert found == {"RLIMIT_CORE": 0, "RLIMIT_DATA": 2 * 2**30, "RLIMIT_CPU": 180}
    usual = limits()
    found = confined(limits, {}, gib=0, minutes=0)
    assert found["RLIMIT_CORE"] == 0 and found["RLIMIT_DATA"] == usual["RLIMIT_DATA"]
    assert limits() == usual, "this process keeps its own"


@pytest.mark.parametrize("work", [stumble, stumble_over_a_type])
def test_a_bug_is_no_verdict(work, capfd):
    with pytest.raises(Crashed, match="ended with status 1"):
        confined(work, {})
    assert "a bug of ours" in capfd.readouterr().err
