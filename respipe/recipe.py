"""What a training run consists of: a YAML file, checked field by field before anything else happens.

The one reader of recipes, for the trainer, ``respipe plan``, ``respipe evaluate`` and checkpoints. Those that come with
respipe lie in ``respipe/recipes`` and are known by their names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from respipe.planning.crops import CenterCrop, Crop, RandomCrop, ResizedCenterCrop, ShiftedCenterCrop, WholeImage
from respipe.planning.random_resized_crop import RandomResizedCrop
from respipe.printable import like
from respipe.schedules import RSNet, Schedule
from respipe.schedules.parsing import SCHEDULES, schedule_from_config

RECIPES = Path(__file__).parent / "recipes"

CROPS = {
    crop.__name__: crop
    for crop in (CenterCrop, RandomCrop, RandomResizedCrop, ResizedCenterCrop, ShiftedCenterCrop, WholeImage)
}

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CropChoice(BaseModel):
    """A crop by name, with its own fields beside it: ``{name: RandomCrop, size: 32, padding: 4}``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Literal[
        "CenterCrop", "RandomCrop", "RandomResizedCrop", "ResizedCenterCrop", "ShiftedCenterCrop", "WholeImage"
    ]  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> CropChoice:
        self.build()
        return self

    def build(self) -> Crop:
        """Make the crop.

        Raises:
            ValueError: a field is unknown or out of range.
        """
        try:
            return CROPS[self.name](**(self.model_extra or {}))
        except TypeError as error:
            raise ValueError(f"{self.name} cannot be built: {error}") from error


class Model(Section):
    """The network.

    Args:
        name: ``resnet50`` (torchvision), ``timm:resnet50d`` or ``cifar:resnet56``.
        num_classes: length of the output; default: the classes of the training data.
        options: further arguments of the model.
    """

    name: str
    num_classes: Count | None = None
    options: dict[str, Any] = {}


class Adaptation(Section):
    """What the network gets for the sizes of its schedule; see :func:`respipe.adapt`.

    Args:
        batchnorm: ``shared`` by all sizes, or private (``per_size``); ``auto`` is private for RSNet and LowMode.
        kernels: ``pooled`` below the base size, or always ``full``; ``auto`` pools for LowMode.
        layers: names of the convolutions that are pooled; null for those of the paper.
        reduce: ``mean`` or ``sum`` of a kernel's weights.
        drop_maxpool: leave out the stem's max-pooling where kernels are pooled.
    """

    batchnorm: Literal["auto", "shared", "per_size"] = "auto"
    kernels: Literal["auto", "full", "pooled"] = "auto"
    layers: tuple[str, ...] | None = None
    reduce: Literal["mean", "sum"] = "mean"
    drop_maxpool: bool = True


class Distillation(Section):
    """What the sizes of a step teach each other; see :class:`respipe.MRED`. Only for schedules of several at once.

    Args:
        teachers: ``larger``: the ensemble of all sizes, and every size those smaller than it; ``ensemble``: that alone;
            ``none``: every size learns from the labels by itself.
        weight_decay: of the weights of the ensemble.
    """

    teachers: Literal["larger", "ensemble", "none"] = "larger"
    weight_decay: NonNegative = 0.0


class Mixing(Section):
    """torchvision's ``v2.MixUp`` or ``v2.CutMix`` on every training batch.

    Args:
        name: which of them.
        alpha: of the Beta distribution that the mixing ratio is drawn from.
    """

    name: Literal["MixUp", "CutMix"]
    alpha: Annotated[float, Field(gt=0)] = 1.0


class Jitter(Section):
    """:class:`respipe.ColorJitter` of every training image.

    Args:
        name: ``ColorJitter``.
        brightness, contrast, saturation: how far each may change.
    """

    name: Literal["ColorJitter"]
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0


