"""A conversion on a local Ray cluster, one of whose workers is killed: ``... ray_conversion SOURCE TARGET MARK``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import ray

from respipe.conversion import FolderSource, convert
from tests.small_pages import LEVELS


class Deadly(FolderSource):
    """A class folder that kills the process that reads its tenth image, once."""

    def __init__(self, path: Path, mark: Path) -> None:
        super().__init__(path)
        self._mark = mark

    def read(self, index: int) -> bytes:
        if index == 9 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def main() -> None:
    source, target, mark = map(Path, sys.argv[1:])
    seen: list[tuple[int, int]] = []
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=os.environ.get("RAY_TMPDIR"))
    report = convert(
        Deadly(source, mark),
        target,
        levels=LEVELS,
        shards=4,
        engine="ray",
        num_workers=0,
        progress=lambda *done: seen.append(done),
    )
    assert report.num_images == 18, report
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    sys.stdout.write(f"{seen[-1]}\n")
    assert ray.is_initialized(), "a cluster that others have started goes on"


if __name__ == "__main__":
    main()
