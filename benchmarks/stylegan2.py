"""StyleGAN2 synthesis with its gradient to the styles, against the straightforward formulation of the original: a
weight per image and a grouped convolution, resampling as an operation of its own, every step of the activation apart.

    python benchmarks/stylegan2.py --write

Both give the same images and gradients, or the run fails. Repeats are interleaved, so that a busy machine slows both;
medians are compared. Memory is measured in a process of its own per formulation.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.priors.stylegan2.generator import Block, Generator, Styled, StyleGan2Config, ToRgb, resample_filter

REPORT = Path(__file__).with_suffix(".md")
SHAPES = {  # at 256 px as the published paper256 files, at 1024 px as FFHQ's
    256: StyleGan2Config(resolution=256, channel_base=16384),
    1024: StyleGan2Config(resolution=1024),
}


def reference(generator: Generator, ws: Tensor) -> Tensor:
    """Images [B, C, R, R] of styles ws, constant noise, by the straightforward formulation."""
    features = images = None
    for index, resolution in enumerate(generator.synthesis.resolutions):
        block: Block = getattr(generator.synthesis, f"b{resolution}")
        first = 2 * index
        if index == 0:
            features = block.const[None].repeat(len(ws), 1, 1, 1)
            features = _styled(block.conv1, features, ws[:, 0])
        else:
            features = _styled(block.conv0, features, ws[:, first - 1])
            features = _styled(block.conv1, features, ws[:, first])
        own = _to_rgb(block.torgb, features, ws[:, first + 1])
        images = own if images is None else _upfirdn(images, up=2, padding=(2, 1, 2, 1), gain=4) + own
    return images


def _styled(layer: Styled, features: Tensor, w: Tensor) -> Tensor:
    weight = layer.weight[None] * layer.affine(w)[:, None, :, None, None]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    batch, outputs, inputs = weight.shape[:3]
    features = features.reshape(1, batch * inputs, *features.shape[2:])
    if layer.up:
        swapped = weight.transpose(1, 2).reshape(batch * inputs, outputs, 3, 3)
        features = F.conv_transpose2d(features, swapped, stride=2, groups=batch)
        features = _upfirdn(features.reshape(batch, outputs, *features.shape[2:]), padding=(1, 1, 1, 1), gain=4)
    else:
        features = F.conv2d(features, weight.reshape(batch * outputs, inputs, 3, 3), padding=1, groups=batch)
        features = features.reshape(batch, outputs, *features.shape[2:])
    features = features + layer.noise_const * layer.noise_strength
    features = F.leaky_relu(features + layer.bias[None, :, None, None], 0.2) * math.sqrt(2)
    return features if layer.clamp is None else features.clamp(-layer.clamp, layer.clamp)


def _to_rgb(layer: ToRgb, features: Tensor, w: Tensor) -> Tensor:
    style = layer.affine(w) / math.sqrt(layer.weight.shape[1])
    weight = layer.weight[None] * style[:, None, :, None, None]
    batch, outputs = weight.shape[:2]
    images = F.conv2d(features.reshape(1, -1, *features.shape[2:]), weight.flatten(0, 1), groups=batch)
    images = images.reshape(batch, outputs, *features.shape[2:]) + layer.bias[None, :, None, None]
    return images if layer.clamp is None else images.clamp(-layer.clamp, layer.clamp)


def _upfirdn(images: Tensor, *, padding: tuple[int, int, int, int], gain: float, up: int = 1) -> Tensor:
    """Zeros after every sample, zeros around, the filter."""
    batch, channels, height, width = images.shape
    if up > 1:
        images = images.reshape(batch, channels, height, 1, width, 1)
        images = F.pad(images, [0, up - 1, 0, 0, 0, up - 1]).reshape(batch, channels, height * up, width * up)
    kernel = (resample_filter() * gain).to(images)[None, None].repeat(channels, 1, 1, 1)
    return F.conv2d(F.pad(images, padding), kernel, groups=channels)


def ours(generator: Generator, ws: Tensor) -> Tensor:
    """The same by `midefense`."""
    return generator.synthesis(ws)[1]


WAYS = {"ours": ours, "reference": reference}


def make(resolution: int, batch: int, device: torch.device) -> tuple[Generator, Tensor]:
    """A frozen generator with random weights and styles [batch, num_ws, 512]."""
    with seeds.isolated("benchmark", resolution):
        generator = Generator(SHAPES[resolution]).eval().requires_grad_(False).to(device)
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.1)
        return generator, generator.styles(torch.randn(batch, 512).to(device))


def step(way: str, generator: Generator, ws: Tensor) -> tuple[Tensor, Tensor]:
    """One synthesis and the gradient of the mean square to the styles."""
    ws = ws.clone().requires_grad_()
    images = WAYS[way](generator, ws)
    (gradient,) = torch.autograd.grad(images.square().mean(), ws)
    return images.detach(), gradient


def compare(resolution: int, batch: int, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds per step of both ways, interleaved, after checking that they agree."""
    generator, ws = make(resolution, batch, device)
    results = {way: step(way, generator, ws) for way in WAYS}
    for mine, theirs in zip(results["ours"], results["reference"], strict=True):
        error = float((mine - theirs).abs().max() / theirs.abs().max())
        if error > (1e-2 if device.type == "cuda" else 1e-3):  # a rectifier whose kink is crossed moves it by 1e-4
            raise SystemExit(f"the two formulations differ by {error:.1e} of the largest value")
    times = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            started = time.perf_counter()
            step(way, generator, ws)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[way].append(time.perf_counter() - started)
    return times


def peak(way: str, resolution: int, batch: int) -> float:
    """GiB that a step adds to the process that has the generator, at its peak; in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", way, "--resolution", str(resolution), "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(way: str, resolution: int, batch: int) -> float:
    """As `peak`, in this process."""
    generator, ws = make(resolution, batch, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, the parent's too, is forgotten
    before = _peak_kib()
    step(way, generator, ws)
    return (_peak_kib() - before) / 2**20


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def report(resolution: int, batch: int, device: torch.device, repeats: int) -> str:
    """Times and memory as markdown."""
    times = compare(resolution, batch, device, repeats)
    ratio = statistics.median(times["reference"]) / statistics.median(times["ours"])
    memory = {way: peak(way, resolution, batch) for way in WAYS} if device.type == "cpu" else {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        "# StyleGAN2 synthesis",
        "",
        f"`python benchmarks/stylegan2.py --resolution {resolution} --batch {batch} --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {device.type} ({name}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {repeats} interleaved repeats; medians.",
        "",
        f"Forward and gradient to the styles, {resolution} px, batch of {batch}, float32, random weights; both give "
        "the same images and gradients:",
        "",
        "| formulation | time relative to ours | least to most, relative | peak memory of a step |",
        "|---|---|---|---|",
    ]
    unit = statistics.median(times["ours"])
    for way, spent in times.items():
        gib = f"{memory[way]:.2f} GiB" if memory else "-"
        row = f"{statistics.median(spent) / unit:.2f} | {min(spent) / unit:.2f} to {max(spent) / unit:.2f} | {gib}"
        lines.append(f"| {way} | {row} |")
    lines += ["", f"Ours is {ratio:.2f} times as fast as the reference formulation, in the same run."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resolution", type=int, default=256, choices=SHAPES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(measure_peak(arguments.peak_of, arguments.resolution, arguments.batch))
        return
    text = report(arguments.resolution, arguments.batch, torch.device(arguments.device), arguments.repeats)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