class Data(Section):
    """How training batches are made; see :class:`respipe.Loader`.

    Args:
        batch_size: global batch size at the schedule's base size.
        crop: of the training images.
        flip_probability: of mirroring a crop.
        flip_each_size: where a step shows a crop at several sizes, whether each of them is mirrored on its own, with
            probability 1/2, instead of all alike.
        normalize: a preset of the loader, or null for values in 0..1.
        repeats: uses of each sample in a row: repeated augmentation.
        batch_transform: ``MixUp``, ``CutMix`` or ``ColorJitter`` with its fields, or null.
    """

    batch_size: Count = 256
    crop: CropChoice = CropChoice(name="RandomResizedCrop")
    flip_probability: Share = 0.5
    flip_each_size: bool = False
    normalize: Literal["imagenet", "cifar10", "cifar100"] | None = "imagenet"
    repeats: Count = 1
    batch_transform: Annotated[Mixing | Jitter, Field(discriminator="name")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.flip_each_size and self.batch_transform is not None:
            raise ValueError("`flip_each_size` must be false beside a batch_transform. Leave one of them out.")
        return self


class Optimizer(Section):
    """Stochastic gradient descent.

    Args:
        momentum: of the gradient.
        nesterov: whether the momentum looks ahead.
        weight_decay: L2 penalty, as part of the gradient.
        decay_all: whether BatchNorm's parameters and biases decay too, as in most papers.
        smoothing: weight of the past in :class:`respipe.GradientSmoothing`; null leaves the gradients as they are.
    """

    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 1e-4
    decay_all: bool = True
    smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None


class LearningRate(Section):
    """The learning rate at every step; see :func:`respipe.train.learning_rate`.

    Args:
        peak: after the warm-up.
        decay: ``step`` multiplies by ``factor`` at each milestone; ``cosine`` falls to 0 at the end of the run.
        milestones: first epochs that run with a lower rate.
        factor: of each step.
        warmup_epochs: over which the rate rises linearly from near 0.
        scale: ``steps`` multiplies ``peak`` by the run's mean batch over ``data.batch_size``, ``samples`` by the mean
            over its samples; see :func:`respipe.schedules.mean_batch_size`. Null leaves it as it is.
    """

    peak: Annotated[float, Field(gt=0)]
    decay: Literal["step", "cosine"] = "step"
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegative = 0.0
    scale: Literal["steps", "samples"] | None = None


class Evaluation(Section):
    """Accuracy on the validation data.

    Args:
        sizes: sides in pixels to evaluate at; default: the schedule's base size.
        every: epochs between evaluations; the last epoch is always evaluated.
        batch_size: global batch size.
        crop: of the evaluation images.
        calibration_batches: training batches by which BatchNorm's statistics are measured at each size for a second
            evaluation after the last epoch; null for none.
    """

    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = ()  # of the schedule, see Recipe
    every: Count = 1
    batch_size: Count = 256
    crop: CropChoice = CropChoice(name="CenterCrop")
    calibration_batches: Count | None = None


class FineTuning(Section):
    """Tuning of the trained network at another size, which a run with ``--init`` does.

    Args:
        layers, bn_affine: which of its layers learn; see :func:`respipe.prepare_finetune`.
        schedule, epochs: instead of the recipe's.
        data, optimizer, learning_rate, evaluation: fields of these parts that differ from the recipe's.
    """

    layers: tuple[str, ...] | None = None
    bn_affine: bool = False
    schedule: dict[str, Any] | None = None
    epochs: Count | None = None
    data: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    learning_rate: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Runtime(Section):
    """Where and how the run is carried out. May differ when a run is resumed.

    Args:
        device: ``auto`` takes the GPU where there is one.
        backend: of the loader.
        num_threads: decoding threads per process; default: the cores it may use.
        num_prefetch: batches of the largest size decoded ahead, or as many smaller ones as take the same memory.
        cuda_graphs: launch the passes of a step as a whole, which small networks need on one GPU; see
            :class:`respipe.training.passes.GraphedPasses`. Not with ``recompute``.
        recompute: where a step shows several sizes, hold the activations of one at a time, for a second forward pass.
        checkpoint_steps: also save every so many steps within an epoch; null saves after each epoch only.
        tensorboard: write TensorBoard logs too.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "dali", "ffcv", "reference", "tiles"] = "auto"
    num_threads: Count | None = None
    num_prefetch: Count = 3
    cuda_graphs: bool = False
    recompute: bool = False
    checkpoint_steps: Count | None = None
    tensorboard: bool = True

    @model_validator(mode="after")
    def _check(self) -> Runtime:
        if self.cuda_graphs and self.recompute:
            raise ValueError("`cuda_graphs` must be false beside `recompute`, whose second pass a graph cannot record.")
        return self


class Recipe(Section):
    """A whole run.

    Args:
        model, adaptation, data, optimizer, learning_rate, distillation, evaluation, runtime: its parts.
        finetune: how the trained network is tuned, with ``--init``.
        schedule: ``name`` of a class in :mod:`respipe.schedules` and its fields.
        epochs: length of the run.
        seed: of the weights, the data and everything else that is drawn.
        label_smoothing: of the loss.
        precision: ``auto`` is bfloat16 autocast on a GPU and plain float32 on the CPU.
        channels_last: memory format of the model.
    """

    model: Model
    schedule: dict[str, Any]
    learning_rate: LearningRate
    epochs: Count
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "auto"
    channels_last: bool = True
    adaptation: Adaptation = Adaptation()
    optimizer: Optimizer = Optimizer()
    distillation: Distillation = Distillation()
    finetune: FineTuning | None = None
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        schedule = self.build_schedule()
        if isinstance(schedule, RSNet) and isinstance(self.data.batch_transform, Mixing):
            raise ValueError(
                "`data.batch_transform` must mix nothing where a step shows several sizes; got "
                f"{self.data.batch_transform.name} beside {schedule!r}: it would mix the images of one size only."
            )
        if self.evaluation.sizes:
            return self
        sized = self.evaluation.model_copy(update={"sizes": (schedule.base_size,)})
        return self.model_copy(update={"evaluation": sized})

    def build_schedule(self) -> Schedule:
        """Make the schedule. It gets the recipe's ``epochs`` and ``seed`` where it takes such and does not say its own.

        Raises:
            ValueError: a field is unknown or out of range.
        """
        config = dict(self.schedule)
        make = SCHEDULES.get(config.get("name", ""))
        if make is not None and "seed" in inspect.signature(make).parameters:
            config.setdefault("seed", self.seed)
        return schedule_from_config(config, num_epochs=self.epochs)


def recipe_names() -> list[str]:
    """Names of the recipes that come with respipe."""
    return sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))


def load_recipe(
    path: str,
    overrides: Sequence[str] = (),
    *,
    finetune: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file, or the name of one that comes with respipe.
        overrides: ``key=value`` with a dotted key and a YAML value, such as ``data.batch_size=128``.
        finetune: True reads it for tuning: with what its ``finetune`` says in place of its own fields. ``overrides``
            change the result.
        defaults: parts that the file may leave out.

    Raises:
        ValueError: the file or an override is not a recipe; the message names each wrong field.
        OSError: the file cannot be read.
    """
    file = Path(path) if Path(path).is_file() else RECIPES / f"{path.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        raise ValueError(
            f"`RECIPE` must be a YAML file or one of {', '.join(recipe_names())}; got {path!r}"
            f"{like(path, recipe_names())}."
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"`RECIPE` must hold a mapping; {file} holds {type(content).__name__}.")
        content = {**defaults, **cast(dict[str, Any], content)}
        if finetune:
            if content.get("finetune") is None:
                raise ValueError(
                    f"`RECIPE` must have a `finetune` part for a run with --init; {file} has none. Add one, as "
                    "fixres_imagenet has."
                )
            content = _for_finetuning(content)
        for override in overrides:
            content = _override(content, override)
        recipe = Recipe.model_validate(content)
        if recipe.finetune is not None:  # so that a mistake is found before the training that comes first
            Recipe.model_validate(_for_finetuning(content))
        return recipe
    except yaml.YAMLError as error:
        raise ValueError(f"`RECIPE` must be YAML; {file}: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{file} is not a valid recipe:\n{explain(error)}") from error


