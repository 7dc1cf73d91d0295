"""The parts of a conversion as tasks of a Ray cluster: never single images, which cost more to schedule than to make.

A task makes its files on the machine that it runs on, from the source and to the target as that machine sees them.
Nothing but its report and the number of samples done comes back. A task whose worker or machine is lost is repeated,
where it goes on by the journal of the file that it was making.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from respipe.conversion.report import ConversionReport
from respipe.conversion.shards import combined
from respipe.errors import MissingBackendError, WorkerLostError
from respipe.storage.remote import is_url
from respipe.storage.shards import index_shards

logger = logging.getLogger(__name__)

# Parts for each place that the cluster has for one, so that a slow or repeated one keeps few others waiting.
_PARTS_PER_PLACE = 4
_MAX_RETRIES = 3
_SECONDS_BETWEEN_REPORTS = 1.0
_SECONDS_QUIET = 300.0


def convert_parts(convert: Callable[..., ConversionReport], arguments: Mapping[str, Any]) -> ConversionReport:
    """Convert with a Ray cluster: the one that is connected to, or that ``RAY_ADDRESS`` names, else a local one.

    Args:
        convert: :func:`respipe.convert`.
        arguments: its arguments by name. Each task has ``num_workers`` processes and as many cores of its machine,
            by default all of those of the smallest machine.

    Raises:
        MissingBackendError: Ray is not installed.
        WorkerLostError: a task was lost again and again.
        RespipeError, OSError, ...: what a part raises; the others are ended.
    """
    try:
        import ray as ray_module
    except ImportError as error:
        raise MissingBackendError("`engine` 'ray' needs Ray: pip install 'respipe[ray]'.") from error
    ray: Any = ray_module  # its functions are not typed
    ours = not ray.is_initialized()
    if ours:
        ray.init()
    try:
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        smallest = min((count for count in cores if count), default=1)
        given = arguments["num_workers"]
        each = min(max(smallest if given is None else given, 1), smallest)
        shards = arguments["shards"]
        num_parts = min(shards, _PARTS_PER_PLACE * max(sum(count // each for count in cores), 1))
        tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tally).remote()
        task = ray.remote(num_cpus=each, max_retries=_MAX_RETRIES, retry_exceptions=[WorkerLostError])(_convert_part)
        rest = {name: value for name, value in arguments.items() if name not in ("engine", "part", "progress")}
        source = ray.put(rest.pop("source"))  # once, however large
        rest["num_workers"] = each if given is None else given
        logger.info("%d shards in %d parts of %d cores each, on %d machines", shards, num_parts, each, len(cores))
        parts = [task.remote(convert, source, rest, (number, num_parts), tally) for number in range(num_parts)]
        reports = _wait(ray, parts, tally, arguments["progress"])
    finally:
        if ours:
            ray.shutdown()
    target = os.fspath(cast("str", arguments["target"]))
    if not is_url(target):  # which whoever was last has made too, unless the disk that they share was slow to tell
        index_shards(target)
    return combined(reports, [0] * len(reports), target)


def _wait(
    ray: Any, parts: list[Any], tally: Any, progress: Callable[[int, int], None] | None
) -> list[ConversionReport]:
    """The reports of all parts, in order."""
    pending, last, since = parts, (0, 0), time.monotonic()
    try:
        while pending:
            done, pending = ray.wait(pending, timeout=_SECONDS_BETWEEN_REPORTS)
            ray.get(done)  # raises what a part raised
            counts: tuple[int, int] = ray.get(tally.total.remote(), timeout=60)
            if progress is not None:
                progress(*counts)
            if counts != last:
                last, since = counts, time.monotonic()
            elif time.monotonic() - since > _SECONDS_QUIET:
                since = time.monotonic()
                logger.warning(
                    "No part has told of a sample for %g s; see `ray status` for whether there are machines for %d "
                    "parts that are left.",
                    _SECONDS_QUIET,
                    len(pending),
                )
        return cast("list[ConversionReport]", ray.get(parts))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerLostError(
            f"A part of the conversion was lost {_MAX_RETRIES + 1} times ({type(error).__name__}). Finished work is "
            "kept: run the same again to go on, with fewer `num_workers` where memory ran out."
        ) from error
    finally:
        for part in pending:
            ray.cancel(part, force=True)


class _Tally:
    """How many samples each part has done, and has in all."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[int, int]] = {}

    def tell(self, part: int, done: int, total: int) -> None:
        self._parts[part] = done, total

    def total(self) -> tuple[int, int]:
        return sum(done for done, _ in self._parts.values()), sum(total for _, total in self._parts.values())


def _convert_part(
    convert: Callable[..., ConversionReport],
    source: object,
    arguments: dict[str, Any],
    part: tuple[int, int],
    tally: Any,
) -> ConversionReport:
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _SECONDS_BETWEEN_REPORTS:
            tally.tell.remote(part[0], done, total)
            last = time.monotonic()

    return convert(source=source, **arguments, part=part, progress=progress)
