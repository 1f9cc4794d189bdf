"""What a GPU does with today's code: known answers, the same bits twice, and speed and memory beside the formulations
of the originals, as ratios of one run.

    python benchmarks/gpu.py --write                          # all parts, at most seven minutes
    python benchmarks/gpu.py --parts ppa,gmi --reference DIR  # some; DIR holds recorded answers (stylegan2_*.npz)

Every part runs in a process of its own, under a time limit of its own, and tells a row as soon as it is measured: a
limit costs the row that was being measured. docs/compute.md says what a bare machine needs. `--tiny` takes shapes that
a CPU can do, to see that the script runs: its numbers say nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.architectures.vgg import VGG16
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, Poincare, Realism, Weighted, WeightedSum, poincare
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything
from midefense.attacks.views import RandomResizedCrop
from midefense.compute import repeat_exactly
from midefense.oracle import Oracle
from midefense.precision import rounded
from midefense.priors.base import Prior
from midefense.priors.gmi import GmiGan
from midefense.priors.stylegan2.generator import StyleGan2Config
from midefense.priors.stylegan2.prior import Crop, StyleBased, StyleGan2Trained
from midefense.resampling import cropped_by_taps, resized_by_taps, turned_by_taps
from midefense.types import Evidence, Images

ANY_ORDER = "kernels that add in any order"  # what repeating itself costs is seen beside them
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REPORT = HERE / "gpu.md"


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, and how it stands to what it is compared with."""

    part: str
    what: str
    value: str
    ratio: str = ""


@dataclass(frozen=True)
class Bench:
    """What a part is told: the device, whether shapes are tiny, and where recorded answers lie (None: nowhere)."""

    device: torch.device
    tiny: bool
    reference: Path | None

    def pick(self, full: object, tiny: object) -> object:
        return tiny if self.tiny else full

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Median seconds of a call, after one that warms up."""
        work()
        spent = []
        for _ in range(repeats or self.pick(5, 1)):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            spent.append(time.perf_counter() - started)
        return statistics.median(spent)

    def peak(self, work: Callable[[], object], rows: int = 1) -> str:
        """GiB that a call takes at its peak beyond what is held before, and for each of `rows`; "" on a CPU."""
        if self.device.type != "cuda":
            return ""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        gib = (torch.cuda.max_memory_allocated(self.device) - before) / 2**30
        return f", {gib:.1f} GiB at the peak" + (f", {gib / rows:.2f} an image" if rows > 1 else "")


# known answers ---------------------------------------------------------------------------------------------------


def correct(bench: Bench) -> Iterator[Row]:
    """Networks against the CPU's float64, and against recorded answers of the originals where they are at hand."""
    for name, (network, inputs) in networks(bench).items():
        with torch.no_grad():
            exact = network.cpu().double()(inputs.double())  # a part of the one before may have been moved
            got = network.float().to(bench.device)(inputs.to(bench.device))
        yield Row("correct", f"{name}, float32, against the CPU's float64", f"{relative(got, exact):.1e}")
    for file in sorted(bench.reference.glob("stylegan2_*.npz")) if bench.reference else ():
        yield Row("correct", f"{file.stem}, images and gradients against the original", f"{recorded(bench, file):.1e}")


