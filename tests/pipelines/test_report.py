from __future__ import annotations

from typing import Any

from pipelines.report import accuracy_table


def epoch(top1: float, **more: Any) -> dict[str, Any]:
    return {"eval": {"32": {"top1": top1}}, **more}


def cells(epochs: list[dict[str, Any]]) -> list[list[str]]:
    return [[str(column.header), *map(str, column.cells)] for column in accuracy_table(epochs).columns]


def test_accuracy_is_the_last_and_the_best() -> None:
    assert cells([epoch(0.25), epoch(0.75), epoch(0.5)]) == [
        ["evaluated at", "32 px"],
        ["last top-1", "50.00%"],
        ["best top-1", "75.00%"],
    ]


def test_accuracy_after_calibration_has_a_column_where_it_was_measured() -> None:
    *_, last = cells([epoch(0.25), epoch(0.5, calibrated={"32": {"top1": 0.625}})])
    assert last == ["last, BatchNorm calibrated", "62.50%"]


def test_run_without_epochs_has_an_empty_table() -> None:
    assert cells([]) == [["evaluated at"], ["last top-1"], ["best top-1"]]
