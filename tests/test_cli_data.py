from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from respipe.backends.registry import BackendStatus
from respipe.cli import app, console, doctor
from respipe.storage.open import open_dataset


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report_of(*arguments: str | Path, exit_code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    return report


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of four JPEGs, 80 x 60 px."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((80, 60)).save(tmp_path / "images" / name / f"{number}.jpg")
    return tmp_path / "images"


@pytest.fixture
def beton(images: Path) -> Path:
    target = images.parent / "images.beton"
    result = run("convert", images, target, "--levels", "64,32", "--workers", "0")
    assert result.exit_code == 0, result.stderr
    return target


def damage(beton: Path, index: int) -> None:
    dataset = open_dataset(beton)
    offsets = dataset.levels[0].offsets
    assert offsets is not None
    place = int(offsets[index]) + 300
    dataset.close()
    data = bytearray(beton.read_bytes())
    data[place] ^= 0xFF
    beton.write_bytes(data)


# convert


def test_convert_reports_counts_reasons_levels_and_what_to_do_next(images: Path, tmp_path: Path) -> None:
    result = run("convert", images, tmp_path / "a.beton", "--levels", "64,32", "--workers", "0")
    assert result.exit_code == 0, result.stderr
    for text in ("8 samples", "0 images kept as they were, 8 re-encoded", "larger than 64 px", "image_32"):
        assert text in result.stdout
    assert f"respipe verify {tmp_path / 'a.beton'}" in result.stdout.replace("\n", "")
    assert (tmp_path / "a.beton").is_file()


def test_convert_passes_its_options_on(images: Path, tmp_path: Path) -> None:
    options = ("--levels", "48", "--quality", "50", "--subsampling", "4:4:4", "--restart-interval", "3")
    report = report_of("convert", images, tmp_path / "a.beton", *options, "--keep", "bytes", "--workers", "0")
    assert report["error"] is None
    assert [(level["name"], level["longest_side"]) for level in report["levels"]] == [("image", 48)]
    settings = report_of("inspect", tmp_path / "a.beton")["settings"]
    assert settings == {
        "levels": [48],
        "quality": 50,
        "subsampling": "4:4:4",
        "restart_interval": 3,
        "keep": "bytes",
    }


def test_convert_lists_undecodable_images_and_exits_with_1(images: Path, tmp_path: Path) -> None:
    (images / "cats" / "em[bold]pty.jpg").touch()
    result = run("convert", images, tmp_path / "a.beton", "--workers", "0")
    assert result.exit_code == 1
    assert "cats/em[bold]pty.jpg" in result.stdout
    assert "the file is empty" in result.stdout
    assert "Wrote" not in result.stdout
    assert "1 of 9 images cannot be decoded" in result.stderr
    assert not (tmp_path / "a.beton").exists()


def test_convert_as_json_reports_undecodable_images_too(images: Path, tmp_path: Path) -> None:
    (images / "cats" / "empty.jpg").touch()
    report = report_of("convert", images, tmp_path / "a.beton", "--workers", "0", exit_code=1)
    assert [note["name"] for note in report["quarantined"]] == ["cats/empty.jpg"]
    assert "1 of 9 images cannot be decoded" in report["error"]


def test_convert_may_be_allowed_to_leave_images_out(images: Path, tmp_path: Path) -> None:
    (images / "cats" / "empty.jpg").touch()
    report = report_of("convert", images, tmp_path / "a.beton", "--workers", "0", "--allow-corrupt", "1")
    assert (report["num_images"], report["num_corrupt"], report["error"]) == (8, 1, None)


def test_long_quarantine_lists_are_cut_with_their_count(images: Path, tmp_path: Path) -> None:
    for number in range(25):
        (images / "cats" / f"empty{number:02}.jpg").touch()
    result = run("convert", images, tmp_path / "a.beton", "--workers", "0", "--allow-corrupt", "25")
    assert result.exit_code == 0
    assert "Left out: 25" in result.stdout
    assert result.stdout.count("the file is empty") == 20
    assert "and 5 more" in result.stdout


def test_existing_target_is_replaced_only_on_demand(images: Path, beton: Path) -> None:
    result = run("convert", images, beton, "--workers", "0")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert run("convert", images, beton, "--workers", "0", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--levels", "64,big", "positive whole numbers separated by commas"),
        ("--levels", "32,64", "`levels` must be one or more sides in pixels, falling"),
        ("--quality", "101", "`quality` must be at most 100; got 101"),
        ("--subsampling", "4:1:1", "`subsampling` must be one of"),
        ("--restart-interval", "-1", "`restart_interval` must be at least 0"),
        ("--keep", "all", "`keep` must be one of"),
        ("--allow-corrupt", "-1", "greater than or equal to 0"),
    ],
)
def test_wrong_conversion_options_exit_with_2(
    images: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    result = run("convert", images, tmp_path / "a.beton", option, value)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


def test_convert_says_at_once_what_it_recognised_and_ends_with_what_to_type(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(images, "images")
    result = run("convert", tmp_path / "x.tar", tmp_path / "a.beton", "--levels", "32", "--workers", "0")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'x.tar'}: tar of class folders, indexing ...",
        f"{tmp_path / 'x.tar'}: tar of class folders, 8 samples",
    ]
    for text in (f"respipe train RECIPE --data {tmp_path / 'a.beton'} --val", "respipe.Loader('"):
        assert text in result.stdout.replace("\n", "")


