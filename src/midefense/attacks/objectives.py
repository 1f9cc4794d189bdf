"""Losses per image. All take a `Look` and give [B]; the search sums them, so no image depends on its batch, unless a
loss says that it is `coupled`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.attacks.progress import passed_on
from midefense.identity_losses import max_margin, poincare
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Batch, Count, InnerShare
from midefense.training_state import within
from midefense.types import Images, Progress, Refused, Setting, refuse_unknown


def over_models(look: Look, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """A loss of logits [B, K] to [B], as its mean over the target and the networks that are asked beside it."""
    return torch.stack([loss(logits) for logits in (look.answer.logits, *look.answer.beside)]).mean(0)


class CrossEntropy(Part):
    """-log p_y (GMI's identity loss and most others').

    Args:
        beside: whether networks that are asked beside the target count too (`over_models`); else it is the target's.
    """

    reads = ("logits", "gradient")
    later = {"beside": True}

    def __init__(self, *, beside: bool = True):
        self.beside = beside

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), look.labels, reduction="none")

        return over_models(look, loss) if self.beside else loss(look.answer.logits)


class MaxMargin(Part):
    """The best other logit minus that of the label (PLG-MI): see `identity_losses.max_margin`. It has no lower bound,
    so that latents may leave the region they are drawn from."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]; below 0 where the answer is the label wanted."""
        return over_models(look, lambda logits: max_margin(logits, look.labels))


class Confidence(Part):
    """1 - p_y, the cost of Fredrikson et al. (CCS 2015, algorithm 1). Its gradient vanishes where p_y is near 0."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], in [0, 1]."""
        return over_models(look, lambda logits: 1 - logits.float().softmax(1).gather(1, look.labels[:, None])[:, 0])


class Logit(Part):
    """Minus the logit wanted (LOMMA, Nguyen et al., CVPR 2023, equation 4): its gradient does not vanish where the
    target is sure. It has no lower end; a box, the prior and `FeatureRegulariser` bound it."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], unbounded."""
        return over_models(look, lambda logits: -logits.float().gather(1, look.labels[:, None])[:, 0])


