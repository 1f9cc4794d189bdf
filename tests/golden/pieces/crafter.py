"""Crafter and Crafter-z, DISCO and the networks they come with (`crafter.npz`), on the recorded toy matrices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from midefense.architectures.inverters import Amortiser
from midefense.architectures.resnet import ResNet
from midefense.architectures.state_names import from_published
from midefense.defenses.adversarial import norm_per_pixel
from midefense.defenses.amortising import squared_distance
from midefense.defenses.crafter import SCALE, Crafted, Crafter, CrafterZ
from midefense.defenses.crafting import Critic, FictitiousAttacker, World, slope_penalty
from midefense.defenses.disco import Pruner
from midefense.defenses.implicit import Implicit
from midefense.priors.crafter import CrafterGan
from midefense.priors.gmi import GmiGan

from .recording import Entry, Recording
from .registry import replays

D = 16384  # what the original divides by, whatever the feature is


class ToyPrior:
    """G(z) = sigmoid(Mg z + bg) as 3 x 4 x 4 pixels (linear without the sigmoid), and D_pub = w2 . tanh(wD x)."""

    def __init__(self, recording: Recording, linear: bool = False) -> None:
        self.matrices = {name: recording.elsewhere(f"toy/{name}") for name in ("Mg", "bg", "wD", "w2")}
        self.linear = linear

    def draw(self, latents: Tensor) -> Tensor:
        pixels = latents @ self.matrices["Mg"].T + self.matrices["bg"]
        return (pixels if self.linear else pixels.sigmoid()).view(-1, 3, 4, 4)

    def frame(self, drawn: Tensor) -> Tensor:
        return drawn

    def realism(self, drawn: Tensor) -> Tensor:
        return torch.tanh(drawn.flatten(1) @ self.matrices["wD"].T) @ self.matrices["w2"]


class ToyCritic(nn.Module):
    """48-10-1 with a leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(48, 10), nn.Linear(10, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.l2(nn.functional.leaky_relu(self.l1(images.flatten(1)), 0.2))[:, 0]


class Told(Critic):
    """A critic whose draws are the recorded ones, a row of `rows` [updates, steps, 2, B] and `mixes` per update."""

    def __init__(self, rows: Tensor, mixes: Tensor, penalty: float) -> None:
        super().__init__(steps=rows.shape[1], rows=rows.shape[3], penalty=penalty)
        self.recorded = iter(zip(rows, mixes, strict=True))

    def draws(self, count: int, rng: torch.Generator) -> Iterator[Sequence[Tensor]]:
        rows, mixes = next(self.recorded)
        return ((*pair, mix) for pair, mix in zip(rows, mixes, strict=True))


def world_of(recording: Recording, linear: bool = False) -> World:
    """The toy's edge and prior, in the original's coupled form; a search begins where the linear amortiser says."""
    weight, bias, guess = (recording.elsewhere(f"toy/{name}") for name in ("Me", "be", "Ma"))
    prior = ToyPrior(recording, linear)
    return World(lambda x: x.flatten(1) @ weight.T + bias, prior, lambda features: features @ guess.T, "coupled")


def craft(defense: Crafter | CrafterZ, recording: Recording, gain: float = 1.0) -> list[Crafted]:
    """The moments of crafting the recorded features under the recorded draws."""
    network = recording.draws.fill(ToyCritic(), gain=gain).requires_grad_(False)
    world, rng = world_of(recording), torch.Generator()
    original, nobody = recording["f0"], recording["z_avg"]
    moments = list(defense.craft(world, network, original, nobody, rng))
    moments[-1].told["critic"] = network
    return moments


def together(moments: Sequence[Crafted], name: str) -> Tensor:
    """What was told at each update, stacked; of critic losses [updates, steps]."""
    told = [moment.told[name] for moment in moments]
    return torch.stack([torch.stack(one) if isinstance(one, list) else one for one in told])


@replays("crafter/outer")
def outer(recording: Recording) -> Iterator[Entry]:
    """Three updates of Crafter as conf/defense composes it, in the original's form: what the attacker finds, every step
    of the critic, the hypergradient and the features."""
    penalty, beta, rate, alpha, terms = recording["cfg_lambda_gp_beta_flr_alpha_i"].tolist()
    defense = Crafter(
        prior=ToyPrior,
        amortiser=None,
        attacker=FictitiousAttacker(),
        critic=Told(recording["real_then_fake_index"], recording["gp_alpha"], penalty),
        implicit=Implicit(hessian="exact", terms=int(terms), alpha=alpha, products=None),
        beta=beta,
        rate=rate,
        steps=3,
        saved_every=1,
        d=D,
        form="coupled",
    )
    yield recording.compare("f0", world_of(recording).edge(recording["x"]))
    moments = craft(defense, recording)
    befores = torch.stack([recording["f0"], *(moment.features for moment in moments[:-1])])
    yield recording.compare("f_before", befores)
    yield recording.compare("f_after", torch.stack([moment.features for moment in moments]))
    yield recording.compare("z_star", torch.stack([moment.latents for moment in moments]))
    yield recording.compare("critic_loss", together(moments, "critic_loss"))
    yield recording.compare("hypergradient", together(moments, "slope"), note="of its own largest value")
    world, weight = world_of(recording), defense.inversion_weight / (len(befores[0]) * D)
    residuals = [weight * (world.view(m.latents) - before).square().sum() for m, before in zip(moments, befores)]
    totals = torch.stack([together(moments, "loss"), torch.stack(residuals)], 1)
    yield recording.compare("total_and_inv_loss", totals)
    for name, tensor in moments[-1].told["critic"].state_dict().items():
        yield recording.compare(f"critic_final/{name}", tensor)
    yield recording.compare("inner_attack_loss", inner_losses(recording, befores, defense.attacker))


def inner_losses(recording: Recording, features: Tensor, attacker: FictitiousAttacker) -> Tensor:
    """The loss before each step of the search at each update [updates, steps]."""
    losses: list[Tensor] = []

    class Watched(FictitiousAttacker):
        def loss(self, *world_latents_features: object) -> Tensor:
            losses.append(super().loss(*world_latents_features))
            return losses[-1]

    world = world_of(recording)
    for one in features:
        Watched(steps=attacker.steps)(world, one, world.start(one))
    return torch.stack(losses).detach().view(len(features), attacker.steps)


@replays("crafter/craftz")
def latents(recording: Recording) -> Iterator[Entry]:
    """Three updates of Crafter-z; the critic is filled so that the penalty's weight doubles."""
    penalty, beta, rate, critic_rate, d = recording["cfg_lambda_gp_beta_zlr_dlr_d"].tolist()
    critic = Told(recording["real_then_fake_index"], recording["gp_alpha"], penalty)
    critic.rate = critic_rate
    search = FictitiousAttacker(steps=110)
    parts = {"prior": ToyPrior, "amortiser": None, "attacker": search, "critic": critic}
    defense = CrafterZ(**parts, beta=beta, rate=rate, steps=3, d=d, form="coupled")
    moments = craft(defense, recording, float(recording["critic_fill_gain"]))
    yield recording.compare("init_attack_loss", inner_losses(recording, recording["f0"][None], search)[0])
    told = torch.cat([together(moments, "critic_loss"), together(moments, "loss")[:, None]], 1)
    yield recording.compare("critic_then_z_loss", told)
    yield recording.compare("z_after_each_outer", together(moments, "moved"))


@replays("crafter/hyper")
def hypergradient(recording: Recording) -> Iterator[Entry]:
    """The gradient in F of 100 L_p + 100 beta L_u for given latents, whose L_p has the gradient `v`: summed term by term,
    and in a Krylov space; the generator is linear, so that both Hessians are the same."""
    for name in sorted({key.split("/")[0] for key in recording.arrays}):
        here = {key.split("/")[1]: recording[key] for key in recording.keys(f"{name}/*")}
        recording.leave_out(f"{name}/l_p", "a critic's loss, whose gradient v is given")
        terms, alpha = (float(part[1:]) for part in name.split("_"))
        scale, count = here["feature_scale_inside_inv"], len(here["f"])
        world = world_of(recording, linear=True)

        def view(latents: Tensor, world: World = world, scale: Tensor = scale) -> Tensor:
            return world.view(latents) * scale

        weight = 2000 / (count * D)
        utility = (here["f"] - here["f0"]).square().sum() / (count * D)
        yield recording.compare(f"{name}/l_u", utility)
        residual = (view(here["z"]) - here["f"] * scale).square().sum()
        yield recording.compare(f"{name}/inv_loss", weight * residual)
        useful = SCALE * here["beta"] * 2 * (here["f"] - here["f0"]) / (count * D)
        for hessian, products in (("exact", None), ("gauss_newton", None), ("exact", 6), ("gauss_newton", 20)):
            implicit = Implicit(hessian=hessian, terms=int(terms), alpha=alpha, products=products)
            moved, _ = implicit.gradient(view, here["z"], here["f"] * scale, weight, here["v"])
            note = f"{hessian}, {'term by term' if products is None else f'{products} products'}"
            yield recording.compare(f"{name}/hypergradient", moved * scale + useful, note=note)


@replays("crafter/gp")
def penalty(recording: Recording) -> Iterator[Entry]:
    """The gradient penalty, and its gradient in the critic."""
    critic = ToyCritic()
    critic.load_state_dict({name: recording[f"critic/{name}"] for name in critic.state_dict()})
    value = slope_penalty(critic, recording["x"], recording["y"], recording["alpha"].flatten()).mean()
    yield recording.compare("value", value.detach())
    grads = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
    for (name, parameter), grad in zip(critic.named_parameters(), grads, strict=True):
        yield recording.compare(f"critic_grad/{name}", torch.zeros_like(parameter) if grad is None else grad, floor=1e-6)


@replays("crafter/f_loss")
def utility(recording: Recording) -> Iterator[Entry]:
    """L_u of given squared distances."""
    recording.leave_out("seed_note", "how the draws were made")
    yield recording.compare("value", recording["sq_norm_per_row"].mean() / recording["d"])


@replays("crafter/toy")
def matrices(recording: Recording) -> Iterator[Entry]:
    """The toy's numbers, which the other pieces use."""
    recording.leave_out("w*", "of the critic that came with the generator")
    sizes = {"Mg": (48, 6), "bg": (48,), "Me": (20, 48), "be": (20,), "Ma": (6, 20)}
    for name, shape in sizes.items():
        yield recording.compare_exactly(name, recording[name].view(shape))


@replays("crafter/disco")
@torch.no_grad()
def pruning(recording: Recording) -> Iterator[Entry]:
    """Scores and gates of DISCO's pruner, the layers of a ResNet-18 behind layer1, and what it leaves of a feature."""
    shapes = json.loads(bytes(recording["state_json"].numpy()).decode())
    network = ResNet(variant="resnet18", classes=2, channels=3, size=64)
    layers = [network.stages[f"layer{number}"] for number in (2, 3, 4)]
    pruner = Pruner(nn.Sequential(*layers, network.stages["features"]), nn.Linear(512, 64), share=0.99)
    table = {"model.0": "body.0", "model.1": "body.1", "model.2": "body.2", "model.4.1": "scores"}
    pruner.published = table
    pruner.load_state_dict(from_published(pruner, recording.draws.state(shapes)))
    features = recording["feature"].float()
    scores, gate = pruner.eval().gate(features)
    yield recording.compare("scores", scores)
    yield recording.compare("gate", gate)
    yield recording.compare("out_pool", nn.functional.adaptive_avg_pool2d(pruner(features), 2))


@replays("crafter/net")
@torch.no_grad()
def networks(recording: Recording) -> Iterator[Entry]:
    """Generators, critic, amortiser and edge under the original's names."""
    shape = {"channels": 3, "size": 64, "width": 8, "latent_size": 20}
    built = {
        "newGanGenerator_in20_dim8": CrafterGan(**shape).generator,
        "GanGenerator_in20_dim8": GmiGan(**shape).generator,
        "GanDiscriminator_dim8": CrafterGan(**shape).critic,
        "Amortizer_nz20": Amortiser(observed=[64, 16, 16], latents=[20]),
    }
    recording.leave_out("Decoder_*", "a network of the attackers")
    recording.leave_out("Encoder_*", "compared with the attackers' networks")
    for name, module in built.items():
        shapes = json.loads(bytes(recording[f"{name}/state_json"].numpy()).decode())
        module.load_state_dict(from_published(module, recording.draws.state(shapes)))
        answer = module.eval()(recording[f"{name}/in0"].float())
        yield recording.compare(f"{name}/out", nn.functional.avg_pool2d(answer, 4) if answer.dim() == 4 else answer)


@replays("crafter/other")
def losses(recording: Recording) -> Iterator[Entry]:
    """Losses on given pictures: what the amortiser minimises, and adversarial learning's error."""
    ours = {"x", "xhat", "amor_f_loss_per_row", "adv_ploss"}
    for key in set(recording.arrays) - ours:
        recording.leave_out(key, "of the attackers, and of the measures")
    images, decoded = recording["x"], recording["xhat"]
    amortised = squared_distance(images, decoded)
    yield recording.compare("amor_f_loss_per_row", amortised)
    of_the_batch = torch.linalg.vector_norm(norm_per_pixel(images, decoded))
    yield recording.compare("adv_ploss", of_the_batch, note="the norm over the batch of ours per image")
