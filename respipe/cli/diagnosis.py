"""What ``respipe doctor`` finds out."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import textwrap
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from respipe.processes import num_cores

_OPTIONAL = {
    "nvidia-dali-cuda130": "dali backend, CUDA 13",
    "nvidia-dali-cuda120": "dali backend, CUDA 12",
    "ffcv": "ffcv backend",
    "numba": "ffcv and tiles backends",
    "matplotlib": "plots",
    "tensorboard": "training logs",
}
_EXTRAS = {"matplotlib": "plots", "tensorboard": "train", "scipy": "imagenet"}


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
    from respipe.cli.selftest import try_out_auto

    report["gpus"] = _gpus()
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


def _gpus() -> list[dict[str, Any]]:
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
