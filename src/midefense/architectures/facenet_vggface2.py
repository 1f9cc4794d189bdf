"""FaceNet (Schroff et al., CVPR 2015) as facenet-pytorch ports it: Inception-ResNet-v1 trained on VGGFace2."""

from __future__ import annotations

from facenet_pytorch import InceptionResnetV1
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.architectures.checkpoints import cached_file, read_tensors
from midefense.architectures.faces import ThreeChannels, UnitLength
from midefense.architectures.official import original_names
from midefense.architectures.state_names import require_match
from midefense.ranges import Channels, Count, Positive, Share, Side
from midefense.types import Refused

ADDRESS = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt"
STEM = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a", "conv2d_4b")
BLOCKS = ("repeat_1", "mixed_6a", "repeat_2", "mixed_7a", "repeat_3", "block8")
LEAST_SIZE = 75


class FaceNetVGGFace2(Classifier):
    """Stages `stem`, facenet-pytorch's blocks `repeat_1`, `mixed_6a`, `repeat_2`, `mixed_7a`, `repeat_3`, `block8`, and
    `features`: the face's embedding, 512 wide and of length 1. Grey images are shown as three equal channels.

    Images are resized to `size` and normalised by (255 x - 127.5) / 128, as facenet-pytorch does; they should show an
    upright face that fills them. The head has no bias: with `set_centroids` its logits are `centroid_scale` times the
    cosines with the class means. `pretrained` looks for the published weights in torch's cache, or fetches them there
    if `download` is set.

    `without_weights`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    without_weights = {"pretrained": False}

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 160,
        pretrained: bool = True,
        download: bool = False,
        dropout: Share = 0.6,
        centroid_scale: Positive = 32.0,
    ) -> None:
        if size < LEAST_SIZE:
            raise Refused(f"size: expected at least {LEAST_SIZE}, got {size}; try 160")
        network = InceptionResnetV1(dropout_prob=dropout)
        if pretrained:
            _load(network, read_tensors(cached_file("facenet_vggface2", ADDRESS, download)))
        embedding = [network.avgpool_1a, nn.Flatten(), network.dropout, network.last_linear, network.last_bn]
        stages = {
            "stem": nn.Sequential(ThreeChannels(channels), *[getattr(network, name) for name in STEM]),
            **{name: getattr(network, name) for name in BLOCKS},
            "features": nn.Sequential(*embedding, UnitLength()),
        }
        head = nn.Linear(network.last_linear.out_features, classes, bias=False)
        super().__init__(stages, head, channels=channels, size=size, mean=0.5, std=128 / 255)
        self.centroid_scale = centroid_scale
        self.published = {**original_names(network, self), "logits": "classifier"}


def _load(network: nn.Module, state: dict[str, Tensor]) -> None:
    """The published file also holds the classifier of VGGFace2's 8631 people, which no embedding needs."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith("logits.")}
    require_match("FaceNet", state, network.state_dict())
    network.load_state_dict(state)
