from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import respipe
from respipe.cli.arguments import parse_sizes
from respipe.cli.evaluate import _indices  # pyright: ignore[reportPrivateUsage]
from respipe.model.loading import build_model
from respipe.sampling import CenterCrop, ResizedCenterCrop, WholeImage
from tests.test_cli import error_of, report_of, run

NAME = "cifar:resnet8"
CPU = ("--device", "cpu", "--backend", "reference")


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(NAME, num_classes=3)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network().state_dict().items()}}, path)
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    recipe: dict[str, Any] = {
        "model": {"name": NAME, "num_classes": None, "options": {}},
        "schedule": {"name": "TRD", "full_size": 32, "reduced_size": 16, "participation": 0.5},
        "epochs": 3,
        "data": {
            "batch_size": 6, "crop": {"name": "RandomResizedCrop", "scale": [0.25, 1.0]}, "flip_probability": 0.0,
            "normalize": "cifar10",
        },
        "learning_rate": {"peak": 0.1},
        "evaluation": {"sizes": [32, 24], "crop": {"name": "WholeImage"}},
        "precision": "auto",
    }  # fmt: skip
    content = {"version": 1, "recipe": recipe, "model": network().state_dict()}
    torch.save(content, tmp_path / "checkpoint.pt")
    return tmp_path


def test_weights_of_a_named_model_are_evaluated_at_each_size(weights: Path, jpeg_folder: Path) -> None:
    report = report_of("evaluate", weights, jpeg_folder, "--model", NAME, "--sizes", "16:48:16", *CPU)
    expected = respipe.evaluate(network(), jpeg_folder, (16, 32, 48), backend="reference")
    assert [run["name"] for run in report["runs"]] == ["as trained"]
    for row, result in zip(report["runs"][0]["results"], expected, strict=True):
        assert row == {**result.to_dict(), "loss": pytest.approx(result.loss, rel=1e-6)}
    assert (report["model"], report["train_size"], report["num_samples"]) == (NAME, None, 18)
    assert (report["normalize"], report["flip"], report["suggestion"]) == ("imagenet", False, None)


def test_a_run_says_how_its_images_are_made(run_folder: Path, jpeg_folder: Path) -> None:
    report = report_of("evaluate", run_folder, jpeg_folder, *CPU)
    options: dict[str, Any] = {"normalize": "cifar10", "crop": WholeImage(), "backend": "reference"}
    expected = respipe.evaluate(network(), jpeg_folder, (32, 24), **options)
    assert [row["loss"] for row in report["runs"][0]["results"]] == pytest.approx([one.loss for one in expected])
    assert (report["train_size"], report["crop"]) == (32, "WholeImage()")
    # Crops of a quarter to all of the area have sides of 0.5 to 1, 7/9 on average; the stride is 4 px.
    assert report["suggestion"]["size"] == 40
    assert "Trained at 32 px on crops of 25% to 100%" in report["suggestion"]["reason"]


