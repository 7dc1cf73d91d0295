from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from respipe.model.adapt import adapt
from respipe.model.loading import build_model, load_trained_model, load_weights
from respipe.recipe import Recipe
from respipe.schedules import LowMode

NAME, OPTIONS = "cifar:resnet8", {"width": 4}


def network(num_classes: int = 10) -> nn.Module:
    torch.manual_seed(3)
    return build_model(NAME, num_classes=num_classes, options=OPTIONS).eval()


def same(model: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.equal(model(images), other(images))


def renamed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        renamed("module."),
        renamed("module._orig_mod."),
        renamed("_orig_mod.module."),
        lambda weights: {"state_dict": renamed("model.")(weights), "hyper_parameters": {"lr": 0.1}},
        lambda weights: {"model": weights, "epoch": 3},
        lambda weights: {"model_state_dict": weights},
        lambda weights: {"state_dict": renamed("module.")(weights), "args": argparse.Namespace(lr=0.1), "arch": "x"},
    ],
    ids=["plain", "DDP", "compiled in DDP", "DDP compiled", "Lightning", "torchvision", "model_state_dict", "timm"],
)
def test_weights_are_found_in_what_trainers_save(tmp_path: Path, wrap: Callable[[dict[str, Any]], Any]) -> None:
    torch.save(wrap(network().state_dict()), tmp_path / "weights.pth")
    trained = load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS)
    assert trained.recipe is None
    assert not trained.model.training
    assert same(trained.model, network())


def other(num_classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return build_model(NAME, num_classes=num_classes, options=OPTIONS).state_dict()


@pytest.mark.parametrize(
    "content",
    [
        lambda ema, plain: {"model": plain, "ema": ema},
        lambda ema, plain: {"state_dict": plain, "state_dict_ema": renamed("module.")(ema), "epoch": 3},
        lambda ema, plain: {
            "model": plain,
            "model_ema": {"n_averaged": torch.tensor(5), **renamed("module.")(renamed("module.")(ema))},
        },
        lambda ema, plain: {"model": plain, "ema": {"module": ema, "decay": 0.99}},
    ],
    ids=["respipe", "timm", "torchvision", "nested"],
)
def test_averaged_weights_are_taken_on_request_and_never_ignored_unsaid(
    tmp_path: Path, content: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(content(network().state_dict(), other()), tmp_path / "weights.pth")
    averaged = load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS, ema=True)
    assert same(averaged.model, network())
    assert not caplog.records
    plain = load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS)
    assert torch.equal(plain.model.state_dict()["head.weight"], other()["head.weight"])
    assert "also holds averaged weights (EMA), which are not used; pass --ema" in caplog.text


def test_averaged_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.save({"model": other()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"`--ema` must be for a checkpoint with averaged weights"):
        load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS, ema=True)


def test_averaged_models_compiled_parts_and_numpy_numbers_are_read(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(network())
    torch.save(average.state_dict(), tmp_path / "average.pth")
    compiled = {name.replace("stages.", "stages._orig_mod."): one for name, one in network().state_dict().items()}
    best = {"best": np.float64(71.5), "history": np.arange(3), "epoch": np.int64(4)}
    torch.save({"model": compiled, **best}, tmp_path / "compiled.pth")
    for name in ("average.pth", "compiled.pth"):
        assert same(load_trained_model(tmp_path / name, NAME, options=OPTIONS).model, network())


def test_class_names_travel_with_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": network(2).state_dict(), "classes": ["cat", "dog"]}, tmp_path / "weights.pth")
    assert load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS).classes == ("cat", "dog")


def test_advice_to_execute_a_file_is_not_passed_on(tmp_path: Path) -> None:
    torch.save({"model": other(), "optimizer": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="it holds a pathlib") as caught:
        load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS)
    assert "weights_only" not in str(caught.value)


def test_a_model_that_is_there_is_given_weights(tmp_path: Path) -> None:
    torch.save({"model": renamed("module.")(network().state_dict())}, tmp_path / "checkpoint.pt")
    torch.manual_seed(4)
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        model = build_model(NAME, num_classes=10, options=OPTIONS).eval()
        load_weights(model, path, name=NAME)
        assert same(model, network())
    with pytest.raises(ValueError, match="for what it is there are 2 of another shape"):
        load_weights(network(7), tmp_path, name="what it is")


def test_number_of_classes_is_that_of_the_weights(tmp_path: Path) -> None:
    torch.save({"model": renamed("module.")(network(7).state_dict())}, tmp_path / "weights.pth")
    assert same(load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS).model, network(7))
    with pytest.raises(ValueError, match=r"2 of another shape, such as head\.bias, head\.weight"):
        load_trained_model(tmp_path / "weights.pth", NAME, options=OPTIONS, num_classes=5)


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network().state_dict(), tmp_path / "model.safetensors")
    assert same(load_trained_model(tmp_path / "model.safetensors", NAME, options=OPTIONS).model, network())


@pytest.mark.parametrize("as_folder", [True, False])
def test_run_tells_its_model_and_what_its_schedule_did_to_it(tmp_path: Path, as_folder: bool) -> None:
    schedule = {"name": "LowMode", "full_size": 32, "ratio": 2}
    recipe = Recipe.model_validate(
        {
            "model": {"name": NAME, "options": OPTIONS}, "schedule": schedule, "epochs": 2,
            "evaluation": {"sizes": [32]}, "data": {"batch_size": 4}, "learning_rate": {"peak": 0.1},
        }
    )  # fmt: skip
    model = adapt(network(3), LowMode(32, 2))
    torch.save({"version": 1, "recipe": recipe.model_dump(), "model": model.state_dict()}, tmp_path / "checkpoint.pt")
    trained = load_trained_model(tmp_path if as_folder else tmp_path / "checkpoint.pt")
    assert trained.recipe == recipe
    assert same(trained.model, model)


def test_what_is_no_run_needs_a_name(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"`model` must be named .* --model resnet50"):
        load_trained_model(tmp_path / "weights.pth")


def test_weights_of_another_model_are_told_apart(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"for cifar:resnet14 there are \d+ missing, such as .*; \d+ of another shape"):
        load_trained_model(tmp_path / "weights.pth", "cifar:resnet14")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (network(), r"it holds a respipe\.model\S+, which cannot be read without executing code"),
        ([1, 2], "must hold a state_dict; it holds list"),
        ({"epoch": 3, "model": {}}, r"must hold a state_dict, alone or under .* its keys are \['epoch', 'model'\]"),
    ],
    ids=["pickled model", "list", "no weights"],
)
def test_files_without_weights_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        load_trained_model(tmp_path / "weights.pth", NAME)


def test_damaged_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match=r"must be a file of weights by torch\.save"):
        load_trained_model(tmp_path / "weights.pth", NAME)
    with pytest.raises(FileNotFoundError):
        load_trained_model(tmp_path, NAME)
