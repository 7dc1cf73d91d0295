"""Ranks and cores: which of several sources decides, and what is divided by the ranks of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from respipe import processes
from respipe.processes import num_cores, rank_and_world_size


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_quota", lambda _: float("inf"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 1)), ({"WORLD_SIZE": "1"}, (0, 1)), ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4))],
)
def test_the_environment_tells_the_rank(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world_size() == expected
    assert rank_and_world_size(1, 2) == (1, 2)


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}],
)
def test_an_environment_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE must be a rank and the number of ranks"):
        rank_and_world_size()


@pytest.mark.parametrize(
    ("mine", "launchers", "ranks", "quota", "expected"),
    [
        (8, 8, None, float("inf"), 8),
        (8, 8, 4, float("inf"), 2),
        (8, 8, 16, float("inf"), 1),
        (2, 8, 4, float("inf"), 2),  # already a rank's own
        (8, 8, None, 0.5, 1),
        (8, 8, None, 3.5, 3),
        (8, 8, 2, 6.0, 3),
        (2, 8, 4, 4.0, 1),
    ],
)
def test_cores_and_quota_are_divided_by_the_ranks_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, mine: int, launchers: int, ranks: int | None, quota: float, expected: int
) -> None:
    affinity = {0: set(range(mine)), 77: set(range(launchers))}
    monkeypatch.setattr(os, "sched_getaffinity", affinity.__getitem__, raising=False)
    monkeypatch.setattr(processes, "_launcher", lambda: 77)
    monkeypatch.setattr(processes, "_quota", lambda _: quota)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert num_cores() == expected


def test_a_system_without_affinity_or_control_groups_counts_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert num_cores() == 6


QUOTAS = {
    "version 2": ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n", "a/cpu.max": "max 100000\n"}, 1.5),
    "of a parent": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
    "in a namespace": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 1": (
        "5:memory:/x\n4:cpu,cpuacct:/x\n",
        {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "none of version 1": (
        "4:cpu,cpuacct:/\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        float("inf"),
    ),
    "none": ("0::/\n", {}, float("inf")),
}


@pytest.mark.parametrize(("groups", "files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_smallest_quota_of_all_control_groups_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, files: dict[str, str], expected: float
) -> None:
    monkeypatch.undo()
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": c for n, c in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert processes._quota(tmp_path) == expected
