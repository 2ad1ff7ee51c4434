"""`python -m local_chat`, as old guides have it: ktransformers.local_chat by its short name."""

import sys

from ktransformers.local_chat import main

if __name__ == "__main__":
    sys.exit(main())