class FeatureRegulariser(Part):
    """Mean over the dimensions of (p(x) - p_reg)^2, with p the target's features and p_reg those of public images (the
    regulariser of LOMMA's logit loss; the paper writes the squared norm, the authors' code takes the mean).

    Args:
        images: public images whose features are measured, drawn without replacement; all where there are fewer. The
            authors' 5,050 are the batches of 50 until one begins behind the 5,000th.
        batch_size: of them, at once.
        reference: `mean`, which p_reg is in the authors' code, or `drawn`: the paper's p_reg ~ N(mean, std^2), one draw
            for all targets, as mean + std * e.
    """

    reads = ("features", "gradient")
    prepares = True
    unhashed = ("batch_size",)
    references = ("mean", "drawn")

    def __init__(self, *, images: Batch = 5050, batch_size: Count = 50, reference: str = "mean"):
        if reference not in self.references:
            raise refuse_unknown("attack.objective.reference", reference, self.references)
        self.images, self.batch_size, self.reference = images, batch_size, reference

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """What is measured is the same whichever reference is used."""
        return {name: value for name, value in recipe.items() if name != "reference"}

    @torch.no_grad()
    def prepare(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Measure the target's features: state `features` [images, F] while it goes on, with `mean`, `std` (unbiased)
        and `drawn` [F] at the end."""
        if len(public) < 2:
            raise Refused(
                f"attack.objective: expected 2 or more public images to measure features of, got {len(public)}; "
                "try public=... (see --help)"
            )
        rows = torch.randperm(len(public), generator=rng)[: self.images]
        known = [state["features"]] if state and "features" in state else []
        done = sum(map(len, known)) if state is None or "mean" not in state else len(rows)
        while done < len(rows):
            images = public.floats(rows[done : done + self.batch_size], prior.device)
            known.append(oracle(images, reads=("features",)).features.flatten(1).cpu())
            done += len(images)
            measured = {"features": torch.cat(known)} if done < len(rows) else statistics(torch.cat(known), rng)
            yield done, {}, lambda measured=measured: measured

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        reference = look.known[self.reference].to(look.answer.features.dtype)
        return (look.answer.features.flatten(1) - reference).square().mean(1)


def statistics(features: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """Mean and unbiased standard deviation [F] of features [N, F], and one draw of the normal that has them."""
    mean, std = features.double().mean(0), features.double().std(0)
    drawn = mean + std * torch.randn(len(mean), generator=rng, dtype=torch.float64)
    return {name: value.float() for name, value in (("mean", mean), ("std", std), ("drawn", drawn))}


class Poincare(Part):
    """Distance in the Poincaré ball between the L1-normalised logits and the one-hot label (PPA, equation 4).

    u = o / ||o||_1, v = onehot(y) clipped to [0, 1 - xi]; loss = arccosh(1 + 2 ||u - v||^2 / ((1 - ||u||^2)
    (1 - ||v||^2))). It does not saturate at high confidence and does not change with the logits' scale.

    Computed in float64: in float32 the original loses 2.16e-4 to cancellation (card ppa.md, gotcha 2).

    Args:
        xi: keeps v inside the ball.
    """

    reads = ("logits", "gradient")

    def __init__(self, *, xi: InnerShare = 1e-4):
        self.xi = xi

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]."""
        return over_models(look, lambda logits: poincare(logits, look.labels, self.xi))


class Realism(Part):
    """Minus the prior's critic: looking unreal costs (GMI's prior loss -D(G(z)))."""

    reads = ("gradient",)
    needs = ("realism",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], unbounded."""
        return -look.prior.realism(look.drawn)


class PlacedRealism(Part):
    """As `Realism`, of a critic that looks at the whole image and at a part of it, which lies elsewhere in every step
    (SecretGen's -E DL - E DG; Yuan et al., ECCV 2022).

    Args:
        shared: one place for all images of a step, as the authors have it; else each image has its own.
    """

    reads = ("gradient",)
    needs = ("realism", "places")
    columns = 2

    def __init__(self, *, shared: bool = False):
        self.shared = shared

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Where the part lies [count, 2], down and across, in [0, 1) of where it may."""
        return torch.rand(1 if self.shared else count, 2, generator=rng).expand(count, 2)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], unbounded."""
        return -look.prior.realism_at(look.drawn, look.dice)


class NonSaturating(Part):
    """softplus(-D(G(w))): looking unreal costs, ever less where the critic is content (PPA's discriminator term)."""

    reads = ("gradient",)
    needs = ("realism",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        return F.softplus(-look.prior.realism(look.drawn))


class TotalVariation(Part):
    """Sum of absolute differences between neighbouring pixels: against high-frequency noise in pixel space."""

    reads = ("gradient",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        across = look.images.diff(dim=3).abs().flatten(1).sum(1)
        return across + look.images.diff(dim=2).abs().flatten(1).sum(1)


class WeightedSum(Part):
    """Several losses, weighted.

    Args:
        terms: by name, each a `Weighted` pair of a loss and its weight.
    """

    def __init__(self, *, terms: Mapping[str, Weighted]):
        if not terms:
            raise Refused("attack.objective.terms: expected at least one term, got none")
        self.names, self.terms = list(terms), list(terms.values())
        self.reads = tuple(dict.fromkeys(read for term in self.terms for read in term.loss.reads))
        self.needs = tuple(dict.fromkeys(need for term in self.terms for need in term.loss.needs))
        self.coupled = any(term.loss.coupled for term in self.terms)
        self.compares = any(term.loss.compares for term in self.terms)
        self.gives = tuple(dict.fromkeys(given for term in self.terms for given in term.loss.gives))
        self.columns = sum(term.loss.columns for term in self.terms)
        self.preparing = {name: term.loss for name, term in terms.items() if term.loss.prepares}
        self.prepares = bool(self.preparing)

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """Those of the terms that prepare, without their weights."""
        nodes = {name: recipe["terms"][name]["loss"] for name in self.preparing}
        return {name: loss.preparation(nodes[name]) for name, loss in self.preparing.items()}

    def prepare(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """What the terms prepare, one after the other, each under its name."""
        done, made = 0, {}
        for name, loss in self.preparing.items():
            known = within(state or {}, f"{name}.")
            work = loss.prepare(prior, oracle, public, seeds.fork(rng, name), known or None)
            done, made = yield from passed_on(work, f"{name}.", known, done, made)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """The terms' dice side by side [count, columns]."""
        return torch.cat([term.loss.draw(count, rng) for term in self.terms], 1)

    def check(self, setting: Setting) -> None:
        """Whatever a term refuses."""
        for term in self.terms:
            term.loss.check(setting)

    def check_prior(self, prior: Prior) -> None:
        """Whatever a term refuses."""
        for term in self.terms:
            term.loss.check_prior(prior)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]."""
        dice = [None] * len(self.terms)
        if look.dice is not None:
            dice = look.dice.split([term.loss.columns for term in self.terms], 1)
        terms = zip(self.names, self.terms, dice, strict=True)
        return torch.stack([term.weight * term.loss(self._seen_by(name, look, own)) for name, term, own in terms]).sum(
            0
        )

    def _seen_by(self, name: str, look: Look, dice: Tensor | None) -> Look:
        """The look with what this term prepared, and its own dice."""
        known = within(look.known, f"{name}.") if name in self.preparing else look.known
        return replace(look, known=known, dice=dice)


class Weighted(Part):
    """A loss and its weight, a term of `WeightedSum`."""

    def __init__(self, *, loss: Part, weight: float):
        self.loss, self.weight = loss, weight
