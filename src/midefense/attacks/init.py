"""Where a search starts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from midefense.attacks.decoder import Inverse
from midefense.attacks.learning import Learner, Learning
from midefense.attacks.matching import distances, nothing_observed, require_observed
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws, Share, Whole
from midefense.types import Found, Images, Progress, Refused, Setting, clip_images


def starts_of(latents: Tensor, targets: int, candidates: int, loss: Tensor | None = None) -> Found:
    """`candidates` rows per target, target by target. Without a `loss` it is NaN: nothing was measured yet."""
    owners = torch.arange(targets).repeat_interleave(candidates)
    loss = torch.full((len(owners),), torch.nan) if loss is None else loss
    return Found(latents, loss.to(latents.device), owners, stage="initial")


class Random(Part):
    """Fresh draws of the prior.

    Args:
        candidates: starts per target (GMI: 5 restarts).
        shared: give every target the same starts, as MIBench does; otherwise each has its own.
    """

    needs = ("sample",)

    def __init__(self, *, candidates: Draws = 5, shared: bool = False):
        self.candidates, self.shared = candidates, shared

    def __call__(self, problem: Problem) -> Found:
        """Starts [N * candidates, ...] on the problem's device."""
        targets, rng = len(problem.evidence), problem.draw("init")
        drawn = problem.prior.sample(self.candidates if self.shared else targets * self.candidates, rng)
        latents = drawn.repeat(targets, *[1] * (drawn.ndim - 1)) if self.shared else drawn
        return starts_of(of_the_targets(problem, latents, self.candidates), targets, self.candidates)


class Zero(Part):
    """The middle of the prior's latents, 0: where KED-MI's distributions start (Chen et al., ICCV 2021)."""

    needs = ("sample",)

    def __call__(self, problem: Problem) -> Found:
        """One start per target [N, ...] on the problem's device."""
        targets = len(problem.evidence)
        latents = torch.zeros_like(problem.prior.sample(targets, problem.draw("init")))
        return starts_of(of_the_targets(problem, latents, 1), targets, 1)


def of_the_targets(problem: Problem, latents: Tensor, candidates: int) -> Tensor:
    """Latents of `candidates` rows per target, on the problem's device; a prior that knows classes is told theirs, and
    one that completes what was observed the row of it."""
    rows = torch.arange(len(problem.evidence)).repeat_interleave(candidates)
    labels = problem.evidence.labels[rows].to(problem.device)
    latents = problem.prior.of_classes(latents.to(problem.device), labels)
    return problem.prior.of_rows(latents, rows.to(problem.device))


def sampled_as_points(prior: Prior, count: int, rng: torch.Generator) -> Tensor:
    """`count` latents on the CPU; of a generator with a style per layer one style [count, width] for all of them."""
    latents = prior.sample(count, rng)
    return latents[:, 0] if "styles" in prior.offers and latents.ndim == 3 else latents


