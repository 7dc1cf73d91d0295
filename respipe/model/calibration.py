"""Running statistics of BatchNorm, measured anew for the images that a model is about to see."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
import torch.distributed
from torch import nn

from respipe.errors import NoEffectWarning
from respipe.model.batchnorm import BatchNorm, PerSizeBatchNorm, statistics_holders, tracking_batchnorms
from respipe.model.network import evaluation_mode, unwrapped
from respipe.processes import check_group

Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Mean and variance of what enters each BatchNorm, (C,) each, by the name of the module that has them as buffers."""


def calibrate_batchnorm(model: nn.Module, batches: Iterable[Any], num_batches: int = 200) -> Statistics:
    """Replace BatchNorm's running statistics by averages over the first ``num_batches`` batches, in place.

    Each layer's mean and unbiased variance become the plain averages of those of the batches, every batch weighing the
    same (MixSize, arXiv 1908.08986). A model trained at several sizes needs it before it is evaluated at one of them;
    the paper's models of a single size lost by it. As there, take training samples with their usual crops::

        with respipe.Loader("train.beton", Constant(160), batch_size=256) as loader:
            respipe.calibrate_batchnorm(model, loader)

    Only BatchNorm is in training mode meanwhile, so that dropout and the like are off. Weights, modes, momenta and
    random state stay as they are, and after an error the old statistics too. Of a model with statistics per size (see
    :func:`respipe.model.batchnorm.make_batchnorm_per_size`), those of the sizes that the batches have are replaced.

    Where ``torch.distributed`` is initialised, call it on all ranks: each takes ``num_batches`` of its own, and all get
    the averages over all of them.

    Args:
        model: also if it is compiled or wrapped in ``DistributedDataParallel``.
        batches: tensors (N, C, H, W), or tuples that begin with one, as :class:`respipe.Loader` yields. They are moved
            to the model's device and, if floating, to its dtype.
        num_batches: how many are taken, exactly.

    Returns:
        copies of the new statistics, for :func:`apply_statistics`; without the layers that no batch reached, whose
        statistics stay.

    Raises:
        ValueError: there is no batch, or a layer's statistics are not finite.
        TypeError: a batch holds no images.
        RuntimeError: RANK and WORLD_SIZE name several ranks, and ``torch.distributed`` is not initialised.

    Warns:
        UserWarning: ``batches`` ended early; the averages are over those that there were.
        NoEffectWarning: no layer keeps running statistics, or no batch reached one that does.
    """
    check_group("calibrate_batchnorm")
    if num_batches < 1:
        raise ValueError(f"`num_batches` must be at least 1; got {num_batches}. Leave it out for 200.")
    network = unwrapped(model)
    kind = type(network).__name__
    if not tracking_batchnorms(network):
        _warn_of_no_effect(f"{kind} has no BatchNorm that keeps running statistics")
        return {}
    num_seen = 0
    with torch.no_grad(), _measuring(network) as sums:
        for batch in islice(batches, num_batches):
            network(images_for(network, batch))
            num_seen += 1
    _check_number_seen(num_seen, num_batches)
    _add_over_ranks(sums)
    holders = statistics_holders(network)
    counts = {name: int(total[-1]) for name, total in sums.items()}
    statistics = {name: _average(name, holders[name], sums[name]) for name, count in counts.items() if count}
    if not statistics:
        _warn_of_no_effect(f"no batch reached a BatchNorm of {kind}")
    apply_statistics(network, statistics)
    for name in statistics:
        cast(torch.Tensor, holders[name].num_batches_tracked).fill_(counts[name])
    return statistics


def _check_number_seen(num_seen: int, num_batches: int) -> None:
    if num_seen == 0:
        raise ValueError("`batches` must yield at least one batch; got none. Make the batches smaller.")
    if num_seen < num_batches:
        warnings.warn(
            f"`batches` ended after {num_seen} of {num_batches} batches: the statistics are averages over {num_seen}. "
            f"Pass `num_batches={num_seen}` if that will do, or more batches.",
            UserWarning,
            stacklevel=3,
        )


