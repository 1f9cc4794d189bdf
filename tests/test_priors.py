"""What the attacker believes images look like: closed forms, GMI's networks and losses, and a fit that resumes."""

import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.closed_form import render
from midefense.datasets.toy import Toy
from midefense.priors.base import Prior
from midefense.priors.gan import critic_loss, gradient_penalty
from midefense.priors.gmi import GmiGan
from midefense.priors.nets.gmi import Critic, Generator
from midefense.priors.pixels import Pixels
from midefense.priors.toy import ToyFamily
from midefense.types import Images, Refused


def small_gan(steps: int = 6, unit: int = 2, size: int = 32, **changes) -> GmiGan:
    options = {"latent_size": 8, "width": 2, "batch_size": 4, "critic_steps": 2, **changes}
    with seeds.isolated("small gan"):
        return GmiGan(channels=1, size=size, steps=steps, unit=unit, **options)


@pytest.fixture(scope="module")
def public() -> Images:
    return Toy(classes=2, public_classes=3, images_per_class=8, test_images_per_class=2).load().public


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# networks --------------------------------------------------------------------------------------------------------


def test_parameter_counts_of_the_originals():
    """Card gmi.md, section 8: G64, D64 (RGB) and G32, D32 (grey)."""
    sizes = {"latent_size": 100, "width": 64}
    assert parameters(Generator(channels=3, size=64, **sizes)) == 5_142_083
    assert parameters(Generator(channels=1, size=32, **sizes)) == 1_443_777
    assert parameters(Critic(channels=3, size=64, width=64)) == 4_316_545
    assert parameters(Critic(channels=1, size=32, width=64)) == 1_030_913


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_the_gan_speaks_images(channels, size):
    gan = GmiGan(channels=channels, size=size, latent_size=8, width=2).eval()
    latents = gan.sample(3, seeds.generator("z"))
    images = gan.decode(latents)
    assert latents.shape == (3, 8) and images.shape == (3, channels, size, size)
    assert images.min() >= 0 and images.max() <= 1
    assert gan.realism(images).shape == (3,)
    assert torch.equal(latents, gan.sample(3, seeds.generator("z")))


def test_other_sizes_are_refused():
    with pytest.raises(Refused, match="expected a size of 32 or 64, got 28; set dataset.size=32 or dataset.size=64"):
        GmiGan(channels=1, size=28)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 64, 64), (1, 32, 28)])
def test_public_images_of_another_shape_are_refused(shape):
    images = Images(torch.zeros(4, *shape, dtype=torch.uint8), torch.zeros(4), torch.arange(4), ["a"])
    with pytest.raises(Refused, match=r"expected public images \[C, S, S\] = \(1, 32, 32\), got \("):
        small_gan().fit(images, seed=0)


