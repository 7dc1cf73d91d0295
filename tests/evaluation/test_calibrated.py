from __future__ import annotations

import copy
from pathlib import Path

import torch

import respipe
from respipe.evaluation import evaluate, evaluate_calibrated
from respipe.model.loading import build_model
from respipe.schedules import Constant


def test_each_size_is_evaluated_with_statistics_of_its_own_and_the_model_stays(jpeg_folder: Path) -> None:
    torch.manual_seed(0)
    model = build_model("cifar:resnet8", num_classes=3)
    before = copy.deepcopy(model.state_dict())

    def training_batches(size: int) -> respipe.Loader:
        return respipe.Loader(jpeg_folder, Constant(size), batch_size=6, backend="reference")

    calls: list[tuple[int, int]] = []
    results = evaluate_calibrated(
        model, jpeg_folder, (32, 16), training_batches, num_batches=2, backend="reference", batch_size=9,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for result, size in zip(results, (32, 16), strict=True):
        calibrated = copy.deepcopy(model)
        with training_batches(size) as loader:
            respipe.calibrate_batchnorm(calibrated, loader, 2)
        assert evaluate(calibrated, jpeg_folder, size, backend="reference", batch_size=9) == [result]
