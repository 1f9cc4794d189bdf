"""What the training loop of the GAN priors costs: updates through `Prior.fit` against the same networks, losses and
target in a loop of a few lines that keeps nothing, draws from torch's own stream and cannot go on.

    python benchmarks/gan_loops.py --write

Repeats are interleaved, so that a busy machine slows both alike; the median of their ratios is reported, by CPU time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.oracle import Oracle
from midefense.priors.augmentation import Augmentation
from midefense.priors.base import Prior
from midefense.priors.gan import critic_loss as wasserstein
from midefense.priors.gmi import GmiGan
from midefense.priors.ked import KedGan, discriminator_loss, generator_loss
from midefense.priors.plg import PlgGan, critic_loss, pseudo_labelled
from midefense.types import Images

CLASSES, BATCH, CRITIC_STEPS = 5, 32, 5
REPORT = Path(__file__).with_suffix(".md")


def public_images(count: int = 600) -> Images:
    """Noise of 32 px: speed does not ask for more."""
    rng = seeds.generator("benchmark", "gan_loops")
    pixels = torch.randint(256, (count, 1, 32, 32), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ["public"])


def prior_of(kind: type[Prior], steps: int) -> Prior:
    """A narrow prior, the same weights every time."""
    told = {} if kind is GmiGan else {"classes": CLASSES}
    told |= {"augmentation": Augmentation()} if kind is PlgGan else {}
    with seeds.isolated("benchmark", kind.__name__):
        return kind(
            channels=1, size=32, width=8, steps=steps, batch_size=BATCH, critic_steps=CRITIC_STEPS, unit=steps, **told
        )


def target() -> nn.Module:
    """A small frozen classifier."""
    with seeds.isolated("benchmark", "target"):
        return CNN(classes=CLASSES, channels=1, size=32, widths=[16, 32]).eval().requires_grad_(False)


def through_fit(kind: type[Prior], public: Images, model: nn.Module, steps: int) -> None:
    """`steps` updates as the pipeline makes them, with a state at the end."""
    prior = prior_of(kind, steps)
    oracle = None if prior.asks is None else Oracle(model, prior.asks)
    for _, _, give in prior.fit(public, seed=0, oracle=oracle):
        give()


def bare(kind: type[Prior], public: Images, model: nn.Module, steps: int) -> None:
    """`steps` updates of the same losses, as a script would write them."""
    prior, images = prior_of(kind, steps).train(), public.floats()
    make, judge = (
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (prior.generator, prior.critic)
    )
    {GmiGan: _bare_gmi, KedGan: _bare_ked, PlgGan: _bare_plg}[kind](prior, images, public, model, make, judge, steps)


def _drawn(images: torch.Tensor) -> torch.Tensor:
    return images[torch.randint(len(images), (BATCH,))]


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _bare_gmi(prior, images, public, model, make, judge, steps) -> None:
    for step in range(steps):
        fake = prior.generator(torch.randn(BATCH, 100)).detach()
        _update(judge, wasserstein(prior.critic, _drawn(images), fake, torch.rand(BATCH), 10.0))
        if (step + 1) % CRITIC_STEPS == 0:
            prior.critic.requires_grad_(False)
            _update(make, -prior.critic(prior.generator(torch.randn(BATCH, 100))).mean())
            prior.critic.requires_grad_(True)


def _bare_ked(prior, images, public, model, make, judge, steps) -> None:
    for step in range(steps):
        taught, real = _drawn(images), _drawn(images)
        fake = prior.generator(torch.randn(BATCH, 100)).detach()
        _update(judge, discriminator_loss(prior.critic, taught, model(taught).logits.softmax(1), real, fake))
        if (step + 1) % CRITIC_STEPS == 0:
            prior.critic.requires_grad_(False)
            _update(make, generator_loss(prior.critic, _drawn(images), prior.generator(torch.randn(BATCH, 100)), 1e-4))
            prior.critic.requires_grad_(True)


def _bare_plg(prior, images, public, model, make, judge, steps) -> None:
    top = pseudo_labelled(lambda asked: model(asked).logits.softmax(1), public, 30, CLASSES, torch.device("cpu"))
    for _ in range(steps):
        wanted = torch.randint(CLASSES, (BATCH,))
        prior.critic.requires_grad_(False)
        fake = prior.generator(torch.randn(BATCH, 128), wanted)
        dice = prior.augmentation.draw(BATCH, torch.default_generator)
        identity = prior.identity(model(prior.augmentation(fake, dice)).logits, wanted).mean()
        _update(make, 0.2 * identity - prior.critic(fake, wanted).mean())
        prior.critic.requires_grad_(True)
        for _ in range(CRITIC_STEPS):
            entries, others = torch.randint(top.numel(), (BATCH,)), torch.randint(CLASSES, (BATCH,))
            real = images[top.flatten()[entries]]
            real = real + torch.rand_like(real) / 256
            fake = prior.generator(torch.randn(BATCH, 128), others).detach()
            _update(judge, critic_loss(prior.critic, real, entries // top.shape[1], fake, others))


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Measure, print, and with `--write` keep the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="updates per repeat (a third of it for plg_gan)")
    parser.add_argument("--repeats", type=int, default=5, help="of every loop")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    public, model, rows = public_images(), target(), []
    for name, kind in {"gmi_gan": GmiGan, "ked_gan": KedGan, "plg_gan": PlgGan}.items():
        steps = max(3, options.steps // 3) if kind is PlgGan else options.steps
        through_fit(kind, public, model, 1)
        pairs = [
            (
                seconds(lambda kind=kind, steps=steps: through_fit(kind, public, model, steps)) / steps,
                seconds(lambda kind=kind, steps=steps: bare(kind, public, model, steps)) / steps,
            )
            for _ in range(options.repeats)
        ]
        ratios = [ours / theirs for ours, theirs in pairs]
        bare_time = statistics.median(theirs for _, theirs in pairs)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(f"| `{name}` | {1000 * bare_time:.0f} ms | {statistics.median(ratios):.2f} | {spread} |")
        print(rows[-1], flush=True)
    if options.write:
        how = f"cpu ({platform.machine()}), 1 thread, torch {torch.__version__}"
        lines = [
            "# What the loop of the GAN priors costs",
            "",
            f"`python benchmarks/gan_loops.py --steps {options.steps} --write`",
            f"measured {time.strftime('%Y-%m-%d')}, {how}, {options.repeats} interleaved repeats;",
            "medians of CPU time.",
            "",
            "Networks of width 8, 32 px, batches of 32. `plg_gan`: one update of the generator, five of the critic.",
            "",
            "| prior | an update in a bare loop | through `Prior.fit`, relative | least to most, relative |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
        REPORT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
