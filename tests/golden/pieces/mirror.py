"""MIRROR's bounds, its genetic and its white-box search and its final pick (`mirror.npz`), as conf/attack composes
them, with every habit of the authors' code; draws are the recorded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.p_space import PSpace
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.search.genetic import Dice
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.types import Evidence, Found, Trace

from .recording import Entry, Recording
from .registry import replays
from .rules import TOLERANCE, relative_error

SLOPE = 0.2  # of the mapping's leaky ReLU, in the authors' code


class Styles(Prior):
    """Styles that are shown as they are [B, width], or through G(w) = (tanh(wA) + 1) / 2 as [B, 3, 4, 4]."""

    slope = SLOPE

    def __init__(self, generator: Tensor | None = None) -> None:
        super().__init__(channels=3, size=4)
        self.generator = generator

    def decode(self, latents: Tensor) -> Tensor:
        if self.generator is None:
            return latents
        return ((latents @ self.generator).tanh() + 1).div(2).view(-1, 3, 4, 4)


class Linear(nn.Module):
    """Logits W x + b of flat images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        flat = images.flatten(1)
        return Trace(flat @ self.weight.T + self.bias, flat)


class Mirrored(Part):
    """A batch that is mirrored where the recorded number says so."""

    def __init__(self, dice: Tensor) -> None:
        self.dice = iter(dice.tolist())

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.full((count, 1), next(self.dice))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where((draws > 0.5)[..., None, None], images.flip(3), images)


def attack_of(preset: str, *changes: str) -> SearchAttack:
    """The preset under changes."""
    words = [f"attack={preset}", *(f"attack.{change}" for change in changes)]
    return bind(compose("attack", words)[0]["attack"], "attack").build()


def searched(
    attack: SearchAttack, prior: Prior, target: nn.Module, label: int, found: Found, pool: Tensor
) -> list[Found]:
    """All that a search yields from `found`, for one target of class `label`."""
    evidence = Evidence(torch.tensor([label]), torch.tensor([label]))
    problem = Problem(
        prior=prior,
        oracle=Oracle(target, attack.access),
        evidence=evidence,
        state={"pool.latents": pool},
        rng=seeds.generator("golden"),
        objective=attack.objective,
        views=attack.views,
        reads=tuple(read for read in attack.objective.reads if read not in ("gradient", "weights")),
        chunk=None,
        device=torch.device("cpu"),
    )
    return list(attack.search(problem, found))


@replays("mirror/bounds")
def the_box(recording: Recording) -> Iterator[Entry]:
    """The box of one and of half a deviation, and pool latents that are cut to it."""
    pool = recording.elsewhere("pool_w")
    space = PSpace.of_pool(pool, SLOPE)
    yield recording.compare("p_std", space.deviation[None])
    for deviations in (1.0, 0.5):
        low, high = space.box(deviations)
        yield recording.compare(f"k{deviations}/lo", low[None])
        yield recording.compare(f"k{deviations}/hi", high[None])
        yield recording.compare(f"k{deviations}/clipped_pool8", pool[:8].clamp(low, high))


@replays("mirror/pool_w")
def there_and_back(recording: Recording) -> Iterator[Entry]:
    """Into P-space and back."""
    space = PSpace.of_pool(recording["pool_w"], SLOPE)
    yield recording.compare("pool_w", space.latents(space.coordinates(recording["pool_w"])))


@replays("mirror/W", "mirror/b", "mirror/target")
def scored(recording: Recording) -> Iterator[Entry]:
    """The target's weights and the label: how fit they find the first population of the search."""
    (name,) = recording.arrays
    weight, bias, start, known = (recording.elsewhere(key) for key in ("W", "b", "ga/pop0", "ga/fit0"))
    fit = torch.log_softmax(start @ weight.T + bias, 1)[:, int(recording.elsewhere("target"))]
    recording[name]
    yield Entry(name, relative_error(fit, known), TOLERANCE, "the fitness of ga/pop0")