def networks(bench: Bench) -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks whose output is a tensor, and what they are shown."""
    size, width = bench.pick(64, 32), bench.pick(64, 4)
    with seeds.isolated("gpu", "networks"):
        gan = GmiGan(channels=3, size=size, width=width).eval()
        wide = {"channel_base": width * 32, "channel_max": width}
        style = StyleGan2Trained(channels=3, size=size, latent_size=32, **wide).eval()
        rows, images = torch.randn(2, 32), torch.rand(2, 3, size, size)
        classifier = bench.pick(
            lambda: VGG16(classes=10, channels=3, size=64),
            lambda: CNN(classes=10, channels=3, size=size, widths=[4, 4]),
        )()
        return {
            "GMI's generator": (gan.generator, torch.randn(2, 100)),
            "GMI's critic": (gan.critic, images),
            "StyleGAN2's synthesis": (_Drawn(style), rows),
            "StyleGAN2's critic": (style.critic, images * 2 - 1),
            "the target": (_Logits(classifier.eval()), images),
        }


class _Drawn(nn.Module):
    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior

    def forward(self, latents: Tensor) -> Tensor:
        return self.prior.draw(latents)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def relative(got: Tensor, exact: Tensor) -> float:
    """The largest error, of the largest value."""
    return float((got.detach().cpu().double() - exact).abs().max() / exact.abs().max())


def recorded(bench: Bench, file: Path) -> float:
    """The worst relative error of a recording of StyleGAN2."""
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    from pieces.recording import recordings
    from pieces.stylegan2 import generator_of, truncation

    worst = 0.0
    for recording in recordings(file):
        network = generator_of(recording).to(bench.device)
        latents = recording["io/z"].to(bench.device)
        labels = recording["io/c"].to(bench.device) if recording.config["c_dim"] else None
        for key in recording.keys("io/img_*") + recording.keys("io/grad_w_*"):
            noise = key.removeprefix("io/img_").removeprefix("io/grad_w_").split("_")[0]
            ws = network.styles(latents, labels, **truncation(key)).detach().requires_grad_()
            images = network.synthesis(ws, noise=noise)[1]
            got = images if key.startswith("io/img") else torch.autograd.grad(images.square().mean(), ws)[0]
            worst = max(worst, relative(got, recording[key].double()))
    return worst


# the same bits twice ---------------------------------------------------------------------------------------------


def repeat(bench: Bench) -> Iterator[Row]:
    """One command: twice, killed and resumed, and by two processes at once. All of them run beside each other: what
    else a GPU does must not change a bit."""
    with tempfile.TemporaryDirectory() as folder:
        command = functools.partial(attack_command, bench)
        first, again, killed, shared = (Path(folder) / name for name in ("first", "again", "killed", "shared"))
        whole = [begun(command(first)), begun(command(again))]
        both = [begun(command(shared)) for _ in range(2)]
        kill_after(begun(command(killed)), killed / "target")
        resumed = begun(command(killed))
        for process in whole:
            finish(process)
        yield Row("repeat", "the same command twice", same(first, again))
        finish(resumed)
        yield Row("repeat", "killed once the target is there, and resumed", same(first, killed))
        for process in both:
            finish(process)
        yield Row("repeat", "two processes on one store", same(first, shared))


def attack_command(bench: Bench, store: Path) -> list[str]:
    """The whole of a small study: a target, a StyleGAN2 and Plug & Play; or what a CPU does in seconds."""
    full = [
        "dataset=synthetic_faces",
        "architecture=cnn",
        "attack=ppa_small",
        "recipe.epochs=3",
        "prior.steps=60",
        "prior.unit=20",
        "attack.init.size=100",
        "attack.init.candidates=4",
        "attack.search.steps=10",
        "attack.select.keep=2",
        "attack.group=10",
    ]
    tiny = ["dataset=toy", "architecture=mlp", "recipe.epochs=1", "attack=pool_small", "dataset.size=32"]
    tiny += ["prior.width=1", "prior.latent_size=4", "prior.steps=4", "prior.unit=2", "prior.batch_size=8"]
    tiny += ["attack.init.size=20", "attack.init.candidates=2", "attack.search.steps=3", "attack.select.keep=1"]
    words = bench.pick(full, tiny)
    where = {"cuda": "compute.accelerator=cuda"}.get(bench.device.type, "compute=cpu")
    return [sys.executable, str(ROOT / "attack.py"), *words, where, "tracking=none", f"store={store}"]


def begun(command: list[str]) -> subprocess.Popen:
    """A command that goes on in a process; what it tells of its way is still told."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen) -> None:
    """Wait for a command; a failed one ends the part."""
    if process.wait():
        raise SystemExit(f"{' '.join(process.args[1:3])} ... failed with exit code {process.returncode}")


