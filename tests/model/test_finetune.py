from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed
import torchvision
from torch import nn

import respipe
from respipe.model.batchnorm import BatchNorm
from respipe.model.finetune import default_layers, prepare_finetune
from respipe.schedules import RSNet


class Net(nn.Module):
    """Pools without a module, has dropout of both kinds, and a BatchNorm on what is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.last = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.neck = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.bn1(self.conv1(images)).relu()
        features = self.drop(self.last(self.conv2(features)).relu()).mean((2, 3))
        return self.head(nn.functional.dropout(self.neck(features), 0.5, self.training))


def images(size: int = 16) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def training_modules(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_a_step(model: nn.Module, size: int = 16) -> dict[str, torch.Tensor]:
    """One step at a large learning rate; returns the state that changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    model(images(size)).logsumexp(1).sum().backward()
    optimizer.step()
    return {name: tensor for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("name", "batchnorm"),
    [
        ("resnet18", "layer4.1.bn2"),
        ("resnet50", "layer4.2.bn3"),
        ("densenet121", "features.norm5"),
        ("mobilenet_v2", "features.18.1"),
        ("efficientnet_b0", "features.8.1"),
    ],
)
def test_last_batchnorm_and_classifier_of_torchvision(name: str, batchnorm: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    layers = default_layers(model)
    assert layers[0] == batchnorm
    (classifier,) = layers[1:]
    assert isinstance(model.get_submodule(classifier), nn.Linear)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ("layer4.1.bn2", "fc")),
        ("seresnet18", ("layer4.1.bn2", "fc")),  # squeezes and excites after its last BatchNorm
        ("mobilenetv2_035", ("bn2", "classifier")),
        ("mobilenetv3_small_050", ("blocks.5.0.bn1", "conv_head", "classifier")),  # two layers after pooling
        ("regnety_002", ("s4.b7.conv3.bn", "head.fc")),
        ("levit_128s", ("stages.2.blocks.3.mlp.ln2.bn", "head.linear", "head_dist.linear")),  # tokens, not maps
        ("vgg11_bn", ("features.26", "pre_logits.fc1", "pre_logits.fc2", "head.fc")),
    ],
)
def test_last_batchnorm_and_classifier_of_timm(name: str, layers: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert default_layers(model) == layers


def test_last_layer_of_a_resnet50_learns_as_in_the_papers_code() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    assert prepare_finetune(model) is model
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 2_049_000
    assert training_modules(model) == {"layer4.2.bn3", "fc"}


def test_batchnorm_after_the_pooling_is_not_taken() -> None:
    assert default_layers(Net(), 32) == ("last", "head")


def test_only_running_statistics_and_classifier_change() -> None:
    model = prepare_finetune(Net())
    changed = train_a_step(model)
    statistics = {"last.running_mean", "last.running_var", "last.num_batches_tracked"}
    assert changed.keys() == {"head.weight", "head.bias"} | statistics


def test_affine_learns_where_asked_for() -> None:
    model = prepare_finetune(Net(), bn_affine=True)
    assert learning(model) == {"head.weight", "head.bias", "last.weight", "last.bias"}
    assert {"last.weight", "last.bias"} < train_a_step(model).keys()


def test_all_else_stays_in_evaluation_mode_whoever_calls_train() -> None:
    model = prepare_finetune(Net())
    around = nn.Sequential(model)
    for _ in range(2):
        around.eval()
        assert training_modules(model) == set()
        around.train()
        assert training_modules(model) == {"last", "head"}
    torch.manual_seed(0)
    first = model(images())
    assert torch.equal(model(images()), first)  # no dropout of either kind


def test_batchnorm_computes_with_the_batch_in_training_and_with_its_statistics_in_evaluation() -> None:
    model = prepare_finetune(Net())
    captured = list[torch.Tensor]()
    model.last.register_forward_hook(lambda *arguments: captured.append(arguments[2]))
    model(images())
    torch.testing.assert_close(captured[0].mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    model.eval()(images())
    assert captured[1].mean((0, 2, 3)).abs().max() > 0.01


def test_mode_at_the_time_stays() -> None:
    assert training_modules(prepare_finetune(Net().eval())) == set()


def test_state_and_output_stay() -> None:
    model = Net().eval()
    state, output = copy.deepcopy(model.state_dict()), model(images())
    prepare_finetune(model)
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(dict(model.state_dict()), dict(state))
    assert torch.equal(model(images()), output)
    Net().load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_behave_alike_and_are_independent(copied) -> None:
    model = prepare_finetune(Net())
    twin = copied(model)
    model.eval()
    twin.train()
    assert training_modules(twin) == {"last", "head"}
    assert training_modules(model) == set()
    assert learning(twin) == learning(model)
    twin.eval()
    assert training_modules(twin) == set()


def test_training_method_of_the_models_class_is_called() -> None:
    class Counting(Net):
        calls = 0

        def train(self, mode: bool = True) -> Counting:
            self.calls += 1
            return super().train(mode)

    model = prepare_finetune(Counting())
    before = model.calls
    assert model.train() is model
    assert model.calls == before + 1


def test_choosing_again_forgets_the_first_choice() -> None:
    model = prepare_finetune(Net(), layers=("conv1", "bn1"))
    prepare_finetune(model, layers="head")
    assert learning(model) == {"head.weight", "head.bias"}
    assert training_modules(model) == {"head"}
    prepare_finetune(model, layers="*")
    assert learning(model) == {name for name, _ in model.named_parameters()}
    assert training_modules(model) == {name for name, _ in model.named_modules()}


def test_layers_named_are_exactly_those_with_all_that_is_in_them() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    prepare_finetune(model, layers=("layer4", "fc"))
    names = {name for name, _ in model.named_parameters() if name.startswith(("layer4.", "fc."))}
    assert learning(model) == names
    assert training_modules(model) == {name for name, _ in model.named_modules() if name.startswith(("layer4", "fc"))}


def test_batchnorm_named_by_itself_is_treated_like_the_one_found() -> None:
    found, named = prepare_finetune(Net()), prepare_finetune(Net(), layers=("last", "head"))
    assert learning(found) == learning(named)
    assert training_modules(found) == training_modules(named)


def test_last_three_cells_of_pnasnet_by_pattern() -> None:
    with torch.device("meta"):
        model = timm.create_model("pnasnet5large")
    prepare_finetune(model, layers=("cell_9", "cell_1[01]", "last_linear"))
    assert {name.split(".")[0] for name in learning(model)} == {"cell_9", "cell_10", "cell_11", "last_linear"}
    cells = (model.cell_9, model.cell_10, model.cell_11)
    assert all(parameter.requires_grad for cell in cells for parameter in cell.parameters())
    assert all(module.training for cell in cells for module in cell.modules())


def test_pattern_that_fits_a_layer_and_its_batchnorm_trains_both_whole() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    prepare_finetune(model, layers="layer4.1*")
    assert learning(model) == {name for name, _ in model.named_parameters() if name.startswith("layer4.1.")}


def test_model_with_private_batchnorm_is_tuned_at_the_size_of_its_images() -> None:
    torch.manual_seed(0)
    model = respipe.adapt(Net(), RSNet((32, 16)))
    prepare_finetune(model, bn_affine=True)
    assert learning(model) == {
        "head.weight", "head.bias", "last.weight", "last.bias", "last.per_size.16.weight", "last.per_size.16.bias"
    }  # fmt: skip
    changed = train_a_step(model.train(), size=16)
    norms = {name for name in changed if not name.startswith("head.")}
    tensors = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    assert norms == {f"last.per_size.16.{tensor}" for tensor in tensors}
    plain = prepare_finetune(respipe.extract(model, 16))
    assert learning(plain) == {"head.weight", "head.bias"}
    train_a_step(plain.train(), size=24)


def test_wrapped_in_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(prepare_finetune(Net()))
        assert training_modules(model.module) == {"last", "head"}
        model.eval()
        model.train()
        assert training_modules(model.module) == {"last", "head"}
        assert {name.split(".")[1] for name in train_a_step(model)} == {"last", "head"}
    finally:
        torch.distributed.destroy_process_group()


def test_fixed_pooling_is_tried_at_the_size_given() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2)
    )
    assert default_layers(model, 8) == ("1", "4")
    with pytest.raises(ValueError, match=r"`size` must be a side in pixels that `model` takes; at 224 px it raised"):
        prepare_finetune(model)


