"""Surrogates: what the attacker asks in the target's place (LOMMA, Nguyen et al., CVPR 2023; LOKT, Nguyen et al.,
NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.learning import Learner, Learning, Questions, public_images, samples_of_classes
from midefense.attacks.part import Part
from midefense.attacks.progress import passed_on
from midefense.oracle import Ensemble, Oracle, Panel
from midefense.priors.augmentation import Augmentation
from midefense.priors.base import Prior
from midefense.ranges import Draws, NotNegative, Positive, Share
from midefense.training_state import within
from midefense.types import Access, Images, Progress, Refused, Setting


class Surrogate(Learner, Part):
    """A network of the attacker's own, which learns from what the target answers and is then asked itself, at no cost
    and with gradients. What it `reads` is read of the target, and what it asks is on the shared bill.

    A member says what to ask about (`questions`) and how to learn from it (`loss`).

    Attributes:
        access: what may be read of the surrogate, once it has learned; None: what the attack may read of the target.
        learns: whether `fit` does anything.
        beside_target: it is asked together with the target, and not in its place. What a search reads of the target is
            then among what it `reads`.
    """

    access: Access | None = Access.WHITEBOX
    beside_target = False
    learns = True

    def __init__(self, *, learning: Learning):
        self.learning = learning

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """What the target is asked about: see `learning.public_images` and `learning.samples`."""
        raise NotImplementedError

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """What is kept of the target's answers [B, ...]; here the one field that is read."""
        return getattr(oracle(images, reads=self.reads), self.reads[0])

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Loss per image [B]; `network(images)` gives a `Trace`."""
        raise NotImplementedError

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn from the target; the last state makes an oracle."""
        return self.learning.fit(
            self.questions(prior, public, seeds.fork(rng, "questions")),
            lambda images: self.ask(oracle, images),
            self.loss,
            rng=rng,
            device=prior.device,
            state=state,
        )

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Oracle | Ensemble | Panel:
        """What a search asks. A surrogate that answers together with the target asks `target`, which charges it."""
        return Oracle(self.learning.learned(state, prior.device), self.access)


class Students(Surrogate):
    """Several networks that learn from the same answers, one after the other: the target is asked about each question
    once, whatever their number.

    Args:
        students: by name, each a network and how it learns.
    """

    def __init__(self, *, students: Mapping[str, Learning]):
        if not students:
            raise Refused("attack.surrogate.students: expected one or more, got none; try ~attack.surrogate")
        self.students = dict(students)

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Put every question, then let each student learn."""
        questions, saved = self.questions(prior, public, seeds.fork(rng, "questions")), state or {}
        first = next(iter(self.students.values()))
        answers = yield from first.ask(questions, lambda images: self.ask(oracle, images), state)
        done, made = -(-questions.count // first.batch_size), {"asked": answers}
        for name, learning in self.students.items():
            known = within(saved, f"{name}.")
            work = learning.learn(
                questions,
                answers,
                self.loss,
                rng=seeds.fork(rng, name),
                device=prior.device,
                state=known or None,
                shown=self.shown,
            )
            named = ((step, {f"{name}_loss": logs["loss"]}, give) for step, logs, give in work)
            done, made = yield from passed_on(named, f"{name}.", known, done, made)

    def learned(self, state: Mapping[str, Tensor], prior: Prior) -> list[Oracle]:
        """The students of a saved state, each as an oracle."""
        networks = [
            learning.learned(within(state, f"{name}."), prior.device) for name, learning in self.students.items()
        ]
        return [Oracle(network, self.access) for network in networks]


class Distilled(Students):
    """Students of the target, asked beside it (model augmentation; LOMMA, Nguyen et al., CVPR 2023, section 4.2). The
    target is asked about every public image once; each student learns from its answers, one after the other.

    Args:
        students: see `Students`.
        temperature: of both softmaxes.
    """

    reads = ("logits", "features", "gradient")
    beside_target = True

    def __init__(self, *, students: Mapping[str, Learning], temperature: Positive = 1.0):
        super().__init__(students=students)
        self.temperature = temperature

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """All public images."""
        return public_images(public, prior.device)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """KL(softmax(t / tau) || softmax(s / tau)) / tau^2 per image [B], of the target's logits t and the student's s.
        Distillation usually multiplies by tau^2; the authors' code divides."""
        return distillation(network(images).logits, answers, self.temperature)

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Ensemble:
        """The target and its students."""
        return Ensemble(target, self.learned(state, prior))


