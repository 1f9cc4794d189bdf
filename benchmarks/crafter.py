"""What Crafter costs per image, and its implicit step against the original's formulation: 121 terms of a Neumann
series, a double backward each, and a double backward for the mixed derivative.

    python benchmarks/crafter.py --write

Ours looks the same series up in a Krylov space. Ways are interleaved, so that a busy machine slows all alike; medians
are
reported: of CPU seconds of this process on a CPU, of elapsed seconds on a GPU. The networks are by default those of the
paper at 64 px; the generator learns for a few steps from drawn faces, so that its curvature is that of no blank
network.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.resnet import ResNet
from midefense.datasets.synthetic_faces.dataset import SyntheticFaces
from midefense.defenses.crafter import SCALE, Crafter, leaving
from midefense.defenses.crafting import Critic, FictitiousAttacker, World
from midefense.defenses.implicit import Implicit, Linearised, neumann
from midefense.priors.crafter import CrafterGan

REPORT = Path(__file__).with_suffix(".md")
TERMS, ALPHA, INVERSION = 120, 1e-3, 2000.0
UPDATES = 448  # of Crafter on one group, up to the index that is kept
WAYS = {
    "ours, exact Hessian, 20 products": Implicit(hessian="exact", terms=TERMS, alpha=ALPHA, products=20),
    "ours, exact Hessian, 8 products": Implicit(hessian="exact", terms=TERMS, alpha=ALPHA, products=8),
    "Gauss-Newton, term by term": Implicit(terms=TERMS, alpha=ALPHA, products=None),
    "ours, Gauss-Newton, 20 products": Implicit(terms=TERMS, alpha=ALPHA, products=20),
    "ours, Gauss-Newton, 8 products": Implicit(terms=TERMS, alpha=ALPHA, products=8),
}


def original(
    view: Callable[[Tensor], Tensor], latents: Tensor, features: Tensor, weight: float, slope: Tensor
) -> Tensor:
    """-(d2 L_inv / dF dz)^T p as the original's formulas say it (card crafter.md, 4.5d), each derivative by
    autograd."""
    latents, features = latents.detach().requires_grad_(), features.detach().requires_grad_()
    loss = weight * (features - view(latents)).square().sum()
    (first,) = torch.autograd.grad(loss, latents, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad(first, latents, vector, retain_graph=True)[0]

    solved = neumann(product, slope, TERMS, ALPHA)
    return -torch.autograd.grad(first, features, solved)[0]


def world_of(device: torch.device, size: int, width: int, latents: int, steps: int) -> tuple[World, CrafterGan]:
    """The edge up to layer1 of a ResNet-18, and a generator that learned for `steps`."""
    shape = {"channels": 3, "size": size}
    with seeds.isolated("benchmark", "crafter"):
        network = ResNet(variant="resnet18", classes=10, mean=0.0, std=1.0, **shape)
        learned = {"steps": max(1, steps), "batch_size": 32, "unit": max(1, steps)}
        prior = CrafterGan(latent_size=latents, width=width, **learned, **shape).to(device)
    edge = network.split("layer1")[0].to(device).eval().requires_grad_(False)
    if steps:
        faces = SyntheticFaces(
            identities=2, images_per_identity=2, public_identities=8, public_images_per_identity=8, size=size
        )
        for _ in prior.fit(faces.load().public, seed=0):
            pass
    prior.eval().requires_grad_(False)
    starts = {}

    def start(features: Tensor) -> Tensor:
        count = len(features)
        if count not in starts:
            starts[count] = prior.sample(count, seeds.generator("benchmark", "start")).to(device)
        return starts[count]

    return World(edge, prior, start), prior


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes: of this process on a CPU, elapsed on a GPU."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def compared(world: World, network: nn.Module, features: Tensor, search: FictitiousAttacker, repeats: int) -> list[str]:
    """Rows of the implicit step: every way's time, and how far it is from the same series summed term by term."""
    device = features.device
    latents = search(world, features, world.start(features))
    numbers, share = features[0].numel(), world.share(len(features))
    slope, _ = leaving(world, network, latents)
    weight = INVERSION / (numbers * share)
    arguments = (world.view, latents, features, weight, SCALE * slope / share)
    largest = curvature(world, latents, features, weight)
    # the series diverges above 2: as steep as it may be, the same latents are harder
    steep = (*arguments[:3], weight * 1.5 / (ALPHA * largest), arguments[4])
    first = {"original's formulation": lambda given: original(*given)}
    ways = first | {name: lambda given, way=way: way.gradient(*given)[0] for name, way in WAYS.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            spent[name].append(seconds(lambda way=way: way(arguments), device))
    answers = {name: [way(arguments), way(steep)] for name, way in ways.items()}
    medians = {name: statistics.median(times) for name, times in spent.items()}
    base, rows = medians["original's formulation"], []
    for name in ways:
        of = "Gauss-Newton, term by term" if "Gauss" in name else "original's formulation"
        missed = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(answers[name], answers[of], strict=True)]
        faster = statistics.median(a / b for a, b in zip(spent["original's formulation"], spent[name], strict=True))
        errors = "- | -" if name == of else " | ".join(f"{error:.0e}" for error in missed)
        rows.append(f"| {name} | {medians[name] / len(features):.4f} | {faster:.1f} | {errors} |")
        print(rows[-1], flush=True)
    print(f"largest curvature times alpha: {ALPHA * largest:.2g}; {base:.2f} s")
    return [*rows, "", f"The largest curvature times alpha is {ALPHA * largest:.1g} here, and 1.5 in the last column."]


