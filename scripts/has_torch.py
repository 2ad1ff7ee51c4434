"""Exit status 0 if the torch installed here will do: `python scripts/has_torch.py [REQUIREMENT]`.

Without a requirement any torch from 2.11 on is kept, so that installing into an environment
somebody already uses never replaces their build. With one, pip is left to decide.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

if len(sys.argv) > 1:
    sys.exit(1)
try:
    major, minor = (int(part) for part in version("torch").split(".")[:2])
except PackageNotFoundError:
    sys.exit(1)
sys.exit((major, minor) < (2, 11))
