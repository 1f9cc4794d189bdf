"""C2FMI's coarse stage (Ye et al., TDSC 2023; card c2f_mi.md, section 4): where a search by scores may start, found
with networks of the attacker's own. A mapping says which embedding an image of a class has, from what the target said
of public images, and latents descend to it; the target is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.embedding import Embedding
from midefense.attacks.init import of_the_targets, sampled_as_points, starts_of
from midefense.attacks.learning import Learner, Learning, public_images
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.progress import passed_on
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws, Whole
from midefense.training_state import within
from midefense.types import Found, Images, Progress, Setting

EMBEDDING = "embedding."  # what a prepared state holds of the embedding has names that begin so
LOWEST = -1000.0  # of a logarithm, as in the authors' code
RAISED = 50.0  # added to logarithms
CERTAIN = 1e18  # the label's share of a pseudo prediction; its square still fits in float32


def mapping_input(scores: Tensor, top: int | None = None) -> Tensor:
    """What the mapping reads of scores [B, K]: log p + 50 of the `top` largest (None: all), of a row that would begin
    below 0 everything raised until it does not, 0 elsewhere, and each row of length 1. Float32 [B, K], from 0.

    It changes with the scale of the scores, unless `top` is 1: they go in as they are.
    """
    scores = scores.float()
    kept, places = scores.topk(scores.shape[1] if top is None else min(top, scores.shape[1]), dim=1)
    raised = kept.log().clamp(min=LOWEST) + RAISED
    raised = raised - raised.amin(1, keepdim=True).clamp(max=0)
    told = torch.zeros_like(scores).scatter_(1, places, raised)
    return F.normalize(told, dim=1)


def pseudo_predictions(labels: Tensor, noise: Tensor) -> Tensor:
    """Scores that a target sure of `labels` int64 [B] might give: |noise| [B, K], almost nothing beside the label, each
    row of length 1. Float32."""
    told = noise.float().abs().scatter(1, labels[:, None], CERTAIN)
    return F.normalize(told, dim=1)


class Coarse(Learner, Part):
    """Latents whose images look to the `embedding` as the mapping says that a picture of the class would.

    Args:
        learning: the mapping, told the shape of the target's scores (`observed`) and of what the embedding makes of an
            image (`embedded`), and how it learns. The target is asked about every public image once, on the shared
            bill.
        embedding: the attacker's own (`attacks.embedding`).
        candidates: starts per target.
        averaged: draws of the prior whose mean is where a candidate begins. The authors draw them in turn from a list
            of 10,000, of which their code reaches the first 1,802.
        steps: updates.
        optimizer: a partial torch optimiser (`_partial_: true`).
        top: how many of the scores count, the largest ones (None: all). With 1 the mapping is a table of the classes,
            and labels would do.
        batch_size: images per forward; it changes no number.
    """

    reads = ("probs",)
    needs = ("sample",)
    asks_public = True
    unhashed = ("batch_size",)

    def __init__(
        self,
        *,
        learning: Learning,
        embedding: Embedding,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        candidates: Draws = 16,
        averaged: Draws = 2,
        steps: Whole = 20,
        top: Count | None = None,
        batch_size: Count = 64,
    ):
        self.learning, self.embedding, self.optimizer, self.candidates = learning, embedding, optimizer, candidates
        self.averaged, self.steps, self.top, self.batch_size = averaged, steps, top, batch_size

    def check(self, setting: Setting) -> None:
        """Whatever the embedding refuses."""
        self.embedding.check(setting)

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """The target's scores [B, K]."""
        return oracle(images, reads=("probs",)).probs

    def rehearse(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """The sums of what the mapping gives [B]: its loss takes the embedding."""
        return network(mapping_input(answers, self.top)).flatten(1).sum(1)

    def prepare(
        self, prior: Prior, oracle: Oracle, rng: torch.Generator, state: Mapping[str, Tensor] | None, public: Images
    ) -> Iterator[Progress]:
        """The embedding learns, if it does; then the target is asked, and the mapping learns."""
        saved = dict(state or {})
        known = within(saved, EMBEDDING)
        work = self.embedding.fit(public, seeds.fork(rng, "embedding"), prior.device, known or None)
        done, made = yield from passed_on(work, EMBEDDING, known, 0, {})
        embedding = self.embedding.learned(within(made, EMBEDDING), prior.device)

        def loss(network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = self.embedding.of(embedding, images)
            return (network(mapping_input(answers, self.top)) - wanted).square().flatten(1).mean(1)

        known = {name: value for name, value in saved.items() if not name.startswith(EMBEDDING)}
        work = self.learning.fit(
            public_images(public, prior.device),
            lambda images: self.ask(oracle, images),
            loss,
            rng=seeds.fork(rng, "mapping"),
            device=prior.device,
            state=known or None,
            embedded=self._embedded(embedding, prior),
        )
        yield from passed_on(work, "", known, done, made)

    @torch.no_grad()
    def _embedded(self, embedding: nn.Module, prior: Prior) -> tuple[int, ...]:
        """The shape of what the embedding makes of one image."""
        return tuple(self.embedding.of(embedding, prior.specimen()).shape[1:])

    def __call__(self, problem: Problem) -> Found:
        """Starts [N * candidates, ...] on the problem's device. Nothing was measured of them, so that their loss is
        NaN."""
        *_, (latents, _) = self.descend(problem, self.begin(problem))
        return starts_of(latents, len(problem.evidence), self.candidates)

    def begin(self, problem: Problem) -> Tensor:
        """Where the candidates begin [N * candidates, ...]."""
        count = len(problem.evidence) * self.candidates
        drawn = sampled_as_points(problem.prior, count * self.averaged, problem.draw("init"))
        return of_the_targets(problem, drawn.unflatten(0, (count, self.averaged)).mean(1), self.candidates)

    def noise(self, rng: torch.Generator, rows: int, classes: int) -> Tensor:
        """What one step's pseudo predictions are made of, normal [rows, classes]."""
        return torch.randn(rows, classes, generator=rng)

    def descend(self, problem: Problem, latents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The latents [M, ...] at first and after every step, and the loss before it [M]."""
        asked, rng = problem.state["asked"], problem.draw("pseudo")
        embedding = self.embedding.learned(within(problem.state, EMBEDDING), problem.device)
        shapes = {"observed": asked.shape[1:], "embedded": self._embedded(embedding, problem.prior)}
        mapping = self.learning.learned(problem.state, problem.device, **shapes)
        labels = problem.evidence.labels.repeat_interleave(self.candidates)
        latents = latents.detach().clone().requires_grad_()
        optimizer = self.optimizer([latents])
        yield latents.detach().clone(), latents.new_full((len(latents),), torch.nan)
        for _ in range(self.steps):
            told = pseudo_predictions(labels, self.noise(rng, len(labels), asked.shape[1]))
            latents.grad, losses = None, []
            for rows in torch.arange(len(latents)).split(self.batch_size):
                with torch.no_grad():
                    wanted = mapping(mapping_input(told[rows].to(problem.device), self.top))
                # the target would be shown pictures, and what is cut gets no gradient
                images = problem.prior.decode(latents[rows]).clamp(0, 1)
                loss = (self.embedding.of(embedding, images) - wanted).square().flatten(1).mean(1)
                (loss.sum() / self.candidates).backward()
                losses.append(loss.detach())
            held = problem.prior.held
            kept = latents.detach()[..., -held:].clone() if held else None
            optimizer.step()
            if held:
                latents.data[..., -held:] = kept
            yield latents.detach().clone(), torch.cat(losses)
