"""C2FMI's mapping, its coarse stage, and its differential evolution generation by generation (`c2f_mi.npz`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.inverters import ScoreMapping
from midefense.attacks.coarse import Coarse, mapping_input
from midefense.attacks.embedding import Embedding
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.scores import Score
from midefense.attacks.search.evolution import Evolution
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.types import Evidence, Found, Trace

from .recording import Entry, Recording
from .registry import replays
from .rules import Draws

ADAM = functools.partial(torch.optim.Adam, lr=0.02)


class Toy(Prior):
    """The recorded generator: 1.2 tanh(w A) as 3x4x4 pixels in [-1, 1], so half of that and a half."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(channels=3, size=4)
        self.weight = recording.elsewhere("A").double()

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.zeros(count, len(self.weight), dtype=torch.float64)

    def decode(self, latents: Tensor) -> Tensor:
        return (1.2 * (latents @ self.weight).tanh() + 1).view(-1, 3, 4, 4) / 2


class Cut(Part):
    """Pictures, as the original shows them to the target: cut to [0, 1]."""

    columns = 0

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.empty(count, 0)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return images.clamp(0, 1)


class Linear(nn.Module):
    """The recorded target W x + b, or the embedding E x."""

    def __init__(self, weight: Tensor, bias: Tensor | float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        logits = images.flatten(1) @ self.weight.T + self.bias
        return Trace(logits, logits)


class Mapping(nn.Module):
    """The recorded small mapping: two layers, names map.0 and map.2."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        weights = (
            recording.elsewhere(f"stage1/P/map.{layer}.{name}") for layer in (0, 2) for name in ("weight", "bias")
        )
        self.weights = [weight.double() for weight in weights]

    def forward(self, told: Tensor) -> Tensor:
        first, first_bias, last, last_bias = self.weights
        return nn.functional.leaky_relu(told.double() @ first.T + first_bias, 0.2) @ last.T + last_bias


class Learnt:
    """A `Learning` whose network has learned already."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def learned(self, state: object, device: object, **shapes: object) -> nn.Module:
        return self.network


class Given(Embedding):
    """The recorded embedding, in float64."""

    def __init__(self, network: nn.Module) -> None:
        self.output, self.network = "logits", network

    def learned(self, state: object, device: object) -> nn.Module:
        return self.network

    def of(self, network: nn.Module, images: Tensor) -> Tensor:
        return network(images).logits


class RecordedCoarse(Coarse):
    """The coarse stage with recorded draws."""

    def __init__(self, recording: Recording) -> None:
        randn, embedding = recording["randn"], Given(Linear(recording.elsewhere("E").double()))
        steps, candidates, _ = randn.shape
        options = {"learning": Learnt(Mapping(recording)), "embedding": embedding, "optimizer": ADAM}
        super().__init__(**options, candidates=candidates, steps=steps)
        self.drawn = iter(randn)

    def noise(self, rng: torch.Generator, rows: int, classes: int) -> Tensor:
        return next(self.drawn)


def world_of(recording: Recording, label: int, objective: Part) -> Problem:
    """The recorded target, asked about one label."""
    target = Linear(recording.elsewhere("W").double(), recording.elsewhere("b").double())
    evidence = Evidence(torch.tensor([label]), torch.tensor([0]))
    problem = Problem.plain(Toy(recording), Oracle(target, "scores"), evidence, seeds.generator("golden"))
    problem.objective, problem.views, problem.reads = objective, Cut(), ("probs",)
    problem.state = {"asked": torch.zeros(0, len(recording.elsewhere("b")))}
    return problem


@replays("c2f_mi/p2f")
@torch.no_grad()
def mapping(recording: Recording) -> Iterator[Entry]:
    """The filled mapping: what it reads of scores and what it gives."""
    recording.leave_out("K_min_clamp_case", "which row of v has probabilities that are 0")
    for name in sorted({key.split("/")[0] for key in recording.keys("M*/v")}):
        scores, top = recording[f"{name}/v"], int(name.removeprefix("M"))
        network = Draws().fill(ScoreMapping(observed=scores.shape[1:], embedded=(10575,)))
        told = mapping_input(scores, top)
        made = network(told)
        yield recording.compare(f"{name}/normalised_input", told)
        yield recording.compare(f"{name}/out_first64", made[:, :64])
        yield recording.compare(f"{name}/out_l2", made.norm(dim=1))
        wanted = recording[f"{name}/target_first64"]
        yield recording.compare(f"{name}/mse_to_first64_of_target", (made[:, :64] - wanted).square().mean())


@replays("c2f_mi/stage1")
def coarse(recording: Recording) -> Iterator[Entry]:
    """Latents after every step, the loss before it, and the ten that the target is surest of."""
    part, label = RecordedCoarse(recording), int(recording["target"])
    problem = world_of(recording, label, Score())
    recording.leave_out("P/*", "the mapping's weights, which the search uses")
    path = list(part.descend(problem, recording["latents0"].double()))
    yield recording.compare("latents", torch.stack([latents for latents, _ in path[1:]]))
    yield recording.compare("loss", torch.stack([loss.mean() for _, loss in path[1:]]))
    before = path[-2][0]  # the original ranks the images of the last step's forward
    scores = Evolution(population=16, keep=10).fitness(problem, before[None], problem.rng)
    yield recording.compare_exactly("top10_indices", scores[0].argsort(dim=0, descending=True, stable=True)[:10])


class RecordedEvolution(Evolution):
    """The fine stage with recorded draws."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        members, keep = len(recording["pop0"]), len(recording["x"])
        super().__init__(generations=int(recording["max_gen"]), population=members, keep=keep)
        dice = recording.elsewhere(f"f64/{recording.name.split('/')[1]}/crossover_u")
        self.drawn = zip(recording["pair_indices"].long(), dice, strict=True)

    def triples(self, targets: int, count: int, rng: torch.Generator) -> Tensor:
        # in the order of the members as they stand, where ours are sorted by their fitness
        given, ours = self.recording["x"].double(), self.members[0]
        places = (given[:, None] == ours[None]).all(2).long().argmax(1)
        return places[self.recording["extend_indices"]][None]

    def filled(self, problem: Problem, members: Tensor, count: int, rng: torch.Generator) -> Tensor:
        self.members = members
        return super().filled(problem, members, count, rng)

    def fresh(self, problem: Problem, like: Tensor, rng: torch.Generator) -> Tensor:
        return self.recording["extend_noise_first_cols"].double().mean(1)[None]

    def draws(self, members: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        pairs, dice = next(self.drawn)
        return self.order[pairs[self.inverse]][None], dice[self.inverse][None]


@replays("c2f_mi/de_*")
def evolution(recording: Recording) -> Iterator[Entry]:
    """The population that is filled, and every generation."""
    label = int(recording.elsewhere("stage2/target"))
    problem = world_of(recording, label, Score(top=2 if "mask" in recording.name else None))
    search, starts = RecordedEvolution(recording), recording["x"].double()
    # ours keeps the fittest first: the recorded rows of every member, and back
    scores = search.fitness(problem, starts[None], problem.rng)[0]
    ranks = scores.argsort(dim=0, descending=True, stable=True)
    made = torch.arange(len(starts), search.population)
    search.inverse = torch.cat([ranks, made])
    search.order = search.inverse.argsort()
    found = Found(starts, torch.full((len(starts),), torch.nan), torch.zeros(len(starts), dtype=torch.int64), "initial")
    steps = [(step.latents[search.order], -step.loss[search.order]) for step in list(search(problem, found))[1:]]
    yield recording.compare("pop0", steps[0][0])
    yield recording.compare("fitness0", steps[0][1])
    yield recording.compare("pop", torch.stack([latents for latents, _ in steps[1:]]))
    yield recording.compare("fitness", torch.stack([fitness for _, fitness in steps[1:]]))


@replays("c2f_mi/f64", *(f"c2f_mi/{name}" for name in ("A", "W", "b", "E", "stage2")))
def given(recording: Recording) -> Iterator[Entry]:
    """What the stages are given fits together: `c2f_mi/stage1` and `c2f_mi/de_*` use it."""
    read = recording.elsewhere
    (width, pixels), classes = read("A").shape, len(read("b"))
    shapes = {
        "A": (width, pixels),
        "W": (classes, pixels),
        "b": (classes,),
        "E": (len(read("E")), pixels),
        "target": (),
    }
    for key, array in recording.arrays.items():
        wanted = shapes[key] if key in shapes else tuple(read(key.replace("crossover_u", "pop")).shape)
        yield Entry(key, float(array.shape != wanted), 0.0, "its shape beside those of the others")
        recording.leave_out(key, "given to c2f_mi/stage1 and c2f_mi/de_*")
