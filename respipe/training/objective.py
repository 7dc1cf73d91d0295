"""A network and its loss as one module, and what its sizes teach each other where a step shows several at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

Criterion = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


class AllSizes(nn.Module):
    """Pass the images of every size through ``model`` and compute one loss of all outputs.

    In one process it saves a line. ``DistributedDataParallel`` needs it: around this module, DDP sees a step as one
    forward pass, and averages the gradients of a loss with parameters of its own (:class:`respipe.MRED`) too. ::

        both = DistributedDataParallel(AllSizes(model, respipe.MRED(5)))
        for images, labels in loader:      # images: a tuple, the largest size first
            both(images, labels).backward()

    Weights keep their names in ``model``, which is evaluated and saved by itself.

    Args:
        model: takes (N, 3, S, S) images of every size.
        criterion: takes the outputs of all sizes, in the order of the images, and the labels; a module where it has
            parameters.
        recompute: hold the activations of one size at a time. The first pass keeps only the outputs; the backward pass
            computes each size again, adds its gradients to those of the others, and frees it. Gradients, random numbers
            and buffers (BatchNorm's statistics) end up as without; the price is a second forward pass, and the memory
            that of the largest size alone instead of all (2.76 times as much for RS-Net's five sizes).
    """

    def __init__(self, model: nn.Module, criterion: Criterion, *, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.criterion, self.recompute = model, criterion, recompute

    def forward(self, images: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The loss of one step.

        Args:
            images: of each size, or of a single one.
            labels: as ``criterion`` takes them.
        """
        images = (images,) if isinstance(images, torch.Tensor) else images
        return self.criterion([self._output(one) for one in images], labels)

    def _output(self, images: torch.Tensor) -> torch.Tensor:
        if not self.recompute:
            return self.model(images)
        contexts = partial(_first_and_second_pass, self.model)
        return cast(torch.Tensor, checkpoint(self.model, images, use_reentrant=False, context_fn=contexts))


def _first_and_second_pass(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _spare_buffers(model)


@contextmanager
def _spare_buffers(model: nn.Module) -> Generator[None]:
    """Let ``model`` write to copies of its buffers, because the first pass has updated them already."""
    # Swapped, not restored afterwards: autograd refuses tensors that were written to since it saw them.
    holders = [
        module._buffers  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        for module in cast(Iterable[nn.Module], model.modules())
    ]
    kept = [dict(buffers) for buffers in holders]
    for buffers in holders:
        buffers.update({name: None if one is None else one.clone() for name, one in buffers.items()})
    try:
        yield
    finally:
        for buffers, own in zip(holders, kept, strict=True):
            buffers.update(own)


class MRED(nn.Module):
    """Multi-resolution ensemble distillation, the loss of RS-Nets (arXiv 2007.09558, equations 5 to 10).

    With z_s the logits at the s-th largest of S sizes, p_s their softmax and y the labels::

        z_0 = sum_s w_s z_s,  w = softmax(alpha)                            the ensemble
        classification  = sum_s CE(z_s, y)
        ensemble        = CE(z_0, y)
        distillation    = 2 / (S + 1) sum_{t = 0}^{S - 1} sum_{s > t} KL(p_t || p_s)     full
                        = sum_s KL(p_0 || p_s)                                           vanilla

    The loss is the sum of the three, each a mean over samples. Teachers p_t are constants, and so are the logits within
    z_0: alpha learns from the ensemble's loss alone, the network from all else. Computed in float32 at least.

    Dense predictions (N, K, H, W) are first resized to the labels, which have the side of the largest images
    (bilinear). Labels of -100 do not count as labels; distillation takes place there all the same.

    alpha is a parameter, so it belongs to an optimizer (:meth:`parameter_group`), to the checkpoint, and into
    ``DistributedDataParallel``: see :class:`respipe.training.objective.AllSizes`.

    Args:
        num_sizes: S.
        full: every size teaches all smaller ones, beside the ensemble; else the ensemble alone teaches.
        label_smoothing: of both cross entropies, in [0, 1].

    Raises:
        ValueError: a field is out of range.
    """

    def __init__(self, num_sizes: int, full: bool = True, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if num_sizes < 1:
            raise ValueError(f"`num_sizes` must be at least 1; got {num_sizes}. Pass the number of sizes of a step.")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"`label_smoothing` must lie between 0 and 1; got {label_smoothing}.")
        self.full, self.label_smoothing = full, label_smoothing
        self.alpha = nn.Parameter(torch.ones(num_sizes))

    @property
    def weights(self) -> torch.Tensor:
        """(S,) weights w of the sizes in the ensemble, the largest size first; they sum to 1."""
        return self.alpha.detach().softmax(0)

    def parameter_group(self, weight_decay: float = 0.0) -> dict[str, Any]:
        """The group of alpha for an optimizer: without weight decay unless given (the released code decays it).

        ::

            torch.optim.SGD([{"params": model.parameters()}, loss.parameter_group()], lr=0.1, weight_decay=1e-4)
        """
        return {"params": [self.alpha], "weight_decay": weight_decay}

    def forward(self, logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The loss of one step.

        Args:
            logits: S tensors (N, K), or (N, K, H, W) of any H and W; the largest size first, as :class:`respipe.Loader`
                yields images.
            labels: (N,) int64, or (N, K) floating probabilities; (N, H, W) or (N, K, H, W) for dense predictions.

        Returns:
            a tensor without dimensions.

        Raises:
            ValueError: there are not S tensors of logits, or they differ in shape.
        """
        students = self._prepared(logits, labels)
        weights = self.alpha.to(students[0].dtype).softmax(0)
        ensemble = sum((w * z.detach() for w, z in zip(weights, students, strict=True)), torch.zeros_like(students[0]))
        hard = torch.stack([self._cross_entropy(z, labels) for z in (*students, ensemble)]).sum()
        return hard + self._distillation([ensemble, *students])

    def _prepared(self, logits: Sequence[torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
        """The logits in one shape and in float32 at least."""
        if isinstance(logits, torch.Tensor) or len(logits) != len(self.alpha):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"{len(logits)} of them"
            raise ValueError(
                f"`logits` must be {len(self.alpha)} tensors, one for each size; got {shape}. Pass those of all sizes."
            )
        wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in logits]
        if wide[0].ndim == 4:
            side = labels.shape[-2:]
            wide = [
                one if one.shape[-2:] == side else F.interpolate(one, size=side, mode="bilinear", align_corners=False)
                for one in wide
            ]
        if len({one.shape for one in wide}) > 1:
            shapes = ", ".join(str(tuple(one.shape)) for one in wide)
            raise ValueError(f"`logits` must be of the same samples and classes; got shapes {shapes}.")
        return wide

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def _distillation(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """What is learned from teachers; ``logits`` are z_0 to z_S."""
        log_p = [one.log_softmax(1) for one in logits]
        teachers, factor = (log_p[:-1], 2 / len(logits)) if self.full else (log_p[:1], 1.0)
        terms = [
            _divergence(teacher.detach(), student)
            for place, teacher in enumerate(teachers)
            for student in log_p[place + 1 :]
        ]
        return factor * torch.stack(terms).sum()


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q): summed over classes, averaged over all else."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean()
