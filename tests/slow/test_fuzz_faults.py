"""A slice of the search for faults, and whether it would find any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.engines import needs_dali, needs_ffcv
from tests.slow import fuzz_faults
from tests.slow.faults import processes
from tests.slow.faults.betons import BetonCases
from tests.slow.faults.images import KINDS, ImageCases, sound_images
from tests.slow.faults.mutations import mutated
from tests.slow.faults.processes import run_cases

BACKENDS = ["tiles", "reference", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)]


@pytest.mark.parametrize("target", [*BACKENDS, "cutting", "conversion"])
def test_mutated_images_become_errors_or_the_pixels_that_pillow_makes_of_them(target: str) -> None:
    cases = ImageCases(target, seed=1)
    outcomes = [cases.run(number) for number in range(100)]
    assert not [outcome for outcome in outcomes if outcome.startswith("BAD")]
    assert 10 < outcomes.count("error") < 95


@pytest.mark.parametrize("target", [*BACKENDS, "conversion"])
def test_mutated_betons_are_refused_or_lead_to_the_images_that_they_say(target: str) -> None:
    cases = BetonCases(target, seed=1)
    outcomes = [cases.run(number) for number in range(60)]
    assert not [outcome for outcome in outcomes if outcome.startswith("BAD")]
    assert 10 < outcomes.count("refused") < 55


def test_crashes_hangs_and_errors_are_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_CASE_SECONDS", 5.0)
    tally = run_cases("tests.slow.faulty_cases:FaultyCases", "any", seed=0, num_cases=7)
    outcomes = dict(tally.bad)
    assert outcomes.keys() == {1, 2, 3, 4, 5}
    assert "KeyError" in outcomes[1]
    assert "SIGSEGV" in outcomes[2]
    assert "MemoryError" in outcomes[3]
    assert "SIGKILL" in outcomes[4]
    assert "hangs" in outcomes[5]
    assert tally.outcomes["fine"] == 2


def test_the_report_tells_every_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "faults.json"
    assert fuzz_faults.main(["--images=5", "--betons=5", "--targets=cutting", f"--json={path}"]) == 0
    report = json.loads(path.read_text())
    assert [(result["kind"], result["target"], result["cases"]) for result in report["results"]] == [
        ("images", "cutting", 5)
    ]
    assert sum(report["results"][0]["outcomes"].values()) == 5
    assert "5 cases, 0 bad" in capsys.readouterr().out


def test_wrong_pixels_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slow.faults.images.mutated", lambda rng, data, other: data)
    cases = ImageCases("reference", seed=1)
    assert {cases.run(number) for number in range(len(KINDS["reference"]))} == {"as Pillow decodes it"}
    monkeypatch.setattr("respipe.backends.reference.crop_and_resize", crop_of_the_corner)
    assert {cases.run(number) for number in range(len(KINDS["reference"]))} == {"BAD: other pixels"}


def crop_of_the_corner(image: Image.Image, *_: object, size: int, **_options: object) -> NDArray[np.uint8]:
    return np.asarray(image.crop((0, 0, 8, 8)).resize((size, size)))


def test_mutations_are_the_same_in_every_run() -> None:
    images = [sound_images("tiled", np.random.default_rng(number)).data for number in range(2)]
    assert len({mutated(np.random.default_rng(5), *images) for _ in range(3)}) == 1
    assert len({mutated(np.random.default_rng(seed), *images) for seed in range(20)}) > 15
