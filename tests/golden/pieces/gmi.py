"""GMI's search, step by step, and its GAN (`gmi.npz`): the attack as conf/attack composes it, on a stand-in target.

In float64: where the rounding of a machine's own float32 pushes a ReLU over its kink, twenty steps end 4 % elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from midefense import seeds
from midefense.architectures.state_names import to_published
from midefense.attacks.base import SearchAttack, best_of_each
from midefense.attacks.objectives import WeightedSum
from midefense.attacks.part import Part
from midefense.attacks.problem import Look, Problem
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.gan import _critic_step, _generator_step
from midefense.priors.gmi import GmiGan
from midefense.priors.ked import KedGan
from midefense.priors.nets.ked import Discriminator
from midefense.types import Evidence, Found

from .recording import Entry, Recording
from .registry import replays
from .rules import ARITHMETICS, Arithmetic, gradient_norms, parameters, sums_and_norms, to_rounding
from .tiny import TinyClassifier, thumbnails

PRESETS = {"gmi_dmi_celeba": "gmi_dmi_celeba", "gmi_dmi_mnist": "gmi_dmi_mnist", "gmi_bestof": "gmi_paper"}
PENALTY = 10.0  # weight of the gradient penalty: the original's, in no configuration


class Given(Part):
    """Recorded starts [targets * candidates, ...], target by target."""

    def __init__(self, starts: Tensor, candidates: int) -> None:
        self.starts, self.candidates = starts, candidates

    def __call__(self, problem: Problem) -> Found:
        owners = torch.arange(len(problem.evidence)).repeat_interleave(self.candidates)
        return Found(self.starts, torch.full((len(owners),), torch.nan), owners, stage="initial")


class Watched(Part):
    """A weighted sum that is asked as it is; each of its terms, unweighted, is kept at every look [M]."""

    def __init__(self, inner: WeightedSum) -> None:
        self.inner, self.reads, self.needs = inner, inner.reads, inner.needs
        self.terms: list[dict[str, Tensor]] = []

    def __call__(self, look: Look) -> Tensor:
        self.terms.append({type(term.loss).__name__: term.loss(look).detach() for term in self.inner.terms})
        return self.inner(look)


class Attacked:
    """A GMI piece's world: its prior and target, and the attack of its preset under its hyperparameters."""

    def __init__(self, recording: Recording, arithmetic: Arithmetic = ARITHMETICS[0]) -> None:
        self.arithmetic, dtype = arithmetic, arithmetic.dtype
        self.config, draws = recording.config, recording.draws
        grey = self.config.get("dataset") == "mnist"
        self.shape = {"channels": 1, "size": 32} if grey else {"channels": 3, "size": 64}
        self.labels = torch.tensor(self.config["iden"])
        self.prior = (taught_gan_of if self.config.get("improved") else gan_of)(recording, dtype=dtype, **self.shape)
        self.target = draws.fill(self._classifier(), "T/", self.config["gain_T"]).to(dtype)
        self.evaluator = draws.fill(self._classifier(), "E/", self.config["gain_T"]).to(dtype)
        self.attack = attack_of(recording.name, self.config)
        self.attack.objective = self.watched = Watched(self.attack.objective)

    def _classifier(self) -> TinyClassifier:
        return TinyClassifier(self.config["K"], self.shape["channels"])

    def search(self, starts: Tensor) -> list[Tensor]:
        """Latents before the search and after every update, from starts [restarts, targets, ...] to the same shape."""
        self.watched.terms.clear()
        restarts, targets = starts.shape[:2]
        self.attack.init = Given(self.arithmetic.of(starts).transpose(0, 1).flatten(0, 1), restarts)
        oracle = Oracle(self.target, self.attack.access, self.attack.budget)
        evidence = Evidence(self.labels, torch.arange(targets))
        found = self.attack.recover({}, self.prior, oracle, evidence, seeds.generator("golden"))
        path = [f.detached() for f in found if f.stage in ("initial", "optimised")]
        self.totals = [step.loss for step in path[1:]]  # each that of the step's forward
        return [step.latents.unflatten(0, (targets, restarts)).transpose(0, 1) for step in path]

    def losses(self, restarts: int) -> Tensor:
        """Means over the targets before each update [steps, restarts, 3]: total, prior, identity."""
        rows = []
        for total, terms in zip(self.totals, self.watched.terms, strict=True):
            columns = (total, terms["Realism"], terms["CrossEntropy"])
            rows.append(torch.stack([column.view(-1, restarts).double().mean(0) for column in columns], dim=1))
        return torch.stack(rows)

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W]."""
        return self.prior.decode(latents)


def attack_of(piece: str, config: Mapping[str, object]) -> SearchAttack:
    """The preset of a piece, with the recorded numbers in place of those that the paper's batch and machine had."""
    preset = next((preset for start, preset in PRESETS.items() if piece.startswith(start)), "gmi")
    changes = {
        "search.optimizer.lr": config["lr"],
        "search.optimizer.momentum": config["momentum"],
        "search.box": float(config["clip"]) or "null",
        "search.steps": config["steps"],
        "search.reference_batch": len(config["iden"]),
        "objective.terms.identity.weight": float(config["lamda"]),
    }
    overrides = [f"attack={preset}", *(f"attack.{name}={value}" for name, value in changes.items())]
    return bind(compose("attack", overrides)[0]["attack"], "attack").build()


