"""``python -m respipe``: the command where its folder is not on the PATH."""

from __future__ import annotations

from respipe.cli import main

if __name__ == "__main__":
    main()
