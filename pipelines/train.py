"""Train a classifier under a resolution schedule, on one process or many.

::

    python -m pipelines.train RECIPE --data TRAIN --val VAL --output DIR
    torchrun --nproc-per-node 8 -m pipelines.train RECIPE --data TRAIN --val VAL --output DIR --resume
    python -m pipelines.train RECIPE --data TRAIN --val VAL --output DIR --init DIR/checkpoint.pt

``RECIPE`` is a YAML file (see ``pipelines/recipe.py``) or the name of one in ``pipelines/recipes``. ``TRAIN`` and
``VAL`` are ``.beton`` files or folders with one subfolder per class. With ``--init`` the trained network is tuned
instead, as the ``finetune`` part of the recipe says.

``DIR`` receives ``checkpoint.pt`` and ``log.jsonl``. With ``--resume`` a killed run goes on from its checkpoint and
ends as if it had never been killed: nothing depends on hidden random state, because dropout and the like are seeded for
each step on its own.

``log.jsonl`` holds one JSON object a line. Shares are in 0..1, times in seconds; ``seconds`` is the training time of an
epoch, ``elapsed`` that of the run with evaluation. ``calibrated`` has the form of ``eval`` and is there in the last
epoch, where the recipe asks for it. Steps of several sizes count as one of ``32+24+16`` px, their images once, and
``ensemble`` is what each size weighs in the teacher of all. A resumed run may write an epoch again: the later line
counts. ::

    {"event": "start", "recipe": {...}, "schedule": "TRD(...)", "world_size": 1, "device": "cpu", "backend": "ffcv",
     "num_samples": 50000, "steps_per_epoch": 390, "num_steps": 63960, "lr_scale": 1.0, "macs": {"32": 9e7, "16": 2e7}}
    {"event": "resume", "epoch": 3, "step": 0}
    {"event": "epoch", "epoch": 0, "seconds": 9.1, "elapsed": 9.9, "train_loss": 2.1, "lr": 0.1,
     "sizes": {"32": {"steps": 390, "images": 49920, "seconds": 9.1, "wait_seconds": 0.1, "images_per_second": 5486}},
     "eval": {"32": {"top1": 0.3, "top5": 0.8, "loss": 1.9}}, "calibrated": {...}}
    {"event": "end", "elapsed": 99.0, "top1": {"32": {"best": 0.9, "last": 0.9}}}
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

import respipe
from pipelines import report
from pipelines.checkpoint import NAME, load_checkpoint, save_checkpoint
from pipelines.data import build_loader, check_classes
from pipelines.distributed import Process, process_group, share_buffers, wrap
from pipelines.evaluation import Accuracies, evaluate_sizes, evaluate_sizes_calibrated
from pipelines.finetune import start_from
from pipelines.metrics import EpochMeter, RunLog, label_of
from pipelines.objective import build_objective, leaves_parameters_unused
from pipelines.optimization import batch_scale, build_optimizer, learning_rate
from pipelines.passes import GraphedPasses, Passes
from respipe.errors import NoEffectWarning, RespipeError
from respipe.loading.loader import Images
from respipe.model.loading import build_model
from respipe.recipe import Mixing, Recipe, load_recipe

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """Everything that a run consists of.

    Args:
        recipe: what it was made from.
        process: its place among the processes.
        output: folder of checkpoint and log.
        data: training data.
        val: validation data, or None.
        loader: of the training data.
        num_classes: length of the model's output.
        model: the network itself.
        objective: the network with its loss: images and labels to mean loss.
        parallel: the objective as it is trained, with gradients averaged over processes.
        passes: compute its gradients.
        optimizer: its learning rate is set before each step.
        lr_scale: what the recipe's learning rates are multiplied by.
        scaler: of the loss, for float16 only.
        history: the epochs so far, as in the log.
        elapsed: seconds before ``started``.
        started: when this process took up the run.
    """

    recipe: Recipe
    process: Process
    output: Path
    data: str
    val: str | None
    loader: respipe.Loader
    num_classes: int
    model: nn.Module
    objective: respipe.AllSizes
    parallel: nn.Module
    passes: Passes
    optimizer: torch.optim.Optimizer
    lr_scale: float
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]] = field(default_factory=list)
    elapsed: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time spent on the run so far."""
        return self.elapsed + time.perf_counter() - self.started


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argument_parser()
    options = parser.parse_args(arguments)
    overrides = [*options.set, *([f"epochs={options.epochs}"] if options.epochs is not None else [])]
    try:
        recipe = load_recipe(options.recipe, overrides, finetune=options.init is not None)
    except ValueError as error:
        parser.error(str(error))
    with process_group(recipe.runtime.device) as process:
        console = Console(quiet=not process.is_main)
        logging.getLogger().setLevel(logging.INFO if process.is_main else logging.ERROR)
        try:
            run = prepare(recipe, process, data=options.data, val=options.val, output=options.output, init=options.init)
            meter = restore(run, resume=options.resume)
        except (ValueError, RespipeError) as error:
            parser.error(str(error))
        logging.getLogger("respipe.backends").setLevel(logging.WARNING)  # each evaluation would name its backend again
        with run.loader:
            train(run, console, meter)
        console.print(report.speed_table(run.history), report.accuracy_table(run.history))
        del run  # and what it holds of the process group, which is about to end


