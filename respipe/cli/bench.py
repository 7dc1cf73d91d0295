"""``respipe bench``: how fast this machine reads the user's own data at each image size."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from respipe.cli.arguments import AsJson, parse_integers, parse_names
from respipe.cli.console import progress, write_json, write_line, write_table


def bench(
    data: Annotated[str, typer.Argument(help="A .beton file, a folder or URL of several, or a class folder.")],
    sizes: Annotated[Any, typer.Option(parser=parse_integers, metavar="S,S,...", help="Image sides in pixels.")] = (
        "224,160,128,112,96"
    ),
    backends: Annotated[Any, typer.Option(parser=parse_names, metavar="NAME,...", help="Backends to measure.")] = (
        "auto"
    ),
    batches: Annotated[int, typer.Option(min=1, help="Batches per measurement.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads. Default: all cores.")] = None,
    device: Annotated[str, typer.Option(help="Where batches end up, such as cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure images per second at each size: the median of five rounds that take every size in turn.

    Example: respipe bench train.beton --sizes 224,160,128 --backends tiles,reference
    """
    import torch

    from respipe.cli.throughput import Sweep, measure_loaders
    from respipe.loading.loader import Loader

    ordered = tuple(sorted(set(sizes), reverse=True))
    arguments: dict[str, Any] = {"batch_size": batch_size, "num_threads": threads, "device": device}
    with contextlib.ExitStack() as stack:
        loaders: dict[str, Loader] = {}
        for backend in backends:
            loader = stack.enter_context(
                Loader(data, Sweep(ordered), backend=backend, dtype=torch.uint8, normalize=None, **arguments)
            )
            loaders.setdefault(loader.backend, loader)
        num_samples = len(next(iter(loaders.values())).dataset)
        with progress("measuring") as on_progress:
            results = measure_loaders(loaders, ordered, num_batches=batches, on_progress=on_progress)
    report = {"data": str(data), "num_samples": num_samples, **arguments, "num_batches": batches, "results": results}
    if as_json:
        write_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    write_line(
        f"{report['data']}: {report['num_samples']:,} samples, {report['num_batches']} batches of "
        f"{report['batch_size']} per measurement, median of {len(report['results'][0]['rounds'])} rounds"
    )
    largest = max(row["size"] for row in report["results"])
    write_table(
        ("backend", "size", "images/s", "lowest", "highest", f"time vs {largest} px", f"area vs {largest} px"),
        [
            (
                row["loader"],
                f"{row['size']} px",
                f"{row['images_per_second']:,.0f}",
                f"{min(row['rounds']):,.0f}",
                f"{max(row['rounds']):,.0f}",
                f"{row['time_ratio']:.2f}",
                f"{row['area_ratio']:.2f}",
            )
            for row in report["results"]
        ],
        left=("backend",),
    )
