"""``respipe index``, ``merge`` and ``split``: datasets of several ``.beton`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from respipe.cli.console import bytes_on_disk, num_bytes, progress, write_line

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")]


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
