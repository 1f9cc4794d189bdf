"""SecretGen's networks, its first stage, its votes and its searches (`secret_gen.npz`), as conf/attack composes them,
on stand-in targets. In float64, but for what our losses take in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.objectives import PlacedRealism
from midefense.attacks.problem import Problem
from midefense.attacks.search.voting import Voted
from midefense.obscuring import Obscuring, completed
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.priors.inpainting import InpaintingGan, part_of
from midefense.types import Answer, Evidence, Found, Trace

from .lomma import composed
from .recording import Entry, Recording
from .registry import replays
from .rules import TOLERANCE, Arithmetic, Draws, gradient_norms, parameters, relative_error, to_rounding

CRITIC = {"layer1": "look", "layer2": "shrink.0", "layer3": "shrink.1", "layer4": "shrink.2", "layer5": "score"}
PART_CRITIC = {"layer1": "look", "layer2": "shrink.0", "layer3": "shrink.1", "layer4": "score"}
GENERATOR = {
    **{f"ContextNetwork.conv{i + 1}": f"context.{i}.0" for i in range(10)},
    **{f"ContextNetwork.bn{i + 1}": f"context.{i}.2" for i in range(10)},
    "IdentityGenerator.l1": "project",
    "IdentityGenerator.l2_5": "grow",
    "Dconv.0": "paint.0",
    "Dconv.1": "paint.1",
    "Conv.0": "paint.2",
    "Conv.1": "paint.3",
    "Conv.3": "paint.5",
}
MASKS = {"center": "middle", "face": "face_t"}
PLACES = 33  # where a corner of a part may lie, either way
# Adam's first step is the sign of a gradient: one that is 0 but for rounding moves a weight of a critic by .004 either
# way, and with it, by as much as this, the gradient of the generator that the critic judges.
BY_SIGNS = 5e-3
WHITE_BOX = {"init_full": True, "init_naive": True, "init_latent_blackbox": False}
MODES = {  # of the original: our preset, and whether it asks about whole completions twice
    "ini-bb": ("secret_gen_scores", False),
    "full-bb": ("secret_gen_scores_full", False),
    "ini-wb": ("secret_gen", True),
    "full": ("secret_gen_full", True),
    "gmi": ("secret_gen_gmi", False),
    "pii": ("secret_gen_pii", False),
}


def obscuring(name: str = "middle") -> Obscuring:
    """A way to hide of conf/obscuring, as the evidence has it."""
    words = ["attack=secret_gen", f"obscuring@evidence.obscuring={name}"]
    return bind(compose("attack", words)[0]["evidence"]["obscuring"], "obscuring").build()


def gan() -> InpaintingGan:
    """The inpainting GAN, filled, in eval mode."""
    prior = InpaintingGan(channels=3, size=64, obscuring=obscuring(), judged="first")
    for network, table in ((prior.generator, GENERATOR), (prior.critic, CRITIC), (prior.part_critic, PART_CRITIC)):
        Draws().fill(network, table=table)
    return prior.double().eval()


def images_of(recording: Recording, count: int | None = None) -> Tensor:
    """The private images [8, 3, 64, 64] in [0, 1], or the first of them."""
    return recording.elsewhere("x_uint8")[:count].double() / 255


def seen_of(images: Tensor) -> Tensor:
    """What is seen of images under the mask in the middle."""
    return obscuring()(images, torch.zeros(len(images), 0))


class Stand(nn.Module):
    """The stand-in: features tanh(6 w1 pooled), logits 6 w2 features, of 8x8 means minus .45."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w1", Draws().weight("w1", (32, 192)).double())
        self.register_buffer("w2", Draws().weight("w2", (1000, 32)).double())

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        pooled = F.avg_pool2d(images - 0.45, 8).flatten(1)
        features = torch.tanh(6 * pooled @ self.w1.T)
        return Trace(6 * features @ self.w2.T, features)


