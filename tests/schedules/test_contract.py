"""What every schedule promises, checked on all of them."""

from __future__ import annotations

import hashlib
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from respipe import schedules
from respipe.schedules import TRD, Constant, LowMode, MixSize, MultiCrop, Progressive, RSNet, Schedule, Step, View

ALL: list[Schedule] = [
    Constant(64),
    Progressive(64, 128, start_epoch=2, end_epoch=9),
    Progressive(150, 100, start_epoch=0, end_epoch=5, multiple=16),
    TRD(64, 32, 0.5),
    TRD(64, 32, 0.3, milestones=(4, 8), guard=(1, 2), seed=2**64 - 1),
    TRD(64, 32, 0.7, draw="quota", seed=3),
    TRD(64, 32, 0.4, draw="quota", num_epochs=12, final_full_epochs=2),
    TRD(64, 32, 0.5, draw="alternate", milestones=(5,)),
    TRD(64, (32, 48), 0.5),
    TRD(64, range(32, 65), 0.5, unit="step"),
    TRD(64, 32, 0.25, draw="quota", unit="step"),
    TRD(64, 32, 0.5, draw="alternate", unit="step"),
    RSNet((64,)),
    RSNet((32, 64, 48)),
    RSNet((64, 32, 64), own_crops=True),
    MultiCrop([View(64, 2, scale=(0.32, 1.0)), View(32, 8, scale=(0.05, 0.32))]),
    MultiCrop([View(64), View(64, augment=())]),
    MultiCrop([View(TRD(64, 32, 0.5, unit="step"), 2), View(TRD(32, 16, 0.5, unit="step"))]),
    MultiCrop([View(48), View(MixSize("S28"), 2)]),
    LowMode(64),
    LowMode(64, 4, 0.3, milestones=(4, 8), guard=(1, 2), seed=2**64 - 1),
    LowMode(64, probability=(0.0, 0.25, 1.0)),
    MixSize("S28"),
    MixSize("S28-code", grow="duplicates", duplicates=2, seed=2**64 - 1),
    MixSize("S144", base_size=112, grow="both", rounding="pow2_ceil", max_budget=1.25),
    MixSize({64: 0.5, 48: 0.25, 32: 0.25}, base_size=64, batch_multiple=2, seed=9),
    MixSize("S28", weighting="steps", seed=1),
    MixSize("S28", weighting="epochs", num_epochs=12),
    MixSize("S208", weighting="progressive", grow="duplicates", num_epochs=12),
]
EPOCHS = range(14)

every_schedule = pytest.mark.parametrize("schedule", ALL, ids=repr)


def steps_of(schedule: Schedule, epoch: int) -> list[Step]:
    return list(schedule.steps(epoch, num_samples=107, batch_size=10))


def describe_all() -> str:
    return repr([[steps_of(schedule, epoch) for epoch in EPOCHS] for schedule in ALL])


@every_schedule
def test_is_a_schedule(schedule: Schedule) -> None:
    assert isinstance(schedule, Schedule)


@every_schedule
def test_steps_are_the_same_in_any_order_of_epochs(schedule: Schedule) -> None:
    forwards = {epoch: steps_of(schedule, epoch) for epoch in EPOCHS}
    backwards = {epoch: steps_of(schedule, epoch) for epoch in reversed(EPOCHS)}
    assert forwards == backwards


@every_schedule
def test_steps_touch_no_global_random_state(schedule: Schedule) -> None:
    import torch  # here, because the processes started below import this module and need no torch

    def states() -> tuple[object, ...]:
        legacy = np.random.get_state()  # noqa: NPY002 - the global state that must stay as it is
        return random.getstate(), pickle.dumps(legacy), torch.get_rng_state().tolist()

    before = states()
    for epoch in EPOCHS:
        steps_of(schedule, epoch)
    assert states() == before


@every_schedule
def test_steps_use_each_sample_at_most_once(schedule: Schedule) -> None:
    for epoch in EPOCHS:
        assert 0 < sum(step.batch_size for step in steps_of(schedule, epoch)) <= 107


@pytest.mark.parametrize("schedule", [one for one in ALL if "MixSize" not in repr(one)], ids=repr)
def test_schedules_of_one_batch_size_leave_out_less_than_a_batch(schedule: Schedule) -> None:
    assert {tuple(step.batch_size for step in steps_of(schedule, epoch)) for epoch in EPOCHS} == {(10,) * 10}


@every_schedule
def test_sizes_name_every_size_largest_first(schedule: Schedule) -> None:
    used = {size for epoch in EPOCHS for step in steps_of(schedule, epoch) for size in step.sizes}
    assert used <= set(schedule.sizes)
    repeated = sorted(schedule.sizes if isinstance(schedule, RSNet) else set(schedule.sizes), reverse=True)
    assert list(schedule.sizes) == repeated
    assert isinstance(schedule, MixSize | MultiCrop) or schedule.base_size == schedule.sizes[0]


@every_schedule
def test_steps_behave_like_a_list(schedule: Schedule) -> None:
    steps = schedule.steps(3, num_samples=107, batch_size=10)
    listed = [steps[k] for k in range(len(steps))]
    assert listed == list(steps)
    assert steps[-1] == listed[-1]
    assert list(steps[2:7:2]) == listed[2:7:2]
    with pytest.raises(IndexError):
        steps[len(steps)]


@every_schedule
def test_is_a_value(schedule: Schedule) -> None:
    from_repr = eval(repr(schedule), {name: getattr(schedules, name) for name in schedules.__all__})
    from_pickle = pickle.loads(pickle.dumps(schedule))
    for copy in (from_repr, from_pickle):
        assert copy == schedule
        assert hash(copy) == hash(schedule)
        assert repr(copy) == repr(schedule)


def test_different_schedules_are_unequal() -> None:
    assert len(set(ALL)) == len({repr(schedule) for schedule in ALL}) == len(ALL)


@every_schedule
def test_steps_survive_pickling(schedule: Schedule) -> None:
    steps = schedule.steps(3, num_samples=107, batch_size=10)
    assert list(pickle.loads(pickle.dumps(steps))) == list(steps)


@every_schedule
@pytest.mark.parametrize(
    ("epoch", "num_samples", "batch_size", "field"),
    [(-1, 107, 10, "epoch"), (0, 9, 10, "batch_size"), (0, 107, 0, "batch_size"), (0, 0, 1, "batch_size")],
)
def test_impossible_epochs_are_refused(
    schedule: Schedule, epoch: int, num_samples: int, batch_size: int, field: str
) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        schedule.steps(epoch, num_samples=num_samples, batch_size=batch_size)


def test_steps_are_the_same_on_every_machine() -> None:
    # Saved runs rely on them. Schedules count in integers and fractions, and compare products of two floats at most.
    assert hashlib.sha256(describe_all().encode()).hexdigest()[:16] == "870cbb7f40b6efae"


def test_steps_are_the_same_in_processes_with_other_hash_seeds() -> None:
    code = (
        "import importlib.util as util\n"
        f"spec = util.spec_from_file_location('contract', {__file__!r})\n"
        "module = util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.describe_all())\n"
    )
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(schedules.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == describe_all()
