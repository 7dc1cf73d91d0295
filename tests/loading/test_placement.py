"""Placement of decoded pixels: values, dtype, layout, and combinations that are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as F

from respipe.loading.placement import HandOver, Placement, blur_and_decimate, check_device, normalized
from respipe.normalization import mean_and_std

CPU = torch.device("cpu")


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_values_equal_torchvisions(dtype: torch.dtype) -> None:
    placed = Placement(device=CPU, dtype=dtype, normalize="imagenet").images(pixels())
    scaled = F.to_dtype(pixels().permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = F.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(placed, expected.to(dtype), rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert placed.dtype == dtype
    assert placed.is_contiguous(memory_format=torch.channels_last)


def test_without_normalisation_floats_span_zero_to_one() -> None:
    placed = Placement(device=CPU, dtype=torch.float32, normalize=None).images(pixels())
    torch.testing.assert_close(placed, pixels().permute(0, 3, 1, 2) / 255)


def test_uint8_pixels_pass_through_unchanged() -> None:
    placed = Placement(device=CPU, dtype=torch.uint8, normalize=None).images(pixels())
    assert torch.equal(placed, pixels().permute(0, 3, 1, 2))
    assert placed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": torch.uint8, "normalize": "imagenet"}, ValueError, "normalize=None"),
        ({"dtype": torch.int64, "normalize": None}, TypeError, "`dtype`"),
        ({"normalize": "imagnet"}, ValueError, "'imagnet'"),
        ({"normalize": ((0.5, 0.5), (0.2, 0.2))}, ValueError, "three numbers"),
        ({"normalize": ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))}, ValueError, "std > 0"),
    ],
)
def test_senseless_combinations_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Placement(**{"device": CPU, "dtype": torch.float32, "normalize": None} | arguments)


def test_a_plain_cuda_is_the_current_device_of_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert check_device("cuda") == torch.device("cuda", 2)
    assert check_device("cuda:1") == torch.device("cuda", 1)
    assert check_device("cpu") == CPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("decimation", [1, 2])
def test_placing_does_not_wait_for_the_gpu(decimation: int) -> None:
    placement = Placement(device=check_device("cuda"), dtype=torch.bfloat16, normalize="imagenet")
    expected = Placement(device=CPU, dtype=torch.bfloat16, normalize="imagenet").images(pixels(), decimation)
    placement.images(pixels(), decimation)  # libraries may wait the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(placement.stream):
            torch.cuda._sleep(100_000_000)  # some 50 ms
            placed = placement.images(pixels(), decimation)
            ready = torch.cuda.current_stream().record_event()
        assert not ready.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ready.synchronize()
    # Convolutions may round to TF32's ten bits, which is a sixteenth of a grey level.
    torch.testing.assert_close(placed.cpu(), expected, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize("shape", [(2, 5, 5, 3), (0, 4, 4, 3), (3, 1, 1, 3)])
@pytest.mark.parametrize("normalize", ["cifar10", None])
def test_values_on_a_cpu_are_those_of_torch_to_the_last_bit(shape: tuple[int, ...], normalize: str | None) -> None:
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_and_std(normalize))
    expected = pixels.permute(0, 3, 1, 2).float().sub(mean * 255).mul(1 / (std * 255))
    images = Placement(device=CPU, dtype=torch.float32, normalize=normalize).images(pixels)
    assert torch.equal(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)


class Operations(TorchDispatchMode):
    """Notes every operation that makes a pass over memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func):
            self.names.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalising_on_a_device_takes_two_passes_and_is_exact(dtype: torch.dtype) -> None:
    images = torch.randint(256, (5, 7, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_and_std("imagenet"))
    shift, scale = mean * 255, 1 / (std * 255)
    with Operations() as operations:
        found = normalized(images, shift, scale, dtype=dtype)
    assert operations.names == ["aten.sub.Tensor", "aten.mul.out"]
    assert torch.equal(found, images.to(torch.float32).sub(shift).mul(scale).to(dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_constants_are_copied_to_a_device_once() -> None:
    placement = Placement(device=CPU, dtype=torch.float32, normalize="imagenet")
    images = torch.rand(1, 3, 8, 8)
    blur_and_decimate(images, 2), placement._constants
    with Operations() as operations:
        blur_and_decimate(images, 2)
        normalized(images, *placement._constants, dtype=torch.bfloat16)
    assert not [name for name in operations.names if "copy" in name or "lift" in name], operations.names


class OnHost:
    """A tensor in memory that is pinned or not."""

    device = CPU

    def __init__(self, *, pinned: bool) -> None:
        self.pinned, self.copies = pinned, 0

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> OnHost:
        self.pinned, self.copies = True, self.copies + 1
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> tuple[torch.device, bool, bool]:
        return device, non_blocking, self.pinned


@pytest.mark.parametrize("pinned", [True, False])
def test_what_lies_in_pinned_memory_is_not_copied_to_pinned_memory_again(pinned: bool) -> None:
    device = torch.device("cuda", 0)
    tensor: Any = OnHost(pinned=pinned)
    placed = Placement(device=device, dtype=torch.uint8, normalize=None).to_device(tensor)
    assert placed == (device, True, True)
    assert tensor.copies == (0 if pinned else 1)


# Handing over


def test_the_host_waits_for_the_gpu_once_it_is_some_batches_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        count = 0

        def __init__(self, *, blocking: bool) -> None:
            assert blocking, "a thread that spins takes a core"
            self.number, Event.count = Event.count, Event.count + 1

        def record(self, stream: str) -> None:
            log.append(f"record {self.number} on {stream}")

        def synchronize(self) -> None:
            log.append(f"wait for {self.number}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"consumer of {device}")
    ready: Any = SimpleNamespace(wait=lambda stream: log.append(f"{stream} waits for the copy"))
    tensor: Any = SimpleNamespace(device="gpu", record_stream=lambda stream: log.append(f"kept for {stream}"))
    hand_over = HandOver(most=2)
    for _ in range(4):
        hand_over([tensor], ready)
        log.append("handed over")
    host = [line for line in log if line.startswith(("record", "wait for", "handed"))]
    # Event n is behind all work on batch n - 1. With batch 2 in hand, the GPU may not have finished 0 and 1.
    assert host == [
        "record 0 on consumer of gpu", "handed over", "record 1 on consumer of gpu", "handed over",
        "record 2 on consumer of gpu", "wait for 0", "handed over",
        "record 3 on consumer of gpu", "wait for 1", "handed over",
    ]  # fmt: skip
    assert log.count("consumer of gpu waits for the copy") == log.count("kept for consumer of gpu") == 4
