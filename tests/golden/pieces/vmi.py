"""VMI's flow, its normal family and its layered searches (`vmi.npz`), as conf/attack composes them: the distributions
in float64, the generator in float32, as the originals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.miners import Coupling, Family, Flow, GaussianMiner, Miner, Noise, Split, standard_density
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.types import Evidence, Trace

from .gmi import Given
from .recording import Entry, Recording
from .registry import replays
from .rules import Draws
from .tiny import TinyClassifier, thumbnails

LAYER = re.compile(r"flow\.flow\.layers\.(\d+)\.(.+)")
# The original's parameters by ours.
PARTS = {
    "actnorm.bias": "norm.bias",
    "actnorm.logs": "norm.logs",
    "block.0.conv.weight": "first",
    "block.0.actnorm.bias": "first_norm.bias",
    "block.0.actnorm.logs": "first_norm.logs",
    "block.2.conv.weight": "second",
    "block.2.actnorm.bias": "second_norm.bias",
    "block.2.actnorm.logs": "second_norm.logs",
    "block.4.logs": "last.logs",
    "block.4.conv.weight": "last.weight",
    "block.4.conv.bias": "last.bias",
    "conv.logs": "moments.logs",
    "conv.conv.weight": "moments.weight",
    "conv.conv.bias": "moments.bias",
}


def published(flow: Flow) -> dict[str, nn.Parameter]:
    """The parameters of a flow, stacked over its distributions, by the original's names in its order."""
    found = {}
    for index, part in enumerate(flow.parts):
        own = dict(part.named_parameters())
        found |= {f"flow.flow.layers.{index}.{name}": own[ours] for name, ours in PARTS.items() if ours in own}
    return found


def shape_of(name: str, stacked: Tensor) -> tuple[int, ...]:
    """The original's shape of a parameter [G, inputs, outputs] or [G, 1, width] of ours."""
    if name.endswith("conv.weight"):
        side = 1 if "block.2" in name else 3
        return (stacked.shape[2], stacked.shape[1], side, side)
    if "actnorm" in name:
        return (1, stacked.shape[2], 1, 1)
    return (stacked.shape[2], 1, 1) if name.endswith("logs") else (stacked.shape[2],)


def drawn(draws: Draws, tag: str, name: str, shape: Sequence[int]) -> Tensor:
    """A filled parameter of a flow: its scales, and biases that are maps, are small."""
    if name.endswith("logs") or (name.endswith("bias") and len(shape) > 1):
        return torch.from_numpy(0.1 * draws.stream(tag + name).standard_normal(tuple(shape))).float()
    return draws.weight(tag + name, shape)


def centre(tensor: Tensor) -> Tensor:
    """An original parameter as one of ours [inputs, outputs] or [1, width]: of a convolution over one pixel, its
    middle."""
    if tensor.dim() == 4 and tensor.shape[0] > 1:
        middle = tensor.shape[-1] // 2
        return tensor[:, :, middle, middle].T
    return tensor.reshape(1, -1)


def originals(draws: Draws, flow: Flow) -> list[dict[str, Tensor]]:
    """The filled parameters of every distribution, in the original's shapes."""
    ours = published(flow)
    return [
        {name: drawn(draws, f"F{number}/", name, shape_of(name, tensor)) for name, tensor in ours.items()}
        for number in range(flow.count)
    ]


@torch.no_grad()
def fill(flow: Flow, draws: Draws, orders: Sequence[Sequence[Tensor]]) -> Flow:
    """A flow with filled parameters and the recorded permutations of every distribution."""
    for number, filled in enumerate(originals(draws, flow)):
        for name, tensor in published(flow).items():
            tensor[number] = centre(filled[name])
        couplings = [part for part in flow.parts if isinstance(part, Coupling)]
        for part, order in zip(couplings, orders[number], strict=True):
            part.order[number] = order
    return flow.double()


def flow_of(config: Mapping[str, object], layers: int = 1, kind: type[Flow] = Flow) -> Flow:
    return kind(
        targets=1,
        layers=layers,
        width=config["nz"],
        levels=config["L"],
        steps=config["K"],
        hidden=config.get("hidden", 100),
    )