def argument_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.train", description="Train a classifier under a resolution schedule."
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of one in pipelines/recipes")
    parser.add_argument("--data", required=True, help="training data: .beton file or class folder")
    parser.add_argument("--val", help="validation data: .beton file or class folder")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoint and logs")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT",
                        help="tune this network: checkpoint.pt of a run, or a file with a state_dict")  # fmt: skip
    parser.add_argument("--epochs", type=int, help="length of the run, instead of the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a field of the recipe, such as data.batch_size=128")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    return parser


def prepare(
    recipe: Recipe, process: Process, *, data: str, val: str | None, output: Path, init: Path | None = None
) -> Run:
    """Build data, model and optimizer; the same on every process."""
    if recipe.runtime.cuda_graphs and (process.device.type != "cuda" or process.world_size > 1):
        raise ValueError(
            "`runtime.cuda_graphs` must be false but for a single process on a GPU; got true for "
            f"{process.world_size} on {process.device}. Pass --set runtime.cuda_graphs=false."
        )
    torch.manual_seed(recipe.seed)
    schedule = recipe.build_schedule()
    with closing(respipe.open_dataset(data)) as dataset:
        num_classes = check_classes(recipe, dataset, val)
    loader = build_loader(recipe, data, num_classes=num_classes, device=process.device)
    model = build_model(recipe.model.name, num_classes=num_classes, options=recipe.model.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning if process.is_main else UserWarning)
        model = respipe.adapt(model, schedule, **recipe.adaptation.model_dump())
    if init is not None:
        start_from(model, init, recipe)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(process.device, memory_format=memory_format)
    objective = build_objective(model, recipe).to(process.device)
    criterion = objective.criterion
    alpha = [criterion.parameter_group(recipe.distillation.weight_decay)] if isinstance(criterion, respipe.MRED) else []
    parallel = wrap(objective, process, find_unused_parameters=leaves_parameters_unused(model, schedule))
    scaler = torch.amp.GradScaler(process.device.type, enabled=recipe.precision == "float16")
    kind = GraphedPasses if recipe.runtime.cuda_graphs else Passes
    return Run(
        recipe=recipe,
        process=process,
        output=output,
        data=data,
        val=val,
        loader=loader,
        num_classes=num_classes,
        model=model,
        objective=objective,
        parallel=parallel,
        passes=kind(parallel, recipe.precision, scaler),
        optimizer=build_optimizer(model, recipe.optimizer, alpha),
        lr_scale=batch_scale(recipe, num_samples=len(loader.dataset)),
        scaler=scaler,
    )


