"""
Writes `slow_tests.txt`, the tests that took at least two seconds (their own set-up included), from a report that pytest wrote:

    make test ARGS=--junitxml=runs/times.xml && python tests/mark_slow.py runs/times.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path


SECONDS = 2.0
SLOW = Path(__file__).with_name("slow_tests.txt")


def main(report: str) -> None:
    longest: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        path = case.attrib["classname"].replace(".", "/") + ".py"
        name = f"{path}::{case.attrib['name'].partition('[')[0]}"
        longest[name] = max(longest[name], float(case.attrib["time"]))
    SLOW.write_text("".join(f"{name}\n" for name, time in sorted(longest.items()) if time >= SECONDS))


if __name__ == "__main__":
    main(sys.argv[1])