@replays("vmi_flow*")
def flow(recording: Recording) -> Iterator[Entry]:
    """Density, samples and gradients of one flow, and how its norms are set."""
    config = recording.config
    orders = [recording[f"perm{index}"] for index in range(config["K"] * config["L"])]
    one = fill(flow_of(config), recording.draws, [orders])
    recording.leave_out("f32/*", "the original's float32; f64 judges")
    samples = recording["f64/x"][None].requires_grad_()
    density, noise = one.density(samples)
    gradient = torch.autograd.grad(density.sum(), samples, retain_graph=True)[0]
    yield recording.compare("f64/logp", density[0])
    yield recording.compare("f64/z_last", noise[0][0])
    yield recording.compare("f64/grad_x", gradient[0])
    with torch.no_grad():
        splits = [part for part in one.parts if isinstance(part, Split)]
        for index, split in enumerate(splits):
            yield recording.compare(f"f64/split{index}", _given_up(one, samples, split))
    density.sum().backward()
    norms = torch.stack([tensor.grad.norm() for tensor in published(one).values()])
    yield recording.compare_rows("f64/grad_norms", norms, [name for name, _ in config["names"]])
    yield from _sampled(recording, one)
    yield from _settled(recording, config, orders)


def _given_up(one: Flow, samples: Tensor, split: Split) -> Tensor:
    """What a split takes away of samples [1, B, width], before it becomes noise."""
    for part in one.parts:
        if part is split:
            break
        samples = part.back(samples)[0]
    return samples[0, :, split.kept :]


@torch.no_grad()
def _sampled(recording: Recording, one: Flow) -> Iterator[Entry]:
    """Samples of recorded noise, of which the first entries alone go in, and their density both ways."""
    inner = recording["f64/e"][:, : one.last_width]
    outer = [recording[key] for key in sorted(recording.keys("f64/sample_noise[0-9]"))]  # the deepest split's first
    noise = [each[None].double() for each in (inner, *outer)]
    samples, density = one.sample_with_density(tuple(noise))
    yield recording.compare("f64/sample", samples[0])
    yield recording.compare("f64/sample_logp", density[0])
    yield recording.compare("f64/sample_logp", one.density(samples)[0][0], note="taken back through the flow")
    yield recording.compare("f64/kl_of_these", (density - standard_density(samples)).mean())


@torch.no_grad()
def _settled(recording: Recording, config: Mapping[str, object], orders: Sequence[Tensor]) -> Iterator[Entry]:
    """The norms as the given samples set them."""
    fresh = fill(flow_of(config), recording.draws, [orders])
    samples = recording["init/init_z"][None].double()
    fresh.settle(samples)
    yield recording.compare("init/logp", fresh.density(samples)[0][0])
    for key in recording.keys("init/layer*"):
        index, name = re.fullmatch(r"init/layer(\d+)\.(.+)", key).groups()
        ours = PARTS[name.replace("block0", "block.0")]
        got = dict(fresh.parts[int(index)].named_parameters())[ours]
        yield recording.compare(key, got.flatten(), floor=1.0)  # behind a norm a mean is 0 but for rounding


@replays("vmi_gaussian*")
@torch.no_grad()
def gaussian(recording: Recording) -> Iterator[Entry]:
    """Samples of a normal, their density and its entropy."""
    width = recording["L"].shape[0]
    one = GaussianMiner(targets=1, layers=1, width=width).double()
    one.mean.copy_(recording["m"][None])
    one.factor.copy_(recording["L"][None])
    samples = one.sample((recording["e"][None],))
    yield recording.compare("z", samples[0])
    logdet = torch.linalg.slogdet(one.factor).logabsdet
    yield recording.compare("logp", standard_density(recording["e"]) - logdet)
    # KL(q || N) is the cross-entropy to N less the entropy
    cross = (one.factor.square().sum() + one.mean.square().sum() + width * torch.log(torch.tensor(2 * torch.pi))) / 2
    yield recording.compare("entropy", (cross - one.divergence(0, None)).squeeze())


