"""KED-MI's search for distributions and its GAN (`ked_mi.npz`), as the presets compose them, on a stand-in target. In
float64, as for GMI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from midefense import seeds
from midefense.architectures.state_names import to_published
from midefense.attacks.base import SearchAttack
from midefense.attacks.problem import Problem
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.ked import entropy, soft_cross_entropy
from midefense.priors.nets.ked import MinibatchDiscrimination
from midefense.types import Access, Evidence, Found

from .gmi import Given, Watched, gan_of, number, tables, taught_gan_of
from .recording import Entry, Recording
from .registry import replays
from .rules import Arithmetic, to_rounding
from .tiny import TinyClassifier, thumbnails

PRESETS = {"kedmi_dmi_celeba": "ked_mi_dmi_celeba", "kedmi_dmi_mnist": "ked_mi_dmi_mnist"}


def attack_of(piece: str, config: Mapping[str, object]) -> SearchAttack:
    """The preset of a piece, with the recorded numbers in place of those that the paper's batch and machine had."""
    changes = {
        "search.optimizer.lr": config["lr"],
        "search.log_variance": float(config["log_var0"]),
        "search.box": 1.0 if config["clamp"] else "null",
        "search.steps": config["steps"],
        "search.draws": config["draws"],
        "search.reference_batch": len(config["iden"]),
        "objective.terms.identity.weight": float(config["lamda"]),
    }
    overrides = [
        f"attack={PRESETS.get(piece, 'ked_mi')}",
        *(f"attack.{name}={value}" for name, value in changes.items()),
    ]
    return bind(compose("attack", overrides)[0]["attack"], "attack").build()


