#!/usr/bin/env python
"""Run a grid of model x method x dataset x budget; ``--help`` explains every flag."""

import os
import sys

# Set before torch starts its threads: spinning OpenMP workers slow everything fivefold when a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from harness.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