def kill_after(process: subprocess.Popen, folder: Path) -> None:
    """Kill a process, without a chance to save, as soon as there is a finished artefact in `folder`."""
    while process.poll() is None and not list(folder.glob("*/provenance.json")):
        time.sleep(0.05)
    if process.poll() is not None:
        raise SystemExit("the command ended before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()


def same(one: Path, other: Path) -> str:
    """Whether two stores hold the same tensors, to the bit; otherwise what differs."""
    from safetensors.torch import load_file

    names = [{file.relative_to(store) for file in store.glob("*/*/tensors.safetensors")} for store in (one, other)]
    if not names[0] or names[0] != names[1]:
        return "NOT the same artefacts"
    gaps = {name: gap(load_file(one / name), load_file(other / name)) for name in sorted(names[0])}
    apart = [f"{name.parts[0]} by {largest:.1e}" for name, largest in gaps.items() if largest]
    return f"NOT equal: {', '.join(apart)}" if apart else f"{len(gaps)} artefacts, equal to the bit"


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between tensors of the same names; infinite where names, shapes or NaNs are others."""
    if {name: tensor.shape for name, tensor in one.items()} != {name: tensor.shape for name, tensor in other.items()}:
        return float("inf")
    largest = 0.0
    for name, tensor in one.items():
        if not torch.equal(tensor.isnan(), other[name].isnan()):
            return float("inf")
        apart = tensor.nan_to_num().double() - other[name].nan_to_num().double()
        largest = max(largest, float(apart.abs().max()) if apart.numel() else 0.0)
    return largest


# crops, turns and resizes ----------------------------------------------------------------------------------------


def crops(bench: Bench) -> Iterator[Row]:
    """Sums in a fixed order beside torch's own, forward and backward, and whether gradients repeat themselves."""
    side, count = bench.pick((224, 50), (16, 2))
    images = torch.rand(count, 3, side, side, device=bench.device).requires_grad_()
    view = RandomResizedCrop(scale=(0.5, 0.9), ratio=(0.8, 1.2), flip=0.5)
    boxes = view.draw(count, torch.Generator().manual_seed(0)).to(bench.device)
    angles = torch.linspace(-0.1, 0.1, count, device=bench.device)
    half = side // 2
    ways = {
        f"crop at {side} px": (lambda x: cropped_by_taps(x, boxes, view.smallest), lambda x: by_grid(x, boxes)),
        f"turn at {side} px": (lambda x: turned_by_taps(x, angles), lambda x: by_turned_grid(x, angles)),
        f"{side} to {half} px": (
            lambda x: resized_by_taps(x, half, half),
            lambda x: F.interpolate(x, size=(half, half), mode="bilinear", antialias=True),
        ),
    }
    for name, (ours, theirs) in ways.items():
        mine, other = (bench.seconds(functools.partial(both_ways, way, images)) for way in (ours, theirs))
        repeats = both_ways(ours, images).equal(both_ways(ours, images))
        value = f"{1e3 * mine:.2f} ms, gradient {'the same twice' if repeats else 'NOT the same twice'}"
        yield Row("crops", name, value, f"{other / mine:.2f} times as fast as torch's own")


def both_ways(way: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient of the mean square."""
    return torch.autograd.grad(way(images).square().sum(), images)[0]


def by_grid(images: Tensor, boxes: Tensor) -> Tensor:
    width, height, x, y = boxes.unbind(1)
    zero = torch.zeros_like(width)
    affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def by_turned_grid(images: Tensor, angles: Tensor) -> Tensor:
    sine, cosine, zero = angles.sin(), angles.cos(), torch.zeros_like(angles)
    affine = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    return F.grid_sample(images, F.affine_grid(affine, list(images.shape), align_corners=True), align_corners=True)


# Plug & Play at 1024 px ------------------------------------------------------------------------------------------


def ppa(bench: Bench) -> Iterator[Row]:
    """A step of Plug & Play: FFHQ's generator, a crop of 800, ResNet-152 at 224 px, Poincaré loss, Adam."""
    rows, steps = bench.pick((25, 3), (2, 1))
    prior, target = ppa_world(bench)
    exact = functools.partial(ppa_by_hand, bench, prior, target, rows, steps, reference=False)
    original = functools.partial(ppa_by_hand, bench, prior, target, rows, steps, reference=True)
    slow = rows * steps / bench.seconds(original, 1)
    yield Row("ppa", "the original's formulation, bare loop, 32-true", f"{slow:.1f} images/s", "1")
    bare = rows * steps / bench.seconds(exact, 1)
    yield Row("ppa", "ours, bare loop, 32-true", f"{bare:.1f} images/s", f"{bare / slow:.2f}")
    oracle = Oracle(target, "whitebox")  # it copies the network: once for all
    settings = {name: {"precision": name} for name in ("32-true", "tf32", "bf16-mixed")}
    for name in ("tf32", "bf16-mixed"):
        settings[f"{name}, channels_last"] = {"precision": name, "channels_last": True}
    settings["half_blocks=4, tf32"] = {"precision": "tf32", "half_blocks": 4}
    settings["bf16-mixed, checkpoint"] = {"precision": "bf16-mixed", "checkpoint": True}
    settings[f"bf16-mixed, {ANY_ORDER}"] = {"precision": "bf16-mixed"}
    settings["bf16-mixed, 50 at once"] = {"precision": "bf16-mixed", "rows": 2 * rows}
    for name, how in settings.items():
        rows = how.get("rows", rows)
        options = {key: how[key] for key in ("precision", "channels_last") if key in how}
        prior.generator.synthesis.half_blocks = how.get("half_blocks", 0)
        prior.generator.synthesis.checkpoint = how.get("checkpoint", False)
        work = functools.partial(by_engine, bench, prior, oracle, rows, steps, **options)
        with in_any_order(name):
            fast = rows * steps / bench.seconds(work, 2)
        yield Row("ppa", f"engine, {name}", f"{fast:.1f} images/s{bench.peak(work, rows)}", f"{fast / slow:.2f}")


def ppa_world(bench: Bench) -> tuple[StyleBased, nn.Module]:
    """A frozen prior and target of the paper's shapes, with random weights."""
    with seeds.isolated("gpu", "ppa"):
        small = {"resolution": 16, "z_dim": 8, "w_dim": 8, "channel_base": 64, "channel_max": 8}
        config = StyleGan2Config(**bench.pick({}, small))
        size = bench.pick(224, 16)
        prior = StyleBased(
            channels=3, size=size, config=config, crop=Crop(800, 1024), checkpoint=False, critic=False, half_blocks=0
        )
        target = bench.pick(resnet152, lambda: CNN(classes=530, channels=3, size=size, widths=[4, 4]))()
    return tuple(network.to(bench.device).eval().requires_grad_(False) for network in (prior, target))


def by_engine(bench: Bench, prior: Prior, target: Oracle, rows: int, steps: int, **options: object) -> Tensor:
    """Latents after `steps` of the attack on `rows` targets, a candidate each."""
    search = Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.005, betas=(0.1, 0.1)), steps=steps)
    attack = SearchAttack(
        init=Random(candidates=1), objective=Poincare(), search=search, select=Everything(), group=rows, **options
    )
    evidence = Evidence(torch.arange(rows), torch.arange(rows))
    *_, found = attack.recover({}, prior, target, evidence, seeds.generator("gpu"))
    return found.latents


