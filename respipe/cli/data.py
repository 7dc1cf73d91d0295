"""``respipe convert``, ``export``, ``index``, ``merge``, ``split``, ``verify``, ``inspect``: data on disk."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from respipe.cli.arguments import AsJson, parse_integers, parse_part
from respipe.cli.console import (
    bytes_on_disk,
    num_bytes,
    progress,
    progress_of_parts,
    show_error,
    write_json,
    write_line,
    write_table,
)

if TYPE_CHECKING:
    from respipe.conversion import (
        ConversionReport,
        DamagedImage,
        ExportReport,
        Inspection,
        SampleNote,
        VerificationReport,
    )

_MOST_LISTED = 20

# What may be said of a source beside its path, wherever one is named.
Labels = Annotated[
    Path | None, typer.Option(help="What labels images in no class folders: a devkit, or a file of name,label.")
]
Split = Annotated[str | None, typer.Option(help="Of a source that holds train and val.")]
Format = Annotated[str | None, typer.Option(help="Of the source, where several could be meant.")]
LabelField = Annotated[str | None, typer.Option(help="The source's name for the label; '' for no labels.")]

MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Pixels that an image may have at most.", show_default="178,956,970, by Pillow's limit"),
]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes. Default: one per core; 0: none but this one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")]


def convert(
    source: Annotated[
        str, typer.Argument(help="A class folder, tar, zip, Parquet or manifest, tar shards, or a .beton file.")
    ],
    target: Annotated[str, typer.Argument(help="The .beton file to make; with --shards the folder.")],
    levels: Annotated[
        Any, typer.Option(parser=parse_integers, metavar="S,S,...", help="Longest side of each stored size in pixels.")
    ] = "512,344,224,144,96",
    quality: Annotated[
        Any,
        typer.Option(
            parser=parse_integers,
            metavar="Q,Q,...",
            help="Of re-encoded JPEGs by level, the last for the rest.",
            show_default="80 above 384 px, 89 below",
        ),
    ] = None,
    subsampling: Annotated[str, typer.Option(help="Of colour in re-encoded JPEGs: 4:4:4, 4:2:2 or 4:2:0.")] = "4:2:0",
    restart_interval: Annotated[
        int, typer.Option(help="MCUs between restart markers, at most; 0 for none, and slower loading.")
    ] = 2,
    keep: Annotated[
        str,
        typer.Option(help="Of JPEGs that fit the first level: nothing, pixels (of others: 50 dB) or bytes."),
    ] = "nothing",
    fields: Annotated[
        list[str] | None, typer.Option("--field", help="Of the source, to store beside image and label. Repeatable.")
    ] = None,
    classes_from: Annotated[
        Path | None,
        typer.Option(
            help="Number classes as this data, checkpoint or list (.txt, a name a line) does, matched by name."
        ),
    ] = None,
    format: Format = None,
    label_field: LabelField = None,
    labels: Labels = None,
    split: Split = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Make a folder of so many .beton files.")] = None,
    part: Annotated[
        Any, typer.Option(parser=parse_part, metavar="I/N", help="Of the shards make the I-th of N parts, from 0 on.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: the parts of the shards on a Ray cluster.")] = "local",
    workers: Workers = None,
    allow_corrupt: Annotated[int, typer.Option(min=0, help="Undecodable images to leave out without failing.")] = 0,
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Store images at several sizes in one .beton file. Run the same again to go on after an interruption.

    Example: respipe convert imagenet/train train.beton

    On the fourth of 16 machines: respipe convert imagenet/train train/ --shards 64 --part 3/16
    """
    options: dict[str, Any] = {**locals(), "fields": fields or (), "num_workers": workers}
    del options["workers"], options["as_json"]  # all others are arguments of the function by the same names

    from respipe.conversion import TooManyCorruptError
    from respipe.conversion import convert as convert_images

    error: TooManyCorruptError | None = None
    try:
        with progress_of_parts() as on_progress:
            expected = _expected_size(target)
            report = convert_images(
                **options,
                progress=lambda done, total: on_progress(f"converting{expected(done, total)}", done, total),
            )
    except TooManyCorruptError as too_many:
        report, error = too_many.report, too_many
    if as_json:
        write_json({**report.to_dict(), "error": None if error is None else str(error)})
    else:
        _show_conversion(report, finished=error is None)
    if error is not None:
        show_error(str(error))
        raise typer.Exit(1)


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
        _show_export(report)


def index(folder: Annotated[str, typer.Argument(help="A folder of .beton files, or its URL.")]) -> None:
    """Make or renew the index of a folder of .beton files, as after adding one. Rewrites none of them.

    Example: respipe index train/
    """
    from respipe.storage.remote import Cache, RemoteFolder, is_url
    from respipe.storage.shards import index_shards

    index = RemoteFolder(folder, Cache()).make_index() if is_url(folder) else index_shards(folder)
    num_files, fingerprint = len(index["shards"]), index["fingerprint"]
    write_line(f"{folder}: {index['num_samples']:,} samples in {num_files:,} files, fingerprint {fingerprint}")


