"""Three ways to serve another test size: ``python -m pipelines.fixres CHECKPOINT --data TRAIN --val VAL --sizes S,S``.

Evaluates a trained classifier at each size as it is, with BatchNorm calibrated at the size, and with its last layers
fine-tuned at the size as FixRes does (arXiv 1906.06423): the classifier learns and the last BatchNorm before the global
pooling renews its statistics, on training images that are cropped as test images are. The rate is the paper's for a
ResNet-50, 8 x 0.001 for a batch of 512 in proportion to the batch, a tenth of it in the second half.

``CHECKPOINT`` is a run of ``pipelines/train.py``, or a file of weights from anywhere with ``--model``, as for ``respipe
evaluate``, which also explains the options for images. What it leaves in ``--output``, where that is given:

    results.json   what ``respipe evaluate --json`` writes, with three runs
    accuracy.png   accuracy by size and by cost, where matplotlib is installed
    SIZE.pt        the weights that were tuned at each size
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

import respipe
from respipe.cli.arguments import parse_sizes
from respipe.cli.evaluate import (
    AS_TRAINED,
    CALIBRATED,
    Subject,
    evaluation_report,
    read_subject,
    show_evaluation,
)
from respipe.errors import MissingBackendError, RespipeError
from respipe.evaluation import Evaluation, evaluate_calibrated
from respipe.plots import plot_evaluation
from respipe.sampling import Crop
from respipe.schedules import Constant

logger = logging.getLogger(__name__)

FINE_TUNED = "fine-tuned"


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argument_parser()
    options = parser.parse_args(arguments)
    try:
        subject = read_subject(
            options.checkpoint, model=options.model, classes=options.classes, sizes=options.sizes,
            train_size=options.train_size, normalize=options.normalize, crop=options.crop,
            interpolation=None, precision=options.precision, device=options.device,
        )  # fmt: skip
    except (ValueError, OSError, RespipeError) as error:
        parser.error(str(error))
    runs = compare(subject, options)
    report = evaluation_report(
        subject, runs, (), checkpoint=str(options.checkpoint), data=options.val, flip=False, epochs=options.epochs
    )
    show_evaluation(report)
    if options.output is not None:
        write(report, options.output)


def argument_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.fixres", description="Compare three ways to serve a model at other sizes."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder, or a file of weights")
    parser.add_argument("--data", required=True, help="training data: .beton file or class folder")
    parser.add_argument("--val", required=True, help="validation data: .beton file or class folder")
    parser.add_argument("--sizes", type=parse_sizes, help="sides in pixels, such as 128,224 or 96:448:32")
    parser.add_argument("--output", type=Path, help="folder for results, picture and tuned weights")
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning at each size (the paper: 60)")
    parser.add_argument("--batch-size", type=int, default=512, help="of fine-tuning")
    parser.add_argument("--rate", type=float, help="of fine-tuning; default: 8 x 0.001 x batch / 512")
    parser.add_argument("--calibration-batches", type=int, default=200, help="training batches at each size")
    parser.add_argument("--model", help="of the weights: resnet50, timm:NAME, cifar:resnetDEPTH or module:callable")
    parser.add_argument("--classes", type=int, help="outputs of the model; default: as in the weights")
    parser.add_argument("--train-size", type=int, help="side that it was trained at; default: the recipe's or timm's")
    parser.add_argument("--normalize", help="imagenet, cifar10, cifar100 or none")
    parser.add_argument("--crop", help="of the test images: CenterCrop or WholeImage")
    parser.add_argument("--precision", default="auto", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    return parser


def compare(subject: Subject, options: argparse.Namespace) -> dict[str, list[Evaluation]]:
    """Results by size for each of the three ways."""
    images = {"normalize": subject.normalize, "crop": subject.crop, "autocast": subject.autocast}

    def training_batches(size: int) -> respipe.Loader:
        batch_size = subject.calibration_batch
        return loader_at(subject, options.data, size, batch_size, subject.train_crop, subject.flip_probability)

    with Progress(transient=True) as bars:

        def bar(title: str) -> Callable[[int, int], None]:
            task = bars.add_task(title)
            return lambda done, total: bars.update(task, completed=done, total=total)

        as_trained = respipe.evaluate(
            subject.model, options.val, subject.sizes, progress=bar(AS_TRAINED), **images
        )  # fmt: skip
        calibrated = evaluate_calibrated(
            subject.model, options.val, subject.sizes, training_batches,
            num_batches=options.calibration_batches, progress=bar(CALIBRATED), **images,
        )  # fmt: skip
        fine_tuned = list[Evaluation]()
        for size in subject.sizes:
            model = tuned(subject, options, size, bar(f"{FINE_TUNED} at {size} px"))
            fine_tuned += respipe.evaluate(model, options.val, size, **images)
    return {AS_TRAINED: as_trained, CALIBRATED: calibrated, FINE_TUNED: fine_tuned}


def tuned(
    subject: Subject, options: argparse.Namespace, size: int, on_progress: Callable[[int, int], None]
) -> nn.Module:
    """A copy of the model whose last layers learnt on training images of a size, cropped as test images are."""
    model = respipe.prepare_finetune(respipe.extract(subject.model, size), size=size).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peak = options.rate or 8e-3 * options.batch_size / 512
    optimizer = torch.optim.SGD(learning, lr=peak, momentum=0.9, weight_decay=1e-4)
    mixed = torch.autocast(
        learning[0].device.type, dtype=subject.autocast or torch.bfloat16, enabled=subject.autocast is not None
    )
    done = count(1)
    with loader_at(subject, options.data, size, options.batch_size, subject.crop, 0.0) as loader:
        total = loader.total_steps(options.epochs)
        for epoch in range(options.epochs):
            optimizer.param_groups[0]["lr"] = peak if 2 * epoch < options.epochs else peak / 10
            loader.set_epoch(epoch)
            for images, labels in loader:
                with mixed:
                    loss = nn.functional.cross_entropy(model(images).float(), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                on_progress(next(done), total)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), options.output / f"{size}.pt")
    return model


def loader_at(
    subject: Subject, data: str, size: int, batch_size: int, crop: Crop, flip_probability: float
) -> respipe.Loader:
    """Training batches of one size."""
    return respipe.Loader(
        data, Constant(size), batch_size=batch_size, device=next(subject.model.parameters()).device,
        normalize=subject.normalize, crop=crop, flip_probability=flip_probability,
    )  # fmt: skip


def write(report: dict[str, Any], output: Path) -> None:
    """Leave results and picture in a folder."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    try:
        plot_evaluation(report, output / "accuracy.png")
    except MissingBackendError as error:
        logger.warning("no picture: %s", error)


if __name__ == "__main__":
    main()
