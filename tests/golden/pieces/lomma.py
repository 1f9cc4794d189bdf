"""LOMMA's statistics, identity loss, distillation and searches on GMI (`lomma.npz`), as conf/attack composes them. In
float64, but for what our losses take in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.learning import Learning
from midefense.attacks.objectives import FeatureRegulariser, Weighted, WeightedSum
from midefense.attacks.problem import OBJECTIVE, Look
from midefense.attacks.surrogate import Distilled
from midefense.oracle import Ensemble, Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training_state import under
from midefense.types import Answer, Evidence, Images

from .gmi import Given, gan_of, taught_gan_of
from .ked import GivenNoise
from .recording import Entry, Recording
from .registry import replays
from .rules import Arithmetic, gradient_norms, parameters, sums_and_norms, to_rounding
from .tiny import TinyClassifier, thumbnails

# The variants of the original by our attacks; who of them asks students, and who has the logit loss.
ATTACKS = {
    "baseline": "gmi",
    "L_logit": "lomma_gmi_logit",
    "L_aug": "lomma_gmi_augmentation",
    "ours": "lomma_gmi",
}


class Floats(Images):
    """Recorded images [N, C, H, W] in float64 as public ones; those of a dataset are pixels of 8 bits."""

    def floats(self, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
        return self.pixels[rows]


class Kept:
    """A critic that keeps what it said."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.kept = inner, []

    def __call__(self, drawn: Tensor) -> Tensor:
        self.kept.append((said := self.inner(drawn)).detach())
        return said


class Filled(Distilled):
    """Students that have learned already."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks

    def oracle(self, state: object, prior: object, target: Oracle) -> Ensemble:
        return Ensemble(target, [Oracle(network, self.access) for network in self.networks])


def composed(attack: str, *overrides: str, slots: Sequence[str] = ()) -> SearchAttack:
    """An attack of conf/attack; `slots` are its parts that are chosen otherwise, as in `objective=gmi`."""
    words = [f"attack={attack}", *(f"attack/{slot}" for slot in slots), *(f"attack.{word}" for word in overrides)]
    node = bind(compose("attack", words)[0]["attack"], "attack", beside_dataset=True)
    return node.given(classes=2, channels=3, size=64).build()


def classifier(recording: Recording, tag: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The stand-in for the target or a student, filled."""
    config = recording.config
    return recording.draws.fill(TinyClassifier(config["K"], 3), tag, config["gain_T"]).to(dtype)


def students(recording: Recording, dtype: torch.dtype) -> Filled | None:
    """The students that are asked beside the target; None where it is asked alone."""
    others = range(1, recording.config["models"])
    return Filled([classifier(recording, f"S{index}/", dtype) for index in others]) if others else None


def weights(config: Mapping[str, object]) -> dict[str, float]:
    """What the recorded weights of the identity's loss, and of the regulariser within it, are in our objectives."""
    unit = float(config["lamda"])
    features = {"objective.terms.features.weight": unit * config["lam"]} if config["loss"] == "logit_loss" else {}
    return {"objective.terms.identity.weight": unit, **features}


