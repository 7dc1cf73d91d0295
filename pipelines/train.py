"""``python -m pipelines.train RECIPE ...`` in a checkout: the same as ``respipe train RECIPE ...``."""

from __future__ import annotations

import sys

from respipe.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
