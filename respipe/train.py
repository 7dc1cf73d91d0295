"""Train a classifier under a resolution schedule, on one process or many: what ``respipe train`` does, top to bottom.

A run is a recipe (:mod:`respipe.recipe`), training and validation data, and a folder, which receives ``checkpoint.pt``
and ``log.jsonl`` (:mod:`respipe.runs`). A killed run goes on from its checkpoint and ends as if it had never been
killed: nothing depends on hidden random state, because dropout and the like are seeded for each step on its own, and
the learning rate is a function of a step's place in the run.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from respipe import cost
from respipe.errors import NoEffectWarning
from respipe.evaluation import Evaluation, evaluate, evaluate_calibrated
from respipe.loading.loader import BatchTransform, Images, Loader
from respipe.model.adapt import adapt
from respipe.model.batchnorm import divided_batchnorms
from respipe.model.finetune import prepare_finetune
from respipe.model.loading import build_model, load_weights
from respipe.planning.crops import RandomCrop
from respipe.printable import printable
from respipe.recipe import Data, Jitter, LearningRate, Mixing, Optimizer, Recipe
from respipe.rng import Stream, step_seeds
from respipe.runs import (
    CHECKPOINT_NAME,
    Event,
    LogWriter,
    best_and_last,
    epoch_line,
    label_of,
    load_checkpoint,
    save_checkpoint,
)
from respipe.schedules import Constant, RSNet, Schedule, mean_batch_size
from respipe.storage.dataset import Dataset
from respipe.storage.open import open_dataset
from respipe.training.batches import ColorJitter, flip_each_size
from respipe.training.gradients import GradientSmoothing
from respipe.training.meter import EpochMeter
from respipe.training.objective import MRED, AllSizes
from respipe.training.passes import GraphedPasses, Passes, mixed_dtype
from respipe.training.processes import Process, process_group, share_buffers, wrap

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


# --- The run ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Run:
    """Everything that a run consists of.

    Args:
        recipe: recipe that it was made from.
        process: place among the processes.
        output: folder of checkpoint and log.
        data: training data.
        val: validation data, or None.
        loader: loader of the training data.
        classes: names of the classes, empty where the data has none.
        num_classes: length of the model's output.
        model: network itself.
        objective: network with its loss: images and labels to mean loss.
        criterion: loss alone, which may have parameters of its own.
        parallel: objective as it is trained, with gradients averaged over processes.
        autocast: dtype of mixed precision, None for float32.
        passes: passes that compute its gradients.
        optimizer: optimizer, whose learning rate is set before each step.
        lr_scale: factor of the recipe's learning rates.
        scaler: float16 loss scaler.
        history: epochs so far, as in the log.
        elapsed: seconds before ``started``.
        started: when this process took up the run.
    """

    recipe: Recipe
    process: Process
    output: Path
    data: str
    val: str | None
    loader: Loader
    classes: list[str]
    num_classes: int
    model: nn.Module
    objective: AllSizes
    criterion: nn.Module
    parallel: nn.Module
    autocast: torch.dtype | None
    passes: Passes
    optimizer: torch.optim.Optimizer
    lr_scale: float
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    elapsed: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time spent on the run so far."""
        return self.elapsed + time.perf_counter() - self.started


