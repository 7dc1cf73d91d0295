"""This process among those of its run: its rank, and its share of the machine's cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from respipe.checks import check_int


def rank_and_world_size(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """This process's place among the ranks that share every batch.

    The values given win, then those of ``torch.distributed`` where it is initialised, then RANK and WORLD_SIZE, which
    launchers such as ``torchrun`` set; without any of them it is rank 0 of 1.

    Raises:
        TypeError: a value given is not an integer.
        ValueError: only one of the two is known, or the rank lies outside the world.
    """
    if rank is not None or world_size is not None:
        if rank is None or world_size is None:
            raise ValueError(
                f"`rank` and `world_size` must be given together; got {rank} and {world_size}. Pass both, or neither."
            )
        rank, world_size = check_int("rank", rank, least=0), check_int("world_size", world_size, least=1)
        if rank >= world_size:
            raise ValueError(
                f"`rank` must be in 0..world_size - 1; got rank {rank} of {world_size}. Count ranks from 0."
            )
        return rank, world_size
    return _group() or _environment() or (0, 1)


def check_group(task: str) -> None:
    """Refuse to reduce over ranks that only the environment tells of.

    Args:
        task: name of the function that reduces, for the message.

    Raises:
        RuntimeError: RANK and WORLD_SIZE name several ranks, and ``torch.distributed`` is not initialised.
    """
    if _group() is None and (found := _environment()) is not None and found[1] > 1:
        raise RuntimeError(
            f"`{task}` must reach the other ranks; got RANK={found[0]} of WORLD_SIZE={found[1]} and no process group. "
            "Call torch.distributed.init_process_group() first, or unset RANK and WORLD_SIZE to run it on one process."
        )


def _group() -> tuple[int, int] | None:
    distributed: Any = sys.modules.get("torch.distributed")  # without it, there can be no group
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _environment() -> tuple[int, int] | None:
    texts = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if texts == (None, None) or texts == (None, "1"):
        return None
    try:
        rank, world_size = (int(text or "") for text in texts)
    except ValueError:
        rank, world_size = -1, 0
    if not 0 <= rank < world_size:
        raise ValueError(
            f"RANK and WORLD_SIZE must be a rank and the number of ranks; got RANK={texts[0]!r} and "
            f"WORLD_SIZE={texts[1]!r} in the environment. Set or unset both, or pass `rank` and `world_size`."
        )
    return rank, world_size


def num_cores() -> int:
    """Cores that this process may keep busy, at least 1.

    The smaller of two shares: of the cores that the scheduler may run it on, and of the CPU time that its control
    groups allow. Both are divided by LOCAL_WORLD_SIZE, the ranks on this machine, except where the affinity is already
    a rank's own: narrower than that of the launcher which set LOCAL_WORLD_SIZE.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    ranks = max(int(text), 1) if text.isdecimal() else 1
    cores = _affinity(0)
    count = len(cores) if cores is not None else os.cpu_count() or 1
    is_own = ranks > 1 and cores is not None and cores < (_affinity(_launcher()) or cores)
    return max(1, int(min(count if is_own else count / ranks, _quota(Path("/")) / ranks)))


def _affinity(process: int) -> set[int] | None:
    """Cores that a process may run on, 0 for this one; None where the system does not say."""
    try:
        return os.sched_getaffinity(process)
    except (AttributeError, OSError):  # not on Linux; the process has ended or is another user's
        return None


def _launcher() -> int:
    """The closest ancestor that was not started with LOCAL_WORLD_SIZE; this process where that cannot be told."""
    process = os.getpid()
    for _ in range(100):
        try:
            status, environment = (Path(f"/proc/{process}/{name}").read_bytes() for name in ("stat", "environ"))
        except OSError:
            return os.getpid()
        if process != os.getpid() and b"LOCAL_WORLD_SIZE=" not in environment:
            return process
        process = int(status.rpartition(b")")[2].split()[1])  # the name before it may hold anything
    return os.getpid()


def _quota(root: Path) -> float:
    """Cores' worth of CPU time that the control groups of this process allow, infinite where they set no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    quotas = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quotas += _quotas_of(folder)
            if folder == mount:
                break
    return min(quotas)


def _quotas_of(group: Path) -> Iterator[float]:
    """The limit of one control group, of version 2 or 1, where it sets one."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return
    if quota.isdecimal() and period.isdecimal() and int(period):  # else "max", or -1
        yield int(quota) / int(period)
