"""Self-supervised pretraining on several crops of each image: ``python -m pipelines.selfsupervised TRAIN --val VAL``.

SimCLR (arXiv 2002.05709): each of two crops of an image is to be nearer to the other than to the crops of any other
image of the batch; with ``--local``, so are the smaller crops of SwAV (arXiv 2006.09882). Before and after, images
are classified by their nearest neighbours among the training images, which tells what the features are good for: by
chance, one over the number of classes. A small ResNet and small crops, so that a CPU will do::

    python -m pipelines.demo_images .demo/images
    python -m pipelines.selfsupervised .demo/images/train --val .demo/images/val --output .demo/simclr

``--output`` keeps ``checkpoint.pt``; run again with it, training goes on behind the last epoch.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import respipe
from respipe.augment import ColorJitter, RandomApply, RandomGrayscale
from respipe.model.resnet_cifar import ResNetCifar
from respipe.sampling import CenterCrop
from respipe.schedules import Constant, MultiCrop, View

NEIGHBOURS = 20
# As in SimCLR, at half the paper's strength and without blur, of which crops of this size have enough.
AUGMENT = (RandomApply(ColorJitter(0.4, 0.4, 0.4, 0.1), probability=0.8), RandomGrayscale(0.2))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and return the mean loss of each epoch."""
    options = argument_parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    model = Encoder(width=options.width).to(options.device, memory_format=torch.channels_last)
    views = [View(options.size, 2, scale=(0.4, 1.0))]
    if options.local:
        views.append(View(options.size // 2, options.local, scale=(0.15, 0.4)))
    schedule = MultiCrop(views)
    if options.val:
        report("before training", model, options)
    losses = list[float]()
    with respipe.Loader(
        options.train, schedule, batch_size=options.batch_size, augment=AUGMENT, seed=options.seed,
        device=options.device, backend=options.backend,
    ) as loader:  # fmt: skip
        steps = loader.total_steps(options.epochs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=1e-4)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.1)
        parts = {"model": model, "optimizer": optimizer, "rate": rate, "loader": loader}
        path = options.output / "checkpoint.pt" if options.output else None
        if path is not None and path.exists():
            saved = torch.load(path, weights_only=True)
            losses = saved.pop("losses")
            for name, state in saved.items():
                parts[name].load_state_dict(state)
        for epoch in range(loader.epoch, options.epochs):
            found = [step_loss.item() for step_loss in train(model, loader, optimizer, rate, options.temperature)]
            losses.append(sum(found) / len(found))
            print(f"epoch {epoch}: loss {losses[-1]:.3f}", flush=True)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save({name: part.state_dict() for name, part in parts.items()} | {"losses": losses}, path)
    if options.val:
        report("after training", model, options)
    return losses


def report(when: str, model: Encoder, options: argparse.Namespace) -> None:
    """Print how many validation images their nearest neighbours classify right."""
    print(f"{NEIGHBOURS} nearest neighbours {when}: {nearest_neighbours(model, options):.1%} right", flush=True)


class Encoder(nn.Module):
    """A ResNet-8, and the two layers behind it whose output alone is trained on."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.network = ResNetCifar(8, width=width, num_classes=1, stem_stride=2)
        dimension = self.network.head.in_features
        self.network.head = nn.Identity()
        self.projector = nn.Sequential(
            nn.Linear(dimension, dimension, bias=False), nn.BatchNorm1d(dimension), nn.ReLU(),
            nn.Linear(dimension, 64, bias=False), nn.BatchNorm1d(64),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) images to (B, 64) directions."""
        return F.normalize(self.projector(self.network(images)), dim=1)


def train(
    model: Encoder,
    loader: respipe.Loader,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    temperature: float,
) -> Iterator[torch.Tensor]:
    """The loss of each step of an epoch."""
    model.train()
    for crops, _ in loader:
        # Crops of one size are one batch for the network, as in DINO's code.
        groups = [list(group) for _, group in itertools.groupby(crops, key=lambda crop: crop.shape[-1])]
        embedded = [part for group in groups for part in model(torch.cat(group)).chunk(len(group))]
        loss = contrastive_loss(embedded, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        yield loss.detach()


def contrastive_loss(crops: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding an image's first or second crop among those of the batch, for each other crop.

    Args:
        crops: (B, D) of length 1 each, crops of the same B images.
        temperature: of the softmax.
    """
    right = torch.arange(len(crops[0]), device=crops[0].device)
    return torch.stack(
        [
            F.cross_entropy(crop @ target.T / temperature, right)
            for number, target in enumerate(crops[:2])
            for other, crop in enumerate(crops)
            if other != number
        ]
    ).mean()


def nearest_neighbours(model: Encoder, options: argparse.Namespace) -> float:
    """Share of the validation images whose class most of their nearest training images have."""
    (known, labels), (asked, wanted) = (features(model, path, options) for path in (options.train, options.val))
    nearest = labels[(asked @ known.T).topk(min(NEIGHBOURS, len(known))).indices]
    return (nearest.mode(dim=1).values == wanted).double().mean().item()


@torch.inference_mode()
def features(model: Encoder, data: Path, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) directions of all images before the projector, and their labels."""
    model.eval()
    with respipe.Loader(
        data, Constant(options.size), batch_size=options.batch_size, training=False, crop=CenterCrop(),
        device=options.device, backend=options.backend,
    ) as loader:  # fmt: skip
        found = [(F.normalize(model.network(images), dim=1), labels) for images, labels in loader]
    return torch.cat([one for one, _ in found]), torch.cat([labels for _, labels in found])


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.selfsupervised", description="Pretrain without labels.")
    parser.add_argument("train", type=Path, help="a .beton file, or a folder with one subfolder per class")
    parser.add_argument("--val", type=Path, help="likewise, to classify by nearest neighbours")
    parser.add_argument("--output", type=Path, help="folder for the checkpoint")
    parser.add_argument("--size", type=int, default=32, help="side of the two large crops; the small ones' is half")
    parser.add_argument("--local", type=int, default=0, help="number of small crops")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    main()
