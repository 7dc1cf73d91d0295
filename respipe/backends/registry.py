"""Which backend decodes a dataset."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import pkgutil
from typing import NamedTuple

import torch

from respipe import backends
from respipe.backends.base import Backend, BackendSpec, Interpolation
from respipe.errors import MissingBackendError
from respipe.storage.dataset import Dataset

logger = logging.getLogger(__name__)

ENTRY_POINTS = "respipe.backends"
"""The group under which other packages offer backends: each entry point is a :class:`BackendSpec`."""


class BackendStatus(NamedTuple):
    """What ``respipe doctor`` tells about a backend.

    Args:
        name: as given to ``Loader(backend=...)``.
        installed: whether what it needs is installed.
        version: version of the package that decodes, None where it is not installed.
        note: what it is good for, or the command that installs it.
    """

    name: str
    installed: bool
    version: str | None
    note: str


def available_backends() -> list[BackendStatus]:
    """Every backend, installed or not, those first that "auto" tries first on a CPU."""
    return [
        BackendStatus(spec.name, True, _version(spec), spec.summary)
        if _is_installed(spec)
        else BackendStatus(spec.name, False, None, spec.install)
        for spec in _by_priority(torch.device("cpu"))
    ]


def make_backend(
    name: str,
    dataset: Dataset,
    *,
    device: torch.device,
    num_threads: int,
    interpolation: Interpolation = "bilinear",
) -> Backend:
    """Build a backend.

    Args:
        name: name of a backend, or "auto" for the fastest that is installed and can read the dataset.
        dataset: where the images are.
        device: where batches will be used; only "dali" decodes on a GPU.
        num_threads: decoding threads.
        interpolation: what it must be able to resize with.

    Raises:
        ValueError: there is no such backend, or it cannot read this dataset or resize so.
        MissingBackendError: what it needs is not installed.
    """
    found = specs()
    spec = _choose(dataset, device, interpolation) if name == "auto" else found.get(name)
    if spec is None:
        raise ValueError(f"`backend` must be one of {('auto', *found)}; got {name!r}.")
    if (refusal := spec.refuse(dataset)) is not None:
        raise ValueError(refusal)
    if interpolation not in spec.interpolations:
        able = [other.name for other in found.values() if interpolation in other.interpolations]
        raise ValueError(
            f"`interpolation` must be {' or '.join(spec.interpolations)} with backend {spec.name!r}; got "
            f"{interpolation!r}. Choose one of the backends {able}."
        )
    try:
        return spec.build(dataset, device=device, num_threads=num_threads)
    except ImportError as error:
        raise MissingBackendError(
            f"backend={spec.name!r} needs {' and '.join(spec.distributions[:1])}, which cannot be imported here "
            f"({error}). Install it with: {spec.install}"
        ) from error


@functools.cache
def specs() -> dict[str, BackendSpec]:
    """Every backend by name: respipe's own, and those that other packages offer as entry points."""
    found: dict[str, BackendSpec] = {}
    for module in pkgutil.iter_modules(backends.__path__):
        spec = getattr(importlib.import_module(f"{backends.__name__}.{module.name}"), "SPEC", None)
        if isinstance(spec, BackendSpec):
            found[spec.name] = spec
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = entry.load()
        except Exception:
            logger.exception("The backend %s of another package cannot be loaded and is left out", entry.value)
            continue
        if isinstance(spec, BackendSpec) and spec.name not in found:
            found[spec.name] = spec
        else:
            logger.error("%s is not a BackendSpec of a new name and is left out", entry.value)
    return found


def _choose(dataset: Dataset, device: torch.device, interpolation: Interpolation) -> BackendSpec:
    able = (spec for spec in _by_priority(device) if interpolation in spec.interpolations)
    readers = [spec for spec in able if spec.refuse(dataset) is None]
    chosen = next(spec for spec in readers if _is_installed(spec))
    if chosen.priority(device) > 0:
        _say(
            logging.INFO,
            f"backend='auto' chose {chosen.name!r}, because nothing faster that is installed reads {dataset.path} on "
            f"{device}: {chosen.summary}",
        )
    else:
        _say(
            logging.WARNING,
            f"backend='auto' chose {chosen.name!r}, which is slow, because nothing faster that is installed can read "
            f"{dataset.path}. For a faster one: {readers[0].install}",
        )
    return chosen


@functools.cache
def _say(level: int, message: str) -> None:
    """Log something once in a process, however often loaders are built for the same data."""
    logger.log(level, "%s", message)


def _by_priority(device: torch.device) -> list[BackendSpec]:
    return sorted(specs().values(), key=lambda spec: -spec.priority(device))


def _is_installed(spec: BackendSpec) -> bool:
    return all(_is_found(module) for module in spec.modules)


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that a dotted name lies in is missing
        return False


def _version(spec: BackendSpec) -> str | None:
    for distribution in spec.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
