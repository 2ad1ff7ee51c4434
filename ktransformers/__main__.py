"""`python -m ktransformers` is the console command, also where its script is not on PATH."""

import sys

from ktransformers.cli.main import main

sys.exit(main())
