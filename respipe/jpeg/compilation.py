"""How respipe compiles its loops with Numba: without the GIL, and once per machine instead of once per process.

Nothing else imports Numba.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar, cast


@contextlib.contextmanager
def _importable_print() -> Generator[None]:
    """Let Numba be imported where a training script has put a function of its own in place of ``print``.

    Many do, to silence all ranks but one. Numba looks for ``print`` where it says it was defined, and must find it.
    """
    replaced = builtins.print

    def stand_in(*values: object, **options: Any) -> None:
        replaced(*values, **options)

    if getattr(sys.modules.get(replaced.__module__), replaced.__name__, None) is not replaced:
        vars(sys.modules[__name__])[stand_in.__name__] = builtins.print = stand_in
    try:
        yield
    finally:
        builtins.print = replaced


with _importable_print():
    import numba
    from numba import types
    from numba.core import cgutils as untyped_cgutils
    from numba.core import config
    from numba.extending import intrinsic
    from numba.np.numpy_support import carray

__all__ = ["carray", "cgutils", "compiled", "compiled_with_fast_math", "intrinsic", "is_cached", "prepare", "types"]

cgutils: Any = untyped_cgutils
logger = logging.getLogger(__name__)

F = TypeVar("F")

_LOCK_SECONDS = 300.0
_POLL_SECONDS = 0.1


def compiled(function: F, *, fast_math: bool = False) -> F:
    """Compile a function when it is first called; keep the result for the next process.

    Args:
        function: a function that Numba understands. It holds no GIL and may be called from several threads at once.
        fast_math: whether sums may be reordered and infinities ignored.
    """
    compile_later = cast("Any", numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=fast_math))
    try:
        dispatcher = compile_later(function)
    except RuntimeError:  # there is no folder to keep the result in: neither beside the source nor in a home
        _keep_in_temporary_folder()
        dispatcher = compile_later(function)
    for index in _kept(dispatcher):
        if index.stat().st_mtime < _last_change():
            index.unlink(missing_ok=True)
    return dispatcher


def compiled_with_fast_math(function: F) -> F:
    """See :func:`compiled`."""
    return compiled(function, fast_math=True)


@functools.cache
def _last_change() -> float:
    """When the newest source was changed that compiled loops come from.

    Numba compiles a function again when its own file changes, but not for another's that it calls: without this, a
    checkout that moves on would run what it was, or fail to find it.
    """
    package = Path(__file__).parents[1]
    sources = (file for room in ("jpeg", "planning", "backends", "augment") for file in (package / room).rglob("*.py"))
    return max((file.stat().st_mtime for file in sources), default=0.0)


def _kept(function: Any) -> list[Path]:
    """Index files of what an earlier process has compiled of a function."""
    if not hasattr(function, "stats"):  # NUMBA_DISABLE_JIT leaves it as it is
        return []
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return list(Path(function.stats.cache_path).glob(f"{name}-*.{version}.nbi"))


def _keep_in_temporary_folder() -> None:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"respipe-numba-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Numba unpickles what it finds: nobody else may have put it there.
        is_private = folder.is_dir() and not folder.is_symlink() and status.st_mode & 0o022 == 0
        if not is_private or status.st_uid != getattr(os, "getuid", lambda: status.st_uid)():
            raise PermissionError
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="respipe-numba-"))
    logger.warning(
        "Neither the folder of the installed package nor a home can be written to: compiled loops are kept in %s. Set "
        "the environment variable NUMBA_CACHE_DIR to a folder that lasts, so that they are compiled only once.",
        folder,
    )
    config.CACHE_DIR = str(folder)  # pyright: ignore[reportAttributeAccessIssue]


def prepare(function: Any, *arguments: Any) -> None:
    """Compile a function if no earlier process has, one process of the machine at a time.

    The others wait, for five minutes at most, and then find its result. Where the file system has no locks, each
    compiles for itself.

    Args:
        function: of :func:`compiled`.
        arguments: a call with them compiles it and does nothing else.
    """
    if is_cached(function) or not hasattr(function, "stats"):  # NUMBA_DISABLE_JIT leaves it as it is
        return
    with _only_process(Path(function.stats.cache_path)):
        if is_cached(function):
            return
        logger.warning(
            "Compiling %s.%s: ten to twenty seconds, once. The result is kept in %s.",
            function.__module__,
            function.__name__,
            function.stats.cache_path,
        )
        function(*arguments)


def is_cached(function: Any) -> bool:
    """Whether an earlier process has compiled a function and kept the result."""
    return bool(_kept(function))


@contextlib.contextmanager
def _only_process(folder: Path) -> Generator[None]:
    """Hold a lock on the folder that results are kept in, if it can be had in time."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        try:
            import fcntl  # not everywhere

            file = stack.enter_context((folder / "respipe.lock").open("a"))
            while not _is_locked(fcntl, file.fileno()) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        except (ImportError, OSError) as error:
            logger.info("Compiling without waiting for other processes, as %s cannot be locked: %s", folder, error)
        yield


def _is_locked(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
