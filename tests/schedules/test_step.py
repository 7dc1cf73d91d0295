"""A step: checked, immutable, and a value."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from respipe.schedules import Step


def test_equal_fields_make_equal_steps_whatever_their_number_type() -> None:
    step = Step(sizes=[np.int64(224), 160], batch_size=np.int32(8), duplicates=2)  # type: ignore[arg-type]
    assert step == Step((224, 160), 8, 2)
    assert hash(step) == hash(Step((224, 160), 8, 2))
    assert repr(step) == "Step(sizes=(224, 160), batch_size=8, duplicates=2, mode='full', decimation=1)"
    assert step.num_images == 16


def test_a_step_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Step((224,), 8).batch_size = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ({"sizes": ()}, ValueError, "sizes"),
        ({"sizes": (0,)}, ValueError, "sizes"),
        ({"sizes": 224}, TypeError, "sizes"),
        ({"sizes": (112.5,)}, TypeError, "sizes"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.0}, TypeError, "batch_size"),
        ({"duplicates": 0}, ValueError, "duplicates"),
        ({"mode": "medium"}, ValueError, "mode"),
        ({"decimation": 0}, ValueError, "decimation"),
        ({"decimation": 3}, ValueError, "decimation"),
        ({"decimation": 2.0}, TypeError, "decimation"),
    ],
)
def test_a_wrong_field_is_named(arguments: dict[str, Any], error: type[Exception], field: str) -> None:
    with pytest.raises(error, match=f"`{field}` must "):
        Step(**({"sizes": (224,), "batch_size": 8} | arguments))


def test_images_that_are_decimated_are_decoded_larger() -> None:
    step = Step((56, 48), 8, mode="low", decimation=4)
    assert step.decoded == Step((224, 192), 8, mode="low")
    plain = Step((224,), 8)
    assert plain.decoded is plain
