"""Networks of the attacker's own that say what an image looks like, learned without the target: C2FMI's public
embedding (Ye et al., TDSC 2023; card c2f_mi.md, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.learning import Learner, Learning, public_images
from midefense.attacks.part import Part
from midefense.oracle import Oracle
from midefense.types import Images, Progress, Refused, refuse_unknown

OUTPUTS = ("logits", "features")


class Embedding(Part):
    """A classifier of people that are nobody's target; what it makes of an image is its `output`.

    Args:
        output: `logits`, as the authors take them, or `features`, the input of its head.
    """

    def __init__(self, *, output: str):
        if output not in OUTPUTS:
            raise refuse_unknown("embedding.output", output, OUTPUTS)
        self.output = output

    def fit(
        self, public: Images, rng: torch.Generator, device: torch.device, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn from public images, and ask nobody; here nothing is left to learn."""
        return iter(())

    def learned(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        """The network of a saved state, in eval mode; it takes no gradients."""
        raise NotImplementedError

    def of(self, network: nn.Module, images: Tensor) -> Tensor:
        """What a learned `network` makes of images [B, C, H, W]: [B, F], differentiable in them."""
        return getattr(network(images), self.output).float()


class Pretrained(Embedding):
    """A network whose weights are published.

    Args:
        network: a partial of an architecture (`_partial_: true`), which finds its weights itself. Where they are for
            the features alone, the head is drawn, and its logits mean nothing.
        output: see `Embedding`.
    """

    def __init__(self, *, network: Callable[[], nn.Module], output: str = "features"):
        super().__init__(output=output)
        self.network = network

    def learned(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        """The network as published."""
        with seeds.isolated("embedding"):
            return self.network().to(device).eval().requires_grad_(False)


class PublicLabels(Learner, Embedding):
    """A network that learns whom the public images show, where they say so.

    Args:
        learning: the network, which is told how many public classes there are, and how it learns.
        output: see `Embedding`.
    """

    def __init__(self, *, learning: Learning, output: str = "logits"):
        super().__init__(output=output)
        self.learning = learning

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """Labels int64 [B]: their shape alone, to see before any compute that the network fits them."""
        return torch.zeros(len(images), dtype=torch.int64)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy per image [B]."""
        return F.cross_entropy(network(images).logits.float(), answers, reduction="none")

    def fit(
        self, public: Images, rng: torch.Generator, device: torch.device, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn the public labels; their number stays in the state (`classes`)."""
        known, labels = public.labels.unique(return_inverse=True)
        if len(known) < 2:
            raise Refused(
                f"attack.init.embedding: expected public images of two or more classes to tell apart, got "
                f"{len(known)}; try public=..., or an embedding that is pretrained"
            )
        work = self.learning.telling(classes=len(known)).learn(
            public_images(public, device), labels, self.loss, rng=rng, device=device, state=state
        )
        for step, logs, give in work:
            yield (
                step,
                {"embedding_loss": logs["loss"]},
                lambda give=give: {**give(), "classes": torch.tensor(len(known))},
            )

    def learned(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        """The network that learned."""
        return self.learning.telling(classes=int(state["classes"])).learned(state, device)