def test_rows_of_the_gan_do_not_depend_on_their_batch():
    gan = small_gan()
    gan.generator(torch.randn(16, 8, generator=seeds.generator("warm")))  # give batch norm statistics to use
    gan.eval()
    latents = gan.sample(5, seeds.generator("rows"))
    with torch.no_grad():
        images = gan.decode(latents)
        alone = torch.cat([gan.decode(row[None]) for row in latents])
        torch.testing.assert_close(alone, images, atol=1e-6, rtol=0)
        scores = torch.cat([gan.realism(row[None]) for row in images])
        torch.testing.assert_close(scores, gan.realism(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prior", [small_gan(), Pixels(channels=1, size=8), ToyFamily(channels=1, size=16)])
def test_decoding_is_differentiable_and_survives_save_and_load(prior):
    prior.eval()
    latents = prior.sample(2, seeds.generator("gradient")).requires_grad_()
    (slope,) = torch.autograd.grad(prior.decode(latents).square().sum(), latents)
    assert slope.isfinite().all() and slope.abs().sum() > 0
    if isinstance(prior, GmiGan):
        with seeds.isolated("another start"):
            other = GmiGan(channels=1, size=32, latent_size=8, width=2).eval()
        assert not torch.equal(other.decode(latents), prior.decode(latents))
        other.load_state_dict(prior.state_dict())
        assert torch.equal(other.decode(latents), prior.decode(latents))


# the Wasserstein loss --------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """D(x) = weight · x."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight


def real_and_fake() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = seeds.generator("penalty")
    real, fake = torch.rand(2, 6, 1, 4, 4, generator=rng, dtype=torch.float64)
    return real, fake, torch.rand(6, generator=rng, dtype=torch.float64)


def test_gradient_penalty_of_linear_critics():
    """Card gmi.md, section 8: 0 at a slope of norm 1, 1 at a flat critic; ||w|| = 3 gives (3 - 1)^2."""
    direction = torch.randn(16, generator=seeds.generator("w"), dtype=torch.float64)
    direction /= direction.norm()
    for length, expected in [(1.0, 0.0), (0.0, 1.0), (3.0, 4.0)]:
        penalty = gradient_penalty(Linear(length * direction), *real_and_fake())
        torch.testing.assert_close(penalty, torch.full((6,), expected, dtype=torch.float64))


def test_critic_loss_of_a_constant_critic_is_the_penalty_weight():
    flat = Linear(torch.zeros(16, dtype=torch.float64))
    assert critic_loss(flat, *real_and_fake(), penalty=10.0).item() == pytest.approx(10)


def test_critic_loss_rewards_scoring_real_above_fake():
    mean = Linear(torch.full((16,), 0.25, dtype=torch.float64))  # norm 1: no penalty
    real, fake, mix = real_and_fake()
    expected = 4 * (fake.mean() - real.mean())
    torch.testing.assert_close(critic_loss(mean, real, fake, mix, penalty=10.0), expected)


class Square(nn.Module):
    """D(x) = scale ||x||^2 / 2, whose gradient at x is scale x."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images):
        return self.scale * images.flatten(1).square().sum(1) / 2


def test_the_penalty_is_taken_between_real_and_fake():
    real, fake, mix = real_and_fake()
    between = real + mix.view(-1, 1, 1, 1) * (fake - real)
    expected = (between.flatten(1).norm(dim=1) - 1) ** 2
    torch.testing.assert_close(gradient_penalty(Square(), real, fake, mix), expected)


def test_the_penalty_reaches_the_critic_and_not_the_generator():
    critic, (real, fake, mix) = Square(), real_and_fake()
    fake.requires_grad_()
    gradient_penalty(critic, real, fake, mix).sum().backward()
    assert fake.grad is None and critic.scale.grad.abs() > 0


# fitting ---------------------------------------------------------------------------------------------------------


def fitted(gan: GmiGan, public: Images, state=None, stop=None, seed: int = 1) -> tuple[dict, list[int]]:
    """The last state as copies, and the steps that were reported."""
    seen, last = [], None
    for step, logs, give in gan.fit(public, seed=seed, state=state):
        assert (
            "critic_loss" in logs
            and set(logs) <= {"critic_loss", "generator_loss"}
            and all(abs(v) < 1e6 for v in logs.values())
        )
        seen.append(step)
        last = {key: value.clone() for key, value in give().items()}
        if step == stop:
            break
    return last, seen


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def test_fitting_repeats_under_a_seed_and_differs_under_another(public):
    first, steps = fitted(small_gan(), public)
    again, _ = fitted(small_gan(), public)
    other, _ = fitted(small_gan(), public, seed=2)
    assert steps == [2, 4, 6]
    assert_same(first, again)
    assert not torch.equal(first["generator.project.0.weight"], other["generator.project.0.weight"])


@pytest.mark.parametrize("stop", [2, 4])
def test_a_fit_that_was_killed_goes_on_bit_for_bit(public, stop):
    whole, _ = fitted(small_gan(), public)
    state, _ = fitted(small_gan(), public, stop=stop)
    with seeds.isolated("a fresh process"):
        gan = GmiGan(channels=1, size=32, latent_size=8, width=2, batch_size=4, critic_steps=2, steps=6, unit=2)
    resumed, steps = fitted(gan, public, state=state)
    assert steps == list(range(stop + 2, 7, 2))
    assert_same(whole, resumed)


def test_epochs_count_the_public_images(public):
    batches = -(-len(public) // 64)
    gan = GmiGan(channels=1, size=32, width=2)
    assert gan.fit_steps(public) == 120 * batches
    assert GmiGan(channels=1, size=32, width=2, epochs=280).fit_steps(public) == 280 * batches
    assert GmiGan(channels=1, size=32, width=2, steps=5).fit_steps(public) == 5


def test_a_finished_fit_does_nothing_more(public):
    state, _ = fitted(small_gan(), public)
    assert fitted(small_gan(), public, state=state) == (None, [])


def test_a_ragged_end_is_reported(public):
    _, steps = fitted(small_gan(steps=5), public)
    assert steps == [2, 4, 5]


def test_the_generator_steps_once_in_so_many_critic_steps(public):
    state, _ = fitted(small_gan(steps=7, critic_steps=3), public)
    assert int(state["optimizer.critic.0.step"]) == 7
    assert int(state["optimizer.generator.0.step"]) == 2


def test_fitting_leaves_the_global_stream_alone_and_ends_in_eval_mode(public):
    torch.manual_seed(9)
    expected = torch.rand(3)
    gan = small_gan(steps=2)
    torch.manual_seed(9)
    fitted(gan, public)
    assert torch.equal(torch.rand(3), expected)
    assert not any(module.training for module in [*gan.generator.modules(), *gan.critic.modules()])


def test_fitting_brings_samples_nearer_to_the_public_images(public):
    gan = small_gan(steps=100, unit=50, width=4, batch_size=16, learning_rate=2e-3)

    def distance() -> float:
        """Between the mean image of 64 samples and that of the public images."""
        gan.eval()
        with torch.no_grad():
            images = gan.decode(gan.sample(64, seeds.generator("after")))
        return float((images.mean(0) - public.floats().mean(0)).square().mean())

    before = distance()
    fitted(gan, public)
    assert distance() < before / 2


# closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "level"), [("zeros", 0.0), ("grey", 0.5)])
def test_pixels_start_flat(start, level):
    images = Pixels(channels=3, size=4, start=start).sample(2, seeds.generator("start"))
    assert images.shape == (2, 3, 4, 4) and images.unique().tolist() == [level]


def test_pixels_may_start_from_noise_and_clip_only_when_told():
    noise = Pixels(channels=1, size=16, start="noise").sample(4, seeds.generator("noise"))
    assert noise.min() >= 0 and noise.max() <= 1 and noise.std() > 0.2
    wild = torch.tensor([-1.0, 0.5, 3.0]).view(1, 1, 1, 3)
    assert torch.equal(Pixels(channels=1, size=3).decode(wild), wild)  # a clamp would kill the gradient
    assert Pixels(channels=1, size=3, clip=True).decode(wild).flatten().tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(Refused, match="prior.start: got 'gray'; .* noise, normal. Did you mean 'grey'?"):
        Pixels(channels=1, size=4, start="gray")


def test_the_toy_prior_draws_what_the_toy_dataset_holds():
    dataset, prior = Toy(), ToyFamily(channels=1, size=32)
    labels = torch.arange(4)
    torch.testing.assert_close(prior.decode(dataset.latents(labels)).float(), dataset.answer(labels))
    places = prior.sample(1000, seeds.generator("places"))
    assert places.abs().max() <= 1 and abs(places.mean()) < 0.1
    with pytest.raises(Refused, match="grey images, got channels=3; use it with dataset=toy"):
        ToyFamily(channels=3, size=32)


def test_the_toy_critic_prefers_whole_bells():
    prior = ToyFamily(channels=1, size=32)
    bell = render(torch.zeros(1, 2), 32)
    whole, brighter = prior.realism(bell), prior.realism(bell + 0.2)
    assert whole.item() == pytest.approx(0, abs=1e-9) and brighter.item() == pytest.approx(-0.04, rel=1e-3)


def test_a_prior_says_what_it_cannot_do():
    prior = Prior(channels=1, size=8)
    assert list(prior.fit(None, seed=0)) == [] and prior.fit_steps(None) == 0
    for ask in (lambda: prior.sample(1, None), lambda: prior.decode(None), lambda: prior.realism(None)):
        with pytest.raises(Refused, match="^Prior (cannot|has no)"):
            ask()


@pytest.mark.parametrize("prior", [Pixels(channels=1, size=8), ToyFamily(channels=1, size=8)], ids=["pixels", "toy"])
def test_a_prior_without_weights_knows_its_device(prior):
    assert prior.device.type == "cpu" and not prior.state_dict()
    assert prior.to("meta").device.type == "meta"
