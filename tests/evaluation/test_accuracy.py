from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import respipe
from respipe.backends import reference
from respipe.cost.macs import counted
from respipe.evaluation import Evaluation, evaluate
from respipe.schedules import Constant


class MeanColour(nn.Module):
    """Six logits from an image's mean colour; remembers the sizes it saw and whether it was in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.seen: list[tuple[int, int]] = []
        self.modes: set[bool] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((len(images), images.shape[-1]))
        self.modes.add(self.training)
        return self.norm(self.linear(images.mean(dim=(2, 3))))


def model() -> MeanColour:
    torch.manual_seed(0)
    made = MeanColour()
    nn.init.normal_(made.linear.weight, std=3)
    return made


def expected(network: nn.Module, folder: Path, size: int) -> Evaluation:
    """The same numbers, sample by sample in NumPy."""
    top1 = top5 = loss = 0.0
    with respipe.Loader(folder, Constant(size), batch_size=1, training=False, backend="reference") as loader:
        for images, labels in loader:
            logits = network.eval()(images).detach().double().numpy()[0]
            label = int(labels[0])
            rank = int(np.sum(logits > logits[label]))
            top1, top5 = top1 + (rank == 0), top5 + (rank < 5)
            loss += math.log(np.sum(np.exp(logits))) - logits[label]
        count = len(loader.dataset)
    macs = counted(network)(size)
    return Evaluation(size=size, top1=top1 / count, top5=top5 / count, loss=loss / count, num_samples=count, macs=macs)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_results_equal_those_counted_sample_by_sample(jpeg_folder: Path, batch_size: int) -> None:
    results = evaluate(model(), jpeg_folder, (48, 32), batch_size=batch_size, backend="reference")
    for result, size in zip(results, (48, 32), strict=True):
        oracle = expected(model(), jpeg_folder, size)
        assert (result.size, result.num_samples, result.macs) == (size, 18, 3 * 6)
        assert (result.top1, result.top5) == (oracle.top1, oracle.top5)
        assert result.loss == pytest.approx(oracle.loss, rel=1e-3)
    assert 0 < results[0].top1 < 1


def test_every_sample_is_shown_once_at_each_size(jpeg_folder: Path) -> None:
    network = model()
    evaluate(network, jpeg_folder, [40, 24], batch_size=8, backend="reference")
    assert network.seen == [(8, 40), (8, 24), (8, 40), (8, 24), (2, 40), (2, 24)]
    assert network.modes == {False}


def test_model_is_left_in_the_mode_it_was_in_also_after_an_error(jpeg_folder: Path) -> None:
    network = model().train()
    network.norm.eval()
    evaluate(network, jpeg_folder, 32, backend="reference")
    assert (network.training, network.norm.training) == (True, False)
    network.linear = nn.Linear(4, 6)
    with pytest.raises(RuntimeError):
        evaluate(network, jpeg_folder, 32, backend="reference")
    assert (network.training, network.norm.training) == (True, False)


def test_top5_of_a_model_with_few_classes_is_certain(jpeg_folder: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (result,) = evaluate(network, jpeg_folder, 32, backend="reference")
    assert result.top5 == 1.0


def test_label_without_a_logit_is_an_error(jpeg_folder: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="a logit for every label; label 2 occurs and it has 2"):
        evaluate(network, jpeg_folder, 32, backend="reference")


def test_no_size_is_an_error(jpeg_folder: Path) -> None:
    with pytest.raises(ValueError, match="`sizes` must name at least one"):
        evaluate(model(), jpeg_folder, ())


def test_progress_counts_batches_of_all_sizes(jpeg_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(model(), jpeg_folder, (32, 16), batch_size=9, backend="reference",
             progress=lambda done, total: calls.append((done, total)))  # fmt: skip
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("kind", "backend"), [("jpeg_folder", "reference"), ("converted", "tiles")])
def test_results_at_a_size_do_not_depend_on_the_others(kind: str, backend: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    sizes = (96, 64, 50, 40, 24)
    together = evaluate(model(), source, sizes, backend=backend)
    assert together == [evaluate(model(), source, size, backend=backend)[0] for size in sizes]
    assert len({result.loss for result in together}) == len(sizes)


@pytest.fixture(scope="module")
def converted(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "small.beton"
    respipe.convert(jpeg_folder, target, levels=(256, 128, 64), num_workers=0)
    return target


def test_each_file_is_decoded_once_for_all_sizes(jpeg_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = reference.decode_upright

    def counting(dataset: object, index: int, level: int = 0) -> object:
        decoded.append(index)
        return decode(dataset, index, level)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reference, "decode_upright", counting)
    evaluate(model(), jpeg_folder, (64, 48, 40, 32, 24), batch_size=4, backend="reference")
    assert sorted(decoded) == list(range(18))


def test_sizes_come_back_in_the_order_asked_for_and_repeated_ones_are_shown_once(jpeg_folder: Path) -> None:
    network = model()
    results = evaluate(network, jpeg_folder, (24, 40, 24), backend="reference")
    assert [result.size for result in results] == [24, 40, 24]
    assert results[0] == results[2]
    assert network.seen == [(18, 40), (18, 24)]


class LeftHalf(MeanColour):
    """Looks at the left half of an image only, so that its mirror image is another one to it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images[..., : images.shape[-1] // 2])


def test_flip_takes_the_mean_of_the_logits_of_both_images(jpeg_folder: Path) -> None:
    torch.manual_seed(0)
    network = LeftHalf()
    nn.init.normal_(network.linear.weight, std=3)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (self.network(images) + self.network(torch.flip(images, (3,)))) / 2

    plain, averaged = (evaluate(network, jpeg_folder, 32, backend="reference", flip=flip)[0] for flip in (False, True))
    oracle = evaluate(Both(), jpeg_folder, 32, backend="reference")[0]
    assert averaged.loss == pytest.approx(oracle.loss, rel=1e-6)
    assert averaged.loss != pytest.approx(plain.loss, rel=1e-3)
    assert (averaged.top1, averaged.macs) == (oracle.top1, 36)


class Typed(MeanColour):
    """Remembers what its first layer computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = set[torch.dtype]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.dtypes.add(self.linear(images.mean(dim=(2, 3))).dtype)
        return super().forward(images)


def test_autocast_runs_the_model_in_the_given_dtype(jpeg_folder: Path) -> None:
    network = Typed()
    evaluate(network, jpeg_folder, 32, backend="reference", autocast=torch.bfloat16)
    assert network.dtypes == {torch.bfloat16}
    evaluate(network, jpeg_folder, 32, backend="reference")
    assert network.dtypes == {torch.bfloat16, torch.float32}


class LooksAtPixels(MeanColour):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * float(images.max() > -9))


def test_cost_of_a_model_that_needs_pixels_is_unknown_and_said_to_be(
    jpeg_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (result,) = evaluate(LooksAtPixels(), jpeg_folder, 32, backend="reference")
    assert result.macs is None
    assert "The cost of LooksAtPixels is not counted" in caplog.text


def test_result_is_ready_for_json() -> None:
    result = Evaluation(size=32, top1=0.5, top5=1.0, loss=0.7, num_samples=2)
    assert result.to_dict() == {
        "size": 32, "top1": 0.5, "top5": 1.0, "loss": 0.7, "num_samples": 2, "macs": None,
    }  # fmt: skip


@pytest.mark.parametrize("size", [0, -32])
def test_sizes_are_checked(jpeg_folder: Path, size: int) -> None:
    with pytest.raises(ValueError, match="`sizes` must be at least 1"):
        evaluate(model(), jpeg_folder, (32, size))


class Colours(nn.Module):
    """A logit for each of some colours: how little an image's mean differs from it."""

    def __init__(self, *colours: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("colours", torch.tensor(colours).float() / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(images.mean((2, 3)), self.get_buffer("colours"))


RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)


def coloured_folder(root: Path, **classes: tuple[int, int, int]) -> Path:
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), colour).save(root / name / f"{number}.jpg", quality=95)
    return root