class StandIn(Prior):
    """The stand-in for a StyleGAN2: a mapping, and images of flattened styles [B, rows, width], float32."""

    offers = frozenset({"sample", "normal", "styles"})

    def __init__(self, recording: Recording) -> None:
        super().__init__(channels=3, size=16)
        config, draws = recording.config, recording.draws
        self.rows, self.normal_width = config["num_ws"], config["nz"]
        self.mapping = nn.ModuleDict({"lin": nn.Linear(self.normal_width, self.normal_width)})
        self.synthesis = nn.ModuleDict({"lin": nn.Linear(self.rows * self.normal_width, 3 * 16 * 16)})
        draws.fill(self, "G/", config["gain"])

    def of_normal(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.mapping["lin"](noise))

    def decode(self, latents: Tensor) -> Tensor:
        """In [0, 1], as our priors; the original's are twice that, less 1."""
        drawn = 1.5 * torch.tanh(self.synthesis["lin"](latents.flatten(1)))
        return drawn.unflatten(1, (3, 16, 16)) / 2 + 0.5


class Rescaled(nn.Module):
    """The stand-in for the target, which sees [-1, 1]."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        config = recording.config
        self.inner = recording.draws.fill(TinyClassifier(config["classes"], 3), "T/", config["gain"])

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        return self.inner(2 * images - 1, taps)


class Recorded:
    """Recorded noise in place of a miner's own draws, step by step."""

    def take(self, recording: Recording) -> Recorded:
        self.recording, self.step, self.looked = recording, 0, False
        return self

    def noise(self, draws: int, rng: object, shared: bool) -> Noise:
        step, own = self.step, "" if shared else "kl_"
        get = lambda key: self.recording[key][step]  # noqa: E731
        rows = [f"flow{row}/" for row in range(self.layers)]
        first = [get("z_identity") if shared else get(f"{row}kl_e") for row in rows]
        splits = [torch.stack([get(f"{row}{own}noise_{which}") for row in rows]) for which in ("deep", "shallow")]
        return (torch.stack(first)[..., : self.last_width], *splits)


class RecordedFlow(Recorded, Flow):
    pass


class RecordedGaussian(Recorded, GaussianMiner):
    def noise(self, draws: int, rng: object, shared: bool) -> Noise:
        if shared:
            return (self.recording["z_identity"][self.step].expand(self.layers, -1, -1),)
        tag, start = self.recording.config["tag"], int(self.recording["first_kl_draw_index"])
        each = 2 + self.layers  # draws per step: of the nuisance, of the samples, and a divergence's per row
        numbers = [start + self.step * each + row for row in range(self.layers)]
        named = [
            self.recording.draws.stream(f"{tag}/draw{n}").standard_normal((self.draws, self.width)) for n in numbers
        ]
        return (torch.stack([torch.from_numpy(each).float() for each in named]),)


class GivenMiner(Family):
    """A family whose one miner is filled already."""

    def __init__(self, miner: Miner) -> None:
        self.given = miner

    def miner(self, *arguments: object) -> Miner:
        return self.given


def searched(recording: Recording, miner: Miner) -> SearchAttack:
    """VMI's layered attack under the recorded numbers, with what was drawn in them."""
    config = recording.config
    attack = {"layeredflow": "vmi", "layeredminegan": "vmi_layered_gaussian"}[config["method"]]
    some = config["l_identity"] if len(config["l_identity"]) < config["num_ws"] else None
    changes = {
        "search.optimizer.lr": config["lr"],
        "search.optimizer.momentum": config["momentum"],
        "search.steps": config["steps"],
        "search.batch_size": config["batch"],
        "search.penalty": config["lambda_kl"],
        "search.rows": "null" if some is None else str(some).replace(" ", ""),
    }
    words = [f"attack={attack}", *(f"attack.{name}={value}" for name, value in changes.items())]
    built = bind(compose("attack", words)[0]["attack"], "attack").build()
    built.search.family = GivenMiner(miner)
    built.search.others = lambda count, width, rng: recording["z_nuisance"][miner.step]
    built.init = Given(torch.zeros(config["batch"], config["num_ws"], config["nz"]), config["batch"])
    return built


