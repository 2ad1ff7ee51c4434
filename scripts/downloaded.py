"""Adds up what pip and apt said they downloaded: `downloaded.py LOG` prints one line.

The log's lines are those scripts/pip.sh and scripts/system_packages.sh keep. MB are 10^6 bytes.
A wheel taken from a local folder would be a download elsewhere, so it counts and is told apart.
"""

import os
import re
import sys

UNITS = {"bytes": 1e-6, "B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
PIP = re.compile(r"^pip: Downloading .*\((?P<n>[\d.,]+) (?P<unit>bytes|kB|MB|GB)\)")
LOCAL = re.compile(r"^pip: Processing (?P<path>/.*\.(?:whl|tar\.gz|zip))")
APT = re.compile(r"^apt: Need to get (?P<n>[\d.,]+) (?P<unit>B|kB|MB|GB)(?:/\S+ \S+)? of archives")


def add_up(lines) -> tuple[float, float]:
    """(MB over the network, MB from local wheel folders)."""
    network = local = 0.0
    for line in lines:
        if match := PIP.match(line) or APT.match(line):
            network += float(match["n"].replace(",", "")) * UNITS[match["unit"]]
        elif (match := LOCAL.match(line)) and os.path.exists(match["path"]):
            local += os.path.getsize(match["path"]) / 1e6
    return network, local


def main() -> None:
    try:
        with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
            network, local = add_up(log)
    except FileNotFoundError:
        network = local = 0.0
    extra = f" ({local:.0f} MB of it from a local wheel folder)" if local else ""
    print(f"{network + local:.0f} MB{extra}")


if __name__ == "__main__":
    main()
