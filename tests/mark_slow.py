"""
Writes `slow_tests.txt` from reports that pytest wrote: tests that took at least half a second, and whole files in which something took ten, because
that is mostly a set-up that the first test which runs has to pay for.

    make test ARGS=--junitxml=runs/times.xml && python tests/mark_slow.py runs/times.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path


SECONDS, SET_UP = 0.5, 10.0
SLOW = Path(__file__).with_name("slow_tests.txt")


def main(*reports: str) -> None:
    longest: dict[str, float] = defaultdict(float)
    for case in (case for report in reports for case in ElementTree.parse(report).getroot().iter("testcase")):
        path = case.attrib["classname"].replace(".", "/") + ".py"
        for name in (path, f"{path}::{case.attrib['name'].partition('[')[0]}"):
            longest[name] = max(longest[name], float(case.attrib["time"]))
    files = {name for name, time in longest.items() if "::" not in name and time >= SET_UP}
    tests = {name for name, time in longest.items() if "::" in name and time >= SECONDS}
    SLOW.write_text("\n".join(sorted(files | {name for name in tests if name.partition("::")[0] not in files})) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
