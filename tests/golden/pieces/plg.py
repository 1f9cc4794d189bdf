"""PLG-MI's pseudo-labels, losses, networks, augmentation and both of its stages (`plg_mi.npz`). In float64 where a
path of several steps is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.state_names import to_published
from midefense.attacks.base import SearchAttack
from midefense.attacks.part import Part
from midefense.identity_losses import IDENTITY_LOSSES, max_margin
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.augmentation import Augmentation, Parameters, apply, cropped, jittered
from midefense.priors.plg import PlgGan, critic_loss, most_confident
from midefense.types import Access, Evidence

from .gmi import Given, number
from .recording import Entry, Recording
from .registry import replays
from .rules import Arithmetic, gradient_norms, parameters, sums_and_norms, to_rounding
from .tiny import TinyClassifier, thumbnails

OBJECTIVES = {"margin": "margin", "ce": "cross_entropy", "poincare": "poincare"}
# Steps of the critic after which its tables were recorded.
CRITIC_STEPS = (1, 5, 10)
FLOAT32_POINCARE = 3e-4  # the original loses 2.16e-4 to cancellation


def gan_of(recording: Recording, dtype: torch.dtype = torch.float64) -> PlgGan:
    """The filled GAN of a piece, in eval mode."""
    config, draws = recording.config, recording.draws
    classes = config.get("K") or config["num_classes"]
    width, shape = config["num_features"], {"channels": 3, "size": 64}
    gan = PlgGan(classes=classes, latent_size=config["dim_z"], width=width, augmentation=Augmentation(), **shape)
    draws.fill(gan.generator, "G/", config["gain_G"])
    draws.fill(gan.critic, "D/")
    for name, vector in gan.critic.named_buffers():
        assert name.endswith(("_u", "_v"))
        vector.div_(vector.norm())
    return gan.to(dtype).eval().requires_grad_(False)


@replays("plg_topn")
def pseudo_labels(recording: Recording) -> Iterator[Entry]:
    """The images of each class, least sure first, ties as the original breaks them; at once and in pieces."""
    probs = recording["logits"].softmax(1)
    rows = torch.arange(len(probs))[:, None].expand_as(probs)
    whole = most_confident(probs, rows, int(recording["top_n"]))[1]
    yield recording.compare_exactly("selected_ascending", whole.T)
    known = probs[:0], rows[:0]
    for start in range(0, len(probs), 7):
        piece = [torch.cat([kept, new[start : start + 7]]) for kept, new in zip(known, (probs, rows), strict=True)]
        known = most_confident(*piece, int(recording["top_n"]))
    yield recording.compare_exactly("selected_ascending", known[1].T, note="seven at a time")


@replays("plg_losses")
def losses(recording: Recording) -> Iterator[Entry]:
    """The hinge of the critic, and the three identity losses with their gradients."""
    labels, fake, real = recording["y"], recording["dis_fake"], recording["dis_real"]
    yield recording.compare("hinge_D", critic_loss(lambda scores, _: scores[:, 0], real, labels, fake, labels))
    recording.leave_out("hinge_G", "minus the mean of dis_fake; plg_stage1_* compare it in its place")
    for theirs, ours in OBJECTIVES.items():
        logits = recording["logits"].requires_grad_()
        loss = IDENTITY_LOSSES[ours](logits, labels).mean()
        tolerance = FLOAT32_POINCARE if ours == "poincare" else 1e-4
        yield recording.compare(theirs, loss, tolerance)
        yield recording.compare(f"{theirs}_grad", torch.autograd.grad(loss, logits)[0], tolerance)


@replays("max_margin")
def margin(recording: Recording) -> Iterator[Entry]:
    """The mean of the loss and its gradient; logits and labels are those of `poincare`."""
    logits, labels = recording.elsewhere("poincare/logits").requires_grad_(), recording.elsewhere("poincare/targets")
    loss = max_margin(logits, labels).mean()
    yield recording.compare("loss", loss)
    yield recording.compare("grad", torch.autograd.grad(loss, logits)[0])


@replays("plg_networks")
def networks(recording: Recording) -> Iterator[Entry]:
    """Both networks in eval and train mode, the vectors of the spectral norms, and the gradients of the hinge."""
    config, gan = recording.config, gan_of(recording)
    names = [(f"{net}_names", module) for net, module in (("G", gan.generator), ("D", gan.critic))]
    for key, module in names:
        ours = {name: list(tensor.shape) for name, tensor in to_published(module).items()}
        wanted = {name: shape for name, shape in config[key]}
        yield Entry(key, float(ours != wanted), 0.0, "names and shapes")
    latents, labels = recording["z"].double(), recording["y"]
    images = gan.generator(latents, labels)
    yield recording.compare("G_eval", thumbnails(images, recording["G_eval"].shape[-1]))
    yield recording.compare("D_eval", gan.critic(images, labels)[:, None])
    gan.critic.train()
    for key in ("D_train_1", "D_train_2"):
        yield recording.compare(key, gan.critic(images, labels)[:, None])
    vectors = to_published(gan.critic)
    yield recording.compare("D_l6_u_after2", vectors["l6.weight_u"])
    yield recording.compare("D_ly_v_after2", vectors["l_y.weight_v"])
    made = gan.generator.train()(latents, labels)
    yield recording.compare("G_train", thumbnails(made, recording["G_train"].shape[-1]))
    yield recording.compare("G_b1_running_mean", to_published(gan.generator)["block2.b1.running_mean"])
    yield from _hinge(recording, gan_of(recording).critic.train().requires_grad_(True), images, labels)


def _hinge(recording: Recording, critic: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Entry]:
    """The loss of a batch as fakes and a paler one, of other classes, as reals."""
    images = images.detach().requires_grad_()
    others = (labels + 1) % recording.config["num_classes"]
    loss = critic_loss(critic, 0.5 * images + 0.2, others, images, labels)
    loss.backward()
    yield recording.compare("hinge_of_two", loss)
    side = recording["hinge_grad_x"].shape[-1]
    yield recording.compare("hinge_grad_x", thumbnails(images.grad, side))
    names = [name for name, _ in recording.config["D_names"] if not name.endswith(("_u", "_v"))]
    yield recording.compare_rows("hinge_grad_norms", gradient_norms(parameters(critic, names)), names)


def parameters_of(read: Callable[[str], Tensor], order: Tensor | None = None) -> Parameters:
    """Recorded parameters of an augmentation as ours says them; `order` are the positions' operations."""
    order = (read("order") if order is None else order).tolist()
    brightness, contrast, saturation, _ = (order.index(operation) for operation in range(4))
    count = len(read("flip"))
    return Parameters(
        boxes=read("crop_box"),
        flip=read("flip"),
        jitter=read("jitter_on"),
        brightness=read("brightness"),
        contrast=read("contrast"),
        brightness_first=torch.full((count,), brightness < contrast),
        clamp_first=torch.full((count,), saturation < min(brightness, contrast)),
        degrees=torch.where(read("rotate_on"), read("degrees"), 0.0),
        smallest=0.5,
    )


