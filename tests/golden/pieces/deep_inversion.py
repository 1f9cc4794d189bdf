"""DeepInversion's terms, its learning rate and its searches (`deep_inversion.npz`), as conf/attack composes them, on a
stand-in target. In float64, but for what our losses take in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.naturalness import Agreement, BatchNormStatistics, ColourNorm, NeighbourMean, NeighbourNorm
from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.attacks.schedules import WarmedCosine
from midefense.attacks.views import Chain, Shift
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.priors.pixels import Pixels
from midefense.types import Answer, Evidence, Found, Trace, clip_images

from .gmi import Given
from .lomma import Filled, composed
from .recording import Entry, Recording
from .registry import replays
from .rules import TOLERANCE, Draws, relative_error

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
COEFFICIENTS = "coef_order_r_feature_firstbn_tvl1_tvl2_l2_lr_main"
WIDTHS = (6, 5)  # of the stand-in for the target, and for the student


class Stand(nn.Module):
    """The stand-in: conv, BN, ReLU, strided conv, BN, ReLU, 4 * spatial mean, linear; it normalises images inside."""

    def __init__(self, classes: int, width: int, scale: tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)
        self.scale = Pixels(channels=3, size=1, mean=scale[0], std=scale[1])

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        hidden = torch.relu(self.b1(self.c1(self.scale.normalised(images))))
        features = 4 * torch.relu(self.b2(self.c2(hidden))).mean((2, 3))
        return Trace(self.fc(features), features)


@dataclass
class World:
    """A piece's world: the target, its student, and pixels in the classifier's scale of colours."""

    classes: int
    size: int
    scale: tuple[Sequence[float], Sequence[float]] = IMAGENET

    def network(self, width: int) -> nn.Module:
        """The target or the student, filled, in eval mode."""
        return Draws().fill(Stand(self.classes, width, self.scale)).double()

    @property
    def prior(self) -> Prior:
        """Its pixels."""
        return Pixels(channels=3, size=self.size, start="normal", mean=self.scale[0], std=self.scale[1]).double()

    def look(self, latents: Tensor) -> Look:
        """What an objective is told of latents [B, 3, S, S], which the target is shown as they are."""
        images = self.prior.decode(latents.double())
        answer = Oracle(self.network(WIDTHS[0]), "whitebox")(images, reads=("logits", "batchnorm"))
        labels = torch.zeros(len(latents), dtype=torch.int64)
        return Look(latents, images, images, images, answer, labels, self.prior)


class Scripted(Shift):
    """A jitter whose draws were recorded: `moves` [steps, 2] and `dice` [steps], a step at a time."""

    def __init__(self, moves: Tensor, dice: Tensor, flip: float) -> None:
        super().__init__(flip=flip)
        self.script = iter(torch.cat([moves.double(), dice.double()[:, None]], 1))

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        return next(self.script).expand(count, 3)


class Totalled(Part):
    """An objective that is asked as it is; the mean of its losses, the batch's total, is kept at every look."""

    def __init__(self, inner: Part) -> None:
        self.inner, self.reads, self.needs, self.coupled = inner, inner.reads, inner.needs, inner.coupled
        self.losses: list[Tensor] = []

    def __call__(self, look: Look) -> Tensor:
        each = self.inner(look)
        self.losses.append(each.detach().mean())
        return each


@replays("deep_inversion/terms")
def terms(recording: Recording) -> Iterator[Entry]:
    """Every term and its gradient, of one batch."""
    latents = recording["x"].double().requires_grad_()
    world = World(classes=recording["logits"].shape[1], size=latents.shape[-1])
    look = world.look(latents)
    yield recording.compare("logits", look.answer.logits.detach())
    gaps = BatchNormStatistics().gaps(look.answer.batchnorm.values())
    yield recording.compare("r_feature_per_bn", gaps.detach())
    parts = {"tv_l1": NeighbourMean(), "tv_l2": NeighbourNorm(), "r_feature": BatchNormStatistics(first_weight=1.0)}
    for name, part in {**parts, "l2_mean_per_image": ColourNorm()}.items():
        value = part(look).mean()
        if name in recording:
            yield recording.compare(name, value.detach())
        if (key := f"grad_{name}") in recording:
            yield recording.compare(key, torch.autograd.grad(value, latents, retain_graph=True)[0])


@replays("deep_inversion/lr", "deep_inversion/f64")
def rates(recording: Recording) -> Iterator[Entry]:
    """The learning rate at some updates of searches of so many."""
    for key in recording.keys("*T*"):
        steps = int(key.split("T")[1].split("/")[0])
        name, schedule = f"lr/T{steps}", WarmedCosine(warmup=100)
        at = recording.elsewhere(f"{name}/iteration").tolist()
        known = recording.elsewhere(f"f64/{name}/value")
        ours = torch.tensor([schedule(0.2, step, steps) for step in at], dtype=torch.float64)
        recording[key]
        yield Entry(key, relative_error(ours, known), TOLERANCE, "the rates at these updates")


@replays("deep_inversion/clip", "deep_inversion/denorm")
def bounds(recording: Recording) -> Iterator[Entry]:
    """Latents kept within pixels, and the images that they are exported as."""
    given = recording.elsewhere("clip/in").double()
    prior = World(classes=2, size=given.shape[-1]).prior
    if "in" in recording:
        recording["in"]
        yield recording.compare("out", given.clamp(*prior.pixel_range))
    else:
        yield recording.compare("out", clip_images(prior.decode(given)))