def restore(run: Run, *, resume: bool) -> EpochMeter | None:
    """Go on from the checkpoint, if asked to; returns the measurements of an epoch left in its midst."""
    if not resume and (run.output / NAME).exists():
        raise ValueError(f"`--output` must be a folder without a run; {run.output} has one. Pass --resume to go on.")
    checkpoint = load_checkpoint(run.output, identity(run.recipe)) if resume else None
    if checkpoint is None:
        return None
    run.model.load_state_dict(checkpoint["model"])
    run.objective.criterion.load_state_dict(checkpoint["criterion"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    run.scaler.load_state_dict(checkpoint["scaler"])
    run.loader.load_state_dict(checkpoint["loader"])
    run.history, run.elapsed = checkpoint["history"], checkpoint["elapsed"]
    if checkpoint["meter"] is None:
        return None
    meter = EpochMeter(run.process)
    meter.load_state_dict(checkpoint["meter"])
    return meter


def save(run: Run, meter: EpochMeter | None) -> None:
    """Write the checkpoint: after an epoch, or, with its measurements so far, in its midst."""
    measured = meter.state_dict() if meter is not None else None
    if run.process.is_main:
        content = {
            "recipe": identity(run.recipe),
            "model": run.model.state_dict(),
            "criterion": run.objective.criterion.state_dict(),
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


def train(run: Run, console: Console, meter: EpochMeter | None) -> None:
    """Train all epochs that are left."""
    run.output.mkdir(parents=True, exist_ok=True)
    if run.process.device.type == "cuda" and run.loader.epoch < run.recipe.epochs:
        warm_up(run)
    log = open_log(run)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("")
            for epoch in range(run.loader.epoch, run.recipe.epochs):
                run.loader.set_epoch(epoch)
                record = train_epoch(run, epoch, meter or EpochMeter(run.process), progress, bar)
                meter = None
                record |= evaluate(run, epoch, progress, bar)
                record["elapsed"] = run.seconds()
                run.history.append(record)
                if log is not None:
                    log.write("epoch", **record)
                save(run, None)
                console.print(report.epoch_line(record, run.recipe.epochs), highlight=False, soft_wrap=True)
        if log is not None:
            scores = report.best_and_last(run.history).items()
            top1 = {str(size): {"best": best, "last": last} for size, (best, last) in scores}
            log.write("end", elapsed=run.seconds(), top1=top1)
    finally:
        if log is not None:
            log.close()


def warm_up(run: Run) -> None:
    """Prepare for every shape of batch, the largest first."""
    run.parallel.train()
    for images in run.loader.warmup_shapes():
        first = images if isinstance(images, torch.Tensor) else images[0]
        labels = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        if isinstance(run.recipe.data.batch_transform, Mixing):
            labels = nn.functional.one_hot(labels, run.num_classes).float()
        run.passes.prepare(images, labels)


def open_log(run: Run) -> RunLog | None:
    """The log, on the main process only, with its first line written."""
    if not run.process.is_main:
        return None
    log = RunLog(run.output, tensorboard=run.recipe.runtime.tensorboard)
    if run.loader.epoch or run.loader.step:
        log.write("resume", epoch=run.loader.epoch, step=run.loader.step)
    else:
        count = respipe.cost.counted(run.model)
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
    return log


def train_epoch(run: Run, epoch: int, meter: EpochMeter, progress: Progress, bar: TaskID) -> dict[str, Any]:
    """Train what is left of an epoch."""
    recipe, num_steps = run.recipe, run.loader.num_steps(epoch)
    run.parallel.train()
    progress.reset(bar, total=num_steps, completed=run.loader.step, description=f"epoch {epoch + 1}/{recipe.epochs}")
    meter.restart_clock()
    rate = 0.0
    for images, labels in run.loader:
        sizes = tuple(one.shape[-1] for one in (images if isinstance(images, tuple) else (images,)))
        meter.batch_arrived(sizes)
        assert run.loader.last is not None
        _, step = run.loader.last
        rate = run.lr_scale * learning_rate(
            recipe.learning_rate, epoch=epoch, step=step, num_steps=num_steps, num_epochs=recipe.epochs
        )
        seed_step(recipe.seed, epoch, step, run.process.rank)
        loss = train_step(run, images, labels, rate)
        meter.step_done(loss, len(labels))
        progress.update(bar, advance=1, description=f"epoch {epoch + 1}/{recipe.epochs}, {label_of(sizes)} px")
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
    record = {"epoch": epoch, "seconds": seconds, "train_loss": loss, "lr": rate, "sizes": measured}
    return record | ensemble_weights(run)


def ensemble_weights(run: Run) -> dict[str, dict[str, float]]:
    """What each size weighs in the ensemble that teaches all of them, as ``ensemble``; empty where there is none."""
    criterion = run.objective.criterion
    if not isinstance(criterion, respipe.MRED):
        return {}
    weights = zip(run.loader.schedule.sizes, criterion.weights.tolist(), strict=True)
    return {"ensemble": {str(size): weight for size, weight in weights}}


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
    words = np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def evaluate(run: Run, epoch: int, progress: Progress, bar: TaskID) -> dict[str, Accuracies]:
    """An epoch's accuracy at the recipe's sizes: ``eval``, empty in epochs without, and ``calibrated`` if asked for."""
    recipe, is_last = run.recipe.evaluation, epoch + 1 == run.recipe.epochs
    if run.val is None or ((epoch + 1) % recipe.every and not is_last):
        return {"eval": {}}
    share_buffers(run.model, run.process)
    progress.reset(bar, description="evaluating")

    def show(done: int, total: int) -> None:
        progress.update(bar, completed=done, total=total)

    results = {"eval": evaluate_sizes(run.model, run.recipe, run.val, sizes=recipe.sizes, on_progress=show)}
    num_batches = recipe.calibration_batches
    if is_last and num_batches is not None:
        results["calibrated"] = evaluate_sizes_calibrated(
            run.model, run.recipe, run.val, data=run.data, num_batches=num_batches, on_progress=show
        )
    return results


if __name__ == "__main__":
    main()
