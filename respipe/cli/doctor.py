"""``respipe doctor``: what is installed, what "auto" makes of it, and how to get what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import tempfile
import textwrap
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import write_json, write_line, write_table
from respipe.processes import num_cores

_OPTIONAL = {
    "nvidia-dali-cuda130": "dali backend, CUDA 13",
    "nvidia-dali-cuda120": "dali backend, CUDA 12",
    "ffcv": "ffcv backend",
    "matplotlib": "plots",
    "tensorboard": "training logs",
}
_EXTRAS = {"matplotlib": "plots", "tensorboard": "train", "scipy": "imagenet"}

# What "auto" is tried on, and how long that may take.
KINDS = (".beton file", "class folder")
_STALL_SECONDS = 120.0


def doctor(
    trainer: Annotated[bool, typer.Option("--trainer", help="Say what to change for the trainers instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which backend "auto" takes, and what to install for this machine.

    Example: respipe doctor
    """
    if trainer:
        (write_json if as_json else _show_trainers)({"trainers": diagnose_trainers()})
        return
    report = diagnose()
    if as_json:
        write_json(report)
    else:
        _show(report)
    if not report["ok"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    system = report["system"]
    write_line(f"respipe {report['respipe']}, Python {system['python']}, {system['platform']}", style="bold")
    write_line(f"{system['num_cores']} cores, {system['memory_gb']:.0f} GB of memory, {_gpus(report['gpus'])}")
    write_line()
    write_table(
        ("package", "version", "for"),
        [(package["name"], package["version"] or "not installed", package["use"]) for package in report["packages"]],
        left=("package", "version", "for"),
    )
    if report["auto"]:
        write_line()
        write_table(
            ("data", 'backend="auto" takes'),
            [(kind, outcome["backend"] or f"nothing: {outcome['error']}") for kind, outcome in report["auto"].items()],
            left=("data", 'backend="auto" takes'),
        )
    if report["missing"]:
        write_line()
        write_table(
            ("missing", "install it with"),
            [(missing["name"], missing["command"]) for missing in report["missing"]],
            left=("missing", "install it with"),
        )
    for advice in report["advice"]:
        write_line()
        write_line(f"For this machine: {advice['command']}", style="bold")
        write_line(advice["reason"])
    write_line()
    write_line("All of the core works." if report["ok"] else "The core of respipe does not work here: see above.")


def _show_trainers(report: dict[str, Any]) -> None:
    for trainer in report["trainers"]:
        write_line(f"{trainer['name']} {trainer['version'] or 'is not installed'}", style="bold")
        for line in (*trainer["lines"].splitlines(), ""):
            write_line(line)


def _gpus(gpus: list[dict[str, Any]]) -> str:
    return ", ".join(f"{gpu['name']} ({gpu['memory_gb']:.0f} GB)" for gpu in gpus) or "no CUDA GPU"


def diagnose() -> dict[str, Any]:
    """Look at the system, the packages and the backends, and decode a few images with the backends "auto" takes.

    Returns:
        the report, ready for JSON: ``system``, ``packages``, ``gpus``, ``backends``, ``auto`` (by kind of data, the
        ``backend`` that decoded it, or the ``error``), ``missing`` (with a ``command`` each),
        ``advice`` (what this machine gains most from: ``command`` and ``reason``), and ``ok``.
    """
    core = {name: version(name) for name in _core_packages()}
    packages = [{"name": name, "version": found, "use": "core"} for name, found in core.items()]
    packages += [{"name": name, "version": version(name), "use": use} for name, use in _OPTIONAL.items()]
    report: dict[str, Any] = {
        "respipe": version("respipe"),
        "system": _system(),
        "packages": packages,
        "gpus": [],
        "backends": [],
        "auto": {},
        "advice": [],
        "missing": [{"name": name, "command": "pip install respipe"} for name, found in core.items() if not found],
        "ok": False,
    }
    if report["missing"]:
        return report
    report["gpus"] = _find_gpus()
    report["backends"] = _backends()
    report["missing"] = [
        {"name": backend["name"], "command": backend["command"]}
        for backend in report["backends"]
        if not backend["installed"]
    ] + [
        {"name": name, "command": f"pip install 'respipe[{extra}]'"}
        for name, extra in _EXTRAS.items()
        if version(name) is None
    ]
    report["advice"] = _advice(report["gpus"], [one["name"] for one in report["backends"] if one["installed"]])
    report["auto"] = try_out_auto("cuda" if report["gpus"] else "cpu")
    report["ok"] = all(outcome["error"] is None for outcome in report["auto"].values())
    return report


def diagnose_trainers() -> list[dict[str, Any]]:
    """Trainers that respipe fits into: ``name``, ``version`` or None, and the ``lines`` to change.

    The lines stand in the docstring of each one's module in :mod:`respipe.integrations`, none of which is imported.
    """
    folder = files("respipe.integrations")
    names = sorted(file.name.removesuffix(".py") for file in folder.iterdir() if not file.name.startswith("_"))
    return [{"name": name, "version": version(name), "lines": _example(folder / f"{name}.py")} for name in names]


def _example(module: Traversable) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return textwrap.dedent(docstring.partition("::\n\n")[2]).strip()


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core_packages() -> list[str]:
    """What respipe's own metadata says it cannot do without."""
    requirements = importlib.metadata.requires("respipe") or []
    names = (re.match(r"[\w.-]+", text) for text in requirements if "extra ==" not in text)
    return sorted(match.group() for match in names if match is not None)


def _system() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cores": num_cores(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }


def _find_gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    # torch does not say what get_device_properties returns.
    gpus: list[Any] = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "memory_gb": gpu.total_memory / 1e9, "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in gpus
    ]


