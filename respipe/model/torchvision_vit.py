"""torchvision's ViT for images of any size. Imported where one is adapted only, since torchvision takes its time."""

from __future__ import annotations

import torch
from torchvision.models import VisionTransformer

from respipe.model.positions import resampled


class AnySizeVisionTransformer(VisionTransformer):
    """Made of a ``VisionTransformer`` by :func:`respipe.model.positions.make_positions_adaptive`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (N, 3, S, S) images, S a multiple of the patches' side, into (N, classes)."""
        if max(side % self.patch_size for side in x.shape[2:]):
            raise ValueError(f"sides must be multiples of {self.patch_size} px; got {tuple(x.shape[2:])}")
        patches = self.conv_proj(x)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        encoder = self.encoder
        tokens = tokens + resampled(encoder.pos_embedding, tuple(patches.shape[2:]))
        return self.heads(encoder.ln(encoder.layers(encoder.dropout(tokens)))[:, 0])