class ToyTarget(nn.Module):
    """The target of `toyselect`: class 7 is never the first, and near the best of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", Draws().weight("w", (1000, 192)).double())

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        features = F.avg_pool2d(images - 0.45, 8).flatten(1)
        logits = 60 * features @ self.w.T
        seventh = logits[:, :7].amax(1, keepdim=True) - 0.4
        return Trace(torch.cat([logits[:, :7], seventh, torch.full_like(logits[:, 8:], -30)], 1), features)


class ToyCompletions(Prior):
    """The completions of `toyselect`: sixty-four coloured squares, where nothing was `seen`."""

    held = 1
    completes = True

    def __init__(self, seen: Tensor) -> None:
        super().__init__(channels=3, size=64)
        self.seen = seen
        self.register_buffer("p", Draws().weight("P", (192, 100)).double())

    def of_rows(self, latents: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([latents[:, :-1], rows[:, None].to(latents)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        squares = torch.sigmoid(6 * latents[:, :-1] @ self.p.T).view(-1, 3, 8, 8)
        return completed(self.seen[latents[:, -1].long()], F.interpolate(squares, scale_factor=8, mode="nearest"))


class Noted(Oracle):
    """An oracle that keeps the probabilities it answers [B, K]."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.said: list[Tensor] = []

    def __call__(self, images: Tensor, *arguments: object, **options: object) -> Answer:
        answer = super().__call__(images, *arguments, **options)
        if answer.probs is not None:
            self.said.append(answer.probs.detach())
        return answer


def scripted(prior: Prior, draws: Sequence[Tensor]) -> Prior:
    """A prior whose samples were recorded: `draws` [N, Z], one for each time that it is asked for some."""
    script = iter(draws)
    prior.sample = lambda count, rng: F.pad(next(script).double(), (0, 1))
    return prior


@replays("secret_gen/net", "secret_gen/x_uint8")
@torch.no_grad()
def networks(recording: Recording) -> Iterator[Entry]:
    """The generator on two masked images, and both critics on the images."""
    prior, images = gan(), images_of(recording, 2)
    judged = prior.critic(images), prior.part_critic(part_of(images))
    if "x_uint8" in recording:
        recording["x_uint8"]
        error = relative_error(judged[0], recording.elsewhere("net/DG"))
        yield Entry("x_uint8", error, TOLERANCE, "what the critic says of the first two")
        return
    made = prior.generator(seen_of(images), recording["z"].double())
    yield recording.compare("out_pool4", F.avg_pool2d(made, 4))
    yield recording.compare("out_crop", made[..., 24:40, 24:40])
    yield recording.compare("DG", judged[0])
    yield recording.compare("DL_patch16", judged[1].view(2, 1, 1, 1))


@replays("secret_gen/mask")
def masks(recording: Recording) -> Iterator[Entry]:
    """What the masks hide, bit by bit."""
    for key in recording.keys("*"):
        hidden = obscuring(MASKS[key])(torch.zeros(1, 3, 64, 64), torch.zeros(1, 0))[0, 3].flatten().long()
        bytes_ = hidden.view(-1, 8) @ torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])
        yield recording.compare_exactly(key, bytes_.to(torch.uint8))


@replays("secret_gen/psnr_*")
def peak_ratio(recording: Recording) -> Iterator[Entry]:
    """The peak signal-to-noise ratio of two images, in dB."""
    first, second = images_of(recording, 2)
    (key,) = recording.arrays
    yield recording.compare(key, -10 * (first - second).square().mean().log10())


@torch.no_grad()
def judged(prior: InpaintingGan, *images: Tensor) -> Tensor:
    """What the critic of whole images says of each [K, B]."""
    return torch.stack([prior.critic(each) for each in images])


