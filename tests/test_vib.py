"""The information bottleneck (card vib_mid.md): closed forms of its divergence, its networks, and what is deployed."""

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.mnist_cnn import MCNN
from midefense.architectures.small import CNN, MLP
from midefense.architectures.vgg import VGG16
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.bido import BiDO
from midefense.defenses.vib import VIB, divergence, mean_and_deviation
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.training import loop
from midefense.types import Batch, Refused, Trace

SMALL = {"classes": 3, "channels": 1, "size": 16, "widths": [4, 4], "features": 6}


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def behind(**settings) -> tuple[nn.Module, VIB]:
    """A small network with the bottleneck, and the defense."""
    defense = VIB(**{"beta": 0.01, **settings})
    with seeds.isolated("network"):
        return loop.assemble(CNN(**SMALL), defense, seed=0), defense


def batch_of(count: int) -> Batch:
    images = torch.rand(count, 1, 16, 16, generator=seeds.generator("images"))
    ones = torch.ones(count)
    return Batch(images, torch.arange(count) % 3, torch.arange(count), ones, seeds.generator("batch"))


@pytest.mark.parametrize(
    ("mean", "deviation", "known"),
    [(0, 1, 0.0), (1, 1, 0.5), (0, 0.5, 0.318147), (0, 0.0067153, 4.503382), (0, 0.693147, 0.106739)],
)
def test_divergence_of_the_card(mean, deviation, known):
    assert divergence(numbers(mean), numbers(deviation)).item() == pytest.approx(known, abs=1e-5)


def test_a_code_begins_nearly_without_noise_and_stays_finite():
    codes = numbers(0, 0, 0, 0, 0, 5.541325, 5, -1000)
    deviation = mean_and_deviation(codes)[1]
    assert deviation[0, :3].tolist() == pytest.approx([0.0067153, 1.0, 0.693147], rel=1e-4)
    assert deviation[0, 3] < 1e-100
    codes = codes.float().requires_grad_()
    told = divergence(*mean_and_deviation(codes))
    assert told.isfinite().all() and told[0, :3].tolist() == pytest.approx([4.503382, 0, 0.106739], abs=1e-5)
    told.sum().backward()
    assert codes.grad.isfinite().all()


def test_gradients_of_the_divergence():
    mean, deviation = (torch.rand(3, 4, dtype=torch.float64).add(0.1).requires_grad_() for _ in range(2))
    divergence(mean, deviation).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(deviation.grad, deviation.detach() - 1 / deviation.detach())


@pytest.mark.parametrize(("k", "known"), [(1024, 4611.46), (256, 1152.87)])
def test_divergence_is_summed_over_the_dimensions_unless_asked(k, known):
    codes = torch.zeros(2, 2 * k)
    trace = Trace(torch.zeros(2, 3), codes[:, :k], {"bottleneck": codes})
    summed, mean = (VIB(beta=0.5, reduction=name).losses(trace, None)["kl"] for name in ("sum", "mean"))
    assert summed.tolist() == pytest.approx([known / 2] * 2, rel=1e-5)
    assert mean.tolist() == pytest.approx([4.503382 / 2] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "neck", "k", "parameters"),
    [
        (lambda: VGG16(classes=1000, channels=3), "drop", 1024, 19_944_488),
        (lambda: VGG16(classes=1000, channels=3), "keep", 1024, 19_944_488 + 4096),
        (lambda: FaceEvolve(classes=1000, channels=3), "keep", 256, 35_437_224 - 513_000 + 513 * 512 + 257_000),
        (lambda: MCNN(classes=5, channels=1), "keep", 128, 1_029_765 - 1285 + 257 * 256 + 645),
    ],
)
def test_networks_of_the_card(build, neck, k, parameters):
    with torch.device("meta"):
        model = VIB(beta=0.003, neck=neck).rebuild(build())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.feature_width == k and model.stages["bottleneck"].out_features == 2 * k
    assert model.published.get("feature.26", "stages.block4.2") == "stages.block4.2", "original names still fit"


def test_training_samples_and_the_mean_is_deployed_unless_asked():
    for deployed in ("mean", "sampled"):
        model, defense = behind(deployed=deployed)
        images = batch_of(5).images
        model.stages["bottleneck"].bias.data[3:] = 5.0  # a deviation that is seen
        model.stages["features"].train(), model.stages["sample"].train()
        with seeds.isolated("a"):
            first, second = model(images).features, model(images).features
        assert not torch.equal(first, second)
        deployed_model = defense.seal(model)
        with seeds.isolated("a"):
            first, second = deployed_model(images), deployed_model(images)
        with seeds.isolated("a"):
            again = deployed_model(images)
        assert torch.equal(first.logits, again.logits)
        assert torch.equal(first.logits, second.logits) == (deployed == "mean")
        assert defense.stochastic_when_deployed == (deployed == "sampled")
        if deployed == "mean":
            codes = deployed_model(images, taps=("bottleneck",)).taps["bottleneck"]
            assert torch.equal(first.features, codes[:, :3]), "the feature of a deployed network is the mean"
            assert torch.equal(first.logits, deployed_model.head(codes[:, :3]))


