"""Networks laid out for tensor cores: the same answers, gradients and bill, another layout."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from midefense import channels_last as layout
from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, Realism, Weighted, WeightedSum
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything
from midefense.channels_last import channels_last
from midefense.doubling import Halving
from midefense.oracle import Oracle
from midefense.priors.gmi import GmiGan
from midefense.types import Evidence


def lived_in(network: nn.Module, least: float = 0.0, most: float = 1e-4) -> nn.Module:
    """Frozen, in eval mode, in float64, with weights and statistics as after training, variances from `least` to
    `most`: the usual ones are so small that the norms' eps counts."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if layer.track_running_stats:
                layer.running_mean.normal_()
                layer.running_var.uniform_(least, most)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return network.double().eval().requires_grad_(False)


class Norms(nn.Module):
    """Norms without weights, and of rows."""

    def __init__(self):
        super().__init__()
        self.maps = nn.BatchNorm2d(2, affine=False)
        self.own = nn.BatchNorm2d(2, track_running_stats=False)
        self.rows = nn.BatchNorm1d(2 * 4 * 4)

    def forward(self, images):
        return self.rows(self.own(self.maps(images)).flatten(1))


class Apart(nn.Module):
    """A convolution whose output is read past its norm, too, and one of groups."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4))

    def forward(self, images):
        maps = self.convolution(images)
        return self.grouped(maps) + self.norm(maps)


class Standardising(nn.Conv2d):
    """A convolution by weights that it scales itself."""

    def forward(self, maps):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(maps, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Skipping(nn.Sequential):
    """A sequence by name: what stands before the norm is read past it."""

    def forward(self, maps):
        first, norm = self
        return norm(first(maps)) + first(maps)


def followed(layer, *others):
    return nn.Sequential(layer, nn.BatchNorm2d(2), *others)


def shared_convolution():
    one = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(followed(one), followed(one))


def shared_norm():
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(2, 2, 3), norm, nn.Conv2d(2, 2, 3), norm, nn.BatchNorm2d(2))


def shared_rectifier():
    """The second time that it stands there, a norm follows, which is not the convolution's before."""
    rectifier = nn.ReLU()
    return nn.Sequential(nn.Conv2d(2, 2, 3), rectifier, nn.Conv2d(2, 2, 3), rectifier, nn.BatchNorm2d(2))


def shared_block():
    block = followed(nn.Conv2d(2, 2, 3, padding=1))
    return nn.Sequential(block, nn.Tanh(), block)


def tied_weights():
    """The fold makes other weights for the layer, and leaves those that another one reads."""
    first, second = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    second.weight = first.weight
    return nn.Sequential(followed(first), second)


def hooked(kind):
    layer = nn.Conv2d(2, 2, 3)
    if kind == "before":
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].tanh(),))
    if kind == "after":
        layer.register_forward_hook(lambda _, inputs, given: given.tanh())
    network = followed(layer)
    if kind == "norm":
        network[1].register_forward_hook(lambda _, inputs, given: given.tanh())
    return network


SMALL = {
    "shared convolution": (shared_convolution, 2, 0),
    "shared norm": (shared_norm, 1, 0),
    "shared rectifier": (shared_rectifier, 1, 0),
    "shared block": (shared_block, 0, 0),
    "tied weights": (tied_weights, 0, 0),
    "spectral norm": (lambda: followed(parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))), 1, 0),
    "older spectral norm": (lambda: followed(nn.utils.spectral_norm(nn.Conv2d(2, 2, 3))), 1, 0),
    "standardising": (lambda: followed(Standardising(2, 2, 3)), 1, 0),
    "halving": (lambda: followed(Halving(2, 2, 3, stride=2)), 0, 0),
    "skipping": (lambda: Skipping(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)), 1, 0),
    "hooked before": (lambda: hooked("before"), 1, 0),
    "hooked after": (lambda: hooked("after"), 1, 0),
    "hooked norm": (lambda: hooked("norm"), 0, 1),
}
NETWORKS = {
    "cnn": (lambda: CNN(classes=3, channels=2, size=16, widths=[4, 8]), (2, 16, 16), lambda out: out.logits),
    "gmi's generator": (lambda: GmiGan(channels=1, size=32, width=2).generator, (100,), lambda out: out),
    "gmi's critic": (lambda: GmiGan(channels=1, size=32, width=2).critic, (1, 32, 32), lambda out: out),
    "norms": (Norms, (2, 4, 4), lambda out: out),
    "apart": (Apart, (2, 6, 6), lambda out: out),
    **{name: (make, (2, 8, 8), lambda out: out) for name, (make, _, _) in SMALL.items()},
}