def ppa_by_hand(
    bench: Bench, prior: StyleBased, target: nn.Module, rows: int, steps: int, *, reference: bool
) -> Tensor:
    """The same as one would write it in a script; `reference`: with the generator as the original formulates it."""
    latents = prior.sample(rows, seeds.fork(seeds.generator("gpu"), "init")).to(bench.device).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.005, betas=(0.1, 0.1))
    labels = torch.arange(rows, device=bench.device)
    draw = stylegan2_benchmark().reference if reference else lambda generator, ws: generator.synthesis(ws)[1]
    for _ in range(steps):
        optimizer.zero_grad()
        images = prior.frame(draw(prior.generator, latents).add(1).div(2))
        poincare(target(images).logits, labels).sum().backward()
        optimizer.step()
    return latents.detach()


@functools.cache
def stylegan2_benchmark() -> object:
    """The script beside this one, which has the original's formulation."""
    spec = importlib.util.spec_from_file_location("stylegan2_benchmark", HERE / "stylegan2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# training a StyleGAN2 --------------------------------------------------------------------------------------------


def stylegan2(bench: Bench) -> Iterator[Row]:
    """Updates of a StyleGAN2 at 64 px, the lazy penalty included."""
    batch, steps = bench.pick((64, 32), (4, 1))  # full: each step is seen, warmed up and recorded before it is timed
    first = None
    for name, options in {
        "32-true": {},
        "tf32": {"precision": "tf32"},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "tf32, half_blocks=4": {"precision": "tf32", "half_blocks": 4, "conv_clamp": 256.0},
        f"tf32, {ANY_ORDER}": {"precision": "tf32"},
    }.items():
        with in_any_order(name):
            fast = batch * steps / training_seconds(bench, batch, steps, options)
        first, what = first or fast, f"training at {bench.pick(64, 16)} px, {name}"
        yield Row("stylegan2", what, f"{fast:.0f} images/s", f"{fast / first:.2f}")


def training_seconds(bench: Bench, batch: int, steps: int, options: dict[str, object]) -> float:
    """Seconds of `steps` updates after as many that warm up."""
    size = bench.pick(64, 16)
    with seeds.isolated("gpu", "stylegan2"):
        prior = StyleGan2Trained(
            channels=3,
            size=size,
            latent_size=bench.pick(256, 8),
            channel_base=bench.pick(4096, 64),
            channel_max=bench.pick(256, 8),
            steps=3 * steps,
            batch_size=batch,
            unit=steps,
            **options,
        ).to(bench.device)
        pixels = torch.randint(256, (256, 3, size, size), dtype=torch.uint8)
    public = Images(pixels, torch.zeros(256, dtype=torch.int64), torch.arange(256), ["public"])
    work = prior.fit(public, seed=0)
    next(work), next(work)
    bench.wait()
    started = time.perf_counter()
    next(work)
    bench.wait()
    return time.perf_counter() - started


# GMI at 64 px ----------------------------------------------------------------------------------------------------


def gmi(bench: Bench) -> Iterator[Row]:
    """GMI's inner loop: VGG16-64, generator and critic of the paper, 300 labels of five restarts."""
    labels, restarts, steps = bench.pick((300, 5, 10), (4, 2, 1))
    prior, target = gmi_world(bench)
    rows, at_once = labels * restarts, bench.pick(60, 2)
    original = functools.partial(gmi_by_hand, bench, prior, target, labels, restarts, steps, at_once)
    slow = rows * steps / bench.seconds(original, 1)
    what = f"the original's order, bare: {at_once} labels, a restart at a time"
    yield Row("gmi", f"{what}, 32-true", f"{slow:.0f} images/s", "1")
    with rounded("tf32", bench.device):
        fast = rows * steps / bench.seconds(original, 1)
    yield Row("gmi", f"{what}, tf32 (torch's default for convolutions)", f"{fast:.0f} images/s", f"{fast / slow:.2f}")
    oracle = Oracle(target, "whitebox")
    for name, options in {
        "all at once, 32-true": {},
        f"groups of {at_once} labels, 32-true": {"labels": at_once},
        "all at once, tf32": {"precision": "tf32"},
        f"all at once, tf32, {ANY_ORDER}": {"precision": "tf32"},
        "all at once, bf16-mixed": {"precision": "bf16-mixed"},
        "all at once, tf32, channels_last": {"precision": "tf32", "channels_last": True},
        **({} if bench.tiny else {"all at once, tf32, compile": {"precision": "tf32", "compile": True}}),
    }.items():
        options = {"labels": labels, **options}
        work = functools.partial(gmi_by_engine, bench, prior, oracle, restarts=restarts, steps=steps, **options)
        with in_any_order(name):
            fast = options["labels"] * restarts * steps / bench.seconds(work, 1)
        yield Row("gmi", f"engine, {name}", f"{fast:.0f} images/s", f"{fast / slow:.2f}")


def gmi_world(bench: Bench) -> tuple[GmiGan, nn.Module]:
    """A frozen prior and target of the paper's shapes, with random weights."""
    with seeds.isolated("gpu", "gmi"):
        prior = GmiGan(channels=3, size=bench.pick(64, 32), width=bench.pick(64, 2))
        target = bench.pick(
            lambda: VGG16(classes=1000, channels=3, size=64),
            lambda: CNN(classes=1000, channels=3, size=32, widths=[4, 4]),
        )()
    return tuple(network.to(bench.device).eval().requires_grad_(False) for network in (prior, target))


SGD = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)


