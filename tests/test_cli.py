from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from respipe.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report_of(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    return report


def error_of(result: Result) -> str:
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.endswith(f"{line}\n"), "what was logged comes before"
    return line


# The command itself


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["plan", "--help"], ["evaluate", "--help"], ["plot", "run", "--help"]]
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = """if True:
        import sys
        from respipe.cli import main
        try:
            main()
        except SystemExit as end:
            heavy = {"torch", "numpy", "matplotlib", "nvidia", "ffcv", "numba", "cv2"} & sys.modules.keys()
            sys.exit(end.code or ", ".join(heavy) or None)
    """
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert "respipe" in process.stdout


def test_unencodable_names_are_escaped_instead_of_ending_the_command(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "respipe", "plan", "bl\u00f6d\u4e2d"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.returncode == 2
    assert "bl\\xf6d\\u4e2d" in process.stderr


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["plan"], ["plan", "Constant(8)", "--epochs", "0"], ["plot", "run"]]
)
def test_wrong_usage_exits_with_2_and_writes_to_stderr_only(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr


def test_wrong_arguments_are_one_line_without_traceback_and_exit_with_2() -> None:
    result = run("plan", "TRD(224, 112, 1.5)")
    assert result.exit_code == 2
    assert "`participation` must lie between 0 and 1; got 1.5" in error_of(result)


def test_unreadable_files_are_one_line_naming_the_file_and_exit_with_1(tmp_path: Path) -> None:
    result = run("plot", "run", tmp_path / "absent", "--output", tmp_path / "a.png")
    assert result.exit_code == 1
    assert str(tmp_path / "absent" / "log.jsonl") in error_of(result)


def test_debug_lets_the_exception_through() -> None:
    result = run("--debug", "plan", "TRD(224, 112, 1.5)")
    assert isinstance(result.exception, ValueError)
    assert result.exit_code == 1


# plan


def test_plan_counts_epochs_steps_and_images_of_each_size() -> None:
    report = report_of(
        "plan", "TRD(32, 16, 0.5, draw='alternate')", "--epochs", "5", "--num-samples", "100", "--batch-size", "10"
    )
    assert (report["num_epochs"], report["num_samples"], report["batch_size"]) == (5, 100, 10)
    assert (report["num_steps"], report["base_size"]) == (50, 32)
    assert report["sizes"] == [
        {
            "size": 32, "batch_sizes": [10], "duplicates": [1], "largest_budget": 1.0,
            "num_epochs": 2, "num_steps": 20, "image_share": 0.4, "epochs": [[1, 1], [3, 3]],
        },
        {
            "size": 16, "batch_sizes": [10], "duplicates": [1], "largest_budget": 0.25,
            "num_epochs": 3, "num_steps": 30, "image_share": 0.6, "epochs": [[0, 0], [2, 2], [4, 4]],
        },
    ]  # fmt: skip
    assert report["mean_batch_size"] == {"steps": 10.0, "samples": 10.0}


def test_plan_counts_the_samples_of_a_dataset(jpeg_folder: Path) -> None:
    arguments = ("plan", "Constant(32)", "--data", str(jpeg_folder), "--batch-size", "6", "--model", "resnet18")
    assert report_of(*arguments)["num_samples"] == 18
    assert "must not be given together" in run(*arguments, "--num-samples", "3").stderr


def test_plan_tells_batches_copies_and_cost_of_mixed_sizes() -> None:
    run_options = ("--epochs", "2", "--model", "resnet18", "--num-samples", "1281167", "--batch-size", "256")
    batches = report_of("plan", "MixSize('S144', rounding='pow2_ceil')", *run_options)
    assert [(row["size"], row["batch_sizes"], row["num_steps"]) for row in batches["sizes"]] == [
        (256, [256], 1000), (224, [256], 1000), (128, [1024], 1500), (96, [2048], 250),
    ]  # fmt: skip
    assert [row["largest_budget"] for row in batches["sizes"]] == pytest.approx([1.306, 1, 1.306, 1.469], abs=5e-4)
    assert batches["mean_batch_size"]["steps"] == pytest.approx(2 * 1_280_000 / batches["num_steps"])
    assert batches["cost"]["area"]["epoch_relative_to_base_size"] == pytest.approx(0.46327, rel=1e-3)
    copies = report_of("plan", "MixSize('S144', grow='duplicates')", *run_options)
    assert [row["duplicates"] for row in copies["sizes"]] == [[1], [1], [3], [5]]
    assert copies["cost"]["area"]["epoch_relative_to_base_size"] == pytest.approx(1.0020, rel=1e-3)
    assert copies["cost"]["area"]["relative_to_base_size"] == pytest.approx(1.0020 / 3, rel=1e-3)


def test_plan_relates_cost_by_area_and_counted_to_the_base_size() -> None:
    cost = report_of("plan", "TRD(64, 32, 0.5, draw='alternate')", "--epochs", "2", "--model", "resnet18")["cost"]
    assert cost["area"]["relative_to_base_size"] == pytest.approx((1 + 1 / 4) / 2)
    # Convolutions of a ResNet-18 take exactly a quarter at 32 px, its classifier (0.5 M) takes the same at both sizes.
    assert 0.625 < cost["counted"]["relative_to_base_size"] < 0.63
    assert cost["counted"]["gmacs_per_image"] > cost["area"]["gmacs_per_image"]


def test_plan_counts_low_steps_with_pooled_kernels() -> None:
    run_options = ("--epochs", "2", "--num-samples", "100", "--batch-size", "10", "--model", "resnet18")
    cost = report_of("plan", "LowMode(32, probability=(0, 1))", *run_options)["cost"]
    # 1000 classes instead of the 10 with which a low step takes 0.130 of a full one.
    assert cost["counted"]["relative_to_base_size"] == pytest.approx((1 + 0.142) / 2, abs=0.002)
    assert cost["area"]["relative_to_base_size"] == pytest.approx((1 + 1 / 4) / 2)


def write_recipe(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


RECIPE = """
model: {name: "cifar:resnet8", options: {width: 4}}
schedule: {name: TRD, full_size: 32, reduced_size: 16, participation: 0.5, draw: quota, final_full_epochs: 2}
epochs: 6
data: {batch_size: 128}
"""


def test_plan_reads_a_recipe_and_options_overrule_it(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "mine.yaml", RECIPE)
    report = report_of("plan", recipe)
    assert (report["num_epochs"], report["batch_size"], report["model"]) == (6, 128, "cifar:resnet8")
    assert "num_epochs=6" in report["schedule"]
    overruled = report_of("plan", recipe, "--epochs", "4", "--batch-size", "64", "--model", "resnet18")
    assert (overruled["num_epochs"], overruled["batch_size"], overruled["model"]) == (4, 64, "resnet18")
    assert "num_epochs=4" in overruled["schedule"]


@pytest.mark.parametrize(("normalize", "num_samples"), [("imagenet", 1_281_167), ("cifar10", 50_000)])
def test_plan_counts_on_the_samples_of_the_data_that_a_recipe_is_for(
    tmp_path: Path, normalize: str, num_samples: int
) -> None:
    data = {"batch_size": 128, "normalize": normalize}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({"schedule": {"name": "Constant", "size": 32}, "epochs": 2, "data": data}))
    assert report_of("plan", recipe, "--model", "cifar:resnet8")["num_samples"] == num_samples
    assert report_of("plan", recipe, "--model", "cifar:resnet8", "--num-samples", "640")["num_samples"] == 640


@pytest.mark.parametrize("name", ["trd_imagenet", "trd_imagenet.yaml"])
def test_plan_knows_the_recipes_of_the_package_by_name_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    report = report_of("plan", name, "--model", "cifar:resnet8")
    assert (report["num_epochs"], report["base_size"]) == (300, 224)


def test_plan_draws_with_the_seed_of_the_recipe_unless_the_schedule_has_its_own(tmp_path: Path) -> None:
    seeded = write_recipe(tmp_path / "seeded.yaml", f"{RECIPE}\nseed: 7")
    assert "seed=7" in report_of("plan", seeded)["schedule"]
    own = write_recipe(tmp_path / "own.yaml", f"{RECIPE}\nseed: 7".replace("draw: quota", "draw: quota, seed: 3"))
    assert "seed=3" in report_of("plan", own)["schedule"]


def test_plan_of_an_unknown_recipe_lists_the_known_ones() -> None:
    result = run("plan", "yours")
    assert result.exit_code == 2
    assert re.search("one of baseline_cifar10, .*, trd_imagenet; got 'yours'", error_of(result))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule: [1", "must be YAML"),
        ("epochs: 3", "`schedule`: Field required"),
        ("schedule: TRD", "`schedule`: Input should be a valid dictionary; got 'TRD'"),
        ("schedule: {name: Constant, size: 8}\nepochs: many", "`epochs`: Input should be a valid integer"),
        ("schedule: {name: Constant, side: 8}", "`schedule.side` must be a field of Constant"),
        (
            "schedule: {name: Constant, size: 8}\nmodel: {name: nonsense}",
            "`model.name` must be a known model; got 'nonsense'",
        ),
    ],
)
def test_wrong_recipe_is_refused_naming_the_field(tmp_path: Path, text: str, message: str) -> None:
    result = run("plan", write_recipe(tmp_path / "wrong.yaml", text), "--num-samples", "512")
    assert result.exit_code == 2
    assert message in error_of(result)


