from __future__ import annotations

from pathlib import Path

import pytest

from respipe.conversion import FolderSource, Source
from tools.bench.conversion_report import HEADINGS, make_results, rows
from tools.bench.converters import BASELINE, Job, Measured, RepeatedSource, measure_conversion, turn


def test_every_conversion_comes_first_once() -> None:
    orders = [turn(("a", "b", "c"), number) for number in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_ratios_are_medians_of_the_ratios_within_rounds() -> None:
    rounds = {
        BASELINE: [Measured(seconds=seconds, bytes_per_image=54_000.0) for seconds in (1.0, 2.0, 10.0)],
        "respipe": [Measured(seconds=seconds, bytes_per_image=80_600.0) for seconds in (2.0, 2.0, 5.0)],
    }
    baseline, ours = make_results(rounds, num_images=100)
    assert (baseline.images_per_second, baseline.low, baseline.high, baseline.ratio_to_ffcv) == (50, 10, 100, 1)
    assert (ours.images_per_second, ours.low, ours.high, ours.ratio_to_ffcv) == (50, 20, 50, 1)
    assert rows([ours]) == [("respipe, five levels", "50", "20-50", "1.00", "80.6", "103")]
    assert len(rows([ours])[0]) == len(HEADINGS)
    (alone,) = make_results({"respipe": rounds["respipe"]}, num_images=100)
    assert alone.ratio_to_ffcv is None
    assert rows([alone])[0][3] == "-"


def test_folder_is_repeated(jpeg_folder: Path) -> None:
    folder = FolderSource(jpeg_folder)
    source = RepeatedSource(folder, 40)
    assert isinstance(source, Source)
    assert len(source) == 40
    labels, originals = source.fields["label"], folder.fields["label"]
    assert labels.classes == originals.classes
    for index, original in ((0, 0), (17, 17), (18, 0), (39, 3)):
        assert source.read(index) == folder.read(original)
        assert (labels[index], source.name(index)) == (originals[original], folder.name(original))


@pytest.mark.parametrize("name", ["respipe", "respipe-pixels"])
def test_conversion_is_measured_and_its_file_removed(jpeg_folder: Path, tmp_path: Path, name: str) -> None:
    job = Job(data=jpeg_folder, num_images=24, target=tmp_path / "x.beton", num_workers=1)
    measured = measure_conversion(name, job)
    assert measured.seconds > 0
    assert 1000 < measured.bytes_per_image < 20_000
    assert not list(tmp_path.iterdir())
