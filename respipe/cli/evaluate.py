"""``respipe evaluate``: a trained model's accuracy and cost across test sizes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from respipe.cli.arguments import AsJson, parse_sizes
from respipe.cli.console import progress, write_json, write_line
from respipe.cli.evaluation_report import evaluation_report, show_evaluation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from respipe.cli.subject import Subject
    from respipe.evaluation import Activations, Evaluation
    from respipe.loading.loader import Loader

AS_TRAINED, CALIBRATED = "as trained", "BatchNorm calibrated"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or checkpoint.pt, or a file of weights.")],
    data: Annotated[str, typer.Argument(help="A .beton file, a folder or URL of several, or a class folder.")],
    sizes: Annotated[
        Any,
        typer.Option(
            parser=parse_sizes,
            metavar="SIZES",
            help="Image sides in pixels: 128,224 or first:last:step such as 96:448:32. Default: the recipe's.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What the weights are of: a torchvision name, timm:NAME, cifar:resnetDEPTH, module:callable."
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Outputs of the model. Default: as in the weights.")
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of a checkpoint that holds both.")
    ] = False,
    train_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels that it was trained at. Default: the recipe's or timm's.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average the logits of each image and its mirror image.")
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Training data, to also measure BatchNorm at each size first.")
    ] = None,
    calibration_batches: Annotated[int, typer.Option(min=1, help="Training batches for that, at each size.")] = 200,
    normalize: Annotated[
        str | None,
        typer.Option(help="imagenet, cifar10, cifar100 or none. Default: the recipe's, timm's, or imagenet."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="CenterCrop, ResizedCenterCrop or WholeImage. Default: the recipe's, timm's or CenterCrop."),
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="bilinear or bicubic. Default: timm's, or bilinear.")
    ] = None,
    indices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Numbers of the samples to use: .npy, or text, one on a line.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each sample's answers to a .parquet or .csv file.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for the GPU where there is one.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    backend: Annotated[str, typer.Option(help="That decodes the images.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads. Default: all cores.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw accuracy against size and against cost.")
    ] = None,
    activations: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw what the global pooling gives at each size.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a trained model's accuracy and cost at several test sizes.

    Example: respipe evaluate run val.beton --sizes 96:320:32
    """
    from respipe.cli.subject import read_subject

    subject = read_subject(
        checkpoint, model=model, classes=classes, sizes=sizes, train_size=train_size, normalize=normalize, crop=crop,
        interpolation=interpolation, precision=precision, device=device, ema=ema,
    )  # fmt: skip
    runtime: dict[str, Any] = {"backend": backend, "num_threads": threads}
    common: dict[str, Any] = {**runtime, "flip": flip, "batch_size": batch_size, "indices": _indices(indices)}
    with _one_note_of_the_backend():
        runs = {AS_TRAINED: _as_trained(subject, data, predictions=predictions, **common)}
        if calibrate is not None:
            runs[CALIBRATED] = _calibrated(subject, data, calibrate, calibration_batches, **common)
        measured = _activations(subject, data, activations, **runtime)
    report = evaluation_report(subject, runs, measured, checkpoint=str(checkpoint), data=str(data), flip=flip)
    if picture is not None:
        from respipe.plots import plot_evaluation

        plot_evaluation(report, picture)
    if as_json:
        write_json(report)
    else:
        show_evaluation(report)
        for path in (picture, activations, predictions):
            if path is not None:
                write_line(f"Wrote {path}")


def _indices(path: Path | None) -> NDArray[np.int64] | None:
    """Numbers of samples from a file."""
    if path is None:
        return None
    import numpy as np

    return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, np.int64, ndmin=1)


@contextlib.contextmanager
def _one_note_of_the_backend() -> Generator[None]:
    """Say which backend was chosen, but not for every pass over the data anew."""
    logger, seen = logging.getLogger("respipe.backends.registry"), set[str]()

    def unseen(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        known = text in seen
        seen.add(text)
        return not known

    logger.addFilter(unseen)
    try:
        yield
    finally:
        logger.removeFilter(unseen)


def _as_trained(subject: Subject, data: str, **options: Any) -> Sequence[Evaluation]:
    import respipe

    with progress("evaluating") as on_progress:
        return respipe.evaluate(subject.model, data, subject.sizes, progress=on_progress, **_common(subject), **options)


def _calibrated(
    subject: Subject, data: str, training_data: Path, num_batches: int, **options: Any
) -> Sequence[Evaluation]:
    from respipe.evaluation import evaluate_calibrated
    from respipe.loading.loader import Loader
    from respipe.schedules.constant import Constant

    def training_batches(size: int) -> Loader:
        return Loader(
            training_data, Constant(size), batch_size=subject.calibration_batch, backend=options["backend"],
            device=next(subject.model.parameters()).device, normalize=subject.normalize, crop=subject.train_crop,
            flip_probability=subject.flip_probability, num_threads=options["num_threads"],
        )  # fmt: skip

    with progress("evaluating, calibrated") as on_progress:
        return evaluate_calibrated(
            subject.model, data, subject.sizes, training_batches, num_batches=num_batches, progress=on_progress,
            **_common(subject), **options,
        )  # fmt: skip


def _activations(subject: Subject, data: str, picture: Path | None, **runtime: Any) -> Sequence[Activations]:
    if picture is None:
        return ()
    from respipe.evaluation import measure_activations
    from respipe.plots import plot_activations

    with progress("activations") as on_progress:
        measured = measure_activations(
            subject.model, data, subject.sizes, normalize=subject.normalize, crop=subject.crop,
            interpolation=subject.interpolation, progress=on_progress, **runtime,
        )  # fmt: skip
    plot_activations(measured, picture, train_size=subject.train_size)
    return measured


def _common(subject: Subject) -> dict[str, Any]:
    return {
        "normalize": subject.normalize,
        "crop": subject.crop,
        "interpolation": subject.interpolation,
        "autocast": subject.autocast,
        "classes": subject.classes,
    }