def merge(
    sources: Annotated[list[Path], typer.Argument(help="The .beton files in order, or a folder of them.")],
    target: Annotated[Path, typer.Argument(help="The .beton file to make.")],
    overwrite: Overwrite = False,
) -> None:
    """Put .beton files of the same settings together in one, without encoding anything anew.

    Example: respipe merge train/ train.beton
    """
    from respipe.conversion import merge as merge_files

    with progress("merging") as on_progress:
        merge_files(sources if len(sources) > 1 else sources[0], target, overwrite=overwrite, progress=on_progress)
    write_line(f"Wrote {target} ({num_bytes(bytes_on_disk(target))}).", style="bold")


def split(
    source: Annotated[Path, typer.Argument(help="A .beton file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    shards: Annotated[int, typer.Option(min=1, help="Files to make.")],
    overwrite: Overwrite = False,
) -> None:
    """Divide a .beton file among several, without encoding anything anew.

    Example: respipe split train.beton train/ --shards 64
    """
    from respipe.conversion import split as split_file

    with progress("splitting") as on_progress:
        split_file(source, target, shards=shards, overwrite=overwrite, progress=on_progress)
    write_line(f"Wrote {shards} files and their index to {target} ({num_bytes(bytes_on_disk(target))}).", style="bold")


def verify(
    path: Annotated[str, typer.Argument(help="A .beton file, a folder or URL of several, or a class folder.")],
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image too.")] = False,
    workers: Workers = None,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Look for damaged images; the exit status is 1 if there are any.

    Example: respipe verify train.beton --decode
    """
    from respipe.conversion import verify as verify_images

    with progress("verifying") as on_progress:
        report = verify_images(path, decode=decode, num_workers=workers, max_pixels=max_pixels, progress=on_progress)
    if as_json:
        write_json(report.to_dict())
    else:
        _show_verification(report)
    if not report.sound:
        raise typer.Exit(1)


def inspect(
    path: Annotated[
        str, typer.Argument(help="A .beton file, a folder or URL of several, or anything that can be converted.")
    ],
    format: Format = None,
    label_field: LabelField = None,
    labels: Labels = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Show what a .beton file holds, or what a source would give before it is converted.

    Example: respipe inspect train.beton

    Before converting: respipe inspect ILSVRC2012_img_train.tar
    """
    from respipe.conversion import inspect as inspect_dataset

    report = inspect_dataset(path, format=format, label_field=label_field, labels=labels, split=split)
    if as_json:
        write_json(report.to_dict())
    else:
        _show_inspection(report)


def _show_conversion(report: ConversionReport, *, finished: bool) -> None:
    from respipe.storage.remote import is_url

    parts = [f"{report.num_samples:,} samples"]
    if report.num_resumed:
        parts.append(f"{report.num_resumed:,} of them in an earlier run")
    if report.num_resumed < report.num_samples:
        parts.append(f"{report.images_per_second:,.0f} images/s for {report.seconds:,.1f} s")
    write_line(", ".join(parts), style="bold")
    write_line(
        f"{report.num_kept:,} images kept as they were, {report.num_reencoded:,} re-encoded, "
        f"{report.num_corrupt:,} left out as undecodable"
    )
    if report.traits:
        write_line()
        write_table(("found", "images"), [(trait, f"{n:,}") for trait, n in report.traits.items()], left=("found",))
    write_line()
    write_table(
        ("level", "longest side", "images", "size", "per image"),
        [
            (
                level.name,
                f"{level.longest_side} px",
                f"{level.num_images:,}",
                num_bytes(level.num_bytes),
                num_bytes(level.num_bytes / max(level.num_images, 1)),
            )
            for level in report.levels
        ],
        left=("level",),
    )
    _list("Left out", report.quarantined)
    _list("Decoded, although the decoder complained", report.warned)
    if finished:
        target = shlex.quote(report.target)
        write_line()
        size = "" if is_url(report.target) else f"{num_bytes(bytes_on_disk(Path(report.target)))}: "
        write_line(
            f"Wrote {report.target} ({size}{num_bytes(report.num_bytes)} of images, the rest tables and padding of "
            "FFCV's pages). Next:",
            style="bold",
        )
        for command in ("inspect", "verify", "bench"):
            write_line(f"  respipe {command} {target}")
        write_line(f"  respipe train RECIPE --data {target} --val VAL.beton --output run   # respipe recipe lists them")
        batch_size = min(256, 2 ** (max(report.num_images, 1).bit_length() - 1))
        write_line(f"or in Python: respipe.Loader({report.target!r}, schedule, batch_size={batch_size})")


def _expected_size(target: str) -> Callable[[int, int], str]:
    """Gives what the target will take, as far as the part of it tells that is there: read once a second."""
    last, text = float("-inf"), ""

    def expected(done: int, total: int) -> str:
        nonlocal last, text
        if done and time.monotonic() - last > 1:
            last, files = time.monotonic(), (Path(f"{target}.partial"), Path(target))
            there = next((path for path in files if path.is_file()), None)  # a folder has other parts' files too
            text = "" if there is None else f" to about {num_bytes(bytes_on_disk(there) * total / done)}"
        return text

    return expected


def _show_verification(report: VerificationReport) -> None:
    how = "their checksums" if report.has_checksums else "their headers"
    how = f"{how}, and decoded" if report.decoded and report.kind != "folder" else "decoded" if report.decoded else how
    checked = how if how == "decoded" else f"compared with {how}"
    write_line(
        f"{report.path}: {report.num_images:,} images of {report.num_samples:,} samples {checked} "
        f"in {report.seconds:,.1f} s",
        style="bold",
    )
    _list("Damaged", report.damaged)
    _list("Decoded, although the decoder complained", report.warned)
    if report.stray_bytes:
        places = ", ".join(f"{place:,}" for place in report.stray_bytes)
        write_line(
            f"Bytes between the images have changed since the file was written: {places}. They harm no image, but "
            "something wrote to the file, or its disk fails."
        )
    write_line(
        f"{len(report.damaged):,} images are damaged." if report.damaged or not report.sound else "No damage found."
    )


def _show_inspection(report: Inspection) -> None:
    made_by = f" written by {report.writer}" if report.writer else ""
    is_source = report.converted_bytes is not None
    size = f"about {num_bytes(report.num_bytes)} of images" if is_source else num_bytes(report.num_bytes)
    write_line(f"{report.path}: {report.kind}{made_by}, {size}", style="bold")
    labels = "labels known when read" if report.num_labels is None else f"{report.num_labels:,} distinct labels"
    classes = f"{len(report.classes):,} classes" if report.classes else labels if report.fields else "no labels"
    if report.num_labels == 0:
        classes = "no labels"
    checksums = "" if is_source else f", {'with' if report.has_checksums else 'without'} checksums"
    write_line(f"{report.num_samples:,} samples, {classes}{checksums}")
    if report.classes:
        more = f", ... {report.classes[-1]}" if len(report.classes) > _MOST_LISTED else ""
        write_line(f"classes: {', '.join(report.classes[:_MOST_LISTED])}{more}")
    for title, values in (("fields", report.fields), ("passed over", report.passed_over)):
        if values:
            write_line(f"{title}: " + ", ".join(f"{name} ({value})" for name, value in values.items()))
    _list("Cannot be converted", report.faults)
    write_line()
    write_table(
        ("level", "images", "median size", "sides", "size", "per image", "raw", "tiled"),
        [
            (
                level.name,
                f"{level.num_images:,}",
                f"{level.median_width:.0f} x {level.median_height:.0f} px",
                f"{level.smallest_side} to {level.largest_side} px",
                num_bytes(level.num_bytes),
                num_bytes(level.bytes_per_image),
                f"{level.raw_share:.0%}",
                f"{level.tiled_share:.0%}",
            )
            for level in report.levels
        ],
        left=("level",),
    )
    if report.num_examined < report.num_samples:
        what = "sizes" if is_source else "tiled"
        write_line(f"{what}: of {report.num_examined:,} samples, spread evenly over all")
    if report.converted_bytes is not None:
        write_line(f"converted: about {num_bytes(report.converted_bytes)} with the default levels")
    if intervals := sorted({interval for level in report.levels for interval in level.restart_intervals}):
        write_line(f"restart intervals: {', '.join(map(str, intervals))} MCUs")
    write_line(report.decoding)
    for title, values in (("settings", report.settings), ("source", report.source)):
        if values:
            write_line(f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    write_line(f"fingerprint: {report.fingerprint}")


def _list(title: str, notes: Sequence[SampleNote] | Sequence[DamagedImage]) -> None:
    if not notes:
        return
    write_line()
    write_line(f"{title}: {len(notes):,}", style="bold")
    write_table(
        ("sample", "level", "name", "what is wrong"),
        [(f"{note.index}", getattr(note, "level", "source"), note.name, note.reason) for note in notes[:_MOST_LISTED]],
        left=("level", "name", "what is wrong"),
    )
    if len(notes) > _MOST_LISTED:
        write_line(f"and {len(notes) - _MOST_LISTED:,} more; --json lists all")


def _show_export(report: ExportReport) -> None:
    parts = [f"{report.num_images:,} of {report.num_samples:,} samples, {num_bytes(report.num_bytes)} of images"]
    if report.num_resumed:
        parts.append(f"{report.num_resumed:,} of them in an earlier run")
    write_line(f"{', '.join(parts)}, in {report.seconds:,.1f} s", style="bold")
    for note in report.quarantined:
        write_line(f"left out sample {note.index}, {note.name}: {note.reason}")
    write_line(f"Wrote {report.target}. Back again:")
    fields = "".join(f" --field {shlex.quote(name)}" for name in report.fields)
    write_line(f"  respipe convert {shlex.quote(report.target)} TARGET.beton{fields}")