@replays("plg_augment")
def augmentation(recording: Recording) -> Iterator[Entry]:
    """Every stage under given parameters, the gradient through all of them, every order of the jitter, and the sides of
    crops that are drawn."""
    low = recording["input_low"].double()
    images = F.interpolate(low, scale_factor=64 // low.shape[-1], mode="bilinear", align_corners=False) * 1.2 - 0.1
    how, images = parameters_of(recording.__getitem__), images.requires_grad_()
    straight = cropped(images, how.boxes, torch.zeros_like(how.flip), how.smallest)
    output = apply(images, how)
    stages = {
        "RandomResizedCrop": straight,
        "ColorJitter": jittered(straight, how),
        "RandomHorizontalFlip": jittered(cropped(images, how.boxes, how.flip, how.smallest), how),
        "RandomRotation": output,
    }
    for name, stage in stages.items():
        key = f"after_{name}"
        yield recording.compare(key, thumbnails(stage, recording[key].shape[-1]))
    yield recording.compare("output", thumbnails(output, recording["output"].shape[-1]))
    yield recording.compare("output_mean", output.mean((1, 2, 3)))
    (gradient,) = torch.autograd.grad(output.square().sum(), images)
    side = recording["grad_of_sum_squares"].shape[-1]
    yield recording.compare("grad_of_sum_squares", thumbnails(gradient, side))
    yield recording.compare("grad_norm", gradient.flatten(1).norm(dim=1))
    factors = {"brightness": recording["jitter_brightness"], "contrast": recording["jitter_contrast"]}
    always = {**factors, "jitter_on": torch.ones_like(how.jitter)}
    for key in recording.keys("jitter_order_*"):
        order = torch.tensor([int(digit) for digit in key.removeprefix("jitter_order_")])
        changed = jittered(images, parameters_of(lambda name: always.get(name, recording[name]), order))
        yield recording.compare(key, thumbnails(changed, recording[key].shape[-1]))
    yield from _sides(recording)


def _sides(recording: Recording) -> Iterator[Entry]:
    """Which sides our crops have, and how far the recorded counts are from our shares, in standard deviations."""
    ours = Augmentation()
    boxes = ours.parameters(ours.draw(400_000, seeds.generator("golden sides")), 64).boxes
    values, counts = (boxes[:, 2] - boxes[:, 0] + 1).unique(return_counts=True)
    yield recording.compare_exactly("crop_side_values", values)
    known, share = recording["crop_side_counts"].double(), counts / counts.sum()
    spread = (known.sum() * share * (1 - share)).sqrt()
    worst = float(((known - known.sum() * share) / spread).abs().max())
    yield Entry("crop_side_counts", worst, 4.0, "standard deviations")


@replays("plg_stage1_*")
def conditional_gan(recording: Recording) -> Iterator[Entry]:
    """A generator step and five of the critic, again and again, under given draws; their order is `PlgGan.fit`'s."""
    config, draws = recording.config, recording.draws
    gan = gan_of(recording).train().requires_grad_(True)
    gan.augmentation = apply
    target = draws.fill(TinyClassifier(config["K"], 3), "T/", config["gain_T"]).double()
    oracle = Oracle(target, Access.WHITEBOX)
    gan.identity_weight = config["alpha"]
    networks = {"generator": gan.generator, "critic": gan.critic}
    adam = {name: torch.optim.Adam(net.parameters(), config["lr"], config["betas"]) for name, net in networks.items()}
    told = {"loss_G_total": [], "loss_inv": [], "loss_D": []}
    seen: dict[str, list[Tensor]] = {"G_grad_norm": [], "G_sum_norm": [], "D_grad_norm": [], "D_sum_norm": []}

    def note(tag: str, network: nn.Module) -> None:
        tensors = parameters(network, config[f"{tag}_names"])
        seen[f"{tag}_grad_norm"].append(gradient_norms(tensors))
        seen[f"{tag}_sum_norm"].append(sums_and_norms(tensors))

    def ask(images: Tensor) -> Tensor:
        return oracle(images, reads=("logits",)).logits

    for turn in range(config["iterations"]):
        latents, wanted = recording["z"][turn].double(), recording["y"][turn]
        dice = None
        if config["augmentation"] == "kornia":
            dice = parameters_of(lambda name, turn=turn: recording[f"aug{turn}/{name}"])
        total, identity = gan.generator_step(adam["generator"], ask, latents[0], wanted[0], dice)
        told["loss_G_total"].append(total)
        told["loss_inv"].append(identity)
        note("G", gan.generator)
        for step in range(config["n_dis"]):
            done = config["n_dis"] * turn + step
            real = draws.uniform(f"plg1/{config['trial']}/real{done}", (config["batch"], 3, 64, 64)).double()
            made_from = latents[1 + step], wanted[1 + step]
            loss = gan.critic_step(adam["critic"], real, recording["y_real"][turn][step], *made_from)
            told["loss_D"].append(loss)
            if done + 1 in CRITIC_STEPS:
                note("D", gan.critic)
    for key, values in told.items():
        yield recording.compare(key, torch.stack(values).view(recording[key].shape))
    for key, rows in seen.items():
        yield from _compare_tables(recording, key, rows)
    yield recording.compare("D_l6_u", to_published(gan.critic)["l6.weight_u"])
    yield recording.compare("G_b6_running_var", to_published(gan.generator)["b6.running_var"])


def _compare_tables(recording: Recording, key: str, rows: list[Tensor]) -> Iterator[Entry]:
    """Tables after several steps, each a row per parameter, but for biases that are rounding alone."""
    names, known = recording.config[f"{key[0]}_names"], recording[key]
    shifts = (".c1.bias", ".c2.bias", ".c_sc.bias")  # of whole channels, which some batch norm behind them takes away
    hidden = torch.tensor([key[0] == "G" and name.endswith(shifts) for name in names])
    for index, row in enumerate(rows):
        norms = known[index] if known.dim() == 2 else known[index, :, 1]
        scale = norms.abs().clamp_min(1e-6 * float(norms.max()))
        off = (row - known[index]).abs()
        errors = (off if off.dim() == 1 else off.amax(1)) / scale
        worst = int(errors.masked_fill(hidden, -1).argmax())
        yield Entry(f"{key}[{index}]", float(errors[worst]), 1e-4, f"worst at {names[worst]}")
    if len(rows) != len(known):
        yield Entry(key, math.inf, 1e-4, f"{len(rows)} tables instead of {len(known)}")


class Recorded(Part):
    """The recorded augmentation in place of a view's own: draws are the numbers of its looks."""

    columns = 1

    def __init__(self, looks: list[Parameters]) -> None:
        self.looks, self.next = looks, 0

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        self.next += 1
        return torch.full((count, 1), self.next - 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return apply(images, self.looks[int(draws[0, 0])])


def attack_of(config: Mapping[str, object]) -> SearchAttack:
    """The preset, with the recorded numbers in place of those of the paper's batch."""
    changes = {"optimizer.lr": config["lr"], "steps": config["steps"], "reference_batch": len(config["iden"])}
    overrides = ["attack=plg_mi", f"attack/objective={OBJECTIVES[config['loss']]}"]
    overrides += [f"attack.search.{name}={value}" for name, value in changes.items()]
    return bind(compose("attack", overrides)[0]["attack"], "attack").build()


@replays("plg_stage2_*")
@to_rounding
def search(recording: Recording, arithmetic: Arithmetic) -> Iterator[Entry]:
    """Latents after so many updates, the losses before each, and the images of the first restart."""
    config, dtype = recording.config, arithmetic.dtype
    prior = gan_of(recording, dtype)
    target = recording.draws.fill(TinyClassifier(config["K"], 3), "T/", config["gain_T"]).to(dtype)
    labels, last = torch.tensor(config["iden"]), None
    for name in [key.removesuffix("/z0") for key in recording.keys("restart*/z0")]:
        attack = attack_of(config)
        attack.views = _views(recording)
        starts = torch.cat([arithmetic.of(recording[f"{name}/z0"]), labels[:, None].to(dtype)], 1)
        attack.init = Given(starts, 1)
        evidence, oracle = Evidence(labels, torch.arange(len(labels))), Oracle(target, Access.WHITEBOX)
        found = attack.recover({}, prior, oracle, evidence, seeds.generator("golden"))
        path = [one.detached() for one in found if one.stage in ("initial", "optimised")]
        for key in recording.keys(f"{name}/z[0-9]*"):
            if (step := number(key, "z")) > 0:
                yield recording.compare(key, path[step].latents[:, :-1])
        yield recording.compare(f"{name}/loss", torch.stack([step.loss.mean() for step in path[1:]]))
        if last is None:
            last = path
    for key in recording.keys("image[0-9]*"):  # of the first restart
        with torch.no_grad():
            images = prior.decode(last[number(key, "image")].latents)
        yield recording.compare(key, thumbnails(images, recording[key].shape[-1]))


def _views(recording: Recording) -> Recorded | None:
    """The recorded augmentations, step by step, two to each; None where there was none."""
    if recording.config["augmentation"] == "identity":
        return None
    steps, looks = recording["aug/flip"].shape[:2]
    pairs = [(step, look) for step in range(steps) for look in range(looks)]
    return Recorded([parameters_of(lambda name, at=at: recording[f"aug/{name}"][at]) for at in pairs])
