"""Vision transformers of timm, torchvision and transformers under schedules."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from respipe.model.adapt import adapt, extract
from respipe.schedules import TRD, Constant, Progressive, Schedule

SCHEDULE = TRD(32, (24, 16), 0.5)


def torchvision_vit(image_size: int = 32) -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3
    )
    for parameter in model.heads.parameters():  # which it has zero
        nn.init.normal_(parameter)
    return model


def huggingface(kind: str) -> nn.Module:
    transformers: Any = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
        "patch_size": 8, "num_labels": 3,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = huggingface("ViT")

    def forward(self, images: torch.Tensor) -> Any:
        return self.backbone(images)


def outputs(model: nn.Module, size: int) -> torch.Tensor:
    images = torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    found: Any = model(images)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize(
    "build",
    [torchvision_vit, lambda: nn.Sequential(torchvision_vit()), lambda: huggingface("ViT"), Wrapped,
     lambda: huggingface("DeiT")],
    ids=["torchvision", "within torchvision", "ViT", "within ViT", "DeiT"],
)  # fmt: skip
def test_fixed_positions_are_resampled_to_every_size(
    build: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = build().eval()
    before, names = outputs(model, 32), list(model.state_dict())
    with pytest.raises((AssertionError, ValueError)):
        outputs(model, 16)
    with caplog.at_level(logging.INFO):
        adapt(model, SCHEDULE)
        adapt(model, SCHEDULE)
    assert "position embeddings are resampled" in caplog.text
    assert "no BatchNorm, so that it needs no statistics per size" in caplog.text
    assert torch.equal(outputs(model, 32), before)
    assert list(model.state_dict()) == names
    for size in SCHEDULE.sizes:
        for one in (model, extract(model, size), copy.deepcopy(model)):
            assert torch.equal(outputs(one, size), outputs(model, size))
        outputs(model.train(), size).sum().backward()
        model.eval()
    positions = next(
        one for name, one in model.named_parameters() if "position_embeddings" in name or "pos_emb" in name
    )
    assert positions.grad is not None and positions.grad.any()


def test_resampled_positions_are_those_of_timm() -> None:
    torch.manual_seed(0)
    ours = adapt(torchvision_vit(), SCHEDULE).eval()
    theirs = torchvision_vit(16).eval()
    state = ours.state_dict()
    state["encoder.pos_embedding"] = timm.layers.resample_abs_pos_embed(state["encoder.pos_embedding"], (2, 2))
    theirs.load_state_dict(state)
    torch.testing.assert_close(outputs(ours, 16), outputs(theirs, 16))


@pytest.mark.parametrize(
    ("name", "options", "schedule"),
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 1}, TRD(224, 112, 0.5)),
        ("deit_tiny_distilled_patch16_224", {"dynamic_img_size": True, "depth": 1}, TRD(224, 112, 0.5)),
        ("eva02_tiny_patch14_224", {"dynamic_img_size": True, "depth": 1}, TRD(224, 112, 0.5)),
        ("swin_tiny_patch4_window7_224", {"dynamic_img_size": True, "depths": (1, 1, 1, 1)}, TRD(224, 112, 0.5)),
        ("convnext_atto", {}, TRD(224, 128, 0.5)),
        (
            "vit_small_patch14_dinov2",
            {"dynamic_img_size": True, "depth": 1},
            Progressive(112, 224, start_epoch=0, end_epoch=4, multiple=14),
        ),
    ],
)
def test_families_of_timm_need_no_change(
    name: str, options: dict[str, Any], schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3, **options)
    before = repr(model)
    with caplog.at_level(logging.INFO):
        adapt(model, schedule)
    assert repr(model) == before
    assert "as it is" in caplog.text and "it has no BatchNorm, so that it needs no statistics per size" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "size", "remedy"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, 112, r"dynamic_img_size=True\)\. .*multiples of its patches, 16 px\."),
        ("eva02_tiny_patch14_224", {"depth": 1}, 112, r"dynamic_img_size=True\).*14 px"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 112, r"dynamic_img_size=True\).*4 px"),
        ("eva02_tiny_patch14_224", {"depth": 1, "dynamic_img_size": True}, 160, r"patches, 14 px; .*multiple=14"),
        ("beit_base_patch16_224", {"depth": 1}, 112, r"made for one size\. timm.create_model\(\.\.\., img_size=112\)"),
        ("levit_128s", {}, 160, r"made for one size\. timm.create_model\(\.\.\., img_size=160\)"),
    ],
)
def test_what_fixes_its_size_is_refused_with_the_option_that_frees_it(
    name: str, options: dict[str, Any], size: int, remedy: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(ValueError, match=rf"at {size} px it raised .*{remedy}"):
        adapt(model, TRD(224, size, 0.5))


def test_sizes_that_patches_do_not_divide_are_refused_for_torchvision() -> None:
    with pytest.raises(ValueError, match=r"at 20 px it raised ValueError: sides must be multiples of 8 px.*multiple=8"):
        adapt(torchvision_vit(), TRD(32, 20, 0.5))
    adapt(torchvision_vit(), Constant(40))