def test_model_that_cannot_take_a_size_is_refused() -> None:
    result = run("plan", "Constant(225)", "--model", "vit_b_16")
    assert result.exit_code == 2
    assert "`model` must take images of every size of the schedule; at 225 px" in error_of(result)


def test_plan_as_text_shows_sizes_and_cost() -> None:
    result = run("plan", "TRD(64, 32, 0.5, draw='alternate')", "--epochs", "4", "--model", "resnet18")
    assert result.exit_code == 0
    for text in ("4 epochs of 1,281,167 samples", "64 px", "32 px", "0, 2", "62.5%", "counted on resnet18"):
        assert text in result.stdout
    assert "mean batch" not in result.stdout


def test_plan_as_text_shows_the_batches_of_each_size() -> None:
    result = run("plan", "MixSize('S144', grow='both')", "--epochs", "1", "--model", "resnet18")
    assert result.exit_code == 0
    rows = {line.split(" px")[0].strip(): line.split()[2:5] for line in result.stdout.splitlines() if " px " in line}
    assert rows["128"] == ["448", "2", "114.3%"]
    assert rows["256"] == ["224", "1", "114.3%"]
    assert "mean batch: " in result.stdout


# plot


def test_plot_schedule_writes_the_picture_and_says_where(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "schedule.png"
    result = run("plot", "schedule", "TRD(224, 112, 0.5)", "--epochs", "10", "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "schedule.png" in result.stdout
    with Image.open(output) as picture:
        assert picture.format == "PNG"


def test_plot_batch_draws_a_row_for_each_crop_of_each_step(jpeg_folder: Path, tmp_path: Path) -> None:
    output, schedule = tmp_path / "batch.png", "MultiCrop([View(64, 2, augment=Solarize(0)), View(32)])"
    plain = report_of("plot", "batch", jpeg_folder, schedule, "--images", "3", "--steps", "2", "--output", output)
    assert plain == {"picture": str(output)}
    with Image.open(output) as picture:
        height = picture.height
    policies = ("--augment", "RandAugment(2, 9), RandomErasing(1.0)")
    report_of("plot", "batch", jpeg_folder, "Constant(64)", *policies, "--images", "3", "--output", output)
    with Image.open(output) as picture:
        assert 64 < picture.height < height
    wrong = run("plot", "batch", jpeg_folder, "Constant(64)", "--augment", "open('x')", "--output", output)
    assert "RandAugment" in error_of(wrong)


def test_plot_run_draws_several_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    event = {"event": "epoch", "epoch": 0, "elapsed": 3.0, "train_loss": 1.0, "sizes": {"8": {"images": 4}}, "eval": {}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(json.dumps(event) + '\n{"eve', encoding="utf-8")
    result = run("plot", "run", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "runs.png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs.png").stat().st_size > 0
    assert result.stderr.count("skipped") == 2


def test_plot_throughput_draws_what_bench_wrote(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"loader": "ffcv", "size": size, "images_per_second": 9.0} for size in (64, 32)]
    (tmp_path / "bench.json").write_text(json.dumps({"results": rows}), encoding="utf-8")
    result = run("plot", "throughput", tmp_path / "bench.json", "--output", tmp_path / "bench.svg")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "bench.svg").stat().st_size > 0


COMMANDS = ["convert", "verify", "inspect", "plan", "train", "evaluate", "bench", "doctor", "plot schedule", "plot run"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_and_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*command.split(), "--help")
    assert f"Example: respipe {command}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_first_screen_says_what_one_does_first() -> None:
    result = run("--help")
    assert (
        result.stdout.index("respipe convert") < result.stdout.index("respipe train") < result.stdout.index("Options")
    )
    assert "--install-completion" in result.stdout
