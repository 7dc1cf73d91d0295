"""The forward and backward pass of a training step: plain, or as one CUDA graph for each shape of batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

logger = logging.getLogger(__name__)

Images = torch.Tensor | tuple[torch.Tensor, ...]


def mixed_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision by its name, None for float32; ``auto`` is bfloat16 on a GPU, float32 on the CPU.

    Raises:
        ValueError: there is no such precision.
    """
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"`--precision` must be auto, {', '.join(dtypes)}; got {precision!r}. Name one of these.")
    return dtypes[precision]


def mixed(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass in mixed precision with this dtype, or in float32 for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def warm_up(objective: nn.Module, images: Images, labels: torch.Tensor, autocast: torch.dtype | None) -> None:
    """Run a model and its loss forwards and backwards; weights, gradients, buffers, modes and random numbers stay.

    Kernels are chosen and memory is reserved then, so that no later step of this shape has to wait for either and a
    batch too large for the GPU shows at once.

    Args:
        objective: model and loss in the form in which they are trained; called with images and labels.
        images, labels: of the shape to be prepared for.
        autocast: dtype of mixed precision, None for float32.
    """
    buffers = {buffer: buffer.clone() for buffer in objective.buffers()}
    modes = {module: module.training for module in objective.modules()}
    gradients = {parameter: parameter.grad for parameter in objective.parameters()}
    device = labels.device
    objective.train()
    for parameter in gradients:
        parameter.grad = None  # or what follows would be added to it
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with mixed(autocast, device):
            loss = objective(images, labels)
        loss.backward()
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    for module, training in modes.items():
        module.training = training
    with torch.no_grad():
        for buffer, values in buffers.items():
            buffer.copy_(values)


class Passes:
    """Compute the gradients of a step.

    Args:
        objective: model and loss in the form in which they are trained; called with images and labels.
        autocast: dtype of mixed precision, None for float32.
        scaler: float16 loss scaler.
    """

    def __init__(self, objective: nn.Module, autocast: torch.dtype | None, scaler: torch.amp.GradScaler) -> None:
        self._objective, self._autocast, self._scaler = objective, autocast, scaler

    def __call__(self, images: Images, labels: torch.Tensor) -> torch.Tensor:
        """Leave the gradients of a step in the parameters' ``grad``, scaled, in place of what was there.

        Args:
            images: of one size, or of several.
            labels: as the objective takes them.

        Returns:
            () mean loss, until the next call.
        """
        for parameter in self._objective.parameters():
            parameter.grad = None
        with mixed(self._autocast, labels.device):
            loss = self._objective(images, labels)
        self._scaler.scale(loss).backward()
        return loss.detach()

    def prepare(self, images: Images, labels: torch.Tensor) -> None:
        """Get ready for batches of this shape; weights, gradients, buffers and random numbers stay as they are."""
        warm_up(self._objective, images, labels, self._autocast)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    loss: torch.Tensor
    gradients: Sequence[torch.Tensor | None]


class GraphedPasses(Passes):
    """The same as one CUDA graph for each shape of batch, recorded when it first occurs and launched as a whole.

    A step of a small network consists of hundreds of kernels that take microseconds each, less than Python takes to
    launch one. Only for an objective that does the same to every batch of a shape, on one GPU: what its Python code
    decides is recorded with it. Dropout and the like draw anew in each step, as seeded. Memory is shared by all graphs,
    apart from gradients.
    """

    def __init__(self, objective: nn.Module, autocast: torch.dtype | None, scaler: torch.amp.GradScaler) -> None:
        super().__init__(objective, autocast, scaler)
        self._graphs: dict[Any, _Graph] = {}
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, images: Images, labels: torch.Tensor) -> torch.Tensor:
        recorded = self._recorded(images, labels)
        for own, given in zip(recorded.inputs, _tensors(images, labels), strict=True):
            own.copy_(given)
        recorded.graph.replay()
        self._give(recorded.gradients)
        return recorded.loss

    def prepare(self, images: Images, labels: torch.Tensor) -> None:
        """Record the graph for batches of this shape, unless there is one."""
        kept = [parameter.grad for parameter in self._objective.parameters()]
        self._recorded(images, labels)
        self._give(kept)

    def _recorded(self, images: Images, labels: torch.Tensor) -> _Graph:
        shape = tuple((one.shape, one.dtype) for one in _tensors(images, labels))
        if shape not in self._graphs:
            self._graphs[shape] = self._record(images, labels)
        return self._graphs[shape]

    def _give(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._objective.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def _record(self, images: Images, labels: torch.Tensor) -> _Graph:
        own_images = tuple(map(torch.clone, images)) if isinstance(images, tuple) else images.clone()
        own_labels = labels.clone()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries take what memory they need in their first call, which a graph must not record.
            super().prepare(own_images, own_labels)
        graph = torch.cuda.CUDAGraph()
        # Meanwhile the loader's threads go on using the GPU.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            loss = super().__call__(own_images, own_labels)
        torch.cuda.current_stream().wait_stream(self._stream)
        gradients = [parameter.grad for parameter in self._objective.parameters()]
        logger.info("recorded a step of %s", " + ".join(str(tuple(one.shape)) for one in _tensors(images, labels)[:-1]))
        return _Graph(graph, _tensors(own_images, own_labels), loss, gradients)


def _tensors(images: Images, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (*(images if isinstance(images, tuple) else (images,)), labels)
