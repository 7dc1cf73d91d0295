from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from respipe.loading.shapes import BatchShape, batch_shapes, warn_past_recompile_limit
from respipe.schedules import Step


def test_shapes_are_distinct_and_the_one_of_most_pixels_comes_first() -> None:
    steps = [Step((16,), 8), Step((32,), 4), Step((16,), 8, 3), Step((32,), 4, mode="low"), Step((16, 8), 4)]
    shapes = batch_shapes(steps, rank=0, world_size=1)
    assert shapes == [BatchShape(24, (16,)), BatchShape(4, (32,)), BatchShape(8, (16,)), BatchShape(4, (16, 8))]
    assert [shape.num_pixels for shape in shapes] == [6144, 4096, 2048, 1280]


def test_shapes_are_those_of_one_rank_without_empty_ones() -> None:
    steps = [Step((16,), 8, 2), Step((16,), 3, 2)]
    assert batch_shapes(steps, rank=1, world_size=4) == [BatchShape(4, (16,)), BatchShape(2, (16,))]
    assert batch_shapes(steps, rank=0, world_size=4) == [BatchShape(4, (16,))]


def test_bytes_are_those_of_the_images() -> None:
    shape = BatchShape(5, (16, 8))
    for dtype in (torch.uint8, torch.bfloat16, torch.float32):
        images = shape.zeros(dtype, torch.device("cpu"))
        assert isinstance(images, tuple)
        assert shape.num_bytes(dtype) == sum(image.nbytes for image in images)


def test_zeros_look_like_a_batch() -> None:
    images = BatchShape(5, (16,)).zeros(torch.bfloat16, torch.device("cpu"))
    assert isinstance(images, torch.Tensor)
    assert (images.shape, images.dtype) == ((5, 3, 16, 16), torch.bfloat16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.any()


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
def test_more_shapes_than_recompilations_are_warned_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo.config", SimpleNamespace(**{name: 8}))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_past_recompile_limit(8)
    with pytest.warns(UserWarning, match=rf"9 shapes, .* 8 at most.*dynamic=True.*torch\._dynamo\.config\.{name} = 9"):
        warn_past_recompile_limit(9)


def test_where_nothing_was_compiled_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo.config", raising=False)
    warn_past_recompile_limit(1000)
    assert "torch._dynamo.config" not in sys.modules


def test_this_torch_has_the_limit() -> None:
    import torch._dynamo.config as config

    assert config.recompile_limit >= 1