def gan_of(recording: Recording, channels: int, size: int, dtype: torch.dtype = torch.float64) -> GmiGan:
    """The filled GAN of a piece, in eval mode."""
    config, draws = recording.config, recording.draws
    latents = recording[next(iter(recording.keys("*z0") + recording.keys("z_D") + recording.keys("eps")))]
    gan = GmiGan(channels=channels, size=size, latent_size=latents.shape[-1], width=config["dim"])
    draws.fill(gan.generator, "G/", config["gain_G"])
    draws.fill(gan.critic, "C/")
    return gan.to(dtype).eval().requires_grad_(False)


def taught_gan_of(recording: Recording, channels: int, size: int, dtype: torch.dtype = torch.float64) -> KedGan:
    """The filled GAN of a piece whose discriminator knows classes, in eval mode."""
    config, draws = recording.config, recording.draws
    latents = recording[next(iter(recording.keys("*z0") + recording.keys("z_D") + recording.keys("eps")))]
    shape = {"classes": config["K"], "channels": channels, "size": size}
    gan = KedGan(latent_size=latents.shape[-1], width=config["dim"], **shape)
    if size == 32:  # the original's has no other width
        gan.critic = Discriminator(width=64, **shape)
    draws.fill(gan.generator, "G/", config["gain_G"])
    draws.fill(gan.critic, "D/")
    return gan.to(dtype).eval().requires_grad_(False)


