"""The training loop that GAN priors share, and the Wasserstein critic with a gradient penalty."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.compiling import Compiler, forward_compiled
from midefense.precision import forwards_mixed, rounded
from midefense.training_state import load_training, training_state
from midefense.types import Images, Progress, Refused

SIDES = (32, 64)
Losses = dict[str, Tensor]  # what a step of training saw, by name


def require_side(called: str, size: int) -> None:
    """Refuse images of a side that the generators of the low-resolution attacks do not have."""
    if size not in SIDES:
        raise Refused(f"{called}: expected a size of 32 or 64, got {size}; set dataset.size=32 or dataset.size=64")


def adam_of(learning_rate: float, betas: tuple[float, float]) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    """Makes the optimiser of each network of a prior."""
    return functools.partial(torch.optim.Adam, lr=learning_rate, betas=tuple(betas))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(|| grad_x D(x) ||_2 - 1)^2 per image [B], at x = real + mix (fake - real), mix [B] in [0, 1].

    Gulrajani et al., NeurIPS 2017, equation 3; GMI uses it unchanged.
    """
    between = real + mix.view(-1, 1, 1, 1) * (fake.detach() - real)
    between.requires_grad_()
    slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
    return (slope.flatten(1).norm(dim=1) - 1) ** 2


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor, penalty: float) -> Tensor:
    """mean D(fake) - mean D(real) + penalty * mean gradient penalty; a scalar to minimise."""
    return critic(fake).mean() - critic(real).mean() + penalty * gradient_penalty(critic, real, fake, mix).mean()


def adversarial_fit(
    generator: nn.Module,
    critic: nn.Module,
    public: Images,
    *,
    latent_size: int,
    steps: int,
    batch_size: int,
    critic_steps: int,
    learning_rate: float,
    betas: tuple[float, float],
    penalty: float,
    unit: int,
    seed: int,
    state: dict[str, Tensor] | None,
    precision: str = "32-true",
    compile: bool = False,
) -> Iterator[Progress]:
    """WGAN-GP: `critic_steps` steps of the critic to one of the generator, both in train mode.

    `steps` counts critic steps. Step s draws everything from a generator keyed by (seed, s), so a run that goes on
    from a saved state draws what the uninterrupted one did. Yields every `unit` steps and at the end.
    """
    device = next(generator.parameters()).device
    optimizers = {
        "generator": torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=betas),
        "critic": torch.optim.Adam(critic.parameters(), lr=learning_rate, betas=betas),
    }

    def update(step: int) -> Losses:
        rng = seeds.generator(seed, "prior", "fit", step)
        real = public.floats(torch.randint(len(public), (batch_size,), generator=rng), device)
        latents, again = torch.randn(2, batch_size, latent_size, generator=rng).to(device)
        mix = torch.rand(batch_size, generator=rng).to(device)
        told = {"critic_loss": _critic_step(generator, critic, optimizers["critic"], real, latents, mix, penalty)}
        if (step + 1) % critic_steps == 0:
            told["generator_loss"] = _generator_step(generator, critic, optimizers["generator"], again)
        return told

    networks = {"generator": generator, "critic": critic}
    how = {"precision": precision, "compiler": Compiler("prior.compile", batch_size) if compile else None}
    return training_loop(networks, optimizers, update, steps=steps, unit=unit, state=state, **how)


def training_loop(
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    update: Callable[[int], Losses],
    *,
    steps: int,
    unit: int,
    state: dict[str, Tensor] | None,
    beside: Mapping[str, Tensor] | None = None,
    precision: str = "32-true",
    compiler: Compiler | None = None,
) -> Iterator[Progress]:
    """The loop of all GANs: networks learn in train mode, from the step of a saved `state` on, and end in eval mode.

    Args:
        update: takes step s (from 0), which draws everything from a generator keyed by s; returns the losses it saw, as
            tensors without a dimension or a gradient. Until a state is yielded nothing waits for the device.
        unit: steps between two yields; the last step yields too. Logs are means over the steps that told a loss.
        beside: tensors that a state holds too.
        precision: of the networks (`midefense.precision`); losses are sums of what they give in float32.
        compiler: of the generator; the critic runs as it is, since penalties differentiate it twice, which compiled
            networks cannot bear.
    """
    done = load_training(state, networks, optimizers)
    for network in networks.values():
        network.train()
    told: dict[str, list[Tensor]] = {}
    for step in range(done, steps):
        with running(networks, precision, compiler):
            losses = update(step)
        for name, loss in losses.items():
            told.setdefault(name, []).append(loss)
        if (step + 1) % unit == 0 or step + 1 == steps:
            means = torch.stack([torch.stack(losses).mean() for losses in told.values()]).tolist()
            logs = dict(zip(told, means, strict=True))
            told.clear()
            yield step + 1, logs, training_state(networks, optimizers, step + 1, beside or {})
    for network in networks.values():
        network.eval()


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One update that lowers `loss`; what it was before."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@contextmanager
def running(networks: Mapping[str, nn.Module], precision: str, compiler: Compiler | None) -> Iterator[None]:
    """Within it these networks run, forward and backward, in this precision, and the one that is called `generator` is
    compiled."""
    generator = networks["generator"]
    with ExitStack() as stack:
        stack.enter_context(rounded(precision, next(generator.parameters()).device))
        stack.enter_context(forward_compiled(generator, compiler))
        stack.enter_context(forwards_mixed(networks.values(), precision))
        yield


def _critic_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    latents: Tensor,
    mix: Tensor,
    penalty: float,
) -> Tensor:
    with torch.no_grad():
        fake = generator(latents)
    return stepped(optimizer, critic_loss(critic, real, fake, mix, penalty))


def _generator_step(
    generator: nn.Module, critic: nn.Module, optimizer: torch.optim.Optimizer, latents: Tensor
) -> Tensor:
    critic.requires_grad_(False)  # this step needs no gradients of the critic
    told = stepped(optimizer, -critic(generator(latents)).mean())
    critic.requires_grad_(True)
    return told
