from __future__ import annotations

from typing import Any

from pipelines.report import accuracy_table, total_macs, totals_by_sizes


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


def test_steps_of_several_sizes_are_one_kind_whose_images_cost_all_of_them() -> None:
    measured = {"steps": 2, "images": 8, "seconds": 4.0, "wait_seconds": 1.0}
    epochs = [{"sizes": {"32+16": measured, "16": measured}}, {"sizes": {"32+16": measured}}]
    totals = totals_by_sizes(epochs)
    assert {sizes: total.images for sizes, total in totals.items()} == {(32, 16): 16, (16,): 8}
    assert total_macs(epochs, {"32": 100.0, "16": 10.0}) == 16 * 110 + 8 * 10
