"""What ``respipe evaluate`` looks at: a trained model, and how its images are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from respipe.checks import check_choice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from respipe.backends.base import Interpolation
    from respipe.cost import TestSizeSuggestion
    from respipe.normalization import Normalize
    from respipe.planning.crops import Crop

_CALIBRATION_BATCH = 64
_TIMM_DEFAULT = 224


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
        autocast=_autocast(recipe.precision if recipe and precision == "auto" else precision, place),
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


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    import torch

    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"`--precision` must be auto, {', '.join(dtypes)}; got {precision!r}.")
    return dtypes[precision]
