"""The small vision transformer (Dosovitskiy et al., ICLR 2021) that network inversion attacks (Suhail and Sethi, 2024;
card network_inversion.md, section 4.1). Attacks on weights differentiate twice, which fused attention cannot: the
attention here is plain matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Depth, Deviation, Share, Side, Width
from midefense.types import Refused


class TinyViT(Classifier):
    """Stages `embedding` (patches and a class token with their positions, [B, 1 + patches, width]), `layer1`, ... and
    `features`: the class token behind layer norm and a linear layer, `width` wide.

    `patch`: the side of a patch in pixels, which must divide `size`. `heads` must divide `width`. `ratio`: units of the
    inner layer over `width`. `dropout`: the share dropped of attention weights, inner units and residual branches.
    `encoder_norm`: one more layer norm behind the last layer, which the original has.
    """

    revision = 1
    later: ClassVar[dict[str, object]] = {"encoder_norm": False}

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 28,
        patch: Side = 7,
        width: Width = 64,
        depth: Depth = 2,
        heads: Depth = 4,
        ratio: Depth = 4,
        dropout: Share = 0.1,
        encoder_norm: bool = False,
        mean: float | Sequence[float] = 0.1307,
        std: Deviation = 0.3081,
    ) -> None:
        if size % patch or width % heads:
            raise Refused(
                f"patch, heads: expected divisors of {size} px and of width {width}, got {patch} and {heads}; "
                "try 7 and 4, with size=28 and width=64"
            )
        stages: dict[str, nn.Module] = {"embedding": Embedding(channels, size, patch, width)}
        for index in range(1, depth + 1):
            stages[f"layer{index}"] = Layer(width, heads, ratio * width, dropout)
        norms = [nn.LayerNorm(width) for _ in range(1 + encoder_norm)]
        stages["features"] = nn.Sequential(ClassToken(), *norms, nn.Linear(width, width))
        super().__init__(stages, nn.Linear(width, classes), channels=channels, size=size, mean=mean, std=std)


class Embedding(nn.Module):
    """Images [B, C, size, size] to tokens [B, 1 + patches, width]: the class token, then the patches by rows."""

    def __init__(self, channels: int, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions


class Layer(nn.Module):
    """Attention, then two linear layers with GELU between; layer norm stands behind each sum (post-norm). What goes
    around them, the input as it is, is a part that a defense may change."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.mixing = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )
        self.mixing_norm = nn.LayerNorm(width)
        self.attention_skip, self.mixing_skip = nn.Identity(), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attention_norm(self.attention_skip(tokens) + self.attention(tokens))
        return self.mixing_norm(self.mixing_skip(tokens) + self.mixing(tokens))


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, T, width], twice differentiable."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.weight_dropout = nn.Dropout(dropout)
        self.branch_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.project_in(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        scores = queries @ keys.transpose(-2, -1) / (width // self.heads) ** 0.5
        mixed = self.weight_dropout(scores.softmax(dim=-1)) @ values
        return self.branch_dropout(self.project_out(mixed.transpose(1, 2).reshape(batch, count, width)))


class ClassToken(nn.Module):
    """Tokens [B, T, width] to the first of them [B, width]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]
