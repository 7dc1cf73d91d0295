"""The sampling policy: what it refuses, what it says of itself, and what a run under it uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from respipe.errors import StateMismatchError
from respipe.planning.epoch import plan_epoch
from respipe.sampling import CenterCrop, RandomCrop, RandomResizedCrop, SamplingPolicy
from respipe.schedules import Constant, MixSize
from tests.loaders import flat, make
from tests.memory_dataset import MemoryDataset

SHAPES = [(24 + 3 * i % 17, 40 - 5 * i % 23) for i in range(21)]


def test_todays_states_keep_their_text() -> None:
    policy = SamplingPolicy(crop=RandomCrop(32, padding=4), flip_probability=0.25, repeats=3)
    assert list(policy.describe()) == [
        "training=True",
        "RandomCrop(size=32, padding=4)",
        "flip_probability=0.25",
        "repeats=3",
    ]
    assert list(SamplingPolicy(training=False).describe()) == [
        "training=False",
        "CenterCrop(ratio=0.875)",
        "flip_probability=0.5",
    ]


def test_every_choice_of_samples_shows_in_the_text() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"indices": [1, 2]},
        {"indices": [2, 1]},
        {"indices": [1, 2, 3]},
        {"weights": [1.0, 2.0]},
        {"weights": [2.0, 1.0]},
        {"shuffle": "none"},
    ]
    assert len({tuple(SamplingPolicy(**choice).describe()) for choice in choices}) == len(choices)


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ({"training": "false"}, TypeError, "`training` must be True or False"),
        ({"seed": None}, TypeError, "`seed` must be an integer; got None. Pass"),
        ({"crop": RandomResizedCrop}, TypeError, "`crop` must be a crop"),
        ({"indices": []}, ValueError, "`indices` must name at least one"),
        ({"indices": [True, False]}, TypeError, "flatnonzero"),
        ({"indices": [0.0, 1.0]}, TypeError, "`indices` must be a row of whole numbers"),
        ({"indices": [[0, 1]]}, TypeError, "`indices` must be a row"),
        ({"indices": [-1]}, ValueError, "`indices` must be at least 0; got -1"),
        ({"indices": [4, 2, 4]}, ValueError, "`indices` must be distinct; got 4 2 times"),
        ({"weights": [1.0, float("nan")]}, ValueError, "`weights` must be finite"),
        ({"weights": [1e308, 1e308]}, ValueError, "`weights` must be finite and at least 0, with a finite sum"),
        ({"weights": [1.0], "shuffle": "none"}, ValueError, "`shuffle` must be 'full' where samples are drawn"),
        ({"weights": [1.0, -1.0]}, ValueError, "`weights` must be finite and at least 0"),
        ({"weights": 3.0}, TypeError, "`weights` must be a row of numbers"),
        ({"weights": [1.0], "training": False}, ValueError, "`weights` must be None in evaluation"),
        ({"shuffle": True}, ValueError, "`shuffle` must be one of"),
    ],
)
def test_wrong_fields_are_refused(field: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamplingPolicy(**field)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [3, 21]}, "`indices` must be below 21, the number of samples; got 21"),
        ({"weights": np.ones(20)}, "`weights` must have one number for each of the 21 samples; got 20"),
        ({"weights": np.zeros(21)}, "`weights` must be above 0 for at least one sample"),
    ],
)
def test_samples_that_the_data_does_not_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(MemoryDataset(SHAPES), **options)


def test_a_sample_drawn_again_is_cropped_anew_and_alike_wherever_it_comes() -> None:
    side = np.full(40, 60)
    weights = np.ones(40)
    weights[7] = 30

    def crops(batch_size: int, schedule: Any) -> list[list[float]]:
        policy = SamplingPolicy(weights=weights, seed=2)
        epoch = plan_epoch(schedule, policy, epoch=1, heights=side, widths=side, batch_size=batch_size)
        return [
            box for batch in epoch for index, box in zip(batch.indices, batch.boxes.tolist(), strict=True) if index == 7
        ]

    found = crops(8, Constant(32))
    assert len(found) > 10
    assert len({tuple(box) for box in found}) == len(found)
    assert crops(4, Constant(16))[: len(found)] == found[: len(crops(4, Constant(16)))]


@pytest.mark.parametrize(
    "options",
    [{"indices": [*range(20, 3, -1)]}, {"weights": np.arange(21.0)}, {"indices": range(12), "weights": np.ones(21)}],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_chosen_samples_make_the_same_global_batches_on_any_ranks(options: dict[str, Any], world_size: int) -> None:
    dataset, schedule = MemoryDataset(SHAPES), MixSize({32: 0.4, 16: 0.6}, base_size=32, batch_multiple=4)
    with make(dataset, schedule, **options) as loader:
        whole = flat(iter(loader))
        used = {index for batch in whole for index in batch[5]}
    assert used <= set(options.get("indices", range(21)))
    assert sum(len(batch[5]) for batch in whole) <= len(options.get("indices", range(21)))
    for rank in range(world_size):
        with make(dataset, schedule, rank=rank, world_size=world_size, **options) as loader:
            for part, batch in zip(flat(iter(loader)), whole, strict=True):
                share = len(batch[5]) // world_size
                assert part[5] == batch[5][rank * share : (rank + 1) * share]
                assert part[1] == batch[1][rank * share : (rank + 1) * share]


def test_a_subset_is_evaluated_once_in_its_order() -> None:
    subset = [17, 3, 9, 4, 20]
    with make(MemoryDataset(SHAPES), Constant(16), training=False, batch_size=2, indices=subset) as loader:
        assert len(loader) == 3
        batches = list(loader)
    assert [index for _, _, plan in batches for index in plan.indices.tolist()] == subset
    assert [label for _, labels, _ in batches for label in labels.tolist()] == [index % 3 for index in subset]


def test_unshuffled_training_takes_the_stored_order() -> None:
    with make(MemoryDataset(SHAPES), shuffle="none") as loader:
        assert [index for batch in flat(iter(loader)) for index in batch[5]] == list(range(20))


@pytest.mark.parametrize("options", [{"indices": range(12)}, {"weights": np.arange(21.0)}, {"shuffle": "none"}])
def test_runs_of_chosen_samples_resume_exactly_and_only_as_such(options: dict[str, Any]) -> None:
    dataset = MemoryDataset(SHAPES)
    with make(dataset, **options) as loader:
        expected = flat(iter(loader))
        loader.set_epoch(0)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
    with make(dataset, **options) as resumed:
        resumed.load_state_dict(state)
        assert flat(iter(resumed)) == expected[1:]
    with make(dataset, crop=RandomResizedCrop()) as other, pytest.raises(StateMismatchError, match="saved:"):
        other.load_state_dict(state)
    assert CenterCrop() == SamplingPolicy(training=False).crop
