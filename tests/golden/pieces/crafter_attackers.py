"""Crafter's attackers (`crafter.npz`): both inversions step by step, the losses of decoder and adaptive generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.adaptive import scaled_distances
from midefense.attacks.decoder import Inverse
from midefense.attacks.init import Amortised
from midefense.attacks.matching import shares
from midefense.attacks.part import Part
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.types import Evidence, Found, Trace

from .gmi import Given
from .recording import Entry, Recording
from .registry import replays

IMAGENET = (0.229, 0.224, 0.225)


class Toy(Prior):
    """The recorded matrices: G(z) = sigmoid(Mg z + bg) as 3x4x4 pixels, and the critic w2 . tanh(wD x)."""

    offers = frozenset({"sample", "realism"})

    def __init__(self, recording: Recording) -> None:
        super().__init__(channels=3, size=4)
        self.toy = {name: recording.elsewhere(f"toy/{name}").double() for name in ("Mg", "bg", "wD", "w2")}

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.zeros(count, self.toy["Mg"].shape[1], dtype=torch.float64)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents @ self.toy["Mg"].T + self.toy["bg"]).view(-1, 3, 4, 4)

    def realism(self, drawn: Tensor) -> Tensor:
        return (drawn.flatten(1) @ self.toy["wD"].T).tanh() @ self.toy["w2"]


class Encoder(nn.Module):
    """Me x + be, as features."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.weight, self.bias = (recording.elsewhere(f"toy/{name}").double() for name in ("Me", "be"))

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        features = images.flatten(1) @ self.weight.T + self.bias
        return Trace(features, features)


class Linear(nn.Module):
    """The recorded amortiser Ma f."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, observed: Tensor) -> Tensor:
        return observed @ self.weight.T


class Learnt:
    """A `Learning` whose network has learned already."""

    batch_size = 64

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def learned(self, state: object, device: object, **shapes: object) -> nn.Module:
        return self.network


# The two inversions of the original by the objective of ours that is theirs, and its weights at a batch of 8: the
# second is the attacker that Crafter itself plays against, whose critic counts 100 times its mean.
INVERSIONS = {
    "inversion": ("feature_match_coupled", ()),
    "amor_inversion": (
        "feature_match_critic",
        (
            "attack.objective.terms.match.weight=100.0",
            "attack.objective.terms.match.loss.coupled=true",
            f"attack.objective.terms.realism.weight={100 / 8}",
        ),
    ),
}


@replays("crafter/attack")
def inversions(recording: Recording) -> Iterator[Entry]:
    """Latents before every step, at the end, and the loss of every step, of the presets' objective and search."""
    for name, (objective, changes) in INVERSIONS.items():
        path = inversion(recording, name, objective, changes)
        latents, losses = torch.stack([found.latents for found in path]), [found.loss.sum() for found in path[1:]]
        if name == "inversion":
            yield recording.compare(f"{name}/z0", latents[0])
        yield recording.compare(f"{name}/z_each_step", latents[:-1])
        yield recording.compare(f"{name}/z_final", latents[-1])
        yield recording.compare(f"{name}/total_loss", torch.stack(losses))


def inversion(recording: Recording, name: str, objective: str, changes: tuple[str, ...]) -> list[Found]:
    """What one of the original's attackers finds: its start, and what it has after every step."""
    observed = recording["feature"].double()
    steps = len(recording[f"{name}/total_loss"])
    words = ["attack=feature_gan", f"attack/objective={objective}", f"attack.search.steps={steps}", *changes]
    attack = bind(compose("attack", words)[0]["attack"], "attack").build()
    attack.init = start(recording, name)
    rows = torch.arange(len(observed))
    oracle, evidence = Oracle(Encoder(recording), attack.access), Evidence(rows, rows, observed)
    found = attack.recover({}, Toy(recording), oracle, evidence, seeds.generator("golden"))
    return [step.detached() for step in found if step.stage in ("initial", "optimised")]


def start(recording: Recording, name: str) -> Part:
    """The recorded latents, or the recorded amortiser's."""
    if name == "inversion":
        return Given(recording[f"{name}/z0"].double(), 1)
    return Amortised(learning=Learnt(Linear(recording.elsewhere("toy/Ma").double())))


def inverse_losses(recording: Recording) -> Iterator[Entry]:
    """Of `other`: the decoder's loss of a batch, and that of the adaptive generator."""
    truth, made = recording["x"].double(), recording["xhat"].double()
    decoder = Inverse(learning=None, distance="l2", coupled=True)
    yield recording.compare("decoder_loss", decoder.loss(lambda answers: made, truth, truth).sum())
    yield recording.compare("adaptive_G_loss", shares(scaled_distances(made, truth, IMAGENET)).sum())