def _for_finetuning(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what its ``finetune`` part says in place of its own fields."""
    changes = FineTuning.model_validate(content["finetune"]).model_dump(exclude_unset=True)
    own = {key: changes.pop(key) for key in ("layers", "bn_affine") if key in changes}
    result = {**content, "finetune": own}
    for key, value in changes.items():
        if key in {"schedule", "epochs"}:
            result[key] = value
        else:
            for field, inner in value.items():
                result = _replaced(result, [key, field], inner)
    return result


_NUMBERS = re.compile(r"\d+(,\d+)+")


def _override(content: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not (equals and key):
        raise ValueError(f"`--set` must be key=value; got {override!r}. Write for example data.batch_size=128.")
    keys, parsed = key.split("."), yaml.safe_load(value)
    if isinstance(parsed, str) and _NUMBERS.fullmatch(parsed):  # as commands take sizes
        parsed = [int(number) for number in parsed.split(",")]
    if keys[-2:] in (["schedule", "name"], ["crop", "name"]):  # of another kind, with fields of its own
        keys, parsed = keys[:-1], {"name": parsed}
    return _replaced(content, keys, parsed)


def _replaced(content: Mapping[str, Any], keys: Sequence[str], value: object) -> dict[str, Any]:
    first, *rest = keys
    inner = content.get(first)
    own = cast(dict[str, Any], inner) if isinstance(inner, dict) else {}
    return {**content, first: _replaced(own, rest, value) if rest else value}


def explain(error: ValidationError) -> str:
    """A line for each wrong field: its name, the rule and the value."""
    lines = list[str]()
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        found = "" if problem["type"] in {"missing", "value_error"} else f"; got {problem['input']!r}"
        rule = "There is no such field" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"  {f'`{field}`: ' if field else ''}{rule.removeprefix('Value error, ')}{found}")
    return "\n".join(lines)
