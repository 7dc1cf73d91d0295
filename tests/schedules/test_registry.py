from __future__ import annotations

import pytest

from respipe.schedules import TRD, Constant, LowMode, MixSize, MultiCrop, Progressive, RSNet, Schedule, View
from respipe.schedules.parsing import SCHEDULES, schedule_from_config, schedule_from_expression


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(224),
        TRD(224, 112, 0.5, milestones=(75, 150, 225)),
        TRD(32, (24, 16), 0.3, guard=(1, 0), draw="quota", num_epochs=10, final_full_epochs=1, unit="step", seed=7),
        Progressive(160, 192, start_epoch=4, end_epoch=13),
        MixSize("S144", grow="duplicates"),
        RSNet((96, 224)),
        RSNet((96, 96), own_crops=True),
        MultiCrop([View(TRD(224, 112, 0.5), 2, scale=(0.32, 1)), View(96, 8, augment=())]),
        LowMode(32, 2, (0.5, 0.25), milestones=(80, 120)),
        MixSize({40: 0.2, 32: 0.8}, base_size=32, max_budget=1.5, weighting="epochs", num_epochs=10),
    ],
)
def test_expression_of_a_schedules_repr_gives_the_schedule_back(schedule: Schedule) -> None:
    assert schedule_from_expression(repr(schedule)) == schedule


def test_every_schedule_goes_by_its_class_name() -> None:
    assert all(name == make.__name__ for name, make in SCHEDULES.items())


def test_config_with_yaml_lists_equals_the_schedule_built_in_python() -> None:
    config = {"name": "TRD", "full_size": 224, "reduced_size": 112, "participation": 0.5, "milestones": [75, 150]}
    assert schedule_from_config(config) == TRD(224, 112, 0.5, milestones=(75, 150))


def test_config_is_left_as_it_was() -> None:
    config = {"name": "Constant", "size": 224}
    schedule_from_config(config)
    assert config == {"name": "Constant", "size": 224}


def test_length_of_the_run_reaches_only_schedules_that_ask_for_it_and_were_not_told() -> None:
    told = schedule_from_expression("TRD(224, 112, 0.5, num_epochs=20)", num_epochs=10)
    assert told == TRD(224, 112, 0.5, num_epochs=20)
    assert schedule_from_expression("TRD(224, 112, 0.5)", num_epochs=10) == TRD(224, 112, 0.5, num_epochs=10)
    assert schedule_from_config({"name": "Constant", "size": 8}, num_epochs=10) == Constant(8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"`schedule.name` must be given"),
        (
            {"name": "Cyclic"},
            r"`schedule.name` must be a known schedule; got 'Cyclic'.*Constant, LowMode, MixSize, Progressive, RSNet",
        ),
        ({"name": ["TRD"]}, r"`schedule.name` must be a known schedule"),
        ({"name": "Constant", "side": 224}, r"`schedule.side` must be a field of Constant.*size"),
        ({"name": "TRD", "full_size": 224}, r"full_size, reduced_size, participation; missing.*'reduced_size'"),
        ({"name": "Constant", "size": "big"}, r"describe a Constant that can run: `size` must be an integer"),
        ({"name": "Constant", "size": 0}, r"describe a Constant that can run: `size` must be at least 1"),
    ],
)
def test_wrong_config_is_refused_naming_the_field(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_from_config(config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TRD",
        "Constant(224) + 1",
        "Constant(open('secret'))",
        "Constant(**{'size': 224})",
        "Constant(*(224,))",
        "respipe.Constant(224)",
        "Constant(size=[x for x in (1,)][0])",
        "Constant(224",
        "Constant('\0')",
        "(" * 3000,
        "__import__('os').getcwd()",
    ],
)
def test_expression_other_than_one_call_with_literals_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`schedule` must be one schedule with literal arguments"):
        schedule_from_expression(text)


def test_calls_of_unknown_names_are_refused_without_being_run() -> None:
    with pytest.raises(ValueError, match=r"`schedule.name` must be a known schedule; got 'exit'"):
        schedule_from_expression("exit(3)")
