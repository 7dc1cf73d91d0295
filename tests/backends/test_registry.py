"""Which backend is built, and what is said about it."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from respipe.backends import registry
from respipe.backends.registry import available_backends, make_backend
from respipe.errors import MissingBackendError
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from tests.backends import sources
from tests.engines import needs_dali, needs_ffcv
from tests.memory_dataset import MemoryDataset

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Chosen:
    """Stands in for a backend and remembers what it was built with."""

    def __init__(self, name: str, dataset: Dataset, options: dict[str, object]) -> None:
        self.name, self.dataset, self.options = name, dataset, options


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The engines that seem to be installed; none of them is needed or built."""
    engines: set[str] = set()
    monkeypatch.setattr(registry, "_is_installed", lambda spec: spec.name == "reference" or spec.name in engines)
    stand_ins = {name: dataclasses.replace(spec, build=chosen(name)) for name, spec in registry.specs().items()}
    monkeypatch.setattr(registry, "specs", lambda: stand_ins)
    registry._say.cache_clear()  # it says what was chosen once in a process
    return engines


def chosen(name: str) -> Callable[..., Chosen]:
    return lambda dataset, **options: Chosen(name, dataset, options)


@pytest.fixture
def pyramid() -> MemoryDataset:
    return sources.pyramid()


@pytest.fixture
def folder(jpeg_folder: Path) -> FolderDataset:
    return FolderDataset(jpeg_folder)


@pytest.mark.parametrize(
    ("engines", "device", "file_choice", "folder_choice"),
    [
        ({"ffcv", "dali"}, GPU, "dali", "dali"),
        ({"ffcv", "dali"}, CPU, "ffcv", "dali"),
        ({"dali"}, CPU, "dali", "dali"),
        ({"ffcv"}, GPU, "ffcv", "reference"),
        ({"ffcv"}, CPU, "ffcv", "reference"),
        (set(), GPU, "reference", "reference"),
    ],
)
def test_auto_takes_the_fastest_that_is_there(
    engines: set[str],
    device: torch.device,
    file_choice: str,
    folder_choice: str,
    installed: set[str],
    pyramid: MemoryDataset,
    folder: FolderDataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installed.update(engines)
    with caplog.at_level(logging.INFO):
        for dataset, choice in ((pyramid, file_choice), (folder, folder_choice)):
            caplog.clear()
            assert make_backend("auto", dataset, device=device, num_threads=1).name == choice
            (record,) = caplog.records
            assert f"'{choice}'" in record.getMessage()
            assert "because" in record.getMessage()
            assert record.levelno == (logging.WARNING if choice == "reference" else logging.INFO)


@pytest.mark.parametrize(
    ("device", "jpeg_engines", "choice"),
    [(CPU, None, "tiles"), (GPU, 8, "dali"), (GPU, None, "dali"), (GPU, 0, "tiles")],
)
def test_auto_takes_tiles_unless_a_gpu_has_engines_for_jpegs(
    device: torch.device, jpeg_engines: int | None, choice: str, installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("respipe.backends.dali.jpeg_engines", lambda _: jpeg_engines)
    installed.update({"tiles", "ffcv", "dali"})
    assert make_backend("auto", sources.tiled(), device=device, num_threads=1).name == choice


def test_tiles_are_not_looked_for_in_files_without_them(pyramid: MemoryDataset) -> None:
    with pytest.raises(ValueError, match=r"`backend` 'tiles' must be given .* with `respipe convert memory\.beton"):
        make_backend("tiles", pyramid, device=CPU, num_threads=1)


@pytest.mark.parametrize(("engines", "choice"), [({"ffcv", "dali"}, "ffcv"), ({"dali"}, "reference")])
def test_auto_never_gives_raw_pixels_to_dali(
    engines: set[str], choice: str, installed: set[str], pyramid: MemoryDataset
) -> None:
    installed.update(engines)
    pyramid.levels[0].raw[:] = True
    assert make_backend("auto", pyramid, device=GPU, num_threads=1).name == choice


def test_a_slow_choice_comes_with_the_command_for_a_faster_one(
    installed: set[str], pyramid: MemoryDataset, folder: FolderDataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert not installed
    make_backend("auto", pyramid, device=CPU, num_threads=1)
    make_backend("auto", folder, device=CPU, num_threads=1)
    for_file, for_folder = (record.getMessage() for record in caplog.records)
    assert for_file.endswith("pip install 'respipe[ffcv]'")
    assert "pip install 'respipe[dali-cuda1" in for_folder


def test_arguments_reach_the_backend(installed: set[str], pyramid: MemoryDataset) -> None:
    assert not installed
    backend = make_backend("dali", pyramid, device=GPU, num_threads=3)
    assert isinstance(backend, Chosen)
    assert backend.dataset is pyramid
    assert backend.options == {"device": GPU, "num_threads": 3}


@pytest.mark.parametrize(
    "name", ["reference", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)]
)
def test_backends_are_built_by_name(name: str, pyramid: MemoryDataset) -> None:
    with closing(make_backend(name, pyramid, device=CPU, num_threads=1)) as backend:
        assert backend.name == name


def test_an_unknown_name_is_refused(pyramid: MemoryDataset) -> None:
    with pytest.raises(ValueError, match=r"`backend` must be one of .*'auto'.*'dali'.*; got 'pillow'"):
        make_backend("pillow", pyramid, device=CPU, num_threads=1)


def test_an_engine_asked_for_by_name_must_be_there(pyramid: MemoryDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setitem(sys.modules, "respipe.backends.ffcv.kernel", None)
    for name in ("dali", "ffcv"):
        with pytest.raises(MissingBackendError, match=r"pip install 'respipe\["):
            make_backend(name, pyramid, device=CPU, num_threads=1)


def test_every_backend_is_listed_with_version_or_command(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {status.name: status for status in available_backends()}
    assert list(listed) == ["tiles", "ffcv", "dali", "reference"]
    assert listed["reference"].installed
    assert all(status.version for status in listed.values() if status.installed)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for status in available_backends():
        assert status.installed == (status.name == "reference")
        assert status.installed or (status.version is None and status.note.startswith("pip install "))


def test_another_package_offers_a_backend_as_an_entry_point(
    pyramid: MemoryDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = registry.specs()["reference"]
    spec = dataclasses.replace(ours, name="ours", build=chosen("ours"))
    named = {"ours": spec, "twice": ours, "broken": None}

    def load(entry: EntryPoint) -> object:
        if named[entry.name] is None:
            raise ImportError("no such module")
        return named[entry.name]

    entries = [EntryPoint(name, f"package.{name}:SPEC", registry.ENTRY_POINTS) for name in named]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    monkeypatch.setattr(EntryPoint, "load", load)
    monkeypatch.setattr(registry, "specs", registry.specs.__wrapped__)
    assert make_backend("ours", pyramid, device=CPU, num_threads=1).name == "ours"
    assert registry.specs()["reference"] is ours
    assert "package.twice:SPEC is not a BackendSpec of a new name" in caplog.text
    assert "package.broken:SPEC of another package cannot be loaded" in caplog.text