@replays("lomma_stats*")
def statistics(recording: Recording) -> Iterator[Entry]:
    """Mean and standard deviation of the target's features over public images: batches until one begins behind the
    `Nsample`-th."""
    config, objective = recording.config, composed("lomma_gmi_logit").objective
    count, batch = config["Nsample"], config["batch"]
    batches = [recording.draws.uniform(f"stat/{i}", (batch, 3, 64, 64)) for i in range(count // batch + 1)]
    public = Floats(torch.cat(batches).double(), torch.zeros(0), torch.zeros(0), [])
    regulariser: FeatureRegulariser = objective.preparing["features"]
    regulariser.images = len(public)
    oracle = Oracle(classifier(recording, "T/"), "whitebox")
    prior, state = torch.nn.Module(), {}
    prior.device = torch.device("cpu")
    for _, _, give in objective.prepare(prior, oracle, public, seeds.generator("golden"), None):
        state = give()
    for key in ("mean", "std"):
        yield recording.compare(key, state[f"features.{key}"])
    yield recording.compare_exactly("n_images", torch.tensor(oracle.shared_bill))


@replays("lomma_iden*")
def identity(recording: Recording) -> Iterator[Entry]:
    """The identity loss and its gradients on given logits and features, for every variant and lambda."""
    for key in recording.keys("*/loss"):
        variant, weight, _ = key.split("/")
        logits, features = recording["logits"].requires_grad_(), recording["features"].requires_grad_()
        models = len(logits) if asks_students(variant) else 1
        answer = Answer(logits=logits[0], features=features[0], beside=tuple(logits[1:models]))
        objective = identity_loss(variant, float(weight.removeprefix("lam")))
        known = {f"features.{name}": recording[name] for name in ("mean", "std")}
        look = Look(*[features[0]] * 4, answer, recording["iden"], prior=None, known=known)
        loss = objective(look).mean()
        gradients = torch.autograd.grad(loss, (logits, features), allow_unused=True, materialize_grads=True)
        yield recording.compare(key, loss)
        yield recording.compare(key.replace("loss", "grad_logits"), gradients[0])
        yield recording.compare(key.replace("loss", "grad_feature0"), gradients[1][0])


def asks_students(variant: str) -> bool:
    return composed(ATTACKS[variant]).surrogate is not None


def identity_loss(variant: str, weight: float) -> WeightedSum:
    """A variant's objective without the prior's term, in units of the identity's weight; that of the regulariser is
    lambda, 1 in our files."""
    terms = dict(zip((objective := composed(ATTACKS[variant]).objective).names, objective.terms, strict=True))
    unit = terms["identity"].weight
    factors = {"identity": 1 / unit, "features": weight / unit}
    kept = {
        name: Weighted(loss=terms[name].loss, weight=terms[name].weight * factors[name])
        for name in terms.keys() & factors
    }
    return WeightedSum(terms=kept)


@replays("lomma_gmi_*")
@to_rounding
def search(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """Latents after so many updates, the total before each, what the critic said, and the images at the end."""
    config, steps, dtype = recording.config, len(recording["total"]), arithmetic.dtype
    variant = config["variant"]
    changes = {
        **weights(config),
        "search.optimizer.lr": config["lr"],
        "search.optimizer.momentum": config["momentum"],
        "search.box": float(config["clip"]),
        "search.steps": steps,
        "search.reference_batch": len(config["iden"]),
    }
    attack = composed(ATTACKS[variant], *(f"{name}={value}" for name, value in changes.items()))
    prior = gan_of(recording, channels=3, size=64, dtype=dtype)
    attack.init = Given(arithmetic.of(recording["z0"]), 1)
    attack.surrogate = students(recording, dtype)
    oracle = Oracle(classifier(recording, "T/", dtype), attack.access)
    known = under({f"features.{key}": recording.elsewhere(f"lomma_stats/{key}") for key in ("mean", "std")}, OBJECTIVE)
    evidence = Evidence(torch.tensor(config["iden"]), torch.arange(len(config["iden"])))
    found = attack.recover(known, prior, oracle, evidence, seeds.generator("golden"))
    path = [f.detached() for f in found if f.stage in ("initial", "optimised")]
    for key in recording.keys("z[0-9]*"):
        if key != "z0":
            yield recording.compare(key, path[int(key.removeprefix("z"))].latents)
    yield recording.compare("total", torch.stack([step.loss.mean() for step in path[1:]]))
    with torch.no_grad():
        images = [prior.decode(step.latents) for step in path]
        yield recording.compare("critic_mean", torch.stack([prior.realism(each).mean() for each in images[:-1]]))
    yield recording.compare(f"image{steps}", thumbnails(images[-1], recording[f"image{steps}"].shape[-1]))


@replays("lomma_kedmi_*")
@to_rounding
def search_over_gaussians(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """The same on KED-MI: means and log variances, their first gradients, and what the prior's critic said."""
    config, steps, dtype = recording.config, len(recording["total"]), arithmetic.dtype
    objective = "lomma_gmi" if config["loss"] == "logit_loss" else "gmi"
    changes = {
        **weights(config),
        "search.optimizer.lr": config["lr"],
        "search.log_variance": float(config["log_var0"]),
        "search.box": 1.0 if config["clamp"] else "null",
        "search.steps": steps,
        "search.draws": 1,
        "search.reference_batch": len(config["iden"]),
    }
    words = (f"{name}={value}" for name, value in changes.items())
    attack = composed("lomma_ked_mi", *words, slots=[f"objective={objective}"])
    prior = taught_gan_of(recording, channels=3, size=64, dtype=dtype)
    attack.surrogate = students(recording, dtype)
    noise = arithmetic.of(recording["eps"])
    given = GivenNoise(attack, noise, torch.zeros_like(noise[:1]))
    attack.init = Given(torch.zeros(noise.shape[1:], dtype=dtype), 1)
    known = under({f"features.{key}": recording.elsewhere(f"lomma_stats/{key}") for key in ("mean", "std")}, OBJECTIVE)
    labels = torch.tensor(config["iden"])
    oracle = Oracle(classifier(recording, "T/", dtype), attack.access)
    evidence, totals, said = Evidence(labels, torch.arange(len(labels))), [], Kept(prior.realism)
    prior.realism = said
    for found in attack.recover(known, prior, oracle, evidence, seeds.generator("golden")):
        if found.stage != "optimised" or len(totals) == steps:
            continue
        totals.append(found.loss.view(len(labels), -1)[:, 0].mean())
        step = len(totals)
        for name, parameter in zip(("mu", "log_var"), given.parameters, strict=True):
            for key, got in ((f"{name}{step}", parameter), (f"grad_{name}{step}", parameter.grad)):
                if key in recording:
                    yield recording.compare(key, got)
        if step == 1:
            share = (given.parameters[0].grad == 0).double().mean()
            yield recording.compare("share_of_zero_grad_mu1", share)
    yield recording.compare("total", torch.stack(totals))
    yield recording.compare("prior", -torch.stack([each.mean() for each in said.kept[:steps]]))
    yield recording.compare("z1_clamped", (noise[0] * torch.tensor(config["log_var0"] / 2).exp()).clamp(-1, 1))
    recording.leave_out("unused_draws_per_step", "what the original draws and throws away")


@replays("lomma_distill_*")
def distilled(recording: Recording) -> Iterator[Entry]:
    """A student's steps under given images, by the loss and the optimiser of the composed students. Our loop draws from
    its own generator, so the order of its steps is repeated here."""
    config, draws = recording.config, recording.draws
    changes = (f"surrogate.temperature={float(config['temperature'])}",)
    surrogate = composed("lomma_gmi", *changes).surrogate
    options = {"lr": config["lr"], "momentum": config["momentum"], "weight_decay": config["weight_decay"]}
    teacher = Oracle(classifier(recording, "T/"), "whitebox")
    student = draws.fill(TinyClassifier(config["K"], 3), "S1/", config["gain_S"]).double().train()
    optimizer = first(surrogate).optimizer(list(student.parameters()), **options)
    tensors, losses = parameters(student, config["names"]), []
    for step in range(1, config["steps"] + 1):
        images = draws.uniform(f"kd/{config['trial']}/x{step - 1}", (config["batch"], 3, 64, 64)).double()
        loss = surrogate.loss(student, images, surrogate.ask(teacher, images).detach()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        for kind, table in (("grad_norm", gradient_norms), ("sum_norm", sums_and_norms)):
            if (key := f"{kind}{step}") in recording:
                yield recording.compare_rows(key, table(tensors), config["names"])
    yield recording.compare("loss", torch.stack(losses))
    for name in ("fc.weight", "bn1.running_mean"):
        yield recording.compare(f"{name}{config['steps']}", student.state_dict()[name])
    recording.leave_out("teacher_*", "the original's teacher takes gradients, which nothing uses; ours is an oracle")


def first(surrogate: Distilled) -> Learning:
    return next(iter(surrogate.students.values()))