def test_a_flat_folder_is_inspected_and_converted_with_its_labels(images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{name}/{number}.jpg,{name[:3]}\n" for name in ("cats", "dogs") for number in range(4)))
    report = report_of("inspect", images, "--labels", labels)
    assert (report["classes"], report["fields"], report["faults"]) == (["cat", "dog"], {"label": "class"}, [])
    result = run("inspect", images, "--labels", labels)
    assert "converted: about" in result.stdout
    assert f"--labels {labels}`" in result.stdout.replace("\n", "")
    report = report_of("convert", images, tmp_path / "a.beton", "--labels", labels, "--workers", "0", "--levels", "32")
    assert report["num_images"] == 8
    assert run("convert", images, tmp_path / "b.beton", "--split", "val").exit_code == 1


def test_progress_tells_expected_size_and_time_where_there_is_no_terminal(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    result = run("convert", images, tmp_path / "a.beton", "--levels", "32", "--workers", "0")
    told = [line for line in result.stderr.splitlines() if line.startswith("converting")]
    assert re.fullmatch(r"converting to about [\d.]+ \w+: 7 of 8, about 0:0\d:\d\d left", told[-2]), told


# verify and inspect


def test_verify_of_a_sound_file_exits_with_0(beton: Path) -> None:
    result = run("verify", beton, "--decode", "--workers", "0")
    assert result.exit_code == 0
    assert "No damage found." in result.stdout


def test_verify_lists_damaged_samples_and_exits_with_1(beton: Path) -> None:
    damage(beton, 5)
    result = run("verify", beton, "--workers", "0")
    assert result.exit_code == 1
    assert "dogs/1.jpg" in result.stdout
    assert "1 images are damaged." in result.stdout
    report = report_of("verify", beton, "--workers", "0", exit_code=1)
    assert [(image["index"], image["level"]) for image in report["damaged"]] == [(5, "image")]
    assert report["sound"] is False


def test_verify_of_a_truncated_file_is_one_line_and_exits_with_1(beton: Path) -> None:
    beton.write_bytes(beton.read_bytes()[:500])
    result = run("verify", beton, "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_inspect_shows_a_beton(beton: Path) -> None:
    result = run("inspect", beton)
    assert result.exit_code == 0
    for text in ("8 samples, 2 classes, with checksums", "64 x 48 px", "32 x 24 px", "quality 89", "100%"):
        assert text in result.stdout


def test_inspect_describes_a_folder_as_json(images: Path) -> None:
    report = report_of("inspect", images)
    assert (report["kind"], report["num_samples"], report["classes"]) == ("folder", 8, ["cats", "dogs"])
    assert "Every file is decoded whole" in report["decoding"]


def test_inspect_of_nothing_exits_with_1(tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "absent.beton")
    assert result.exit_code == 1
    assert "absent.beton does not exist" in result.stderr


# bench


def test_bench_measures_every_size_in_five_rounds(beton: Path) -> None:
    options = ("--sizes", "16,32", "--backends", "reference", "--batches", "2", "--batch-size", "2", "--threads", "1")
    report = report_of("bench", beton, *options)
    assert (report["num_samples"], report["batch_size"], report["num_batches"]) == (8, 2, 2)
    assert [(row["loader"], row["size"], row["area_ratio"]) for row in report["results"]] == [
        ("reference", 32, 1.0),
        ("reference", 16, 0.25),
    ]
    for row in report["results"]:
        assert len(row["rounds"]) == 5
        assert row["images_per_second"] == sorted(row["rounds"])[2]
    assert report["results"][0]["time_ratio"] == 1.0


def test_bench_goes_on_with_the_next_epoch_of_the_size_and_names_the_backend_that_auto_took(images: Path) -> None:
    result = run("bench", images, "--sizes", "16", "--backends", "auto", "--batches", "5", "--batch-size", "4")
    assert result.exit_code == 0, result.stderr
    assert "auto" not in result.stdout
    assert "16 px" in result.stdout


def test_bench_of_too_few_samples_says_what_to_change(images: Path) -> None:
    result = run("bench", images, "--batch-size", "8", "--sizes", "16", "--backends", "reference")
    assert result.exit_code == 2
    assert "`batch_size` must be at most half the number of samples, 8" in result.stderr


def test_bench_with_an_unknown_backend_exits_with_2(images: Path) -> None:
    result = run("bench", images, "--backends", "nonsense", "--batch-size", "2")
    assert result.exit_code == 2
    assert "`backend` must be one of" in result.stderr


# doctor


def test_doctor_decodes_with_the_backends_that_auto_takes() -> None:
    report = report_of("doctor")
    assert report["ok"] is True
    assert {package["name"]: package["use"] for package in report["packages"]}["torch"] == "core"
    names = {backend["name"] for backend in report["backends"] if backend["installed"]}
    assert set(report["auto"]) == {".beton file", "class folder"}
    assert {outcome["backend"] for outcome in report["auto"].values()} <= names


def crash(*_: str) -> None:
    os._exit(17)


def test_doctor_survives_a_crash_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_out", crash)
    monkeypatch.setattr(doctor, "KINDS", ("class folder",))
    outcomes = doctor.try_out_auto("cpu")
    assert outcomes == {"class folder": {"backend": None, "error": "the process that decoded it crashed"}}


def test_doctor_gives_the_command_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ffcv = BackendStatus(name="ffcv", installed=False, version=None, note="pip install 'respipe[ffcv]'")
    monkeypatch.setattr("respipe.backends.registry.available_backends", lambda: [ffcv])
    monkeypatch.setattr("respipe.cli.doctor.try_out_auto", lambda _: {"any": {"backend": "dali", "error": None}})
    installed = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "matplotlib" else installed(name))
    result = run("doctor")
    assert result.exit_code == 0
    assert "pip install 'respipe[ffcv]'" in result.stdout
    assert "pip install 'respipe[plots]'" in result.stdout


def test_doctor_exits_with_1_where_decoding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"class folder": {"backend": None, "error": "the process that decoded it crashed"}}
    monkeypatch.setattr("respipe.cli.doctor.try_out_auto", lambda _: outcome)
    result = run("doctor")
    assert result.exit_code == 1
    assert "the process that decoded it crashed" in result.stdout


def test_doctor_without_a_core_package_says_so_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "torch" else "1.0")
    report = report_of("doctor", exit_code=1)
    assert report["missing"] == [{"name": "torch", "command": "pip install respipe"}]