@torch.no_grad()
def apply_statistics(model: nn.Module, statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Give BatchNorm layers the statistics that :func:`calibrate_batchnorm` returned, in place.

    Args:
        model: with layers of the same names; also if it is compiled or wrapped in ``DistributedDataParallel``.
        statistics: mean and variance, (C,) each, of any of its layers.

    Raises:
        ValueError: the model has no such layer, or one of another width. Nothing was changed.
    """
    holders = statistics_holders(unwrapped(model))
    for name, (mean, variance) in statistics.items():
        if name not in holders:
            raise ValueError(
                f"`statistics` must be of layers of the model; it has no BatchNorm with statistics called {name!r}. "
                "Apply them to a model built the same way."
            )
        shape = cast(torch.Tensor, holders[name].running_mean).shape
        if not mean.shape == variance.shape == shape:
            raise ValueError(
                f"`statistics` must have a mean and a variance per channel; {name!r} has {shape[0]} channels, got "
                f"shapes {tuple(mean.shape)} and {tuple(variance.shape)}. Apply them to a model built the same way."
            )
    for name, (mean, variance) in statistics.items():
        cast(torch.Tensor, holders[name].running_mean).copy_(mean)
        cast(torch.Tensor, holders[name].running_var).copy_(variance)


@contextmanager
def _measuring(network: nn.Module) -> Generator[dict[str, torch.Tensor]]:
    """Have BatchNorm in training mode and all else not, add up its batch statistics, and leave all as it was.

    Yields:
        the sums for every holder of statistics: means, variances and number of batches, (2 C + 1,) float64.
    """
    norms, holders = tracking_batchnorms(network).values(), statistics_holders(network)
    buffers = [buffer for holder in holders.values() for buffer in holder.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    momenta = {norm: norm.momentum for norm in norms}
    sums, names = dict[str, torch.Tensor](), {holder: name for name, holder in holders.items()}
    for name, holder in holders.items():
        mean = cast(torch.Tensor, holder.running_mean)
        sums[name] = mean.new_zeros(2 * len(mean) + 1, dtype=torch.float64)
    hooks = [norm.register_forward_hook(partial(_add_batch, sums, names)) for norm in norms]
    try:
        with evaluation_mode(network):
            for norm in norms:
                norm.training, norm.momentum = True, 1.0  # running statistics are then those of the last batch
            for holder in holders.values():
                cast(torch.Tensor, holder.running_mean).zero_()
                cast(torch.Tensor, holder.running_var).fill_(1)  # what is not finite would stay so even at momentum 1
            yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for buffer, values in zip(buffers, kept, strict=True):
            buffer.copy_(values)


def _add_batch(sums: dict[str, torch.Tensor], names: Mapping[nn.Module, str], norm: BatchNorm, *_: object) -> None:
    holder = norm.holder(norm.route.side) if isinstance(norm, PerSizeBatchNorm) else norm
    mean, variance = cast(tuple[torch.Tensor, torch.Tensor], (holder.running_mean, holder.running_var))
    sums[names[holder]] += torch.cat([mean, variance, mean.new_ones(1)])


def _add_over_ranks(sums: dict[str, torch.Tensor]) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    everything = torch.cat(list(sums.values()))
    torch.distributed.all_reduce(everything)
    start = 0
    for total in sums.values():
        total.copy_(everything[start : start + len(total)])
        start += len(total)


def _warn_of_no_effect(cause: str) -> None:
    warnings.warn(f"`calibrate_batchnorm` changed nothing: {cause}.", NoEffectWarning, stacklevel=3)


def _average(name: str, holder: nn.Module, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = (total[:-1] / total[-1]).to(cast(torch.Tensor, holder.running_mean).dtype).chunk(2)
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise ValueError(
            f"`model` must compute finite numbers on `batches`; the statistics of {name!r} are not finite. Look for "
            "weights or images that are not."
        )
    return mean, variance


def images_for(network: nn.Module, batch: Any) -> torch.Tensor:
    """The images of a batch as a network takes them: on its device and, if floating, of its dtype.

    Args:
        network: that is to be called.
        batch: (N, C, H, W), or a tuple that begins with such a tensor.

    Raises:
        TypeError: the batch holds no images.
    """
    images = cast(Any, batch[0] if isinstance(batch, tuple | list) and batch else batch)
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            "`batches` must yield tensors of images or tuples that begin with one; got "
            f"{type(cast(object, batch)).__name__}. Pass a generator that picks the images."
        )
    parameter = next(iter(cast(Iterable[nn.Parameter], network.parameters())), None)
    if parameter is None:
        return images
    return images.to(parameter.device, parameter.dtype if images.is_floating_point() else None)
