"""``respipe doctor``: what is installed, what "auto" makes of it, and how to get what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import write_json, write_line, write_table


def doctor(
    trainer: Annotated[bool, typer.Option("--trainer", help="Say what to change for the trainers instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which backend "auto" takes, and what to install for this machine.

    Example: respipe doctor
    """
    from respipe.cli.diagnosis import diagnose, diagnose_trainers

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