@replays("mirror/ga*")
def bred(recording: Recording) -> Iterator[Entry]:
    """Four generations: who is sorted where, what is bred, and how fit it is."""
    weight, bias, pool = (recording.elsewhere(name) for name in ("W", "b", "pool_w"))
    label, start, fitness = int(recording.elsewhere("target")), recording["pop0"], recording["fit0"]
    attack = attack_of(
        "mirror_blackbox",
        "search.crossover=authors",
        "search.shared_noise=true",
        "search.rescore=true",
        "search.stop=null",
        f"search.mutation={float(recording['mutation_prob'])}",
        f"search.strength={float(recording['mutation_ce'])}",
        f"search.generations={len(recording['parents'])}",
        f"search.keep={len(start)}",
    )
    known = torch.log_softmax(start @ weight.T + bias, 1)[:, label]
    yield recording.compare("fit0", known)
    search, given, children = attack.search, _dice(recording), []
    breed = search.breed
    search.draw = lambda *_: next(given)
    search.breed = lambda *args: children.append(breed(*args)) or children[-1]
    found = Found(start, -fitness, torch.zeros(len(start), dtype=torch.int64), "initial")
    steps = searched(attack, Styles(), Linear(weight, bias), label, found, pool)
    sorted_populations = torch.stack([step.latents for step in steps[:-1]])
    yield recording.compare("sorted_pop", sorted_populations)
    yield recording.compare("elite", sorted_populations[:, 0])
    yield recording.compare("elite_fit", -torch.stack([step.loss[0] for step in steps[:-1]]))
    populations = torch.cat([sorted_populations[:, :1], torch.cat(children)], 1)
    yield recording.compare("pop", populations)
    scores = torch.log_softmax(populations @ weight.T + bias, 2)[..., label]
    yield recording.compare("fit", scores)
    last = steps[-1]
    order = recording["fit"][-1].argsort(descending=True, stable=True)
    yield Entry("pop (sorted)", float((last.latents - recording["pop"][-1][order]).abs().max()), 1e-4)
    odds = "parent_prob_gen1_sorted_by_pop_order"
    if odds in recording:
        yield recording.compare(odds, search.odds(-recording["fit"][:1])[0])


def _dice(recording: Recording) -> Iterator[Dice]:
    parts = (recording[name] for name in ("parents", "cross_u", "mut_u", "noise_u"))
    yield from (Dice(*(part[None] for part in own)) for own in zip(*parts, strict=True))


@replays("mirror/wb")
def descended(recording: Recording) -> Iterator[Entry]:
    """24 steps within the box, with a penalty of the distance, and with one of the energy instead of the box."""
    pool, label = recording.elsewhere("pool_w"), int(recording["target"])
    prior, target = Styles(recording["A"]), Linear(recording["V"], recording["vb"])
    with torch.no_grad():
        yield recording.compare("pool_logits", target(prior.decode(pool)).logits)
    for variant in ("clip", "l2bound", "energy"):
        steps, candidates = recording[f"{variant}/latents_before_each_step"].shape[:2]
        attack = attack_of(
            "mirror",
            "search.keep=authors",
            "search.optimizer.lr=0.25",
            f"search.steps={steps}",
            f"search.reference_batch={candidates}",
            f"search.distance={0.5 * (variant == 'l2bound')}",
            "search.joint_distance=true",
            f"search.energy={1e-4 * (variant == 'energy')}",
            f"search.deviations={'null' if variant == 'energy' else 1.0}",
        )
        flips = recording[f"{variant}/flip_u"]
        attack.views = Mirrored(flips) if variant == "clip" else None
        rates = [attack.search.schedule(0.25, step, steps) for step in range(steps)]
        yield recording.compare(f"{variant}/lr", torch.tensor(rates))
        confident = recording["pool_logits"].softmax(1)[:, label].topk(candidates).indices
        found = Found(pool[confident], torch.zeros(candidates), torch.zeros(candidates, dtype=torch.int64), "initial")
        places = _watched(attack)
        steps = searched(attack, prior, target, label, found, pool)
        yield recording.compare(f"{variant}/latents_before_each_step", torch.stack(places))
        yield recording.compare(f"{variant}/loss", torch.stack([step.seen["loss"] for step in steps]))
        yield recording.compare(f"{variant}/returned", steps[-1].latents)


def _watched(attack: SearchAttack) -> list[Tensor]:
    """Where the latents of its search are before every update, once it has run."""
    places, build = [], attack.search.optimizer

    def watched(latents: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = build(latents)
        optimizer.register_step_pre_hook(lambda *_: places.append(latents[0].detach().clone()))
        return optimizer

    attack.search.optimizer = watched
    return places


@replays("mirror/select")
def picked(recording: Recording) -> Iterator[Entry]:
    """The final pick among recorded logits."""
    select = attack_of("mirror").select
    for key in recording.keys("*/logits"):
        name = key.removesuffix("/logits")
        choice = select.choose(recording[key], int(recording[f"{name}/target"]))
        yield recording.compare_exactly(f"{name}/index", torch.tensor(choice))
