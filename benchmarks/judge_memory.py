"""How much memory judging takes: what an attack on FaceScrub or CelebA leaves behind, decoded, shown to every metric
and forgotten a batch at a time.

    python benchmarks/judge_memory.py --write

Networks and priors are cheap stand-ins whose features are as wide as the real ones', since what is held is measured and
not what they cost. Each case runs in a process of its own; private images count nothing, as the pixel cache maps them.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from midefense import metrics
from midefense.datasets.splits import Splits
from midefense.pipeline import judge
from midefense.priors.base import Prior
from midefense.store.artefacts import Draft
from midefense.store.store import Store
from midefense.types import Images, Trace

REPORT = Path(__file__).with_suffix(".md")
DISTINCT = 64  # different private images; more would be told apart by nobody here
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """So many `classes` with `per_class` candidates each (and ten as many private images), of `size` px and `features`
    features; `kernel`: also KID, whose time grows with the square of the images."""

    name: str
    classes: int
    per_class: int
    size: int
    features: int
    kernel: bool


CASES = [
    Case("CelebA, 1,000 people", classes=1000, per_class=10, size=64, features=512, kernel=True),
    Case("FaceScrub, 530 people", classes=530, per_class=50, size=299, features=2048, kernel=False),
]


class Colours(Prior):
    """Latents [B, 512] whose first three numbers are the colour of a plain image."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, 512, generator=rng)

    def decode(self, latents: Tensor) -> Tensor:
        noise = torch.rand(1, 1, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return latents[:, :3, None, None].sigmoid() * noise


class Reduced(nn.Module):
    """A network whose features are a small copy of the image, repeated to `features` numbers."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Trace:
        small = adaptive_avg_pool2d(images, 8).flatten(1)
        features = small.repeat(1, -(-self.features // small.shape[1]))[:, : self.features]
        return Trace(logits=self.head(features), features=features)


class Tiled:
    """Pixels uint8 [N, C, S, S] that repeat a few images: they stand for files that are mapped, not read."""

    def __init__(self, count: int, size: int) -> None:
        rng = torch.Generator().manual_seed(1)
        self.images = torch.randint(256, (DISTINCT, 3, size, size), dtype=torch.uint8, generator=rng)
        self.shape = torch.Size([count, 3, size, size])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.images[torch.arange(len(self))[rows] % DISTINCT]


def splits_of(case: Case) -> Splits:
    """Private images of the case: ten per class to train on, one to test on."""

    def images(per_class: int) -> Images:
        labels = torch.arange(case.classes).repeat_interleave(per_class)
        names = [str(label) for label in range(case.classes)]
        return Images(Tiled(len(labels), case.size), labels, torch.arange(len(labels)), names)

    return Splits(images(max(10, case.per_class)), images(1), images(1))


def measure(case: Case) -> float:
    """MiB at the peak above what the process held before."""
    prior = Colours(channels=3, size=case.size)
    owners = torch.arange(case.classes).repeat_interleave(case.per_class)
    latents = prior.sample(len(owners), torch.Generator().manual_seed(2))
    tensors = {"evidence.labels": torch.arange(case.classes)}
    tensors |= {"selected.evidence": owners, "selected.latents": latents}
    torch.manual_seed(0)
    network = Reduced(case.classes, case.features).eval().requires_grad_(False)
    chosen = {"accuracy": metrics.AttackAccuracy(), "distance": metrics.FeatureDistance()}
    chosen |= {"fid": metrics.FrechetDistance(features="main"), "prdc": metrics.PRDC(features="main")}
    chosen |= {"kid": metrics.KernelDistance(features="main")} if case.kernel else {}
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft(kind="recovered", name="case", recipe={"kind": "recovered"})
        artefact = Store(folder).work(draft).finish(tensors, {}, bill={})
        del tensors, latents
        before = _held()
        judge.judge(
            recovered=artefact,
            prior=prior,
            target=network,
            splits=splits_of(case),
            evaluators={"main": network},
            metrics=chosen,
            utility={"test_accuracy_top1": 1.0},
            device=torch.device("cpu"),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / MIB


def _held() -> int:
    """Bytes this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def in_a_process(number: int) -> float:
    """`measure` of one case in a process of its own: a peak never goes down."""
    command = [sys.executable, __file__, "--case", str(number)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def report() -> str:
    """All cases as markdown."""
    lines = [
        "# Memory of judging",
        "",
        "`python benchmarks/judge_memory.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), torch {torch.__version__}.",
        "",
        "The selected stage and both anchors; accuracy, feature distance, FID and PRDC (KID too, in the first line):",
        "",
        "| what is judged | candidates | as float images | features | peak above the start |",
        "|---|---|---|---|---|",
    ]
    for number, case in enumerate(CASES):
        peak = in_a_process(number)
        count = case.classes * case.per_class
        floats = f"{count * 3 * case.size**2 * 4 / MIB:,.0f} MiB"
        numbers = f"{case.features} | {peak:,.0f} MiB"
        lines.append(f"| {case.name}, {case.size} px | {count:,} | {floats} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name}")
    parser.add_argument("--case", type=int, help="measure one case in this process")
    options = parser.parse_args()
    if options.case is not None:
        print(measure(CASES[options.case]))
        return
    text = report()
    print(text)
    if options.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