@replays("vmi_layered*")
def layered(recording: Recording) -> Iterator[Entry]:
    """Twenty steps of a distribution per row, under recorded draws."""
    config = recording.config
    if config["method"] == "layeredflow":
        miner = flow_of(config, config["num_ws"], RecordedFlow)
        orders = [
            [recording[f"perm/{row}/{i}"] for i in range(config["K"] * config["L"])] for row in range(miner.layers)
        ]
        fill(miner, recording.draws, orders)
        start = originals(recording.draws, miner)
    else:
        miner = RecordedGaussian(targets=1, layers=config["num_ws"], width=config["nz"], draws=1000).double()
        with torch.no_grad():
            for row in range(miner.layers):
                miner.mean[row] = recording[f"mvn{row}/m0"]
                miner.factor[row] = recording[f"mvn{row}/L0"]
        start = None
    miner.take(recording)
    attack = searched(recording, miner)
    yield from _steps(recording, attack, miner, start)


class Kept:
    """A function that keeps what it gave."""

    def __init__(self, inner: Callable[..., Tensor]) -> None:
        self.inner, self.kept = inner, []

    def __call__(self, *given: object) -> Tensor:
        got = self.inner(*given)
        self.kept.append(got.detach())
        return got


def _steps(recording: Recording, attack: SearchAttack, miner: Miner, start: list | None) -> Iterator[Entry]:
    config, prior = recording.config, StandIn(recording).requires_grad_(False)
    oracle = Oracle(Rescaled(recording), attack.access)
    divergences, rows, attacked = Kept(attack.search.divergence), Kept(miner.divergence), []
    attack.search.divergence, miner.divergence = divergences, rows
    evidence = Evidence(torch.tensor([config["label"]]), torch.arange(1))
    for found in attack.recover({}, prior, oracle, evidence, seeds.generator("golden")):
        if found.stage == "initial":
            continue
        miner.step += 1
        attacked.append(found.loss.double().mean())
        yield from _tables(recording, miner, start)
        for key, got in (("w", found.latents), ("x", 2 * prior.decode(found.latents) - 1)):
            if (name := f"{key}{miner.step}") in recording:
                yield recording.compare(name, thumbnails(got, 4) if key == "x" else got)
        if miner.step == config["steps"]:
            break
    kl = torch.stack(divergences.kept)[:, 0]
    if "kl_per_flow" in recording:
        yield recording.compare("kl_per_flow", torch.stack(rows.kept))
    if attack.search.rows is None:
        recording.leave_out("z_nuisance", "all rows come from q")
    if start is None:  # the original leaves out a constant
        kl = kl + miner.layers * miner.width / 2
    yield recording.compare("attack", torch.stack(attacked))
    yield recording.compare("kl", kl)
    yield recording.compare("total", torch.stack(attacked) + config["lambda_kl"] * kl)


@torch.no_grad()
def _tables(recording: Recording, miner: Miner, start: list | None) -> Iterator[Entry]:
    """Norms of the gradients and of the parameters after a step, where they are recorded, and parameters themselves."""
    names, step = recording.config["names"], miner.step
    grads, values = [], []
    for row in range(miner.layers):
        if start is None:
            grads += [miner.mean.grad[row], miner.factor.grad[row]]
            values += [miner.mean[row], miner.factor[row]]
            continue
        for name, tensor in published(miner).items():
            grads.append(tensor.grad[row])
            values.append(_with_centre(start[row][name], tensor[row]))
    if (key := f"grad_norm{step}") in recording:
        yield recording.compare_rows(key, torch.stack([grad.norm() for grad in grads]), names)
    if (key := f"sum_norm{step}") in recording:
        rows = [torch.stack([value.double().sum(), value.double().norm()]) for value in values]
        yield recording.compare_rows(key, torch.stack(rows), names)
    for row in range(miner.layers):
        for key, tensor in (("m", "mean"), ("L", "factor")):
            if (name := f"mvn{row}/{key}{step}") in recording:
                yield recording.compare(name, getattr(miner, tensor)[row])


def _with_centre(original: Tensor, ours: Tensor) -> Tensor:
    """The original's parameter with its centre moved to where ours is; what is around it takes no part."""
    moved = original.double().clone()
    if moved.dim() == 4 and moved.shape[0] > 1:
        middle = moved.shape[-1] // 2
        moved[:, :, middle, middle] = ours.T
        return moved
    return ours
