"""Stand-ins for methods that come: what the attack contract must bear beyond descent on a loss per image."""

import copy

import torch
from torch import nn

from midefense.attacks.part import Part
from midefense.datasets.toy import Toy
from midefense.obscuring import Obscuring, completed
from midefense.priors.toy import ToyFamily
from midefense.types import Found, Trace, clip_images


class WrongLabel(Part):
    """1 where the target says another label than is wanted, else 0."""

    reads = ("labels",)

    def __call__(self, look):
        return (look.answer.labels != look.labels).float()


class InsideTheClass(Part):
    """Draws of the prior to which the target gives a label wanted; for a label that was not met, any draws."""

    reads, needs, asks_question = ("labels",), ("sample",), True

    def __init__(self, *, draws: int = 200, candidates: int = 2):
        self.draws, self.candidates = draws, candidates

    @torch.no_grad()
    def prepare(self, prior, oracle, rng, state, question):
        latents = prior.sample(self.draws, rng)
        told = oracle(clip_images(prior.decode(latents)), reads=("labels",)).labels
        first = [(told != label).int().argsort(stable=True)[: self.candidates] for label in question.labels]
        starts = {f"starts.{label}": latents[rows] for label, rows in zip(question.labels.tolist(), first, strict=True)}
        yield self.draws, {}, lambda: starts

    def __call__(self, problem):
        latents = torch.cat([problem.state[f"starts.{label}"] for label in problem.evidence.labels.tolist()])
        owners = torch.arange(len(problem.evidence)).repeat_interleave(self.candidates)
        return Found(latents, torch.full((len(owners),), torch.nan), owners, stage="initial")


class Rounds(Part):
    """Each round asks about points around a candidate, moves it to the middle of those of the label wanted, and asks
    about that: `points` + 1 images."""

    reads = ("labels",)

    def __init__(self, *, steps: int, points: int = 32, radius: float = 0.3):
        self.steps, self.points, self.radius = steps, points, radius

    @torch.no_grad()
    def __call__(self, problem, found):
        latents, rng = found.latents, problem.draw("search")
        for _ in range(self.steps):
            noise = torch.randn(len(latents), self.points, *latents.shape[1:], generator=rng)
            around = latents[:, None] + self.radius * noise
            right = 1 - self._losses(problem, around, found.evidence)[..., None]
            middle = (right * around).sum(1) / right.sum(1).clamp(min=1)
            latents = torch.where(right.sum(1) > 0, middle, latents)
            loss = self._losses(problem, latents[:, None], found.evidence)[:, 0]
            yield Found(latents, loss, found.evidence, stage="optimised")

    def _losses(self, problem, latents, owners):
        flat, owners = latents.flatten(0, 1), owners.repeat_interleave(latents.shape[1])
        looks = (problem.look(flat[rows], owners[rows]) for rows in problem.chunks(len(flat)))
        return torch.cat([problem.objective(look) for look in looks]).view(latents.shape[:2])


class Norms(Part):
    """How far the means of a group lie from those that the target's norms have learned; each image bears its share."""

    reads, coupled = ("batchnorm", "gradient"), True

    def __call__(self, look):
        gaps = [(told.mean - told.running_mean).norm() for told in look.answer.batchnorm.values()]
        return (sum(gaps) / len(look.labels)).expand(len(look.labels))


class KnowingToy(ToyFamily):
    """The toy's bells, and which of the private classes is nearest to an image."""

    offers = ToyFamily.offers | {"classifier"}

    def classifier(self):
        toy = Toy(size=self.size, public_classes=20)
        return Nearest(toy.answer(torch.arange(toy.classes)))


class Nearest(nn.Module):
    """Minus the squared distances to `answers` as logits."""

    def __init__(self, answers):
        super().__init__()
        self.register_buffer("answers", answers.flatten(1))

    def forward(self, images, taps=()):
        features = images.flatten(1)
        return Trace(-(features[:, None] - self.answers).square().sum(2), features)


class CompletingToy(ToyFamily):
    """The toy's bells, where what was observed of a picture does not show it; its critic has no eye for places."""

    held = 1
    completes = True
    offers = frozenset({"sample", "realism", "places"})

    def __init__(self, *, channels: int, size: int, obscuring: Obscuring):
        super().__init__(channels=channels, size=size)
        self.obscuring, self.observed = obscuring, None

    def given(self, observed):
        view = copy.copy(self)
        view.observed = observed
        return view

    def of_rows(self, latents, rows):
        return torch.cat([latents[:, :2], rows[:, None].to(latents)], 1)

    def sample(self, count, rng):
        return torch.cat([super().sample(count, rng), torch.zeros(count, 1)], 1)

    def decode(self, latents):
        bells = super().decode(latents[:, :2])
        if self.observed is None:
            return bells
        return completed(self.observed[latents[:, 2].detach().round().long()], bells)

    def realism_at(self, drawn, places):
        return self.realism(drawn)


class ScaledToy(ToyFamily):
    """The toy's bells times a weight, which is 1 unless it learns."""

    def __init__(self, *, channels: int, size: int):
        super().__init__(channels=channels, size=size)
        self.scale = nn.Parameter(torch.ones(1))

    def decode(self, latents):
        return self.scale * super().decode(latents)
