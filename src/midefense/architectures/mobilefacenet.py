"""MobileFaceNet (Chen et al., CCBR 2018): a face recogniser of a million weights, as an independent evaluator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midefense.architectures.backbones import pin_weights
from midefense.architectures.base import Classifier
from midefense.architectures.checkpoints import read_tensors
from midefense.architectures.faces import TARGET_HEIGHT, AlignedFaces, FaceWarp, ThreeChannels, UnitLength
from midefense.architectures.official import original_names
from midefense.architectures.state_names import from_published
from midefense.ranges import Channels, Count, Positive

# Expansion, channels, blocks and stride of the first block, per group of inverted bottlenecks.
GROUPS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
EMBEDDING = 128


class MobileFaceNet(Classifier):
    """One stage, `features`: the embeddings of a face and of its mirror image, together 256 wide and of length 1.

    Faces of any size are brought into place by `warp` and normalised by (255 x - 127.5) / 128; grey ones are shown as
    three equal channels. The head has no bias: with `set_centroids` its logits are `centroid_scale` times the cosines
    with the class means. `weights`: a file with the published names, None draws fresh ones; its content, not its path,
    decides the target's id.

    `without_weights`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    without_weights = {"weights": None}
    pin = staticmethod(pin_weights)

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        warp: FaceWarp,
        weights: str | None = None,
        centroid_scale: Positive = 32.0,
    ) -> None:
        network = Embedding()
        if weights is not None:
            network.load_state_dict(from_published(network, read_tensors(weights)))
        features = nn.Sequential(ThreeChannels(channels), BothViews(network), UnitLength())
        head = nn.Linear(2 * EMBEDDING, classes, bias=False)
        mean, std = 0.5, 128 / 255
        super().__init__({"features": features}, head, channels=channels, size=TARGET_HEIGHT, mean=mean, std=std)
        self.preprocess = AlignedFaces(warp=warp, channels=channels, mean=mean, std=std)
        self.centroid_scale = centroid_scale
        self.published = original_names(network, self)


class Embedding(nn.Module):
    """Normalised faces [B, 3, 112, 96] to embeddings [B, 128], under the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Convolution(3, 64, kernel_size=3, stride=2, padding=1)
        self.dw_conv1 = Convolution(64, 64, kernel_size=3, padding=1, groups=64)
        blocks: list[nn.Module] = []
        inputs = 64
        for expansion, outputs, count, stride in GROUPS:
            for index in range(count):
                blocks.append(Bottleneck(inputs, outputs, expansion, stride if index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = Convolution(inputs, 512, kernel_size=1)
        self.linear7 = Convolution(512, 512, kernel_size=(7, 6), groups=512, linear=True)
        self.linear1 = Convolution(512, EMBEDDING, kernel_size=1, linear=True)

    def forward(self, faces: Tensor) -> Tensor:
        hidden = self.blocks(self.dw_conv1(self.conv1(faces)))
        return self.linear1(self.linear7(self.conv2(hidden))).flatten(1)


class Convolution(nn.Module):
    """Convolution without bias, batch norm and, unless `linear`, PReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.Identity() if linear else nn.PReLU(outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(hidden)))


class Bottleneck(nn.Module):
    """Inverted bottleneck: expand, filter each channel by itself, project; residual where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, outputs, kernel_size=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv(hidden) if self.residual else self.conv(hidden)


class BothViews(nn.Module):
    """Embeddings [B, 2 F] of the images and of their mirror images, side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.network(images), self.network(images.flip(-1))], dim=1)