def gmi_by_engine(
    bench: Bench, prior: GmiGan, target: nn.Module, *, labels: int, restarts: int, steps: int, **options: object
) -> Tensor:
    """Latents after `steps` of GMI on one group."""
    terms = {
        "identity": Weighted(loss=CrossEntropy(), weight=100.0),
        "realism": Weighted(loss=Realism(), weight=1.0),
    }
    attack = SearchAttack(
        init=Random(candidates=restarts),
        objective=WeightedSum(terms=terms),
        search=Gradient(optimizer=SGD, steps=steps, reference_batch=60),
        select=Everything(),
        group=labels,
        **options,
    )
    evidence = Evidence(torch.arange(labels), torch.arange(labels))
    *_, found = attack.recover({}, prior, target, evidence, seeds.generator("gpu"))
    return found.latents


def gmi_by_hand(
    bench: Bench, prior: GmiGan, target: nn.Module, labels: int, restarts: int, steps: int, at_once: int
) -> None:
    """As the authors' script: labels in groups, restarts one after the other, the loss read at every step."""
    for wanted in torch.arange(labels, device=bench.device).split(at_once):
        for _ in range(restarts):
            latents = torch.randn(len(wanted), 100, device=bench.device).requires_grad_()
            optimizer = SGD([latents])
            for _ in range(steps):
                images = prior.generator(latents)
                loss = 100 * F.cross_entropy(target(images).logits, wanted) - prior.critic(images).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()


