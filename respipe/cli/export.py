"""``respipe export``: a dataset as files that need no respipe to be read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import num_bytes, progress, write_json, write_line
from respipe.cli.data import Workers

if TYPE_CHECKING:
    from respipe.conversion import ExportReport


def export(
    data: Annotated[Path, typer.Argument(help="A .beton file, a folder of some, or a class folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    format: Annotated[str, typer.Option(help="folder, webdataset or parquet.")] = "folder",
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", help="To write beside image and label. Repeatable.", show_default="all"),
    ] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples per tar or Parquet file.")] = 10_000,
    workers: Workers = None,
    allow_corrupt: Annotated[int, typer.Option(min=0, help="Damaged images to leave out without failing.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write images, labels and fields as class folders, tar shards or Parquet: the way back from a .beton.

    Run the same again to go on after an interruption.

    Example: respipe export train.beton shards --format webdataset
    """
    from respipe.conversion import export as export_images

    with progress("exporting") as on_progress:
        report = export_images(
            data,
            target,
            format=cast("Any", format),
            fields=fields,
            max_samples=max_samples,
            num_workers=workers,
            allow_corrupt=allow_corrupt,
            progress=on_progress,
        )
    if as_json:
        write_json(report.to_dict())
    else:
        _show(report)


def _show(report: ExportReport) -> None:
    parts = [f"{report.num_images:,} of {report.num_samples:,} samples, {num_bytes(report.num_bytes)} of images"]
    if report.num_resumed:
        parts.append(f"{report.num_resumed:,} of them in an earlier run")
    write_line(f"{', '.join(parts)}, in {report.seconds:,.1f} s", style="bold")
    for note in report.quarantined:
        write_line(f"left out sample {note.index}, {note.name}: {note.reason}")
    write_line(f"Wrote {report.target}. Back again:")
    fields = "".join(f" --field {shlex.quote(name)}" for name in report.fields)
    write_line(f"  respipe convert {shlex.quote(report.target)} TARGET.beton{fields}")