class BestOfPool(Part):
    """The most confident of one pool drawn for all targets (PPA, Struppek et al., ICML 2022, section 4.1).

    The pool is drawn and scored once, in `prepare`; the images asked are on the shared bill.

    Args:
        size: latents in the pool (PPA: 2,000 or 5,000).
        candidates: kept per target; a latent may serve several targets.
        flip: score the mean over the image and its mirror image.
        batch_size: images per forward while scoring.
    """

    reads = ("probs",)
    needs = ("sample",)
    unhashed = ("batch_size",)

    def __init__(self, *, size: Draws = 2000, candidates: Draws = 200, flip: bool = True, batch_size: Count = 256):
        if candidates > size:
            raise Refused(f"attack.init.candidates: expected at most the size of the pool, {size}, got {candidates}")
        self.size, self.candidates, self.flip, self.batch_size = size, candidates, flip, batch_size

    def check(self, setting: Setting) -> None:
        """Refuse a prior whose images are of one target each: a pool is drawn once for all."""
        if setting.prior.completes:
            raise Refused(
                f"attack.init ({type(self).__name__}): expected a prior whose images may be of any target, got "
                f"{setting.prior.__name__}, which completes what was observed of one; try attack/init=random"
            )

    @torch.no_grad()
    def prepare(
        self, prior: Prior, oracle: Oracle, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Draw the pool and score it: state `pool.latents` [size, ...] and `pool.scores` [size, classes]."""
        latents, starts = self.draw(prior, rng, self.size)
        scores = [state["pool.scores"]] if state else []
        done, best = sum(map(len, scores)), scores[0].amax(0) if scores else None
        while done < self.size:
            drawn = prior.draw(latents[done : done + self.batch_size].to(prior.device))
            images = clip_images(prior.frame(clip_images(drawn)))
            views = [images, images.flip(3)] if self.flip else [images]
            asked = torch.stack([oracle(view, reads=("probs",)).probs for view in views])
            scores.append(asked.mean(0).cpu())
            done += len(images)
            newest = scores[-1].amax(0)
            best = newest if best is None else torch.maximum(best, newest)
            yield (
                done,
                {"pool_confidence": float(best.mean())},
                # joined only where it is saved: a pool of 100,000 takes hundreds of steps
                lambda known=tuple(scores): {
                    "pool.latents": starts,
                    "pool.scores": torch.cat(known),
                },
            )

    def draw(self, prior: Prior, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """`count` latents to score [count, ...], and those a search would start from; here the same."""
        latents = prior.sample(count, rng)
        return latents, latents

    def __call__(self, problem: Problem) -> Found:
        """The `candidates` best of the pool for each target's label, best first."""
        scores = problem.state["pool.scores"][:, problem.evidence.labels]  # [size, N]
        best = scores.topk(self.candidates, dim=0)
        latents = problem.state["pool.latents"][best.indices.T.flatten()].to(problem.device)
        return starts_of(latents, len(problem.evidence), self.candidates, 1 - best.values.T.flatten())


class BestOfStyles(BestOfPool):
    """The most confident of one pool of truncated styles of a generator with a style per layer (PPA).

    Args:
        size, candidates, flip, batch_size: as `BestOfPool`.
        psi: truncation of the first `cutoff` rows; 1 is none.
        cutoff: how many rows are truncated; None is all.
        single_w: search from the first row alone, for all layers. It is truncated, and what was scored had other rows
            behind the cutoff: a start does not look as its score says.
    """

    needs = ("sample", "styles")

    def __init__(
        self,
        *,
        size: Draws = 2000,
        candidates: Draws = 200,
        flip: bool = True,
        batch_size: Count = 64,
        psi: Share = 0.5,
        cutoff: Whole | None = 8,
        single_w: bool = True,
    ):
        super().__init__(size=size, candidates=candidates, flip=flip, batch_size=batch_size)
        self.psi, self.cutoff, self.single_w = psi, cutoff, single_w

    @property
    def truncated(self) -> bool:
        """Whether starts lie nearer to the mean than draws of the prior do."""
        return self.psi < 1 and self.cutoff != 0

    def draw(self, prior: Prior, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Styles [count, rows, width], and those or their first row [count, width]."""
        styles = prior.styles(count, rng, self.psi, self.cutoff)
        return styles, styles[:, 0].clone() if self.single_w else styles


class Amortised(Learner, Part):
    """Where a network says that the search will end, from what was observed: it learned, once for a generator G and an
    encoder, to find latents z' of the features f of samples, min ||Enc(G(z')) - f||^2 (Crafter's amortiser, card
    crafter.md, 4.3: in feature space, as the code has it; the appendix' equation 37 says in latent space).

    The authors draw 6,400 latents anew every 5,000 steps; here every step draws its own.

    Args:
        learning: the network, which is told the shapes of what is `observed` and of `latents`, and how it learns.
    """

    reads = ("features", "gradient")
    needs = ("sample",)

    def __init__(self, *, learning: Learning):
        self.learning = learning

    def check(self, setting: Setting) -> None:
        """Refuses evidence of which nothing is observed."""
        require_observed(type(self).__name__, setting)

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """The features of images [B, ...], with their gradient."""
        return oracle(images, reads=("features",)).features

    def rehearse(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """The sums of the latents it gives [B]: its loss takes the prior."""
        return network(answers).flatten(1).sum(1)

    def prepare(
        self, prior: Prior, oracle: Oracle, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn; every step asks about a batch of samples, and about what is found of them. One sample more tells the
        shape of the features, which stays in the state (`observed`)."""

        def observe(latents: Tensor) -> Tensor:
            return self.ask(oracle, prior.decode(latents))

        def loss(network: nn.Module, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                features = observe(prior.sample(self.learning.batch_size, draws).to(prior.device))
            return distances(observe(network(features)), features, "squared").mean()

        some = prior.sample(1, torch.Generator().manual_seed(0))
        if state:
            shape = state["observed"]
        else:
            with torch.no_grad():
                shape = torch.tensor(observe(some.to(prior.device)).shape[1:])
        network = self.learning.build(rng, observed=shape.tolist(), latents=some.shape[1:]).to(prior.device)
        for step, logs, give in self.learning.teach(network, loss, rng, state):
            yield step, logs, lambda give=give: {**give(), "observed": shape}

    @torch.no_grad()
    def __call__(self, problem: Problem) -> Found:
        """One start per target [N, ...] on the problem's device."""
        if problem.observed is None:
            raise nothing_observed(type(self).__name__)
        some = problem.prior.sample(1, problem.draw("init"))
        shapes = {"observed": problem.observed.shape[1:], "latents": some.shape[1:]}
        network = self.learning.learned(problem.state, problem.device, **shapes)
        pieces = problem.observed.split(self.learning.batch_size)
        latents = torch.cat([network(piece) for piece in pieces])
        return starts_of(latents, len(problem.evidence), 1)


class Decoded(Inverse, Part):
    """The image that a decoder makes of what was observed (`decoder.Decoder`), for a search over pixels: the hybrid
    attack of Crafter's appendix G (that it starts so is unverified).

    Args:
        learning, distance, coupled: see `decoder.Inverse`.
    """

    reads = ("features",)
    needs = ("pixels",)
    asks_public = True

    def __init__(self, *, learning: Learning, distance: str = "mean_squared", coupled: bool = False):
        super().__init__(learning=learning, distance=distance, coupled=coupled)

    def check(self, setting: Setting) -> None:
        """Refuses evidence of which nothing is observed."""
        require_observed(type(self).__name__, setting)

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        public: Images,
    ) -> Iterator[Progress]:
        """Ask about every public image, then learn."""
        return self.learn_from(public, oracle, rng, prior.device, state)

    def __call__(self, problem: Problem) -> Found:
        """One start per target [N, C, H, W] on the problem's device."""
        if problem.observed is None:
            raise nothing_observed(type(self).__name__)
        images = self.decoded(problem.state, problem.observed, problem.device)
        return starts_of(images, len(problem.evidence), 1)