def curvature(world: World, latents: Tensor, features: Tensor, weight: float, steps: int = 12) -> float:
    """The largest eigenvalue of the Gauss-Newton Hessian over the images, by power iteration."""
    with torch.enable_grad():
        graph = Linearised(world.view, latents, features, weight)
        vector = torch.ones_like(latents)
        for _ in range(steps):
            vector = graph.gauss_newton(vector / vector.flatten(1).norm(dim=1, keepdim=True))
    return float(vector.flatten(1).norm(dim=1).max())


def profile(world: World, network: nn.Module, original_features: Tensor) -> list[str]:
    """Seconds per image of each part of an update, and of a whole release."""
    device, count = original_features.device, len(original_features)
    defense = Crafter(
        prior=CrafterGan,
        amortiser=None,
        attacker=FictitiousAttacker(),
        critic=Critic(),
        implicit=WAYS["ours, Gauss-Newton, 20 products"],
    )
    learning, rng = defense.critic.learning(network), seeds.generator("benchmark", "critic")
    held: dict[str, Tensor] = {}

    def search() -> None:
        held["latents"] = defense.search(world, original_features)

    def critic() -> None:
        with torch.no_grad():
            faces, found = world.images(world.start(original_features)), world.images(held["latents"])
        defense.critic.learn(network, learning, faces, found, defense.critic.draws(count, rng))

    def implicit() -> None:
        defense.slope(world, network, held["latents"], original_features, original_features)

    parts = {"the attacker's 80 steps": search, "the critic's 10 steps": critic, "the implicit step": implicit}
    spent = {name: seconds(work, device) / count for name, work in parts.items()}
    total = sum(spent.values())
    rows = [f"| {name} | {one:.3f} | {100 * one / total:.0f} % |" for name, one in spent.items()]
    return [
        *rows,
        f"| **an update** | {total:.3f} | |",
        f"| **a release, {UPDATES} updates** | {UPDATES * total:.0f} | |",
    ]


def main() -> None:
    """Measure, print, and with `--write` keep the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=4, help="released together")
    parser.add_argument("--repeats", type=int, default=3, help="of every way")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--width", type=int, default=64, help="of the generator")
    parser.add_argument("--latents", type=int, default=500)
    parser.add_argument("--prior-steps", type=int, default=40, help="critic steps that the generator learns for")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--to", type=Path, default=REPORT, help="where --write writes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    size = options.size
    world, prior = world_of(device, size, options.width, options.latents, options.prior_steps)
    images = torch.rand(options.images, 3, size, size, generator=seeds.generator("benchmark", "images")).to(device)
    with torch.no_grad():
        features = world.edge(images)
    with seeds.isolated("benchmark", "fresh critic"):
        network = prior.new_critic().to(device).requires_grad_(False)
    implicit = compared(world, network, features, FictitiousAttacker(steps=20), options.repeats)
    costs = profile(world, network, features)
    print("\n".join(costs))
    if not options.write:
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()}), 1 thread"
    how = f"{name}, torch {torch.__version__}, {options.images} images together, {options.repeats} interleaved repeats"
    named = ("device", "images", "repeats", "size", "width", "latents")
    words = " ".join(f"--{name} {getattr(options, name)}" for name in named)
    lines = [
        "# What Crafter costs",
        "",
        f"`python benchmarks/crafter.py {words} --prior-steps {options.prior_steps} --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {how}; medians.",
        "",
        f"The implicit step at {size} px: a ResNet-18 up to layer1, a generator of width {options.width} with",
        f"{options.latents} latents (the paper's: 64 and 500, at 64 px). Errors are relative to the largest entry,",
        "against the same series summed term by term under the same Hessian.",
        "",
        "| way | s per image | times as fast | error | error where it is steep |",
        "|---|---|---|---|---|",
        *implicit,
        "",
        "One update of Crafter, as `defense=crafter` composes it without its amortiser:",
        "",
        "| part | s per image | share |",
        "|---|---|---|",
        *costs,
        "",
    ]
    options.to.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
