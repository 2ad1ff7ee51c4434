"""What the emulator ran: a line per kernel with its variants, launches, blocks and seconds.

python tests/tools/kernel_table.py FILE     as KT_EMULATED_KERNELS=FILE kt_tests appends to it
"""

import re
import sys
from pathlib import Path


def rows(text: str) -> list[tuple[str, int, int, int, float]]:
    """(kernel, variants, launches, blocks, seconds), the dearest first."""
    found: dict[str, list] = {}
    for line in text.splitlines():
        signature, launches, blocks, seconds = line.split("\t")
        match = re.search(r"Kernel = ([\w:{}() ]*?::)?(\w+)(<|;|\])", signature)
        name = match[2] if match else signature
        entry = found.setdefault(name, [set(), 0, 0, 0.0])
        entry[0].add(signature)
        entry[1] += int(launches)
        entry[2] += int(blocks)
        entry[3] += float(seconds)
    made = [(name, len(v[0]), v[1], v[2], v[3]) for name, v in found.items()]
    return sorted(made, key=lambda row: -row[4])


def main() -> None:
    path = Path(sys.argv[1])
    table = rows(path.read_text()) if path.exists() else []
    print(f"{'emulated kernel':22}{'variants':>9}{'launches':>10}{'blocks':>10}{'seconds':>9}")
    for name, variants, launches, blocks, seconds in table:
        print(f"{name:22}{variants:9}{launches:10}{blocks:10}{seconds:9.2f}")
    variants, launches, blocks, seconds = (sum(row[i] for row in table) for i in range(1, 5))
    print(f"{f'{len(table)} kernels':22}{variants:9}{launches:10}{blocks:10}{seconds:9.2f}")


if __name__ == "__main__":
    main()
