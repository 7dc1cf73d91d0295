"""Which images of a batch are mixed with which, how much: mixup and CutMix, drawn ahead of time."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int, check_number, check_probability
from respipe.rng import Stream, beta, scattered_draws

Mode = Literal["batch", "pair", "elem"]


class MixPlan(NamedTuple):
    """How each of B images is mixed.

    Args:
        partners: (B,) int64, number of the image that is mixed in.
        weights: (B,) float64, share of the image itself; 1 leaves it as it is.
        cut: (B,) bool, whether a rectangle is replaced (CutMix); else values are averaged (mixup).
        centres: (B, 2) float64, row and column of the rectangle's centre as shares of the side.
    """

    partners: NDArray[np.int64]
    weights: NDArray[np.float64]
    cut: NDArray[np.bool_]
    centres: NDArray[np.float64]

    def rectangles(self, size: int) -> NDArray[np.float64]:
        """(B, 4): top, left, bottom and right at a side of ``size`` pixels, cut off at the edges; empty for mixup."""
        side = np.floor(size * np.sqrt(np.where(self.cut, 1 - self.weights, 0)))[:, None]
        centres = np.floor(size * self.centres)
        return np.concatenate([centres - side // 2, centres + (side + 1) // 2], axis=1).clip(0, size)

    def shares(self, size: int) -> NDArray[np.float64]:
        """(B,): how much of each image's label is its own, by the area that a rectangle really covers."""
        top, left, bottom, right = self.rectangles(size).T
        return np.where(self.cut, 1 - (bottom - top) * (right - left) / size**2, self.weights)


@dataclass(frozen=True)
class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) with timm's meaning, of samples that are neighbours.

    Labels become (B, ``num_classes``) float32. The samples 2 i and 2 i + 1 of a batch are mixed with each other, copy
    by copy, so the number of ranks changes nothing. Where samples come several times in a row (``repeats``), an image
    is mixed with the one half a batch further on, and what meets depends on the ranks.

    Args:
        mixup: parameter of the beta distribution of mixup's weights; 0 leaves mixup out.
        cutmix: likewise for CutMix.
        probability: share of the batches, pairs or images that are mixed.
        switch_probability: share of CutMix where there is mixup, too.
        mode: what gets parameters of its own: each "batch", "pair" or "elem" (image).
        label_smoothing: share of each label that is spread over all classes; of vectors of labels, drawn towards 0.5.
        num_classes: number of classes; None for those of the dataset.
        off_epoch: first epoch without mixing, where labels stay smoothed vectors; None for never.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    _: KW_ONLY
    probability: float = 1.0
    switch_probability: float = 0.5
    mode: Mode = "batch"
    label_smoothing: float = 0.0
    num_classes: int | None = None
    off_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = check_number(name, getattr(self, name), least=0)
            if 0 < alpha < 0.01 or alpha > 100:
                raise ValueError(f"`{name}` must be 0 or from 0.01 to 100; got {alpha}. Pass for example 0.2.")
        if self.mixup == self.cutmix == 0:
            raise ValueError("`mixup` or `cutmix` must be above 0; got 0 for both. Pass for example mixup=0.2.")
        for name in ("probability", "switch_probability", "label_smoothing"):
            check_probability(name, getattr(self, name))
        check_choice("mode", self.mode, get_args(Mode))
        if self.num_classes is not None:
            check_int("num_classes", self.num_classes, least=1)
        if self.off_epoch is not None:
            check_int("off_epoch", self.off_epoch, least=0)

    def plan(
        self,
        indices: NDArray[np.int64],
        copies: NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
        step: int,
        duplicates: int = 1,
        repeats: int = 1,
    ) -> MixPlan:
        """How a batch is mixed.

        Args:
            indices: (B,) int64, sample numbers, the copies of a sample adjacent.
            copies: (B,) int64, which use of its sample in the epoch each image is.
            seed: 64-bit seed.
            epoch, step: numbers of the epoch and of the step within it.
            duplicates: number of copies of each sample.
            repeats: number of uses of each sample in a row.

        Raises:
            ValueError: the number of samples is odd.
        """
        count = len(indices) // duplicates
        if count % 2:
            raise ValueError(
                f"`batch_size` must be even on each rank for samples to be mixed in pairs; got {count} samples of "
                f"step {step}. Pass a multiple of twice the number of ranks."
            )
        samples = np.arange(count)
        partner = samples ^ 1 if repeats == 1 else (samples + count // 2) % count
        partners = np.add.outer(partner * duplicates, np.arange(duplicates)).ravel()
        rows, uses = indices, copies
        if self.mode == "batch":
            rows, uses = np.full_like(indices, step), np.zeros_like(copies)
        elif self.mode == "pair":
            first = np.minimum(np.arange(len(indices)), partners)
            rows, uses = indices[first], copies[first]
        uniforms = scattered_draws(
            seed, Stream.MIXING, epoch=epoch, rows=rows, duplicates=uses, word=3 * get_args(Mode).index(self.mode),
            num_words=2,
        )  # fmt: skip
        cut = uniforms[:, 1] < self._share_of_cutmix
        alphas = [beta(uniforms[:, 2], alpha, alpha) if alpha else 1.0 for alpha in (self.cutmix, self.mixup)]
        mixed = (uniforms[:, 0] < self.probability) & (self.off_epoch is None or epoch < self.off_epoch)
        weights = np.where(mixed, np.where(cut, *alphas), 1.0)
        return MixPlan(partners, weights, cut & mixed, uniforms[:, 3:5])

    @property
    def _share_of_cutmix(self) -> float:
        return self.switch_probability if self.mixup and self.cutmix else float(self.cutmix > 0)
