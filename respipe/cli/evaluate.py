"""``respipe evaluate``: a trained model's accuracy and cost across test sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from respipe.checks import check_choice
from respipe.cli.arguments import AsJson, parse_sizes
from respipe.cli.console import progress, write_json, write_line, write_table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from respipe.backends.base import Interpolation
    from respipe.cost import TestSizeSuggestion
    from respipe.evaluation import Activations, Evaluation
    from respipe.loading.loader import Loader
    from respipe.normalization import Normalize
    from respipe.planning.crops import Crop

_CALIBRATION_BATCH = 64
_TIMM_DEFAULT = 224

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
    subject = read_subject(
        checkpoint, model=model, classes=classes, sizes=sizes, train_size=train_size, normalize=normalize, crop=crop,
        interpolation=interpolation, precision=precision, device=device, ema=ema,
    )  # fmt: skip
    runtime: dict[str, Any] = {"backend": backend, "num_threads": threads}
    common: dict[str, Any] = {**runtime, "flip": flip, "batch_size": batch_size, "indices": _indices(indices)}
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


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model, and how its images are made: from the command line, else its recipe, else the usual.

    Args:
        model: on the device where it is to run.
        name: of the model.
        sizes: sides in pixels to evaluate at.
        train_size: side in pixels that it was trained at, None if unknown.
        normalize: as for :class:`respipe.Loader`.
        crop: of the evaluation images.
        train_crop: of the training images.
        flip_probability: of mirroring a training image.
        calibration_batch: images of a batch for calibration.
        autocast: dtype of mixed precision, None for float32.
        classes: names of the model's outputs in order, None if unknown.
        interpolation: filter that the evaluation images are resized with.
    """

    model: nn.Module
    name: str
    sizes: tuple[int, ...]
    train_size: int | None
    normalize: Normalize
    crop: Crop
    train_crop: Crop
    flip_probability: float
    calibration_batch: int
    autocast: torch.dtype | None
    classes: tuple[str, ...] | None = None
    interpolation: Interpolation = "bilinear"


def read_subject(
    checkpoint: Path,
    *,
    model: str | None,
    classes: int | None,
    sizes: tuple[int, ...] | None,
    train_size: int | None,
    normalize: str | None,
    crop: str | None,
    interpolation: str | None,
    precision: str,
    device: str,
    ema: bool = False,
) -> Subject:
    """Load a checkpoint.

    Raises:
        ValueError: it holds no weights of the model, no size is known, or the model does not take one.
        OSError: there is no such file.
    """
    import torch

    from respipe.backends.base import Interpolation
    from respipe.loading.placement import check_device
    from respipe.model.loading import load_trained_model
    from respipe.sampling import CenterCrop, RandomResizedCrop
    from respipe.training.passes import mixed_dtype

    place = check_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    trained = load_trained_model(checkpoint, model, num_classes=classes, ema=ema)
    recipe, known = trained.recipe, _timm_config(trained.model)
    train_size = train_size or (recipe.build_schedule().base_size if recipe else known.get("train_size"))
    sizes = sizes or (recipe.evaluation.sizes if recipe else known.get("sizes"))
    if not sizes:
        raise ValueError("`--sizes` must be given where no recipe names them. Pass for example --sizes 96:448:32.")
    interpolation = interpolation or ("bilinear" if recipe else known.get("interpolation", "bilinear"))
    check_choice("--interpolation", interpolation, get_args(Interpolation))
    usual = recipe.evaluation.crop.build() if recipe else known.get("crop", CenterCrop())
    if normalize is None:
        images: Normalize = recipe.data.normalize if recipe else known.get("normalize", "imagenet")
    else:
        images = normalize if normalize != "none" else None
    name = model or (recipe.model.name if recipe else None)
    assert name is not None, "a checkpoint without a recipe is loaded by the name of its model"
    return Subject(
        model=_fitted(trained.model, sizes, train_size).to(place),
        name=name,
        sizes=sizes,
        train_size=train_size,
        normalize=images,
        crop=_crop(crop) if crop else usual,
        train_crop=recipe.data.crop.build() if recipe else RandomResizedCrop(),
        flip_probability=recipe.data.flip_probability if recipe else 0.5,
        calibration_batch=recipe.data.batch_size if recipe else _CALIBRATION_BATCH,
        autocast=mixed_dtype(recipe.precision if recipe and precision == "auto" else precision, place),
        classes=trained.classes,
        interpolation=cast("Interpolation", interpolation),
    )


def suggestion_for(subject: Subject) -> TestSizeSuggestion | None:
    """The test size that its training crops suggest; None where these keep the size of objects, or are unknown."""
    from respipe.cost import suggest_test_size
    from respipe.model.adapt import total_stride
    from respipe.sampling import RandomResizedCrop

    crop = subject.train_crop
    if subject.train_size is None or not isinstance(crop, RandomResizedCrop):
        return None
    ratio = getattr(subject.crop, "ratio", 1.0)
    stride = total_stride(subject.model, subject.train_size) or 32
    return suggest_test_size(subject.train_size, area=crop.scale, crop_ratio=ratio, stride=stride)