@replays("secret_gen/stage1")
@to_rounding
def first_stage(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """One update of each network by our steps. The loop itself draws from its own keyed generator, and takes stored
    pictures of 8 bits, so the order of its steps is repeated here."""
    dtype = arithmetic.dtype
    prior, images = gan().to(dtype).train(), images_of(recording).to(dtype)
    seen, latents = seen_of(images), arithmetic.of(recording["z"])
    mix, holes = recording["alpha"].to(dtype), recording["hole_offsets"].flip(1)
    networks = {"Net": prior.generator, "DL": prior.part_critic, "DG": prior.critic}
    adam = {name: torch.optim.Adam(net.parameters(), 4e-3, (0.5, 0.999)) for name, net in networks.items()}
    oracle = Oracle(Stand().to(dtype), "whitebox")
    # DL's penalty counts its mixture from the other end
    real, fake = (part_of(x, holes[0]) for x in (images, prior._imagined(seen, latents[0])))
    local = prior.critic_step(prior.part_critic, adam["DL"], real, fake, 1 - mix[0])
    made = prior._imagined(seen, latents[1])
    yield recording.compare(
        "fake_and_real_local_logits_after", judged(prior, made, images), note="of DG, before its step"
    )
    whole = prior.critic_step(prior.critic, adam["DG"], images, made, mix[1])

    def sight(shown: Tensor) -> Tensor:
        return oracle(shown, reads=("features",)).features

    told = prior.generator_step(adam["Net"], sight, seen, latents[2:], torch.zeros(8, 0), holes[1])
    yield recording.compare("loss_dl_dg_g", torch.stack([local, whole, told["generator_loss"]]))
    yield recording.compare("diff_loss", told["diversity"])
    yield recording.compare("gan_loss", told["generator_loss"] + 0.5 * told["diversity"])
    for name, table in (("Net", GENERATOR), ("DL", PART_CRITIC), ("DG", CRITIC)):
        names = _names(networks[name], table)
        tensors = parameters(networks[name], names, table)
        tolerance = BY_SIGNS if name == "Net" else TOLERANCE
        yield recording.compare_rows(f"grad_norm_per_param/{name}", gradient_norms(tensors), names, tolerance)
        means = torch.stack([tensor.detach().abs().mean() for tensor in tensors])
        yield recording.compare_rows(f"after/{name}/abs_mean_per_param", means, names, tolerance)
    yield recording.compare("bn1_running_mean_after", prior.generator.context[0][2].running_mean)
    recording.leave_out("re_loss", "logged and not optimised, which ours has not")
    recording.leave_out("gp", "a part of DG's loss")
    recording.leave_out("wd", "a part of DG's loss")


def _names(network: nn.Module, table: Mapping[str, str]) -> list[str]:
    """The original's names of the parameters, in its order."""
    originals = {ours: original for original, ours in table.items()}
    names = []
    for name, _ in network.named_parameters():
        prefix = next(ours for ours in sorted(originals, key=len, reverse=True) if name.startswith(f"{ours}."))
        names.append(originals[prefix] + name.removeprefix(prefix))
    return names


@replays("secret_gen/stage2", "secret_gen/toyselect")
def selections(recording: Recording) -> Iterator[Entry]:
    """Votes and chosen latents for given draws; what the target said of every image; how often it was asked."""
    toy = recording.name.endswith("toyselect")
    for name in sorted({key.rpartition("/")[0] for key in recording.arrays}):
        yield from _selected(recording, name, toy)


def _selected(recording: Recording, name: str, toy: bool) -> Iterator[Entry]:
    kind, known = name.split("/")
    draws, fallback = recording[f"{name}/z_draws"], recording[f"{name}/fallback_draws"].double()
    count, targets, _ = draws.shape
    bank = recording[f"{name}/z_bank"]
    kept = bank.shape[1] if bank.ndim == 3 else 1
    seen = seen_of(images_of(recording, targets))
    prior, target = (ToyCompletions(seen), ToyTarget()) if toy else (gan().given(seen), Stand())
    told = recording[f"{name}/gt"] if known == "known" else torch.full((targets,), -1)
    evidence, oracle = Evidence(told.long(), torch.arange(targets)), Noted(target, "scores")
    search = Voted(
        draws=count,
        labels="told" if known == "known" else "voted",
        cells=0 if kind == "init_naive" else 4,
        asked_twice=WHITE_BOX[kind],
    )
    nothing = torch.full((targets * kept, 101), torch.nan, dtype=torch.float64)
    owners = torch.arange(targets).repeat_interleave(kept)
    starts = Found(nothing, torch.zeros(len(owners)), owners, stage="initial")
    problem = Problem.plain(scripted(prior, draws), oracle, evidence, seeds.generator("golden"))
    *_, ended = search(problem, starts)
    chosen = ended.latents[:, :100].clone()
    missing = chosen.isnan().any(1)
    surplus = int(missing.sum()) - len(fallback)
    yield Entry(f"{name}/fallback_draws", float(abs(surplus)), 0.0, "random starts more or fewer than the original's")
    if not surplus:
        chosen[missing] = fallback
    yield recording.compare(f"{name}/z_bank", chosen.view(bank.shape))
    labels = evidence.labels if ended.labels is None else ended.labels.view(targets, kept)[:, 0]
    yield recording.compare_exactly(f"{name}/id_bank", labels)
    views = len(oracle.said[0]) // targets
    said = torch.stack(oracle.said).unflatten(1, (targets, views)).transpose(1, 2)  # [draws, views, targets, K]
    sure, given = said.max(3)
    if not toy:
        yield recording.compare_exactly(f"{name}/V_calls_per_image", torch.tensor(oracle.bill[0]))
        yield recording.compare(f"{name}/plain_conf", sure.flatten(0, 1), note="of every image asked about")
        yield recording.compare_exactly(f"{name}/plain_label", given.flatten(0, 1))
        return
    yield recording.compare_exactly(f"{name}/V_calls_per_z", torch.tensor(views))
    yield recording.compare_exactly(f"{name}/plain_labels", given[:, 0])
    voted = said[:, : views - search.asked_twice].mean((0, 1))
    yield recording.compare(f"{name}/mean_prob_first8_classes", voted[:, :8].double())


@replays("secret_gen/attack")
def searches(recording: Recording) -> Iterator[Entry]:
    """Every mode: latents before and after each update, the losses before them, and how often the target was asked."""
    for mode in sorted({key.split("/")[0] for key in recording.arrays}):
        yield from _searched(recording, mode)


def _searched(recording: Recording, mode: str) -> Iterator[Entry]:
    preset, twice = MODES[mode]
    labels, holes = recording[f"{mode}/gt"].long(), recording[f"{mode}/hole_offsets"].flip(1)
    targets, steps = len(labels), len(holes)
    draws = recording[f"{mode}/randn"].view(-1, targets, 100)
    votes = mode not in ("gmi", "pii")
    where = "search.descent" if votes else "search"
    changes = {f"{where}.steps": steps, f"{where}.reference_batch": targets}
    if votes:
        changes |= {"search.draws": len(draws), "search.asked_twice": twice}
        draws = torch.cat([torch.full_like(draws[:1], torch.nan), draws])  # starts that nobody takes
    attack = composed(preset, *(f"{name}={value}" for name, value in changes.items()))
    places = iter(((holes.double() + 0.5) / PLACES)[:, None].expand(-1, targets, -1))
    terms = getattr(attack.objective, "terms", ())
    placed = next((term.loss for term in terms if isinstance(term.loss, PlacedRealism)), attack.objective)
    placed.draw = lambda count, rng: next(places)
    evidence = Evidence(labels, torch.arange(targets), seen_of(images_of(recording, targets)))
    oracle = Oracle(Stand(), attack.access)
    stages = attack.recover(
        {}, scripted(gan().requires_grad_(False), draws), oracle, evidence, seeds.generator("golden")
    )
    path = [found.detached() for found in stages]
    assert path[-1].stage == "selected"
    moved = path[-steps - 2 : -1]
    known = recording[f"{mode}/z_at_each_step"]
    latents = torch.stack([found.latents[:, :100] for found in moved])
    again = latents[-1:].expand(len(known) - len(latents), -1, -1)  # the last question is about the last latents
    yield recording.compare(f"{mode}/z_at_each_step", torch.cat([latents, again]))
    yield recording.compare(f"{mode}/loss", torch.stack([found.loss.double().mean() for found in moved[1:]]))
    yield recording.compare_exactly(f"{mode}/V_calls", torch.tensor(oracle.bill.get(0, 0)))
