from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import respipe
from pipelines import selfsupervised
from pipelines.demo_images import write_image
from respipe.augment import ColorJitter

OPTIONS = [
    "--size",
    "32",
    "--local",
    "1",
    "--batch-size",
    "12",
    "--width",
    "8",
    "--rate",
    "0.01",
    "--backend",
    "reference",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(24):
        write_image(folder, 0, ("train", number))
    for number in range(12):
        write_image(folder, 0, ("val", number))
    return folder


def test_loss_falls_and_training_goes_on_where_it_ended(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfsupervised, "AUGMENT", (ColorJitter(0.1),))  # a dozen steps learn to tell colours apart
    job = [str(images / "train"), *OPTIONS, "--epochs", "6", "--output", str(tmp_path)]
    losses = selfsupervised.main([*job, "--val", str(images / "val")])
    assert len(losses) == 6
    assert sum(losses[-2:]) < 0.85 * sum(losses[:2])
    assert "nearest neighbours" in capsys.readouterr().out
    assert selfsupervised.main(job) == losses


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_features_learned_at_the_defaults_tell_classes_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 1600), ("val", 400)):
        for number in range(count):
            write_image(tmp_path, 0, (split, number))
        respipe.convert(tmp_path / split, tmp_path / f"{split}.beton", levels=(96,))
    losses = selfsupervised.main([str(tmp_path / "train.beton"), "--val", str(tmp_path / "val.beton")])
    before, after = (float(share) for share in re.findall(r"([\d.]+)% right", capsys.readouterr().out))
    assert losses[-1] < 0.5 * losses[0]
    assert after > 22 and after > before + 8  # by chance 10


def test_loss_is_least_where_crops_of_an_image_agree_and_images_differ() -> None:
    eye, same = torch.eye(4), torch.ones(4, 4) / 2
    apart = selfsupervised.contrastive_loss([eye, eye, eye], 0.1)
    assert apart < 0.001
    assert selfsupervised.contrastive_loss([same, same, same], 0.1) == pytest.approx(torch.log(torch.tensor(4.0)))
    assert selfsupervised.contrastive_loss([eye, eye.roll(1, 0)], 0.1) > 5