KINDS = {"batch norms": layout.NORMS, "instance norms": nn.InstanceNorm2d, "products and sums": layout.Affine}
STAY = {
    "cnn": {"batch norms": 0, "instance norms": 0, "products and sums": 0},
    "gmi's generator": {"batch norms": 0, "instance norms": 0, "products and sums": 0},
    "gmi's critic": {"batch norms": 0, "instance norms": 0, "products and sums": 0},
    "norms": {"batch norms": 1, "instance norms": 0, "products and sums": 2},
    "apart": {"batch norms": 0, "instance norms": 0, "products and sums": 2},
    **{
        name: {"batch norms": norms, "instance norms": 0, "products and sums": affine}
        for name, (_, affine, norms) in SMALL.items()
    },
}


def looked_through(name):
    make, shape, read = NETWORKS[name]
    with seeds.isolated("channels_last", name):
        network = lived_in(make())
        inputs = torch.randn(3, *shape, dtype=torch.float64)
    return network, inputs, read


def answer_and_gradient(network, inputs, read):
    inputs = inputs.clone().requires_grad_()
    answer = read(network(inputs))
    return answer.detach(), torch.autograd.grad(answer.square().sum(), inputs)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_answers_the_same(name):
    network, inputs, read = looked_through(name)
    made = channels_last(network)
    for got, usual in zip(*(answer_and_gradient(each, inputs, read) for each in (made, network)), strict=True):
        torch.testing.assert_close(got, usual, rtol=1e-9, atol=1e-12 * float(usual.abs().max()))
    left = {name: sum(isinstance(layer, kind) for layer in made.modules()) for name, kind in KINDS.items()}
    assert left == STAY[name], "norms are taken up by the layers before them, or calculated otherwise"
    deep = [weight for weight in made.state_dict().values() if weight.ndim == 4 and min(weight.shape) > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in deep)
    assert all(weight.is_contiguous() for weight in network.state_dict().values()), "the network is as it was"


@pytest.mark.parametrize("wrong", ["without eps", "variance for deviation", "shift unscaled", "bias left out"])
def test_a_plausible_mistake_is_seen(wrong, monkeypatch):
    class Mistaken(layout.Affine):
        def __init__(self, norm):
            super().__init__(norm)
            scale, mean = self.scale, norm.running_mean
            if wrong == "without eps":
                self.scale = norm.running_var.rsqrt() * norm.weight
            if wrong == "variance for deviation":
                self.scale = norm.weight / (norm.running_var + norm.eps)
            self.shift = norm.bias - mean * (1 if wrong == "shift unscaled" else self.scale)
            if wrong == "bias left out":
                self.shift = self.shift - norm.bias
            assert wrong in ("shift unscaled", "bias left out") or not self.scale.equal(scale)

    monkeypatch.setattr(layout, "Affine", Mistaken)
    network, inputs, read = looked_through("cnn")
    got, usual = (read(each(inputs)) for each in (channels_last(network), network))
    assert not torch.allclose(got, usual, rtol=1e-3)


def test_norms_in_train_mode_stay_what_they_are():
    network, inputs, read = looked_through("cnn")
    network.train()
    made = channels_last(network)
    assert not any(isinstance(layer, layout.Affine) for layer in made.modules())
    torch.testing.assert_close(read(made(inputs)), read(network(inputs)), rtol=1e-9, atol=1e-9)


def test_half_precision_goes_in_and_comes_out():
    norm = lived_in(nn.BatchNorm2d(4)).float()
    inputs = torch.randn(2, 4, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        given = layout.Affine(norm)(inputs)
    assert given.dtype is torch.bfloat16
    torch.testing.assert_close(given, norm(inputs.float()).bfloat16(), rtol=0, atol=0)


def test_a_search_finds_the_same_and_asks_as_often(monkeypatch):
    with seeds.isolated("channels_last", "search"):
        prior = lived_in(GmiGan(channels=1, size=32, width=2, latent_size=8), 0.5, 2).float()
        target = lived_in(CNN(classes=4, channels=1, size=32, widths=[4, 4]), 0.5, 2).float()
    made = []
    monkeypatch.setattr("midefense.attacks.base.channels_last", lambda one: made.append(channels_last(one)) or made[-1])

    def found(lr=10.0, **changes):
        terms = {name: Weighted(loss=loss, weight=1.0) for name, loss in (("a", CrossEntropy()), ("b", Realism()))}
        attack = SearchAttack(
            init=Random(candidates=2),
            objective=WeightedSum(terms=terms),
            search=Gradient(optimizer=functools.partial(torch.optim.SGD, lr=lr), steps=3),
            select=Everything(),
            **changes,
        )
        oracle, evidence = Oracle(target, "whitebox"), Evidence(torch.arange(4), torch.arange(4))
        for _ in range(2):  # groups
            *_, last = attack.recover({}, prior, oracle, evidence, seeds.generator("channels_last"))
        return last.latents, oracle.bill

    (latents, bill), (usual, usual_bill) = found(channels_last=True), found()
    torch.testing.assert_close(latents, usual, rtol=0, atol=1e-3)
    assert bill == usual_bill and (latents - found(lr=0.0)[0]).abs().mean() > 0.01
    assert len(made) == 2, "the target and the prior, once for all groups"
    assert not latents.equal(usual), "an option that changes no output is none"