def test_labels_are_matched_by_the_names_of_classes(tmp_path: Path) -> None:
    network, data = Colours(RED, GREEN, BLUE), coloured_folder(tmp_path / "val", cat=RED, fox=BLUE)
    options = {"backend": "reference", "normalize": None, "dtype": torch.float32}
    trained_on = ("cat", "dog", "fox")
    (result,) = evaluate(network, data, 32, classes=trained_on, **options)  # type: ignore[arg-type]
    assert result.top1 == 1
    (result,) = evaluate(network, data, 32, classes=("fox", "dog", "cat"), **options)  # type: ignore[arg-type]
    assert result.top1 == 0
    with pytest.raises(ValueError, match="`classes` must be distinct; got 'cat' more than once"):
        evaluate(network, data, 32, classes=("cat", "cat", "fox"), **options)  # type: ignore[arg-type]


def test_classes_match_however_a_folder_and_a_converted_file_spell_them(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "val", **{"a\nb": RED, "fox": BLUE})
    for spelt in ("a\nb", r"a\nb"):
        (result,) = evaluate(Colours(BLUE, RED), data, 32, backend="reference", normalize=None, classes=("fox", spelt))
        assert result.top1 == 1


@pytest.mark.parametrize(
    "answer", [lambda images: {"logits": images}, lambda images: images, lambda images: images[0, 0]]
)
def test_a_model_that_returns_no_logits_is_refused(jpeg_folder: Path, answer: Callable[[torch.Tensor], Any]) -> None:
    class Other(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return answer(images)

    with pytest.raises(TypeError, match=r"`model` must return logits of shape \(B, classes\), here \(18, classes\)"):
        evaluate(Other(), jpeg_folder, 32, backend="reference")
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module; got type"):
        evaluate(Other, jpeg_folder, 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        evaluate(Other(), jpeg_folder, 32, batch_size=0)


def test_outputs_without_names_that_outnumber_the_classes_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = coloured_folder(tmp_path / "val", cat=RED, fox=BLUE)
    (result,) = evaluate(Colours(RED, GREEN, BLUE), data, 32, backend="reference", normalize=None)
    assert result.top1 == 0.5
    assert caplog.text.count("the model has 3 outputs and the data 2 classes") == 1
    assert "--classes-from" in caplog.text


def test_classes_that_the_model_was_not_trained_for_are_refused_by_name(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "val", cat=RED, owl=GREEN)
    with pytest.raises(ValueError, match="`classes` must name every class of the data; 'owl' of 2 is not among the 2"):
        evaluate(Colours(RED, BLUE), data, 32, classes=("cat", "fox"), backend="reference")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_answers_to_every_sample_are_written(jpeg_folder: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"answers.{suffix}"
    if suffix == "parquet":
        table = pytest.importorskip("pyarrow.parquet")
    results = evaluate(
        model(), jpeg_folder, (32, 48), batch_size=4, backend="reference", indices=[7, 2, 11], predictions=target
    )
    if suffix == "parquet":
        rows = table.read_table(target).to_pylist()
    else:
        with target.open(newline="") as file:
            texts = list(csv.DictReader(file))
        rows = [
            {
                name: value if name == "name" else [int(one) for one in value.split()] if name[3] == "5" else int(value)
                for name, value in row.items()
            }
            for row in texts
        ]
    assert [row["index"] for row in rows] == [2, 7, 11]
    assert list(rows[0]) == ["index", "name", "label", "top1_48", "top5_48", "top1_32", "top5_32"]
    for result in results:
        assert result.num_samples == 3
        assert result.top1 == np.mean([row[f"top1_{result.size}"] == row["label"] for row in rows])
        assert result.top5 == np.mean([row["label"] in row[f"top5_{result.size}"] for row in rows])
        assert all(row[f"top5_{result.size}"][0] == row[f"top1_{result.size}"] for row in rows)
    with respipe.Loader(jpeg_folder, Constant(32), batch_size=1, training=False, backend="reference") as loader:
        assert [row["name"] for row in rows] == [loader.dataset.name(index) for index in (2, 7, 11)]


def test_answers_go_to_tables_alone(jpeg_folder: Path) -> None:
    with pytest.raises(ValueError, match="`predictions` must be"):
        evaluate(model(), jpeg_folder, 32, predictions="answers.txt")
    with pytest.raises(ValueError, match="`predictions` must be a file in a folder that exists"):
        evaluate(model(), jpeg_folder, 32, predictions=jpeg_folder / "missing" / "answers.csv")