def train(
    recipe: Recipe,
    *,
    data: str,
    output: Path,
    val: str | None = None,
    init: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Sequence[Event]:
    """Train what a recipe says, in every process that ``torchrun`` started, or in this one alone.

    Args:
        recipe: recipe of the run; with ``init`` the one for tuning, see :func:`respipe.recipe.load_recipe`.
        data: training data: ``.beton`` file or class folder.
        output: folder for checkpoint and log.
        val: validation data; None trains without evaluation.
        init: weights to tune: checkpoint of a run, or a file with a ``state_dict``.
        resume: True goes on from the checkpoint in ``output``, if there is one.
        on_progress: called after each step.

    Returns:
        the epochs of the log.

    Raises:
        ValueError: the recipe does not fit the data, the machine or the checkpoint.
        RuntimeError: the training has diverged.
    """
    with process_group(recipe.runtime.device) as process:
        run = prepare(recipe, process, data=data, val=val, output=output, init=init)
        with run.loader:
            train_epochs(run, restore(run, resume=resume), on_progress or (lambda what, done, total: None))
        history = run.history
        del run  # and what it holds of the process group, which is about to end
    return history


def prepare(
    recipe: Recipe, process: Process, *, data: str, val: str | None, output: Path, init: Path | None = None
) -> Run:
    """Build data, model and optimizer; the same on every process."""
    if recipe.runtime.cuda_graphs and (process.device.type != "cuda" or process.world_size > 1):
        raise ValueError(
            "`runtime.cuda_graphs` must be false unless a single process trains on a GPU; got true for "
            f"{process.world_size} on {process.device}. Pass --set runtime.cuda_graphs=false."
        )
    torch.manual_seed(recipe.seed)
    schedule, autocast = recipe.build_schedule(), mixed_dtype(recipe.precision, process.device)
    with closing(open_dataset(data, on_demand=True)) as dataset:
        num_classes, classes = check_classes(recipe, dataset, val), list(dataset.classes or ())
    model = build_model(recipe.model.name, num_classes=num_classes, options=recipe.model.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning if process.is_main else UserWarning)
        model = adapt(model, schedule, **recipe.adaptation.model_dump())
    if init is not None:
        start_from(model, init, recipe)
    model.to(process.device)
    if recipe.channels_last:
        cast(Any, model).to(memory_format=torch.channels_last)
    objective = build_objective(model, recipe).to(process.device)
    criterion = cast(nn.Module, objective.criterion)
    alpha = [criterion.parameter_group(recipe.distillation.weight_decay)] if isinstance(criterion, MRED) else []
    parallel = wrap(objective, process, find_unused_parameters=leaves_parameters_unused(model, schedule))
    scaler = torch.amp.GradScaler(process.device.type, enabled=autocast == torch.float16)
    loader = build_loader(recipe, data, schedule, num_classes=num_classes, device=process.device)
    if process.is_main:
        warn_of_small_crops(loader)
    return Run(
        recipe=recipe,
        process=process,
        output=output,
        data=data,
        val=val,
        loader=loader,
        classes=classes,
        num_classes=num_classes,
        model=model,
        objective=objective,
        criterion=criterion,
        parallel=parallel,
        autocast=autocast,
        passes=(GraphedPasses if recipe.runtime.cuda_graphs else Passes)(parallel, autocast, scaler),
        optimizer=build_optimizer(model, recipe.optimizer, alpha),
        lr_scale=batch_scale(recipe, num_samples=len(loader.dataset)),
        scaler=scaler,
    )


def warn_of_small_crops(loader: Loader) -> None:
    """Say so where a recipe for small images would cut patches out of large ones."""
    crop, level = loader.crop, loader.dataset.levels[0]
    side = int(np.median(np.minimum(level.heights, level.widths)))
    if isinstance(crop, RandomCrop) and side >= 4 * crop.size:
        logger.warning(
            "crops are of %d x %d px, out of images whose shorter side is %d px in the median: this recipe is for "
            "small images. Pass --set data.crop.name=RandomResizedCrop, and an evaluation crop such as --set "
            "evaluation.crop.name=CenterCrop.",
            crop.size,
            crop.size,
            side,
        )


def restore(run: Run, *, resume: bool) -> EpochMeter | None:
    """Go on from the checkpoint, if asked to; returns the measurements of an epoch that was interrupted."""
    if not resume and (run.output / CHECKPOINT_NAME).exists():
        raise ValueError(f"`--output` must be a folder without a run; {run.output} has one. Pass --resume to go on.")
    checkpoint = load_checkpoint(run.output, identity(run.recipe)) if resume else None
    if checkpoint is None:
        return None
    run.model.load_state_dict(checkpoint["model"])
    run.criterion.load_state_dict(checkpoint["criterion"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    run.scaler.load_state_dict(checkpoint["scaler"])
    run.loader.load_state_dict(checkpoint["loader"])
    run.history, run.elapsed = checkpoint["history"], checkpoint["elapsed"]
    if run.process.is_main and run.loader.epoch >= run.recipe.epochs:
        logger.info("%s has all of its %d epochs already", run.output, run.recipe.epochs)
    elif run.process.is_main:
        logger.info("going on in epoch %d of %d at step %d", run.loader.epoch + 1, run.recipe.epochs, run.loader.step)
    if checkpoint["meter"] is None:
        return None
    meter = EpochMeter(run.process)
    meter.load_state_dict(checkpoint["meter"])
    return meter


def save(run: Run, meter: EpochMeter | None) -> None:
    """Write the checkpoint: after an epoch, or within one, with its measurements so far."""
    measured = meter.state_dict() if meter is not None else None
    if run.process.is_main:
        content = {
            "recipe": identity(run.recipe),
            "classes": run.classes,
            "model": run.model.state_dict(),
            "criterion": run.criterion.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "loader": run.loader.state_dict(),
            "meter": measured,
            "history": run.history,
            "elapsed": run.seconds(),
        }
        save_checkpoint(run.output, content)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that must not change when a run is resumed."""
    return recipe.model_dump(mode="json", exclude={"runtime"})


# --- Epochs and steps -------------------------------------------------------------------------------------------------


def train_epochs(run: Run, meter: EpochMeter | None, on_progress: OnProgress) -> None:
    """Train all epochs that are left, the first with the measurements of its steps before an interruption."""
    run.output.mkdir(parents=True, exist_ok=True)
    if run.process.device.type == "cuda" and run.loader.epoch < run.recipe.epochs:
        warm_up(run)
    with open_log(run) as log:
        for epoch in range(run.loader.epoch, run.recipe.epochs):
            run.loader.set_epoch(epoch)
            record = train_epoch(run, epoch, meter or EpochMeter(run.process), on_progress)
            meter = None
            record |= evaluate_epoch(run, epoch, on_progress)
            record["elapsed"] = run.seconds()
            run.history.append(record)
            log("epoch", **record)
            save(run, None)
            if run.process.is_main:
                logger.info("%s", epoch_line(record, run.recipe.epochs))
        scores = best_and_last(run.history).items()
        top1 = {str(size): {"best": best, "last": last} for size, (best, last) in scores}
        log("end", elapsed=run.seconds(), top1=top1)


def train_epoch(run: Run, epoch: int, meter: EpochMeter, on_progress: OnProgress) -> dict[str, Any]:
    """Train what is left of an epoch."""
    recipe, num_steps, rate = run.recipe, run.loader.num_steps(epoch), 0.0
    run.parallel.train()
    meter.restart_clock()
    batches = cast(Iterable[tuple[Images, torch.Tensor]], run.loader)
    for images, labels in batches:
        assert run.loader.last is not None, "a batch was delivered"
        step = run.loader.last[1]
        sizes = tuple(one.shape[-1] for one in (images if isinstance(images, tuple) else (images,)))
        meter.batch_arrived(sizes)
        rate = run.lr_scale * learning_rate(
            recipe.learning_rate, epoch=epoch, step=step, num_steps=num_steps, num_epochs=recipe.epochs
        )
        seed_step(recipe.seed, epoch, step, run.process.rank)
        meter.step_done(train_step(run, images, labels, rate), len(labels))
        on_progress(f"epoch {epoch + 1}/{recipe.epochs}, {label_of(sizes)} px", step + 1, num_steps)
        every = recipe.runtime.checkpoint_steps
        if every is not None and (step + 1) % every == 0 and step + 1 < num_steps:
            save(run, meter)
            meter.restart_clock()
    loss, seconds = meter.finish()
    if not math.isfinite(loss):
        raise RuntimeError(f"The loss of epoch {epoch} is {loss}: training has diverged. Lower learning_rate.peak.")
    measured = {
        label_of(sizes): {**asdict(totals), "images_per_second": totals.images_per_second}
        for sizes, totals in meter.sizes.items()
    }
    record: dict[str, Any] = {"epoch": epoch, "seconds": seconds, "train_loss": loss, "lr": rate, "sizes": measured}
    if isinstance(run.criterion, MRED):
        weights = zip(run.loader.schedule.sizes, cast(list[float], run.criterion.weights.tolist()), strict=True)
        record["ensemble"] = {str(size): weight for size, weight in weights}
    return record


def train_step(run: Run, images: Images, labels: torch.Tensor, rate: float) -> torch.Tensor:
    """One step of the optimizer on images of one size, or of several; returns the mean loss."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = run.passes(images, labels)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Give what a step draws (dropout and the like) a seed of its own, so that resuming needs no random state."""
    torch.manual_seed(step_seeds(seed, Stream.TRAINING, epoch=epoch, step=step, rank=rank)[0])


def warm_up(run: Run) -> None:
    """Prepare for every shape of batch, the largest first."""
    run.parallel.train()
    for images in run.loader.warmup_shapes():
        first = images if isinstance(images, torch.Tensor) else images[0]
        labels = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        if isinstance(run.recipe.data.batch_transform, Mixing):
            labels = F.one_hot(labels, run.num_classes).float()
        run.passes.prepare(images, labels)


def evaluate_epoch(run: Run, epoch: int, on_progress: OnProgress) -> dict[str, dict[str, dict[str, float]]]:
    """An epoch's accuracy at the recipe's sizes: ``eval``, empty in epochs without, and ``calibrated`` if asked for."""
    recipe, is_last = run.recipe, epoch + 1 == run.recipe.epochs
    if run.val is None or ((epoch + 1) % recipe.evaluation.every and not is_last):
        return {"eval": {}}
    share_buffers(run.model, run.process)

    def show(done: int, total: int) -> None:
        on_progress("evaluating", done, total)

    options: dict[str, Any] = {
        "batch_size": recipe.evaluation.batch_size,
        "backend": recipe.runtime.backend,
        "autocast": run.autocast,
        "normalize": recipe.data.normalize,
        "crop": recipe.evaluation.crop.build(),
        "num_threads": recipe.runtime.num_threads,
        "progress": show,
    }
    sizes, num_batches = recipe.evaluation.sizes, recipe.evaluation.calibration_batches
    results = {"eval": _accuracies(evaluate(run.model, run.val, sizes, **options))}
    if is_last and num_batches is not None:
        results["calibrated"] = _accuracies(
            evaluate_calibrated(
                run.model,
                run.val,
                sizes,
                lambda size: calibration_loader(run, size),
                num_batches=num_batches,
                **options,
            )
        )
    return results


def calibration_loader(run: Run, size: int) -> Loader:
    """Training batches of one size, of crops that no epoch of the training had."""
    loader = Loader(
        run.data,
        Constant(size),
        batch_size=run.recipe.data.batch_size,
        flip_probability=run.recipe.data.flip_probability,
        **_images(run.recipe, run.process.device),
    )
    loader.set_epoch(run.recipe.epochs)
    return loader


def _accuracies(results: Iterable[Evaluation]) -> dict[str, dict[str, float]]:
    return {str(result.size): {"top1": result.top1, "top5": result.top5, "loss": result.loss} for result in results}


@contextmanager
def open_log(run: Run) -> Generator[Callable[..., None]]:
    """Write the log's first line and give what writes the others; on the main process only."""
    if not run.process.is_main:
        yield _write_nothing
        return
    with closing(LogWriter(run.output, tensorboard=run.recipe.runtime.tensorboard)) as log:
        if run.loader.epoch or run.loader.step:
            log.write("resume", epoch=run.loader.epoch, step=run.loader.step)
        else:
            count = cost.counted(run.model)
            log.write(
                "start",
                recipe=run.recipe.model_dump(mode="json"),
                schedule=repr(run.loader.schedule),
                world_size=run.process.world_size,
                device=str(run.process.device),
                backend=run.loader.backend,
                num_samples=len(run.loader.dataset),
                steps_per_epoch=run.loader.num_steps(0),
                num_steps=run.loader.total_steps(run.recipe.epochs),
                lr_scale=run.lr_scale,
                macs={str(size): count(size) for size in run.loader.schedule.sizes},
            )
        yield log.write


def _write_nothing(_event: str, **_fields: Any) -> None:
    pass


# --- Data, loss and optimizer -----------------------------------------------------------------------------------------


def build_loader(recipe: Recipe, data: str, schedule: Schedule, *, num_classes: int, device: torch.device) -> Loader:
    """The loader of the training data, whose batches have the dtype that the model computes in."""
    return Loader(
        data,
        schedule,
        batch_size=recipe.data.batch_size,
        flip_probability=0.0 if recipe.data.flip_each_size else recipe.data.flip_probability,
        repeats=recipe.data.repeats,
        batch_transform=build_batch_transform(recipe.data, num_classes=num_classes),
        num_prefetch=recipe.runtime.num_prefetch,
        **_images(recipe, device),
    )


def _images(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """How training images are made, whatever their sizes."""
    return {
        "backend": recipe.runtime.backend,
        "device": device,
        "dtype": mixed_dtype(recipe.precision, device) or torch.float32,
        "normalize": recipe.data.normalize,
        "seed": recipe.seed,
        "crop": recipe.data.crop.build(),
        "num_threads": recipe.runtime.num_threads,
    }


def build_batch_transform(recipe: Data, *, num_classes: int) -> BatchTransform | None:
    """What the loader is to do to every batch, or None."""
    if recipe.flip_each_size:
        return flip_each_size
    choice = recipe.batch_transform
    if choice is None:
        return None
    if isinstance(choice, Jitter):
        return ColorJitter(**choice.model_dump(exclude={"name"}), normalize=recipe.normalize)
    mixing = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}
    return mixing[choice.name](alpha=choice.alpha, num_classes=num_classes)


def check_classes(recipe: Recipe, train: Dataset, val: str | None) -> int:
    """The length of the model's output, once training and validation data are known to have the same classes."""
    labels = train.labels
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "`--data` must have one class per sample; it has none. Convert a class folder, or train a loss of your own "
            "with respipe.Loader in a loop of your own."
        )
    num_classes = recipe.model.num_classes or int(labels.max()) + 1
    if labels.max() >= num_classes:
        raise ValueError(
            f"`model.num_classes` must cover every label; got {num_classes} and a label {labels.max()}. Pass "
            f"--set model.num_classes={labels.max() + 1}."
        )
    if val is not None:
        with closing(open_dataset(val, on_demand=True)) as dataset:
            ours, theirs = ([*map(printable, names or ())] for names in (train.classes, dataset.classes))
            if ours and theirs and ours != theirs:
                differing = sorted({*ours} ^ {*theirs})[:5]
                how = f"only one of them has {differing}" if differing else f"in their order, not {theirs[:5]}"
                raise ValueError(
                    f"`--val` must have the classes of `--data`; {how}. Give both the "
                    "same subfolders, or convert it with --classes-from the training data."
                )
    return num_classes


class SumOfCrossEntropies(nn.Module):
    """Cross entropy at each size of a step, added up.

    Args:
        label_smoothing: share in [0, 1) of the target that all classes divide evenly.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Turn logits (N, K) of each size, and labels (N,) or (N, K), into the mean loss of a sample."""
        losses = [F.cross_entropy(one, labels, label_smoothing=self.label_smoothing) for one in logits]
        return torch.stack(losses).sum()


def build_objective(model: nn.Module, recipe: Recipe) -> AllSizes:
    """The network and its loss as one module, called with the images of a step and their labels."""
    num_sizes, distillation = sizes_per_step(recipe.build_schedule()), recipe.distillation
    if num_sizes == 1 or distillation.teachers == "none":
        criterion: nn.Module = SumOfCrossEntropies(label_smoothing=recipe.label_smoothing)
    else:
        is_full = distillation.teachers == "larger"
        criterion = MRED(num_sizes, full=is_full, label_smoothing=recipe.label_smoothing)
    return AllSizes(model, criterion, recompute=recipe.runtime.recompute)


def sizes_per_step(schedule: Schedule) -> int:
    """How many sizes a step of one of respipe's schedules shows its images at."""
    return len(schedule.sizes) if isinstance(schedule, RSNet) else 1


def leaves_parameters_unused(model: nn.Module, schedule: Schedule) -> bool:
    """Whether a step has no gradient for some parameters: of BatchNorms private to sizes that it does not show."""
    has_private = any(list(norm.per_size.parameters()) for norm in divided_batchnorms(model).values())
    return has_private and sizes_per_step(schedule) < len(schedule.sizes)


def start_from(model: nn.Module, path: Path, recipe: Recipe) -> None:
    """Give a model the weights of a trained one and prepare it to be tuned as its recipe says.

    Raises:
        ValueError: the weights cannot be read or are of another model, or the recipe names layers that it lacks.
    """
    assert recipe.finetune is not None, "recipes for tuning have this part"
    try:
        load_weights(model, path, name=recipe.model.name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--init` must name weights of the recipe's model: {error}") from error
    size = recipe.build_schedule().base_size
    prepare_finetune(model, bn_affine=recipe.finetune.bn_affine, layers=recipe.finetune.layers, size=size)


def build_optimizer(model: nn.Module, recipe: Optimizer, more_groups: Sequence[dict[str, Any]] = ()) -> torch.optim.SGD:
    """Make the optimizer of a model and of ``more_groups`` of parameters; its rate is set before every step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Convolutions and linear layers have weights of two or more dimensions; norms and biases have one.
    decayed = [parameter for parameter in parameters if recipe.decay_all or parameter.ndim > 1]
    others = [parameter for parameter in parameters if not recipe.decay_all and parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
        *more_groups,
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]], lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov
    )
    if recipe.smoothing is not None:
        GradientSmoothing(optimizer, alpha=recipe.smoothing)  # kept and saved by the optimizer
    return optimizer


def batch_scale(recipe: Recipe, *, num_samples: int) -> float:
    """What the recipe multiplies its peak learning rate by, for the batches that its schedule plans."""
    if recipe.learning_rate.scale is None:
        return 1.0
    batch_size, over = recipe.data.batch_size, recipe.learning_rate.scale
    epochs = range(recipe.epochs)
    mean = mean_batch_size(
        recipe.build_schedule(), epochs=epochs, num_samples=num_samples, batch_size=batch_size, over=over
    )
    return mean / batch_size


def learning_rate(recipe: LearningRate, *, epoch: int, step: int, num_steps: int, num_epochs: int) -> float:
    """The learning rate of one step, unscaled: a function of its place in the run, so that resuming needs no state.

    Args:
        recipe: peak, warm-up and decay.
        epoch: number of the epoch, from 0.
        step: number of the step within the epoch, from 0.
        num_steps: steps of this epoch.
        num_epochs: length of the run.
    """
    position = epoch + step / num_steps
    if position < recipe.warmup_epochs:
        # The end of the step counts, because a first step at rate 0 would be lost.
        return recipe.peak * min(1.0, (epoch + (step + 1) / num_steps) / recipe.warmup_epochs)
    if recipe.decay == "step":
        return recipe.peak * recipe.factor ** sum(epoch >= milestone for milestone in recipe.milestones)
    share = (position - recipe.warmup_epochs) / max(num_epochs - recipe.warmup_epochs, 1e-9)
    return recipe.peak * 0.5 * (1 + math.cos(math.pi * share))