def test_doctor_says_what_to_change_for_each_trainer_as_the_documentation_does() -> None:
    trainers = report_of("doctor", "--trainer")["trainers"]
    assert {trainer["name"] for trainer in trainers} == {"accelerate", "lightning", "timm", "transformers"}
    page = (Path(__file__).parents[1] / "docs/trainers.md").read_text().splitlines()
    shown = run("doctor", "--trainer").stdout.splitlines()
    for trainer in trainers:
        lines = [line for line in trainer["lines"].splitlines() if line]
        assert lines[0].startswith(f"from respipe.integrations.{trainer['name']} import")
        assert len(lines) <= 5
        assert set(lines) <= set(page) & set(shown)


def test_doctor_names_trainers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: None)
    assert "timm is not installed" in run("doctor", "--trainer").stdout


# Hostile names


def test_names_reach_the_terminal_escaped_whatever_shows_them(images: Path, tmp_path: Path) -> None:
    name = "\x1b[31m[red]new\nline"
    (images / name).mkdir()
    (images / f"dogs/{name}.jpg").touch()
    for command in (("convert", images, tmp_path / "a.beton", "--workers", "0"), ("verify", images, "--workers", "0")):
        result = run(*command)
        assert result.exit_code == 1
        shown = result.stdout + result.stderr
        assert "\x1b" not in shown
        assert r"\x1b[31m[red]new\nline" in shown.replace("\n", "")
    assert "have no images, first" in result.stderr  # a message of the log


def test_a_changed_byte_between_the_images_is_found(beton: Path) -> None:
    dataset = open_dataset(beton)
    offsets = dataset.levels[0].offsets
    assert offsets is not None
    place = int(offsets.min()) - 1
    dataset.close()
    data = bytearray(beton.read_bytes())
    data[place] = 7
    beton.write_bytes(data)
    result = run("verify", beton, "--workers", "0")
    assert result.exit_code == 1
    assert f"{place:,}" in result.stdout
    assert "harm no image" in result.stdout
    assert report_of("verify", beton, "--workers", "0", exit_code=1)["stray_bytes"] == [place]