@replays("gmi_ked_*", "gmi_dmi_*")
@to_rounding
def search(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """Latents after so many updates, the losses before each, and images, for every restart."""
    world = Attacked(recording, arithmetic)
    names = [key.removesuffix("/z0") for key in recording.keys("restart*/z0")]
    starts = torch.stack([recording[f"{name}/z0"] for name in names])
    together = 1 if world.prior.coupled else len(names)  # the original's batch is one restart
    paths, losses = [], []
    for part in starts.split(together):
        paths.append(world.search(part))
        losses.append(world.losses(together))
    path = [torch.cat(steps) for steps in zip(*paths, strict=True)]
    losses = torch.cat(losses, 1)
    for index, name in enumerate(names):
        for key in recording.keys(f"{name}/z[0-9]*"):
            if (step := number(key, "z")) > 0:
                yield recording.compare(key, path[step][index])
        if f"{name}/loss" in recording:
            yield recording.compare(f"{name}/loss", losses[:, index])
        for key in recording.keys(f"{name}/image[0-9]*"):
            images = world.images(path[number(key, "image")][index])
            yield recording.compare(key, thumbnails(images, recording[key].shape[-1]))


@replays("gmi_bestof*")
@torch.no_grad()
def best_restart(recording: Recording) -> Iterator[Entry]:
    """The latents of all restarts, what target and evaluator say of them, and the accuracy of the best restart."""
    world = Attacked(recording)
    starts = recording["z0"]
    with torch.enable_grad():
        latents = world.search(starts)[-1]
    yield recording.compare(f"z{world.config['steps']}", latents)
    images = world.images(latents.flatten(0, 1))
    logits = world.target(images).logits.unflatten(0, starts.shape[:2])
    said = logits.gather(2, world.labels.expand(len(starts), -1)[..., None])[..., 0]
    identities = world.evaluator(images).logits.argmax(1).view(starts.shape[:2])
    yield recording.compare("target_logit", said)
    yield recording.compare_exactly("evaluator_argmax", identities)
    printed = (accuracy_of_best(said, identities, world.labels), (identities == world.labels).any(0).double().mean())
    yield recording.compare_exactly("printed_acc_acc5", torch.stack(printed).mul(100).round() / 100, "two decimals")


def accuracy_of_best(said: Tensor, identities: Tensor, labels: Tensor) -> Tensor:
    """Share of labels [N] whose restart of the highest target logit `said` [restarts, N] has the label's identity. Our
    preset ranks by probability, the original by this logit, and keeps identity 0 where no logit is above 0."""
    restarts, targets = said.shape
    rows = torch.arange(restarts * targets).view(restarts, targets)
    owners = torch.arange(targets).expand(restarts, -1)
    found = Found(rows.flatten(), said.flatten(), owners.flatten(), stage="optimised")
    best = best_of_each(found, said.flatten(), keep=1)
    kept = torch.where(best.scores > 0, identities.flatten()[best.latents], 0)
    return (kept == labels).double().mean()


@replays("gan_wgan*")
def adversarial(recording: Recording) -> Iterator[Entry]:
    """WGAN-GP under given draws, by the steps of our loop. The loop itself draws from its own keyed generator, and
    takes stored pictures of 8 bits, so the order of its steps is repeated here."""
    config, draws = recording.config, recording.draws
    gan = gan_of(recording, channels=3, size=64).train().requires_grad_(True)
    losses: dict[str, list[Tensor]] = {"loss_D": [], "loss_G": []}
    adam = [torch.optim.Adam(net.parameters(), config["lr"], config["betas"]) for net in (gan.generator, gan.critic)]
    for step in range(1, config["steps"] + 1):
        shape = (config["batch"], 3, 64, 64)
        real = draws.uniform(f"{recording.name}/{config['trial']}/x1_{step - 1}", shape).double()
        latents, mix = recording["z_D"][step - 1].double(), recording["alpha"][step - 1].double()
        losses["loss_D"].append(_critic_step(gan.generator, gan.critic, adam[1], real, latents, mix, PENALTY))
        yield from tables(recording, gan.critic, "D", step)
        if step % config["n_critic"] == 0:
            again = recording["z_G"][len(losses["loss_G"])].double()
            losses["loss_G"].append(_generator_step(gan.generator, gan.critic, adam[0], again))
            yield from tables(recording, gan.generator, "G", len(losses["loss_G"]))
    for key, values in losses.items():
        yield recording.compare(key, torch.stack(values))
    yield from _at_the_end(recording, gan)


def tables(recording: Recording, network: torch.nn.Module, tag: str, step: int) -> Iterator[Entry]:
    """Norms of the gradients and of the weights after step `step` (from 1) of one network, where they are recorded."""
    names = recording.config[f"{tag}_names"]
    tensors = parameters(network, names)
    for kind, table in (("grad_norm", gradient_norms), ("sum_norm", sums_and_norms)):
        if (key := f"{tag}/{kind}{step}") in recording:
            yield recording.compare_rows(key, table(tensors), names)


@torch.no_grad()
def _at_the_end(recording: Recording, gan: GmiGan) -> Iterator[Entry]:
    """The generator's running statistics, the target's that no step touched, and both networks in eval mode."""
    gan.eval()
    config, ours = recording.config, to_published(gan.generator)
    for key in recording.keys("G/bn_running_*"):
        statistic, layer = re.fullmatch(r"G/bn_(running_[a-z]+)_(.+)", key).groups()
        yield recording.compare(key, ours[f"{layer}.{statistic}"])
    target = recording.draws.fill(TinyClassifier(config["K"], 3), "T/", config["gain_T"])
    for key in recording.keys("T/*"):
        yield recording.compare(key, target.state_dict()[key.removeprefix("T/")])
    images = gan.decode(recording["probe_z"].double())
    yield recording.compare("probe_image", thumbnails(images, recording["probe_image"].shape[-1]))
    yield recording.compare("probe_D", gan.realism(images))


def number(key: str, kind: str) -> int:
    """12 of `restart0/z12`, for the kind `z`."""
    return int(key.split("/")[-1].removeprefix(kind))