def _timm_config(model: nn.Module) -> dict[str, Any]:
    """What a model of timm says of the images that it is made for, and that it is evaluated on by timm."""
    from respipe.backends.base import Interpolation
    from respipe.sampling import ResizedCenterCrop

    config = cast(object, getattr(model, "pretrained_cfg", None))
    if not isinstance(config, Mapping):
        return {}
    config = cast(Mapping[str, Any], config)
    known: dict[str, Any] = {"train_size": int(config.get("input_size", (3, _TIMM_DEFAULT, _TIMM_DEFAULT))[-1])}
    if "mean" in config and "std" in config:
        known["normalize"] = tuple(config["mean"]), tuple(config["std"])
    if config.get("interpolation") in get_args(Interpolation):
        known["interpolation"] = config["interpolation"]
    if config.get("crop_pct"):
        known["crop"] = ResizedCenterCrop(config["crop_pct"], config.get("crop_mode") or "center")
        known["sizes"] = (known["train_size"],)
    return known


def _fitted(model: nn.Module, sizes: tuple[int, ...], train_size: int | None) -> nn.Module:
    """The model with pooling that takes every size, once it is known that it does."""
    from respipe.model.adapt import adapt, make_pooling_adaptive
    from respipe.schedules.rsnet import RSNet

    if train_size is not None:
        make_pooling_adaptive(model, train_size)
    adapt(model, RSNet(sizes), batchnorm="shared")
    return model


def _crop(name: str) -> Crop:
    from pydantic import ValidationError

    from respipe.recipe import CROPS, CropChoice

    if name not in CROPS:
        raise ValueError(f"`--crop` must be one of {', '.join(CROPS)}; got {name!r}.")
    try:
        return CropChoice.model_validate({"name": name}).build()
    except ValidationError as error:
        raise ValueError(f"`--crop` must be a crop without fields, such as WholeImage; {name} needs some.") from error


def evaluation_report(
    subject: Subject,
    runs: Mapping[str, Sequence[Evaluation]],
    activations: Sequence[Activations],
    **source: Any,
) -> dict[str, Any]:
    """Everything that ``respipe evaluate`` shows, ready for JSON and for :func:`respipe.plots.plot_evaluation`.

    Args:
        subject: what was evaluated.
        runs: results by how the model was adapted to the size.
        activations: of the model as trained, if measured.
        source: where model and data came from, and whether mirror images were shown too.
    """
    suggestion = suggestion_for(subject)
    return {
        **source,
        "model": subject.name,
        "train_size": subject.train_size,
        "normalize": subject.normalize,
        "crop": repr(subject.crop),
        "interpolation": subject.interpolation,
        "precision": str(subject.autocast or "torch.float32").removeprefix("torch."),
        "num_samples": next(iter(runs.values()))[0].num_samples,
        "runs": [{"name": name, "results": [result.to_dict() for result in results]} for name, results in runs.items()],
        "activations": [one.to_dict() for one in activations],
        "suggestion": suggestion and {"size": suggestion.size, "reason": suggestion.reason},
    }


def show_evaluation(report: Mapping[str, Any]) -> None:
    """Write the report as tables."""
    flips = ", mean of the logits of image and mirror image" if report["flip"] else ""
    write_line(f"{report['model']} on {report['data']}", style="bold")
    write_line(
        f"{report['num_samples']:,} samples, {report['crop']}, {report['interpolation']}, {report['precision']}{flips}"
    )
    suggestion = report["suggestion"]
    notes = {report["train_size"]: "trained at"}
    if suggestion is not None:
        notes[suggestion["size"]] = "suggested"
    for run in report["runs"]:
        write_line()
        if len(report["runs"]) > 1:
            write_line(run["name"], style="bold")
        best = max(run["results"], key=lambda row: row["top1"])["size"]
        write_table(
            ("size", "top-1", "top-5", "loss", "GMACs", ""),
            [
                (
                    f"{row['size']} px",
                    f"{row['top1']:.2%}",
                    f"{row['top5']:.2%}",
                    f"{row['loss']:.3f}",
                    "?" if row["macs"] is None else f"{row['macs'] / 1e9:.4g}",
                    ", ".join(
                        note for note in (notes.get(row["size"]), "best" if row["size"] == best else None) if note
                    ),
                )
                for row in sorted(run["results"], key=lambda row: row["size"])
            ],
            left=("",),
        )
    if report["activations"]:
        write_line()
        write_table(
            ("size", "zeros after pooling", "mean", "std"),
            [
                (f"{row['size']} px", f"{row['zeros']:.2%}", f"{row['mean']:.4g}", f"{row['std']:.4g}")
                for row in sorted(report["activations"], key=lambda row: row["size"])
            ],
        )
    if suggestion is not None:
        write_line()
        write_line(suggestion["reason"])


def _indices(path: Path | None) -> NDArray[np.int64] | None:
    """Numbers of samples from a file; of a text, whatever of each line is before a #."""
    if path is None:
        return None
    import numpy as np

    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        lines = path.read_text(encoding="utf-8").splitlines()
        return np.array(" ".join(line.partition("#")[0] for line in lines).replace(",", " ").split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"`--indices` must be a .npy file or a text of whole numbers; {path} is not: {error}."
        ) from error


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
