"""What BiDO adds to a step of training: ours against plain cross-entropy, and against an implementation as the
published ports have it (kernels and inverses on the CPU, anew for every layer), on VGG16 at 64 px, batches of 64.

    python benchmarks/bido.py --device cpu --write
    python benchmarks/bido.py --device cuda --write

All three take one forward, backward and update of the same network and batch. Repeats are interleaved, so that a busy
machine slows all; medians are compared. On a CPU processor time is counted, since beside a step the terms are small:
what others do on the machine would otherwise be most of the difference. There nothing moves between devices, and even
terms that cost nothing could not make the step much faster, which the page says in numbers: the ratio that matters is
a GPU's.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.architectures.vgg import VGG16
from midefense.defenses.base import Defense, NoDefense
from midefense.defenses.bido import BiDO
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Recipe
from midefense.types import Batch, Trace

CLASSES, IMAGES, BATCH = 1000, 4, 64
SIGMA, EPS = 5.0, 1e-5
REPORTS = {"cpu": Path(__file__).with_suffix(".md"), "cuda": Path(__file__).with_name("bido_on_a_gpu.md")}


class PerLayer(Defense):
    """nHSIC as it is published: for every layer all kernels and inverses again, on the CPU, in float32."""

    coupled = True

    def rebuild(self, model, origin=None):
        self.taps = model.tap_names
        return model

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        """The terms at lambdas .05 and .5."""
        images, labels = batch.images.flatten(1), F.one_hot(batch.labels, CLASSES).float()
        total = 0.0
        for name in self.taps:
            hidden = trace.taps[name].flatten(1)
            total = total + 0.05 * _nhsic(hidden, images, "gaussian") - 0.5 * _nhsic(hidden, labels, "linear")
        return {"bido": total.to(batch.images.device)}


def _nhsic(left: Tensor, right: Tensor, kernel: str) -> Tensor:
    count = len(left)
    centring = (torch.eye(count) - torch.ones(count, count) / count).cpu()
    operators = []
    for rows, kind in ((left.cpu(), "gaussian"), (right.cpu(), kernel)):
        gram = rows @ rows.T
        if kind == "gaussian":
            squares = gram.diagonal()
            gram = torch.exp(-(squares[:, None] - 2 * gram + squares).abs() / (2 * SIGMA**2 * rows.shape[1]))
        centred = gram @ centring
        operators.append(centred @ torch.inverse(centred + EPS * count * torch.eye(count)))
    return (operators[0] * operators[1].T).sum()


def trainer(defense: Defense, device: torch.device) -> Trainer:
    """VGG16 under a defense, in training."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator=device.type, devices=1)
    with seeds.isolated("benchmark", "bido"):
        model = assemble(VGG16(classes=CLASSES, channels=3), defense, seed=0)
    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    made = Trainer(model, defense, Recipe(epochs=1, batch_size=BATCH, optimizer=adam), fabric)
    made.begin_epoch(0)
    return made


def batch(device: torch.device) -> Batch:
    """16 classes with 4 images each."""
    rng = seeds.generator("benchmark", "batch")
    images = torch.rand(BATCH, 3, 64, 64, generator=rng).to(device)
    labels = torch.arange(BATCH // IMAGES).repeat_interleave(IMAGES).to(device)
    return Batch(images, labels, torch.arange(BATCH, device=device), torch.ones(BATCH, device=device), rng)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """What a call takes, with all the device has to do; on a CPU of processor time, over all threads."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def measure(device: torch.device, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a step, and of the terms alone with their backward, per way and repeat."""
    ours = BiDO(measure="hsic", lambda_x=0.05, lambda_y=0.5)
    ways = {"cross-entropy": NoDefense(), "BiDO, ours": ours, "BiDO, per layer on the CPU": PerLayer()}
    images = batch(device)
    trainers = {name: trainer(defense, device) for name, defense in ways.items()}

    def terms(defense: Defense) -> Callable[[], object]:
        with torch.no_grad():
            trace = trainers["BiDO, ours"].model(images.images, taps=ours.taps)
        taps = {name: tap.detach().requires_grad_() for name, tap in trace.taps.items()}
        known = Trace(trace.logits, trace.features, taps)
        return lambda: sum(defense.losses(known, images).values()).backward()

    steps = {name: functools.partial(made.train, images, 0, 0, 0) for name, made in trainers.items()}
    alone = {name: terms(defense) for name, defense in ways.items() if name != "cross-entropy"}
    found = []
    for runs in (steps, alone):
        for run in runs.values():
            run()  # warm
        laps = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
        found.append({name: [lap[name] for lap in laps] for name in runs})
    return found[0], found[1]


def report(steps: dict[str, list[float]], alone: dict[str, list[float]], device: torch.device) -> str:
    """The page."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    plain = statistics.median(steps["cross-entropy"])
    unit = "ms of processor time" if device.type == "cpu" else "ms"
    lines = [
        "# A training step under BiDO" + (", on a GPU" if device.type == "cuda" else ""),
        "",
        f"`python benchmarks/bido.py --device {device.type} --repeats {len(steps['cross-entropy'])} --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{len(steps['cross-entropy'])} interleaved repeats; median (least to most).",
        "",
        "VGG16 at 64 px, batches of 64 (16 identities x 4), nHSIC on five layers:",
        "",
        f"| way | {unit} per step | of cross-entropy | {unit}, terms and their backward alone |",
        "|---|---|---|---|",
    ]
    for name, values in steps.items():
        own = _spread(alone[name]) if name in alone else "-"
        lines.append(f"| {name} | {_spread(values)} | {statistics.median(values) / plain:.2f} | {own} |")
    terms = [statistics.median(alone[name]) for name in ("BiDO, per layer on the CPU", "BiDO, ours")]
    whole = [statistics.median(steps[name]) for name in ("BiDO, per layer on the CPU", "BiDO, ours")]
    lines += ["", f"Per layer against ours: steps {whole[0] / whole[1]:.2f}, terms alone {terms[0] / terms[1]:.2f}."]
    if device.type == "cpu":
        most = (plain + terms[0]) / plain
        lines += [
            f"With terms that cost nothing the ratio of the steps would be {most:.2f}: the network is all the rest."
        ]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    middle, least, most = (1e3 * each for each in (statistics.median(values), min(values), max(values)))
    return f"{middle:.1f} ({least:.1f} to {most:.1f})"


def main() -> None:
    """Measure, print, and write the page where `--write` is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the page of this kind of device")
    options = parser.parse_args()
    device = torch.device(options.device)
    page = report(*measure(device, options.repeats), device)
    print(page)
    if options.write:
        REPORTS[device.type].write_text(page)


if __name__ == "__main__":
    main()