def _advice(gpus: list[dict[str, Any]], installed: list[str]) -> list[dict[str, str]]:
    """What to install for this machine, beyond what the backends for any CPU need, which comes with respipe."""
    if not gpus or "dali" in installed:
        return []
    import torch

    extra = "dali-cuda12" if (torch.version.cuda or "13").startswith("12") else "dali-cuda13"
    reason = f"DALI decodes on the {gpus[0]['name']} and leaves the CPU to the rest."
    return [{"command": f"pip install 'respipe[{extra}]'", "reason": reason}]


def _backends() -> list[dict[str, Any]]:
    from respipe.backends.registry import available_backends

    return [
        {
            "name": backend.name,
            "installed": backend.installed,
            "version": backend.version,
            "note": backend.note,
            "command": None if backend.installed else _system_packages(backend.name) + backend.note,
        }
        for backend in available_backends()
    ]


def _system_packages(backend: str) -> str:
    """What has to be installed before pip can build a backend: FFCV comes as source only."""
    if backend != "ffcv" or importlib.util.find_spec("ffcv") is not None or _pkg_config("opencv4", "libturbojpeg"):
        return ""
    return "sudo apt-get install build-essential pkg-config libopencv-dev libturbojpeg0-dev && "


def _pkg_config(*libraries: str) -> bool:
    """Whether the headers of C libraries are installed."""
    command = shutil.which("pkg-config")
    return command is not None and subprocess.run([command, "--exists", *libraries], check=False).returncode == 0


def try_out_auto(device: str) -> dict[str, dict[str, Any]]:
    """Which backend decodes a ``.beton`` file and a class folder.

    A broken driver or library can take the whole process down, so another process tries.

    Args:
        device: where batches are to end up.

    Returns:
        by kind of data, ``backend`` and ``error``, one of which is None.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_keep_stdout_clean) as pool:
            try:
                outcomes[kind] = pool.submit(try_out, kind, device).result()
            except BrokenProcessPool:
                outcomes[kind] = {"backend": None, "error": "the process that decoded it crashed"}
    return outcomes


def try_out(kind: str, device: str) -> dict[str, Any]:
    """Make a tiny dataset and decode it; see :func:`try_out_auto`."""
    from respipe.conversion import convert
    from respipe.errors import RespipeError
    from respipe.loading.loader import Loader
    from respipe.schedules.constant import Constant

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "images")
        _write_images(data)
        try:
            if kind == KINDS[0]:
                convert(data, Path(scratch, "images.beton"), num_workers=0)
                data = Path(scratch, "images.beton")
            with Loader(data, Constant(32), batch_size=2, device=device, stall_timeout=_STALL_SECONDS) as loader:
                for _ in loader:
                    pass
                return {"backend": loader.backend, "error": None}
        except (RespipeError, OSError, RuntimeError, ValueError, ImportError) as error:
            return {"backend": None, "error": f"{type(error).__name__}: {error}"}


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    (folder / "noise").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "noise" / f"{number}.jpg")


def _keep_stdout_clean() -> None:
    """Libraries may print; stdout belongs to the report."""
    os.dup2(2, 1)
