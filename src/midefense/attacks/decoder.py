"""Decoders: attacks that learn to turn what the target answers back into the image (inverse networks; He et al., ACSAC
2019; Dosovitskiy and Brox, CVPR 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import Attack
from midefense.attacks.learning import Learner, Learning, public_images
from midefense.attacks.matching import distances, require_observed, shares
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.progress import passed_on
from midefense.oracle import Edge, Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count
from midefense.training_state import within
from midefense.types import Evidence, Found, Images, Progress, Refused, Setting, refuse_unknown, to_pixels

DISTANCES = ("mean_squared", "l2")
UNAWARE = "unaware."  # what is known of a decoder before it was shown what a defense releases


class Inverse(Learner):
    """A network learns images from what the target answers about them, on pairs of public images.

    Args:
        learning: the network, called with answers [B, ...] for images [B, C, H, W], and how it learns. It is told the
            shape of what is `observed` of one target, if it takes that.
        distance: of its images to the public ones: `mean_squared` over the pixels, or `l2`, the norm per image.
        coupled: the norm over the whole batch, as in Crafter's code, for `l2`.
    """

    asks_for = "features"

    def __init__(self, *, learning: Learning, distance: str, coupled: bool):
        if distance not in DISTANCES:
            raise refuse_unknown("distance of a decoder", distance, DISTANCES)
        if coupled and distance != "l2":
            raise Refused(f"coupled: expected false for distance={distance} of a decoder, got true; try distance=l2")
        self.learning, self.distance, self.coupled = learning, distance, coupled

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """The target's answers [B, ...] of the kind that is observed of a target; here the features."""
        return getattr(oracle(images, reads=(self.asks_for,)), self.asks_for)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Distance to the public images [B]."""
        decoded = network(answers)
        if decoded.shape != images.shape:
            raise Refused(
                f"attack.learning.network: expected images {list(images.shape)}, those of the dataset, got "
                f"{list(decoded.shape)}; try its channels and size"
            )
        if self.distance == "mean_squared":
            return (decoded - images).square().flatten(1).mean(1)
        norms = distances(decoded, images, "l2")
        return shares(norms) if self.coupled else norms

    def learn_from(
        self, public: Images, oracle: Oracle, rng: torch.Generator, device: torch.device, state: Mapping | None
    ) -> Iterator[Progress]:
        """Ask about every public image, then learn."""
        return self.learning.fit(
            public_images(public, device),
            lambda images: self.ask(oracle, images),
            self.loss,
            rng=rng,
            device=device,
            state=state,
        )

    @torch.no_grad()
    def decoded(self, state: Mapping[str, Tensor], observed: Tensor, device: torch.device) -> Tensor:
        """Images [N, C, H, W] of what was observed [N, ...], by the network of a saved state."""
        network = self.learning.learned(state, device, observed=observed.shape[1:])
        return torch.cat([network(piece.to(device)) for piece in observed.split(self.learning.batch_size)])


class Decoder(Inverse, Attack):
    """A network learns from pairs of what the target answers about a public image and that image, once for all targets;
    then it decodes what was observed of each target, and asks no more. What it asked is on the shared bill.

    Its images are no generator's: they are returned as pixels, under the prior of pixels, and have no latents [N, 0].

    Args:
        learning, distance, coupled: see `Inverse`.
        purify: what is made of what was observed first (`attacks.purify`); None decodes it as it is. One that searches
            on a prior's images needs that prior, and white-box access.
        access, budget, group, rung: see `Attack`.
    """

    later = {"distance": "mean_squared", "coupled": False, "purify": None, "rung": None}
    prepares = True
    steps = 1

    def __init__(
        self,
        *,
        learning: Learning,
        distance: str = "mean_squared",
        coupled: bool = False,
        purify: Part | None = None,
        access: str = "features",
        budget: Count | None = None,
        group: Count = 60,
        rung: str | None = None,
    ):
        Inverse.__init__(self, learning=learning, distance=distance, coupled=coupled)
        Attack.__init__(self, access=access, budget=budget, group=group, rung=rung)
        self.purify = purify
        self.needs = purify.needs if purify and purify.needs else ("pixels",)
        self.reads = tuple(dict.fromkeys((self.asks_for, *(purify.reads if purify else ()))))
        self.access.require(self.reads, f"attack ({type(self).__name__})")

    def check(self, setting: Setting) -> None:
        """As `Attack.check`; refuses evidence of which nothing is observed, and whatever `purify` refuses."""
        super().check(setting)
        require_observed(type(self).__name__, setting)
        if self.purify is not None:
            self.purify.check(setting)

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """What it learns does not depend on what it will decode."""
        return {name: value for name, value in recipe.items() if name not in NOT_LEARNED}

    def prepare(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Ask about every public image, then learn."""
        return self.learn_from(public, oracle, rng, prior.device, state)

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """One image per row of the evidence, as `selected`; nothing is measured of it, so its loss is NaN."""
        if evidence.observed is None:
            raise Refused(
                f"{type(self).__name__} decodes what was observed of each target, got evidence of classes alone; "
                "try evidence of released features"
            )
        observed = evidence.observed
        if self.purify is not None:
            observed = self.purify(Problem.plain(prior, oracle, evidence, rng, self.learning.batch_size))
        pixels = to_pixels(self.decoded(state, observed, prior.device))
        nothing = torch.full((len(pixels),), torch.nan)
        yield Found(
            pixels.new_zeros(len(pixels), 0).float(), nothing, torch.arange(len(pixels)), "selected", pixels=pixels
        )