class Labelled(Students):
    """Students of the target's labels alone, asked in its place (LOKT, Nguyen et al., NeurIPS 2023; card lokt.md, 4B
    and C). The target is asked for its label of as many images of each class as the prior makes, by the latents of a
    prior that knows classes; each student learns from these labels with cross-entropy, and the last step counts: the
    toolbox keeps the epoch that is best on the target's private test set, which no attacker has.

    Args:
        students: see `Students`. How many classes the target has, the first of them was told.
        each: images per class that the target is asked about.
        augmentation: what a student is shown of a batch (None: the images themselves).
        augmented: share of the images that are.
        together: one draw for all images of a batch, as in the toolbox's code, instead of one each.
    """

    reads = ("labels",)
    needs = ("sample",)

    def __init__(
        self,
        *,
        students: Mapping[str, Learning],
        each: Draws = 500,
        augmentation: Augmentation | None = None,
        augmented: Share = 0.5,
        together: bool = False,
    ):
        super().__init__(students=students)
        self.each, self.augmentation = each, augmentation
        self.augmented, self.together = augmented, together

    def check(self, setting: Setting) -> None:
        """Refuse a prior whose images are of one target each: students learn once for all."""
        if setting.prior.completes:
            raise Refused(
                f"attack.surrogate ({type(self).__name__}): expected a prior whose images may be of any target, got "
                f"{setting.prior.__name__}, which completes what was observed of one; try prior=lokt_gan"
            )

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """As many images of each class."""
        name, first = next(iter(self.students.items()))
        if first.classes is None:
            raise Refused(
                f"attack.surrogate.students.{name}.network: expected one that is told its classes, got one that takes "
                "no such number; try an architecture of ours, as cnn or densenet161"
            )
        return samples_of_classes(prior, first.classes, self.each, rng)

    def shown(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Views [B, C, H, W] of some of the images, the others as they are."""
        if self.augmentation is None:
            return images
        draws = 1 if self.together else len(images)
        dice = self.augmentation.draw(draws, seeds.fork(rng, "views")).expand(len(images), -1)
        chosen = torch.rand(draws, generator=rng).expand(len(images)) < self.augmented
        views = self.augmentation(images, dice.to(images.device))
        return torch.where(chosen.view(-1, 1, 1, 1).to(images.device), views, images)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy per image [B]."""
        return F.cross_entropy(network(images).logits.float(), answers, reduction="none")

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Panel:
        """The students, together."""
        return Panel(self.learned(state, prior))


class Imitated(Students):
    """Students of all that the target tells of public images, asked in its place: what a surrogate learned from scores
    that a defense changed has gradients, and none of the target's obstacles to them (Papernot et al., AsiaCCS 2017;
    Orekondy et al., Knockoff Nets, CVPR 2019).

    Args:
        students: see `Students`.
        features: weight of what students imitate of the target's features besides: of each image, the mean over
            its batch of the squared difference between its cosine with them in the student's features and in
            the target's (Tung & Mori, ICCV 2019), which need not be as many. 0 reads no features.
    """

    reads = ("probs",)

    def __init__(self, *, students: Mapping[str, Learning], features: NotNegative = 0.0):
        super().__init__(students=students)
        self.features = features
        if features:
            self.reads = ("probs", "features")

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """All public images."""
        return public_images(public, prior.device)

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """Probabilities, and the features behind them where they are imitated [B, classes + F]."""
        told = oracle(images, reads=self.reads)
        return torch.cat([getattr(told, name).flatten(1) for name in self.reads], 1)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """KL(target || student) of their probabilities, and `features` times the distance of their likenesses, per
        image [B]."""
        trace = network(images)
        probs, features = answers[:, : trace.logits.shape[1]], answers[:, trace.logits.shape[1] :]
        log_probs = trace.logits.float().log_softmax(1)
        loss = F.kl_div(log_probs, probs.float(), reduction="none").sum(1)
        if not self.features:
            return loss
        return loss + self.features * (likeness(trace.features.float()) - likeness(features.float())).square().mean(1)

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Panel:
        """The students, together."""
        return Panel(self.learned(state, prior))


def likeness(features: Tensor) -> Tensor:
    """Cosines [B, B] between the features [B, F] of a batch."""
    unit = F.normalize(features.flatten(1), dim=1)
    return unit @ unit.T


class ClassHead(Surrogate):
    """What the prior's discriminator says of an image's class, asked in the target's place: it learned the target's
    labels with the generator and costs no question of its own (a variant of LOKT's paper)."""

    needs = ("classifier",)
    learns = False

    def __init__(self) -> None:
        pass

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Nothing is left to learn."""
        return iter(())

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Oracle:
        """The class head."""
        return Oracle(prior.classifier(), self.access)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The loss of `Distilled` per image [B], for logits [B, classes] of a student and its teacher."""
    told, learned = ((logits.float() / temperature).log_softmax(1) for logits in (teacher, student))
    return F.kl_div(learned, told, reduction="none", log_target=True).sum(1) / temperature**2
