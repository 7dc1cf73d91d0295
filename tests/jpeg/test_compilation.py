"""Compiled loops are kept where there is a place for them, and compiled by one process at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from respipe.jpeg import compilation

PROGRAM = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from numba.core import config
from numba.core import caching
implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl
implementation._locator_classes = implementation._locator_classes[:1]  # as where only a folder told can be written to
from respipe.jpeg.compiled_header import byte, next_segment
import numpy as np
print(byte(np.array([7], np.uint8), 0), config.CACHE_DIR)
"""


@pytest.mark.parametrize("foreign", [False, True])
def test_a_read_only_installation_without_a_home_keeps_loops_in_a_temporary_folder(
    foreign: bool, tmp_path: Path
) -> None:
    if foreign:  # a place that others can write to must not be trusted
        (tmp_path / f"respipe-numba-{os.getuid()}").mkdir()
        (tmp_path / f"respipe-numba-{os.getuid()}").chmod(0o777)
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    warning, values = result.stdout.splitlines()
    assert "NUMBA_CACHE_DIR" in warning
    value, folder = values.split()
    assert value == "7"
    assert (Path(folder) == tmp_path / f"respipe-numba-{os.getuid()}") != foreign
    assert Path(folder).stat().st_mode & 0o077 == 0
    assert list(Path(folder).rglob("compiled_header.byte-*.nbi"))


class Loop:
    """Stands in for a compiled function: a call takes a while, leaves a result in the cache, and is noted."""

    __module__ = compilation.__name__
    __name__ = "loop"

    def __init__(self, folder: Path) -> None:
        self.stats = SimpleNamespace(cache_path=str(folder))
        self.folder = folder

    def __call__(self) -> None:
        with (self.folder / "calls").open("a") as calls:
            calls.write("called\n")
        time.sleep(0.3)
        version = f"py{sys.version_info.major}{sys.version_info.minor}"
        (self.folder / f"compilation.loop-1.{version}.nbi").touch()


def prepare(folder: Path) -> None:
    compilation.prepare(Loop(folder))


def test_one_process_compiles_while_the_others_wait(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=prepare, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert (tmp_path / "calls").read_text() == "called\n"


def test_compiling_is_announced_unless_its_result_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        prepare(tmp_path)
    assert caplog.text.count("Compiling respipe.jpeg.compilation.loop") == 1
    assert str(tmp_path) in caplog.text


def test_a_file_system_without_locks_does_not_keep_anyone_from_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level(logging.INFO):
        prepare(tmp_path)
    assert "No locks available" in caplog.text
    assert (tmp_path / "calls").exists()


def test_waiting_for_another_process_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_taken(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr("fcntl.flock", is_taken)
    monkeypatch.setattr(compilation, "_LOCK_SECONDS", 0.2)
    prepare(tmp_path)
    assert (tmp_path / "calls").exists()


def twice(number: int) -> int:
    return 2 * number


def test_what_was_compiled_before_the_sources_changed_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    assert compilation.compiled(twice)(2) == 4
    (index,) = tmp_path.rglob("test_compilation.twice-*.nbi")
    assert compilation.is_cached(compilation.compiled(twice))
    monkeypatch.setattr(compilation, "_last_change", lambda: index.stat().st_mtime + 1)
    assert not compilation.is_cached(compilation.compiled(twice))
    assert not index.exists()


def test_numba_is_imported_where_a_script_has_replaced_print() -> None:
    program = """
import builtins, respipe
kept = builtins.print
def silence():
    def print(*values, **options):
        if options.pop("force", False):
            kept(*values, **options)
    builtins.print = print
    return print
replaced = silence()
import numba
"""
    fails = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert "has no attribute 'print'" in fails.stderr
    program = program.replace("import numba", "from respipe.jpeg.compiled_header import byte")
    program += "print(builtins.print is replaced, force=True)\n"
    works = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (works.stdout, works.stderr) == ("True\n", "")