def test_calibration_flip_and_pictures(run_folder: Path, jpeg_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = ("--picture", tmp_path / "accuracy.png", "--activations", tmp_path / "activations.png")
    options = ("--sizes", "32,24", "--flip", "--calibrate", jpeg_folder, "--calibration-batches", "2", *pictures)
    report = report_of("evaluate", run_folder, jpeg_folder, *options, *CPU)
    assert [run["name"] for run in report["runs"]] == ["as trained", "BatchNorm calibrated"]
    plain, calibrated = ([row["loss"] for row in run["results"]] for run in report["runs"])
    assert all(one != other for one, other in zip(plain, calibrated, strict=True))
    assert [row["size"] for row in report["activations"]] == [32, 24]
    for name in ("accuracy.png", "activations.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"


def test_as_text_it_shows_a_table_with_notes(run_folder: Path, jpeg_folder: Path) -> None:
    result = run("evaluate", run_folder, jpeg_folder, "--sizes", "24,32,40", *CPU)
    assert result.exit_code == 0, result.stderr
    lines = {line.split(" px")[0].strip(): line for line in result.stdout.splitlines() if " px " in line}
    assert "trained at" in lines["32"]
    assert "suggested" in lines["40"]
    assert "GMACs" in result.stdout
    assert result.stdout.count("best") == 1


def test_models_of_timm_tell_their_size_and_normalisation(jpeg_folder: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    report = report_of(
        "evaluate", tmp_path / "weights.pth", jpeg_folder, "--model", "timm:resnet10t", "--sizes", "64", *CPU
    )
    assert report["train_size"] == model.pretrained_cfg["input_size"][-1]
    assert report["normalize"] == [list(model.pretrained_cfg[key]) for key in ("mean", "std")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "32"), "`model` must be named"),
        (("--model", NAME), "`--sizes` must be given"),
        (("--model", "resnet18", "--sizes", "32"), "for resnet18 there are"),
        (("--model", NAME, "--sizes", "32", "--crop", "Square"), "`--crop` must be one of"),
        (("--model", NAME, "--sizes", "32", "--crop", "RandomCrop"), "`--crop` must be a crop without fields"),
        (("--model", NAME, "--sizes", "32", "--normalize", "mnist"), "`normalize` must be one of"),
        (("--model", NAME, "--sizes", "32", "--precision", "int8"), "`--precision` must be auto"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_with_2(
    weights: Path, jpeg_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("evaluate", weights, jpeg_folder, *arguments, *CPU)
    assert result.exit_code == 2
    assert message in error_of(result)


def test_sizes_that_the_model_does_not_take_are_named(jpeg_folder: Path, tmp_path: Path) -> None:
    torch.save(build_model("vit_b_16", num_classes=3, options={"image_size": 32}).state_dict(), tmp_path / "vit.pth")
    result = run("evaluate", tmp_path / "vit.pth", jpeg_folder, "--model", "vit_b_16", "--sizes", "64", *CPU)
    assert result.exit_code == 2


def test_missing_files_exit_with_1(tmp_path: Path, jpeg_folder: Path) -> None:
    result = run("evaluate", tmp_path / "none.pth", jpeg_folder, "--model", NAME, "--sizes", "32")
    assert result.exit_code == 1
    assert "none.pth" in error_of(result)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("224", (224,)), ("96:448:128", (96, 224, 352)), ("32, 64:96:32,32", (32, 64, 96)), ("8:8:4", (8,))],
)
def test_sizes_are_numbers_and_ranges_with_their_ends(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "96:448", "448:96:32", "96:448:0", "a", "96:448:32:1"])
def test_what_is_no_size_is_refused(weights: Path, jpeg_folder: Path, text: str) -> None:
    result = run("evaluate", weights, jpeg_folder, "--model", NAME, "--sizes", text)
    assert result.exit_code == 2
    assert "must be" in result.stderr


@pytest.mark.parametrize("text", ["2, 5 # both\n7", "2\n5\n7\n"])
def test_numbers_of_samples_are_read_from_any_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text(text)
    numbers = _indices(tmp_path / "numbers.txt")
    assert numbers is not None and numbers.tolist() == [2, 5, 7]


@pytest.mark.parametrize("content", [b"1.5", b"index\n3", b"\x93NUMPY", b"9" * 30])
@pytest.mark.parametrize("name", ["numbers.npy", "numbers.csv"])
def test_a_file_without_numbers_of_samples_is_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"`--indices` must be .*{name} is not"):
        _indices(tmp_path / name)


def test_images_of_a_timm_model_are_those_of_its_configuration(jpeg_folder: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    weights, numbers, answers = tmp_path / "weights.pth", tmp_path / "numbers.txt", tmp_path / "answers.csv"
    network = timm.create_model("test_efficientnet", num_classes=3)
    torch.save(network.state_dict(), weights)
    numbers.write_text("3\n1\n")
    report = report_of(
        "evaluate", weights, jpeg_folder, "--model", "timm:test_efficientnet", "--indices", numbers, "--predictions",
        answers, *CPU,
    )  # fmt: skip
    config = network.pretrained_cfg
    assert report["crop"] == repr(ResizedCenterCrop(config["crop_pct"], config.get("crop_mode") or "center"))
    assert report["interpolation"] == config["interpolation"] == "bicubic"
    assert [row["size"] for row in report["runs"][0]["results"]] == [config["input_size"][-1]]
    assert report["num_samples"] == 2
    assert [line.split(",")[0] for line in answers.read_text().splitlines()] == ["index", "1", "3"]
    theirs = report_of("evaluate", weights, jpeg_folder, "--model", "timm:test_efficientnet", "--crop", "CenterCrop",
        "--interpolation", "bilinear", "--sizes", "64", *CPU)  # fmt: skip
    assert (theirs["crop"], theirs["interpolation"]) == (repr(CenterCrop()), "bilinear")