def test_size_that_leaves_one_pixel_to_pool_is_refused() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"`size` must be so large that maps of more than one pixel .* got 32"):
        prepare_finetune(model, size=32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
         r"BatchNorm before its global pooling; the last layers called are 0, 3.*layers=\('3',\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
         r"classifier after its global pooling; the last layers called are 0, 2.*layers=\('2',\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1)),
         r"classifier after its global pooling; the last layers called are 0, 2"),
    ],
    ids=["no BatchNorm", "no pooling", "no classifier"],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_layers_there_are(model: nn.Module, message: str) -> None:
    before = learning(model)
    with pytest.raises(ValueError, match=message):
        prepare_finetune(model)
    assert learning(model) == before


def test_name_that_fits_no_layer_is_answered_with_those_close_by() -> None:
    with pytest.raises(ValueError, match=r"'heat' is none of Net\. There are for example head"):
        prepare_finetune(Net(), layers=("head", "heat"))
    with pytest.raises(ValueError, match=r"'xyz\*' is none of Net\. There are for example conv1, bn1"):
        prepare_finetune(Net(), layers=("xyz*",))


def test_layers_without_anything_to_learn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`layers` must have parameters that may learn; last, drop has none"):
        prepare_finetune(Net(), layers=("last", "drop"))
    with pytest.raises(ValueError, match=r"`layers` must"):
        prepare_finetune(Net(), layers=())


def test_every_batchnorm_of_the_rest_keeps_its_statistics_over_many_steps() -> None:
    model = prepare_finetune(torchvision.models.resnet18(num_classes=3)).train()
    kept = {
        name: norm.running_mean.clone() for name, norm in model.named_modules()
        if isinstance(norm, BatchNorm) and norm.running_mean is not None
    }  # fmt: skip
    for _ in range(2):
        model(images(64))
    changed = {name for name, mean in kept.items() if not torch.equal(model.get_submodule(name).running_mean, mean)}
    assert changed == {"layer4.1.bn2"}