@replays("deep_inversion/adi")
def agreement(recording: Recording) -> Iterator[Entry]:
    """The competition with a student, of given logits."""
    for number in sorted({key.split("/")[0] for key in recording.arrays}):
        answer = Answer(logits=recording[f"{number}/teacher"], beside=(recording[f"{number}/student"],))
        look = Look(None, None, None, None, answer, torch.zeros(len(answer.logits)), None)
        yield recording.compare(f"{number}/R_adi", Agreement()(look)[0])


# Settings 0, 1 and 2 of the authors: the presets and the stages that a piece runs.
SETTINGS = {0: ("deep_inversion", "half"), 1: ("deep_inversion_full", "full"), 2: ("deep_inversion_paper", "full")}


def weights(recording: Recording) -> Mapping[str, float]:
    """The recorded weights by the names of our terms, and the rate."""
    statistics, first, absolute, variation, colours, rate, main = recording.elsewhere(COEFFICIENTS).tolist()
    terms = {"identity": main, "statistics": statistics, "absolute_variation": absolute, "variation": variation}
    return {**terms, "colours": colours, "first": first, "rate": rate}


def searched(recording: Recording) -> tuple[list[Found], list[Tensor]]:
    """What a recorded search finds after every step, and the losses before them."""
    given, labels = weights(recording), recording.elsewhere("targets").long()
    adaptive, setting, flip = recording["adi_scale_setting_flip"].tolist()
    preset, stage = SETTINGS[int(setting)]
    changes = {
        f"objective.terms.{name}.weight": given[name]
        for name in ("identity", "statistics", "absolute_variation", "variation", "colours")
    }
    changes["objective.terms.statistics.loss.first_weight"] = given["first"]
    if adaptive:
        changes["objective.terms.agreement.weight"] = adaptive
    where = f"search.stages.{stage}.search"
    changes |= {f"{where}.optimizer.lr": given["rate"], f"{where}.reference_batch": len(labels)}
    attack = composed(preset, *(f"{name}={value}" for name, value in changes.items()))
    return run(attack, stage, recording, World(4, recording["x0"].shape[-1]), labels, 0.5 * flip)


def run(
    attack: SearchAttack, stage: str, recording: Recording, world: World, labels: Tensor, flip: float
) -> tuple[list[Found], list[Tensor]]:
    """One stage of a composed attack under the recorded jitter, from the recorded start."""
    dice = recording["flip_u"] if "flip_u" in recording else torch.zeros(len(recording["shifts"]))
    shift, member = Scripted(recording["shifts"], dice, flip), attack.search.stages[stage]
    pools = isinstance(member.views, Chain)
    member.views = Chain(members={**member.views.members, "shift": shift}) if pools else shift
    attack.search.stages = {stage: member}
    attack.init, attack.objective = Given(recording["x0"].double(), 1), Totalled(attack.objective)
    if attack.surrogate is not None:
        attack.surrogate = Filled([world.network(WIDTHS[1])])
    oracle, evidence = Oracle(world.network(WIDTHS[0]), attack.access), Evidence(labels, torch.arange(len(labels)))
    path = []
    for found in attack.recover({}, world.prior, oracle, evidence, seeds.generator("golden")):
        path.append(found.detached())
        if len(attack.objective.losses) == len(dice):
            return path, attack.objective.losses
    raise AssertionError("a search ends before its recording")


@replays("deep_inversion/lowres", "deep_inversion/fullres", "deep_inversion/adi_noclip")
def search(recording: Recording) -> Iterator[Entry]:
    """Eight updates: losses and pictures before each, and the rates."""
    path, losses = searched(recording)
    yield recording.compare("loss", torch.stack(losses))
    yield recording.compare("x_after_last_step", path[-1].latents)
    before = torch.stack([found.latents for found in path[:-1]])
    pooled = before.shape[-1] // recording["x_before_roll_each_step"].shape[-1]
    small = F.avg_pool2d(before.flatten(0, 1), pooled).unflatten(0, before.shape[:2])
    yield recording.compare("x_before_roll_each_step", small)
    rate = weights(recording)["rate"]
    rates = [WarmedCosine(warmup=100)(rate, step, 2000) for step in range(len(losses))]
    yield recording.compare("lr", torch.tensor(rates))


@replays("deep_inversion/targets", "deep_inversion/coef_*")
def of_all_searches(recording: Recording) -> Iterator[Entry]:
    """The labels, and the weights of the terms: with them the first loss is the recorded one."""
    (key,) = recording.arrays
    recording[key]
    for piece in ("lowres", "fullres"):
        arrays = {
            name.removeprefix(f"{piece}/"): value
            for name, value in recording.file.items()
            if name.startswith(f"{piece}/")
        }
        other = Recording(recording.path, piece, arrays, recording.file)
        first = searched(other)[1][0]
        yield Entry(key, relative_error(first, other["loss"][0]), TOLERANCE, f"the first loss of {piece}")


@replays("deep_inversion/cifar")
def of_cifar(recording: Recording) -> Iterator[Entry]:
    """Four updates of the script for CIFAR-10, with a student."""
    variation, statistics, colours, adaptive, rate = recording["coef_var_bn_l2_competitive_lr"].tolist()
    labels = recording["targets"].long()
    changes = {
        "objective.terms.variation.weight": variation,
        "objective.terms.statistics.weight": statistics,
        "objective.terms.colours.weight": colours,
        "search.stages.full.search.optimizer.lr": rate,
        "search.stages.full.search.reference_batch": len(labels),
    }
    attack = composed("deep_inversion_cifar_adaptive", *(f"{name}={value}" for name, value in changes.items()))
    attack.objective.terms[-1].weight = adaptive
    path, losses = run(attack, "full", recording, World(10, 32, CIFAR), labels, flip=0.0)
    yield recording.compare("loss", torch.stack(losses))
    yield recording.compare("x_after_last_step", path[-1].latents)