# the engine ------------------------------------------------------------------------------------------------------


def engine(bench: Bench) -> Iterator[Row]:
    """The engine beside a bare loop of the same networks, and chunks that are left to the machine."""
    rows, steps = bench.pick((256, 20), (3, 1))
    spec = importlib.util.spec_from_file_location("engine_benchmark", HERE / "attack_engine.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # its dataclasses look themselves up
    spec.loader.exec_module(script)
    world = script.make_world(bench.device, width=bench.pick(64, 4))
    loops = (script.through_the_engine, script.by_hand)
    ours, bare = (bench.seconds(functools.partial(loop, world, rows, steps)) for loop in loops)
    value = f"{1e3 * ours / steps:.2f} ms a step"
    yield Row("engine", f"{rows} rows of GMI at 32 px", value, f"{ours / bare:.3f} times as long as bare")
    prior, target = ppa_world(bench)
    many = bench.pick(200, 6)
    work = functools.partial(
        by_engine, bench, prior, Oracle(target, "whitebox"), many, 1, chunk="auto", precision="bf16-mixed"
    )
    fast = many / bench.seconds(work, 1)
    value = f"{fast:.1f} images/s{bench.peak(work)}"
    yield Row("engine", f"{many} rows of Plug & Play, chunk=auto, bf16-mixed", value)


# optimisers ------------------------------------------------------------------------------------------------------


def optimisers(bench: Bench) -> Iterator[Row]:
    """Adam over latents and over the weights of a small GAN: torch's default, one parameter at a time, fused."""
    steps = bench.pick(100, 2)
    shapes = {"25 styles": [(25, 512)], "a GAN's 60 tensors": [(64, 64, 3, 3)] * 30 + [(64,)] * 30}
    for name, sizes in shapes.items():
        usual = None
        ways = {"torch's default": {}, "foreach=False": {"foreach": False}, "fused": {"fused": True}}
        for way, options in ways.items():
            weights = [torch.randn(size, device=bench.device).requires_grad_() for size in sizes]
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            optimizer = torch.optim.Adam(weights, lr=1e-3, **options)
            spent = bench.seconds(lambda optimizer=optimizer: [optimizer.step() for _ in range(steps)]) / steps
            usual = usual or spent
            yield Row("optimisers", f"Adam, {name}, {way}", f"{1e6 * spent:.0f} us a step", f"{spent / usual:.2f}")


@contextmanager
def in_any_order(name: str) -> Iterator[None]:
    """Within it kernels need not repeat themselves, for a row whose name says so."""
    repeats = torch.are_deterministic_algorithms_enabled()
    if ANY_ORDER in name:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(repeats, warn_only=True)


def resnet152() -> nn.Module:
    """Plug & Play's target for FaceScrub."""
    from midefense.architectures.resnet import ResNet

    return ResNet(variant="resnet152", classes=530, channels=3, size=224)


# running the parts -----------------------------------------------------------------------------------------------

PARTS = {  # and the seconds each may take, 420 in all
    "correct": (correct, 35),
    "crops": (crops, 25),
    "gmi": (gmi, 45),
    "ppa": (ppa, 70),
    "stylegan2": (stylegan2, 60),
    "engine": (engine, 35),
    "optimisers": (optimisers, 20),
    "repeat": (repeat, 130),
}


def run_part(name: str, bench: Bench, tell: Callable[[Row], None]) -> None:
    """One part in this process; rows are told as they come."""
    if bench.device.type == "cuda":
        repeat_exactly()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for row in PARTS[name][0](bench):
        tell(row)


def in_a_process(name: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of one part, as far as it came within its time, and a last one where it did not come to its end."""
    file = folder / f"{name}.jsonl"
    command = [sys.executable, str(Path(__file__).resolve()), "--rows-of", name, "--rows", str(file)]
    command += ["--device", options.device]
    command += ["--reference", str(options.reference)] if options.reference else []
    command += ["--tiny"] if options.tiny else []
    limit = options.limit or PARTS[name][1]
    process = subprocess.Popen(command, start_new_session=True, env=environment())
    why = ""
    try:
        if process.wait(limit):
            why = f"failed with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        why = f"stopped after {limit:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            process.wait()
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    return [*rows, Row(name, "(not all)", why)] if why else rows


def environment() -> dict[str, str]:
    """This process's, with the package of this checkout first."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *([known] if known else [])])}


def report(rows: list[Row], device: torch.device, tiny: bool) -> str:
    """The table as markdown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, a CPU"
    lines = [
        "# On a GPU",
        "",
        f"`python benchmarks/gpu.py --parts {','.join(dict.fromkeys(row.part for row in rows))} --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {name}; torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {platform.python_version()}{'; tiny shapes, which say nothing of speed' if tiny else ''}.",
        "",
        "| part | what | measured | beside the first of its kind |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(f"| {row.part} | {row.what} | {row.value} | {row.ratio} |" for row in rows)]) + "\n"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; they run in the order given")
    parser.add_argument("--limit", type=float, help="seconds a part may take, in place of its own limit")
    parser.add_argument("--reference", type=Path, help="folder with recorded answers (stylegan2_*.npz)")
    parser.add_argument("--tiny", action="store_true", help="shapes for a CPU")
    parser.add_argument("--together", action="store_true", help="all parts in this process, without limits")
    parser.add_argument("--out", type=Path, default=REPORT, help="where --write writes; after every part")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    parser.add_argument("--rows-of", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - PARTS.keys():
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    bench = Bench(torch.device(options.device), options.tiny, options.reference)
    if options.rows_of:
        with options.rows.open("a", buffering=1) as file:
            run_part(options.rows_of, bench, lambda row: print(json.dumps(asdict(row)), file=file))
        return
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        print(f"{row.part}: {row.what}: {row.value}  {row.ratio}", flush=True)
        if options.write:
            options.out.write_text(report(rows, bench.device, options.tiny))

    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts.split(","):
            if options.together:
                run_part(name, bench, tell)
            else:
                for row in in_a_process(name, options, Path(folder)):
                    tell(row)
    print(report(rows, bench.device, options.tiny), end="")


if __name__ == "__main__":
    main()