NOT_LEARNED = ("purify", "budget", "group", "rung")  # of a decoder's recipe


class AdaptiveDecoder(Decoder):
    """A decoder that goes on learning from what the deployed edge releases of public images, its defense included:
    attack A1 of Crafter's ladder, black-box (card crafter.md, 4.8). It begins as the decoder that knows no defense.

    Args:
        further: updates on what was released (the authors' 70 epochs).
        images: public images that the edge is asked about, drawn without replacement; None is all. Each costs what the
            defense takes per image.
        learning, distance, coupled, purify, access, budget, group, rung: see `Decoder`.
    """

    later = {**Decoder.later, "rung": "A1"}
    asks_edge = True

    def __init__(
        self,
        *,
        learning: Learning,
        further: Count,
        images: Count | None = None,
        distance: str = "mean_squared",
        coupled: bool = False,
        purify: Part | None = None,
        access: str = "features",
        budget: Count | None = None,
        group: Count = 60,
        rung: str | None = "A1",
    ):
        super().__init__(
            learning=learning,
            distance=distance,
            coupled=coupled,
            purify=purify,
            access=access,
            budget=budget,
            group=group,
            rung=rung,
        )
        self.further, self.images = further, images

    def asked_of_edge(self, public: Images, rng: torch.Generator) -> Images:
        """`images` of them."""
        return some_of(public, self.images, rng)

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        public: Images,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        edge: Edge | None = None,
    ) -> Iterator[Progress]:
        """Learn as a decoder does, ask the edge, and go on. What the first part learned stays in the state, so that
        work that goes on has it."""
        saved = state or {}
        known = within(saved, UNAWARE)
        work = self.learn_from(public, oracle, seeds.fork(rng, "unaware"), prior.device, known or None)
        done, made = yield from passed_on(work, UNAWARE, known, 0, {})
        chosen = self.asked_of_edge(public, rng)
        released = edge(chosen)
        before = within(made, UNAWARE)
        network = self.learning.learned(before, prior.device, observed=released.shape[1:]).requires_grad_(True)
        later = {name: value for name, value in saved.items() if not name.startswith(UNAWARE)}
        work = self.learning.lasting(self.further).learn(
            public_images(chosen, prior.device),
            released,
            self.loss,
            rng=seeds.fork(rng, "aware"),
            device=prior.device,
            state=later or None,
            network=network,
        )
        yield from passed_on(work, "", later, done, made)


def some_of(public: Images, count: int | None, rng: torch.Generator) -> Images:
    """`count` public images, drawn without replacement (None, or too many: all of them)."""
    if count is None or count >= len(public):
        return public
    return public.take(torch.randperm(len(public), generator=seeds.fork(rng, "chosen"))[:count])
