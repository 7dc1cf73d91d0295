from __future__ import annotations

import pytest

from respipe.schedules import Constant, Step


def test_every_step_is_the_same() -> None:
    steps = Constant(224).steps(5, num_samples=1_281_167, batch_size=256)
    assert len(steps) == 5004
    assert set(steps) == {Step((224,), 256)}


@pytest.mark.parametrize("size", [0, -3])
def test_size_must_be_positive(size: int) -> None:
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        Constant(size)


@pytest.mark.parametrize("size", [224.0, "224", True, None])
def test_size_must_be_an_integer(size: object) -> None:
    with pytest.raises(TypeError, match="`size` must be an integer"):
        Constant(size)
