"""The closing table of `make test`: steps, ten slowest parts, counts; non-zero if a step failed.

`python scripts/report.py FOLDER` reads FOLDER/steps.tsv (name, seconds, exit status; written by
scripts/step.sh) and FOLDER/*.xml (JUnit results of ctest and pytest). A run in which no test was
executed is a failure.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def read_steps(folder: Path) -> list[tuple[str, float, int]]:
    rows = []
    for line in (folder / "steps.tsv").read_text().splitlines():
        name, seconds, status = line.split("\t")
        rows.append((name, float(seconds), int(status)))
    return rows


def read_tests(folder: Path) -> list[tuple[str, float, str]]:
    """(name, seconds, passed|failed|skipped) of every test case."""
    cases = []
    for path in sorted(folder.glob("*.xml")):
        for case in ET.parse(path).getroot().iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::")
            if case.find("failure") is not None or case.find("error") is not None:
                verdict = "failed"
            elif case.find("skipped") is not None:
                verdict = "skipped"
            else:
                verdict = "passed"
            cases.append((f"{path.stem}: {name}", float(case.get("time") or 0), verdict))
    return cases


def main() -> int:
    folder = Path(sys.argv[1])
    steps, tests = read_steps(folder), read_tests(folder)
    print("\n== steps")
    for name, seconds, status in steps:
        print(f"  {seconds:8.1f} s  {name}{'' if status == 0 else f'   FAILED (exit {status})'}")
    print(f"  {sum(s for _, s, _ in steps):8.1f} s  together")

    # A step whose tests are listed one by one is not listed a second time as a whole.
    parts = [(n, s) for n, s, _ in steps if not n.endswith("tests")] + [(n, s) for n, s, _ in tests]
    print("== the ten slowest parts")
    for name, seconds in sorted(parts, key=lambda part: -part[1])[:10]:
        print(f"  {seconds:8.1f} s  {name}")

    for name, _, verdict in tests:
        if verdict == "skipped":
            print(f"  skipped: {name}")
    count = {v: sum(t[2] == v for t in tests) for v in ("passed", "failed", "skipped")}
    print(f"tests: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    broken = [name for name, _, status in steps if status]
    if broken:
        print(f"FAILED: {', '.join(broken)}")
    if not count["passed"]:
        print("FAILED: no test was executed")
    return bool(broken or count["failed"] or not count["passed"])


if __name__ == "__main__":
    sys.exit(main())