def test_without_noise_and_weight_it_trains_as_a_network_of_two_linear_layers(monkeypatch):
    """The nearest to no defense but for width=0: beta 0 and no noise, to rounding the deterministic network."""
    monkeypatch.setattr("midefense.defenses.vib.SHIFT", 1000.0)
    model, defense = behind(beta=0.0)
    plain, _ = behind()
    linear = nn.Linear(6, 3)
    linear.load_state_dict({name: tensor[:3] for name, tensor in plain.stages["bottleneck"].state_dict().items()})
    del plain.stages["sample"]
    plain.stages["bottleneck"] = linear
    batch = batch_of(12)
    for network, used in ((model, defense), (plain, NoDefense())):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            trace = network.train()(batch.images, taps=used.taps)
            terms = used.losses(trace, batch)
            loss = nn.functional.cross_entropy(trace.logits, batch.labels) + sum(t.mean() for t in terms.values())
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(model.eval()(batch.images).logits, plain.eval()(batch.images).logits, rtol=0, atol=1e-6)


def test_the_weight_squeezes_the_code_until_nothing_is_left():
    """The card's toy, two Gaussian classes under nuisance dimensions: less is told the higher beta, at 1 nothing."""
    rng = seeds.generator("gaussians")
    labels = torch.arange(128) % 2
    points = torch.randn(128, 1, 1, 52, generator=rng)
    points[:, 0, 0, :2] += 4.0 * labels.view(-1, 1) - 2
    images = nn.functional.pad(points, (0, 12)).view(-1, 1, 8, 8) * 0.1 + 0.5
    ones = torch.ones(128)

    def told(beta: float) -> tuple[float, float]:
        with seeds.isolated("toy"):
            defense = VIB(beta=beta)
            model = loop.assemble(MLP(classes=2, channels=1, size=8, widths=[64], mean=0.5, std=0.1), defense, seed=0)
            optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
            for _ in range(150):
                optimizer.zero_grad()
                trace = model.train()(images, taps=defense.taps)
                terms = defense.losses(trace, Batch(images, labels, labels, ones, rng))
                (nn.functional.cross_entropy(trace.logits, labels) + terms["kl"].mean()).backward()
                optimizer.step()
            trace = model.eval()(images, taps=defense.taps)
        kl = divergence(*mean_and_deviation(trace.taps["bottleneck"])).sum(1).mean().item()
        return kl, (trace.logits.argmax(1) == labels).float().mean().item()

    (free, right), (weak, still_right), (strong, _) = told(0.0), told(1e-2), told(1.0)
    assert free > weak > 1 > strong and min(right, still_right) > 0.95


def test_an_oracle_draws_by_what_was_asked_of_it_alone():
    model = behind(deployed="sampled")[0].eval()
    model.stages["bottleneck"].bias.data[3:] = 5.0
    images = batch_of(4).images

    def answers(key: object, before: int = 0) -> list[torch.Tensor]:
        oracle = Oracle(model, "scores", key=(key,), asked=before)
        torch.rand(before + 3)  # what others draw meanwhile
        return [oracle(images).probs for _ in range(3)]

    first, again, other = answers("a"), answers("a"), answers("b")
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    assert torch.equal(answers("a", 4)[0], first[1]), "work that was interrupted goes on"


def test_beside_bido_the_body_is_tapped_in_either_order():
    for order in ((0, 1), (1, 0)):
        parts = [("vib", VIB(beta=0.01)), ("bido", BiDO(measure="hsic", lambda_x=0.1, lambda_y=0.1))]
        stack = Stack(members=dict(parts[i] for i in order))
        model = loop.assemble(CNN(**SMALL), stack, seed=0)
        assert stack.members["bido"].taps == ("stage1", "stage2", "features")
        batch = batch_of(6)
        terms = stack.losses(model(batch.images, taps=stack.taps), batch)
        assert set(terms) == {"vib/kl", "bido/bido_images", "bido/bido_labels"}


def test_refusals():
    with pytest.raises(Refused, match="defense.deployed: got 'noise'; choices: mean, sampled"):
        VIB(beta=0.1, deployed="noise")
    with pytest.raises(Refused, match="neck: expected features that end in a batch norm.*got ReLU; try"):
        VIB(beta=0.1, neck="drop").rebuild(CNN(**SMALL))
    with pytest.raises(Refused, match="expected one information bottleneck, got two"):
        loop.assemble(CNN(**SMALL), Stack(members={"a": VIB(beta=1.0), "b": VIB(beta=2.0)}), seed=0)


@pytest.mark.slow
def test_an_attack_on_a_target_that_draws_repeats(tmp_path):
    """Two stores, one command: the same images from a target whose every answer is drawn."""
    words = ("dataset=toy", "dataset.size=16", "architecture=cnn", "architecture.size=16", "recipe.epochs=2")
    words += ("defense=vib", "defense.deployed=sampled", "prior=pixels", "attack=mi_face", "compute.threads=1")
    made = [Pipeline(plan_for("attack", *words, store=tmp_path / name)).recovered.tensors() for name in ("a", "b")]
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