class GivenNoise:
    """Recorded noise in place of a search's own: `last` [draws, targets, ...] first, then `steps` [S, targets, ...].
    What is optimised is kept within reach."""

    def __init__(self, attack: SearchAttack, steps: Tensor, last: Tensor) -> None:
        self.waiting = [last.transpose(0, 1), *(step[:, None] for step in steps)]
        self.parameters: list[Tensor] = []
        self.optimizer = attack.search.optimizer
        attack.search.noise = self.noise
        attack.search.optimizer = self.adam

    def noise(self, problem: Problem, mean: Tensor, draws: int, rng: torch.Generator) -> Tensor:
        return self.waiting.pop(0).to(mean)

    def adam(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        self.parameters = parameters
        return self.optimizer(parameters)


@replays("kedmi_*")
@to_rounding
def distributions(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """Means and log variances after so many updates, their first gradients, the losses before each update, and what is
    drawn at the end."""
    config, draws, dtype = recording.config, recording.draws, arithmetic.dtype
    shape = {"channels": 1, "size": 32} if config.get("dataset") == "mnist" else {"channels": 3, "size": 64}
    prior = (taught_gan_of if config.get("improved", True) else gan_of)(recording, dtype=dtype, **shape)
    target = draws.fill(TinyClassifier(config["K"], shape["channels"]), "T/", config["gain_T"]).to(dtype)
    attack = attack_of(recording.name, {**config, "draws": len(recording["eps_final"])})
    attack.objective = watched = Watched(attack.objective)
    given = GivenNoise(attack, arithmetic.of(recording["eps"]), arithmetic.of(recording["eps_final"]))
    labels = torch.tensor(config["iden"])
    attack.init = Given(torch.zeros(recording["eps"].shape[1:], dtype=dtype), 1)
    evidence, oracle = Evidence(labels, torch.arange(len(labels))), Oracle(target, attack.access)
    totals, last = [], None
    for step, found in _optimised(attack, prior, oracle, evidence):
        totals.append(found.loss.view(len(labels), -1)[:, 0].mean())
        for name, parameter in zip(("mu", "log_var"), given.parameters, strict=True):
            if f"{name}{step}" in recording:
                yield recording.compare(f"{name}{step}", parameter)
            if f"grad_{name}{step}" in recording:
                yield recording.compare(f"grad_{name}{step}", parameter.grad)
        last = found
    columns = [[term[name].mean() for term in watched.terms] for name in ("Realism", "CrossEntropy")]
    yield recording.compare("loss", torch.stack([torch.stack(column).double() for column in (totals, *columns)], 1))
    final = last.latents.unflatten(0, (len(labels), -1)).transpose(0, 1)
    yield recording.compare("z_final", final)
    for key in recording.keys("image_final*"):
        with torch.no_grad():
            images = prior.decode(final[number(key, "image_final")])
        yield recording.compare(key, thumbnails(images, recording[key].shape[-1]))


def _optimised(attack: SearchAttack, prior, oracle: Oracle, evidence: Evidence) -> Iterator[tuple[int, Found]]:
    """What the search finds, with the number of updates."""
    found = attack.recover({}, prior, oracle, evidence, seeds.generator("golden"))
    return enumerate((one for one in found if one.stage == "optimised"), start=1)


@replays("gan_ked_*")
def adversarial(recording: Recording) -> Iterator[Entry]:
    """The K+1 discriminator and its generator under given draws, by the steps of our prior; the target in the mode that
    was recorded. The order of the steps is that of `KedGan.fit`, which draws from its own keyed generator."""
    config, draws = recording.config, recording.draws
    gan = taught_gan_of(recording, channels=3, size=64).train().requires_grad_(True)
    target = draws.fill(TinyClassifier(config["K"], 3), "T/", config["gain_T"]).double()
    oracle = Oracle(target, Access.WHITEBOX, mode=config["target_mode"])
    losses: dict[str, list[Tensor]] = {"loss_D": [], "loss_G": []}
    networks = (gan.generator, gan.critic)
    make, judge = (torch.optim.Adam(net.parameters(), config["lr"], config["betas"]) for net in networks)
    for step in range(1, config["steps"] + 1):
        shape = (config["batch"], 3, 64, 64)
        names = [f"gan_ked/{config['trial']}/x{which}_{step - 1}" for which in (1, 2, 3)]
        taught, real, matched = (draws.uniform(name, shape).double() for name in names)
        soft = oracle(taught, reads=("probs",)).probs.double()
        latents = recording["z_D"][step - 1].double()
        losses["loss_D"].append(gan.discriminator_step(judge, taught, soft, real, latents))
        yield from tables(recording, gan.critic, "D", step)
        if step % config["n_critic"] == 0:
            again = recording["z_G"][len(losses["loss_G"])].double()
            losses["loss_G"].append(gan.generator_step(make, matched, again))
            yield from tables(recording, gan.generator, "G", len(losses["loss_G"]))
    for key, values in losses.items():
        yield recording.compare(key, torch.stack(values))
    yield from _at_the_end(recording, gan.eval(), oracle)


@torch.no_grad()
def _at_the_end(recording: Recording, gan, oracle: Oracle) -> Iterator[Entry]:
    """Running statistics of the generator and of the target, which drift in train mode alone, and eval-mode outputs."""
    ours = to_published(gan.generator)
    for key in recording.keys("G/bn_running_*"):
        statistic, layer = key.removeprefix("G/bn_").rsplit("_l2", 1)
        yield recording.compare(key, ours[f"l2{layer}.{statistic}"])
    for key in recording.keys("T/*"):
        yield recording.compare(key, oracle.weights()[key.removeprefix("T/")])
    images = gan.decode(recording["probe_z"].double())
    yield recording.compare("probe_image", thumbnails(images, recording["probe_image"].shape[-1]))
    yield recording.compare("probe_D", gan.critic(images)[1])


@replays("ked_parts")
def parts(recording: Recording) -> Iterator[Entry]:
    """Minibatch discrimination with its gradient, and the terms of the losses."""
    kernel, features = recording["T"], recording["x"].requires_grad_()
    layer = MinibatchDiscrimination(len(kernel))
    layer.kernel = torch.nn.Parameter(kernel)
    known = torch.cat([features, layer(features)], 1)
    yield recording.compare("y", known)
    yield recording.compare("grad_x_of_sum_y2", torch.autograd.grad(known.square().sum(), features)[0])
    logits, teacher = recording["logits"], recording["teacher"]
    yield recording.compare("softxent", soft_cross_entropy(logits, teacher.softmax(1)))
    yield recording.compare("entropy", entropy(logits))
    yield recording.compare("lse", logits.logsumexp(1))
    recording.leave_out(
        "low2high_*", "it wraps around outside [0, 1] and cuts to 8 bits; ours clips, and resizes floats"
    )
