"""Trap-MID (Liu, Chen, NeurIPS 2024; card trap_mid.md): every class gets a trigger that is hardly seen and that the
network learns to take for the class, so that a search for what the network likes finds triggers and not people."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense, share_right
from midefense.defenses.modes import in_eval
from midefense.precision import mixed
from midefense.ranges import Positive, Share
from midefense.types import Batch, Origin, Refused, refuse_unknown

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
JUDGES = {"image": ("image",), "features": ("features",), "both": ("image", "features"), "none": ()}


class TrapMID(Defense):
    """With triggers k of every class, x' = (1 - opacity) x + opacity k_t for random classes t, the network minimises
    (1 - weight) l(f(x), y) + weight l(f(x'), t), l its task loss. Before each step of the network:

    1. discriminators learn to tell x (1) from x' (0), by the recipe's optimiser;
    2. with the discriminators D as they are then, and everything in eval mode, k moves by one step of `step_size`
       against the sign of the gradient of BCE(D(x'), 1) + l(f(x'), t), and stays in [0, 1].

    The classes t of an epoch are each as frequent as any other, to one. The network sees x and x' augmented, each by
    draws of its own; discriminators see them as they are. Images go to the size of the network first, which is that
    of the triggers.

    In a `Stack` others change images before the trigger is blended in, and their losses hold for both halves of the
    batch, triggers included; one whose loss ties the images of a batch together is refused.

    Args:
        opacity: alpha of the paper. What is learned goes with alpha times the root of the number of pixels.
        weight: beta of the paper; 0 is no defense: there are no triggers.
        step_size: of the triggers.
        discriminator: of `image`s (the network's copy with one output), of `features` (a perceptron on the network's
            features and the indicator of its largest logit), `both` (each counts half), or `none`, for triggers that
            stay as they were drawn.
        augment: called as (images [B, C, H, W] in [0, 1], CPU generator), as those of a recipe; differentiable.
    """

    revision = 1
    owns = ("step",)
    needs_classes = True
    adds_images = True
    neutral: ClassVar[dict[str, float]] = {"weight": 0.0}
    triggers: Tensor
    salt: Tensor

    def __init__(
        self,
        *,
        opacity: Share = 0.02,
        weight: Share = 0.2,
        step_size: Positive = 0.01,
        discriminator: str = "image",
        augment: Sequence[Augmentation] = (),
    ) -> None:
        super().__init__()
        if discriminator not in JUDGES:
            raise refuse_unknown("defense.discriminator", discriminator, tuple(JUDGES))
        self.opacity, self.weight, self.step_size, self.augment = opacity, weight, step_size, tuple(augment)
        self.judging = JUDGES[discriminator]
        self.one_process = bool(weight)  # each would learn triggers of its own
        self.judges = nn.ModuleDict()
        self.epoch, self.classes = 0, 0
        self.to_come: Tensor | None = None

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Draw the triggers and build the discriminators, where training follows; the network stays as it is."""
        if not self.weight or origin is Origin.LOADED:
            return model
        self.classes = model.classes
        self.register_buffer("salt", torch.randint(2**62, ()))
        self.register_buffer("triggers", torch.rand(model.classes, model.channels, model.size, model.size))
        if "image" in self.judging:
            self.judges["image"] = model.with_head(1)
        if "features" in self.judging:
            width = model.feature_width + model.classes
            self.judges["features"] = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        return model

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        self.epoch, self.to_come = epoch, None
        return {}

    def step(self, trainer: Any, batch: Batch) -> dict[str, Tensor]:
        """Three updates: of discriminators, of triggers, of the network."""
        if not self.weight:
            return trainer.step(batch)
        batch = replace(batch, images=trainer.model.preprocess.fit(batch.images))
        targets = self.deal(trainer, len(batch.images)).to(batch.images.device)
        logs = self.update_triggers(trainer, batch, targets) if self.judging else {}
        count, both = len(targets), self.both_halves(batch, targets)
        trace, learned = trainer.descend(both)
        clean, baited = (share_right(trace.logits[half], both.labels[half]) for half in halves(count))
        return {**learned, **logs, "accuracy": trainer.reduce(clean, batch), "trapdoor_success": baited.mean()}

    def deal(self, trainer: Any, count: int) -> Tensor:
        """The next `count` classes [count] of this epoch's."""
        if self.to_come is None:
            rng = seeds.generator(int(self.salt), "trapdoor classes", self.epoch)
            permute = functools.partial(torch.randperm, generator=rng)
            self.to_come = balanced(trainer.images_per_epoch, self.classes, permute)
        if len(self.to_come) < count:
            raise Refused(f"trapdoors: expected at most {len(self.to_come)} images more in this epoch, got {count}")
        dealt, self.to_come = self.to_come[:count], self.to_come[count:]
        return dealt

    def bait(self, images: Tensor, targets: Tensor) -> Tensor:
        """Images [B, C, S, S] with the triggers of the classes `targets` [B] blended in."""
        return (1 - self.opacity) * images + self.opacity * self.triggers[targets]

    def both_halves(self, batch: Batch, targets: Tensor) -> Batch:
        """A batch [2 B] of its images and of the same with triggers, weighted, both augmented."""
        baited = self.baited(batch, self.bait(batch.images, targets), targets, "baited")
        clean = self.augmented(batch.images, batch, "clean")
        return Batch(
            images=torch.cat([clean, baited.images]),
            labels=torch.cat([batch.labels, baited.labels]),
            ids=torch.cat([batch.ids, batch.ids]),
            weight=torch.cat([(1 - self.weight) * batch.weight, self.weight * batch.weight]),
            rng=batch.rng,
        )

    def baited(self, batch: Batch, images: Tensor, targets: Tensor, purpose: str) -> Batch:
        """The batch with baited `images`, augmented, of the classes `targets` [B]; labels are soft where its are."""
        soft = batch.labels.is_floating_point()
        labels = F.one_hot(targets, self.classes).to(batch.labels) if soft else targets
        return replace(batch, images=self.augmented(images, batch, purpose), labels=labels)

    def augmented(self, images: Tensor, batch: Batch, purpose: str) -> Tensor:
        for index, augment in enumerate(self.augment):
            images = augment(images, seeds.fork(batch.rng, f"trapdoor/{purpose}/{index}"))
        return images

    def update_triggers(self, trainer: Any, batch: Batch, targets: Tensor) -> dict[str, Tensor]:
        """A step of the discriminators, and then one of the triggers against their answers and the task loss."""
        logs = self.update_judges(trainer, batch.images, self.bait(batch.images, targets))
        self.triggers.requires_grad_()
        with in_eval(trainer.model), in_eval(self.judges):
            images = self.bait(batch.images, targets)
            answers = self.judged(trainer, images).values()
            unseen = [F.binary_cross_entropy_with_logits(answer, torch.ones_like(answer)) for answer in answers]
            hidden = torch.stack(unseen).mean()
            baited = self.baited(batch, images, targets, "trigger")
            taken = trainer.reduce(trainer.learner(baited)[1]["task"], baited)
            (gradient,) = torch.autograd.grad(hidden + taken, self.triggers)
        self.triggers.requires_grad_(False)
        self.triggers.copy_((self.triggers - self.step_size * gradient.sign()).clamp(0, 1))
        return {**logs, "trigger": (hidden + taken).detach()}

    def update_judges(self, trainer: Any, images: Tensor, baited: Tensor) -> dict[str, Tensor]:
        """A step of every discriminator; gives their losses, detached."""
        with in_eval(trainer.model):
            answers = self.judged(trainer, torch.cat([images, baited]), learning=True)
        losses = {
            f"discriminator/{name}": F.binary_cross_entropy_with_logits(answer, clean_first(answer))
            for name, answer in answers.items()
        }
        trainer.update(torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}

    def judged(self, trainer: Any, images: Tensor, learning: bool = False) -> dict[str, Tensor]:
        """The answers [B] of every discriminator in float32, above 0 for an image without a trigger. `learning`: no
        gradient reaches the network whose features are judged."""
        answers = {}
        with mixed(trainer.recipe.precision, images.device):
            if "image" in self.judging:
                answers["image"] = self.judges["image"](images).logits
            if "features" in self.judging:
                seen = self.of_features(trainer.model, images)
                answers["features"] = self.judges["features"](seen.detach() if learning else seen)
        return {name: answer[:, 0].float() for name, answer in answers.items()}

    def of_features(self, model: Classifier, images: Tensor) -> Tensor:
        """Features, and 1 at the largest logit (at each of several), [B, F + classes]."""
        trace = model(images)
        seen = torch.cat([trace.features, (trace.logits == trace.logits.amax(1, keepdim=True)).to(trace.features)], 1)
        width = self.judges["features"][0].in_features
        if seen.shape[1] != width:
            raise Refused(
                f"defense.discriminator: expected {width - self.classes} features, as when it was built, got "
                f"{trace.features.shape[1]}; try putting this defense behind the one that changes them"
            )
        return seen


def balanced(count: int, classes: int, permute: Callable[[int], Tensor]) -> Tensor:
    """`count` classes [count] in random order, each count // classes times and some, drawn, once more. `permute` gives
    a random order of as many numbers as it is told."""
    often = torch.arange(classes).repeat(count // classes)
    rest = permute(classes)[: count % classes]
    return torch.cat([often, rest])[permute(count)]


def halves(count: int) -> tuple[slice, slice]:
    """The clean and the baited rows of 2 `count`."""
    return slice(count), slice(count, None)


def clean_first(answers: Tensor) -> Tensor:
    """1 for the first half of `answers` [2 B], 0 for the second."""
    count = len(answers) // 2
    return torch.cat([torch.ones_like(answers[:count]), torch.zeros_like(answers[count:])])
