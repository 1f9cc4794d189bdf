"""Network inversion by conditioned generators: the losses, the steps of both repositories, and their networks
(`network_inversion.npz`). Losses, weights and optimisers are those of the presets as coded."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.architectures.network_inversion import NetworkInversionCNN, NetworkInversionMLP
from midefense.architectures.state_names import published_names
from midefense.architectures.tiny_vit import TinyViT
from midefense.attacks.inversion import Apprentice, Bank, NetworkInversion, Wanted
from midefense.attacks.inversion_terms import Scene, Term
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.nets.network_inversion import TransposedHotGenerator, UpsampledHotGenerator, VectorGenerator
from midefense.types import Answer, Trace

from .recording import Entry, Recording
from .registry import replays
from .rules import Draws

WEIGHTS = {  # of the recorded coefficients, in their order: the preset's name of a loss
    "alpha": "divergence",
    "alphap": "perturbed_divergence",
    "beta": "cross_entropy",
    "betap": "perturbed_cross_entropy",
    "gamma": "cosine",
    "delta": "orthogonality",
    "eta1": "total_variation",
    "eta2": "outside_range",
    "eta3": "gradient",
    "eta4": "stationarity",
}
LOSSES = {  # recorded curves: the preset's name
    "kl": "divergence",
    "ce": "cross_entropy",
    "perturbed_kl": "perturbed_divergence",
    "perturbed_ce": "perturbed_cross_entropy",
    "cosine": "cosine",
    "ortho": "orthogonality",
    "var": "total_variation",
    "pixel": "outside_range",
    "grad": "gradient",
    "stationary": "stationarity",
    "total": "loss",
}
COEFFICIENTS = "coef_alpha_alphap_beta_betap_gamma_delta_eta1234_eps"


def attack_of(preset: str) -> NetworkInversion:
    """The attack of a preset, as its file has it."""
    node = bind(compose("attack", [f"attack={preset}"])[0]["attack"], "attack", beside_dataset=True)
    return node.given(classes=10, channels=1, size=28).build()


def perceptron(draws: Draws, widths: Sequence[int], classes: int, size: int) -> NetworkInversionMLP:
    """A filled one, whose own normalisation the presets undo."""
    table = {"classifier": "classifier"}
    for index in range(len(widths)):
        stage = "features" if index == len(widths) - 1 else f"hidden{index + 1}"
        table |= {f"feature_extractor.{4 * index + layer}": f"stages.{stage}.{layer + 1}" for layer in (0, 1)}
    model = NetworkInversionMLP(classes=classes, channels=1, size=size, widths=tuple(widths))
    return draws.fill(model, table=table)


class Toy(nn.Module):
    """The recorded generator: one linear layer of latent and label, tanh."""

    classes, latent_size = 4, 8

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, latents: Tensor, wanted: Tensor) -> Tensor:
        return torch.tanh(F.linear(torch.cat([latents, wanted], 1), self.weight, self.bias)).view(-1, 1, 4, 4)


def apprentice_of(attack: NetworkInversion, generator: nn.Module, target: nn.Module, raw: Tensor | None) -> Apprentice:
    """A generator and multipliers that begin as they are recorded."""
    oracle = Oracle(target, "whitebox")
    bank = Bank(attack.multipliers, raw, None, None)
    optimizers = {"generator": attack.optimizer(list(generator.parameters()))}
    if raw is not None:
        optimizers["bank"] = attack.multiplier_optimizer([bank.raw])
    theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()} if attack.by_weights else {}
    ask = functools.partial(attack._ask, oracle)
    return Apprentice(attack, generator, bank, optimizers, ask, theta, frozenset())


def told(loss: Term, scene: Scene, moved: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient by what it is of."""
    value = loss(scene)
    return value, torch.autograd.grad(value, moved)[0]


@replays("network_inversion/terms")
def losses(recording: Recording) -> Iterator[Entry]:
    """Each loss as coded, and its gradient; those of the earlier repository."""
    published, vector = attack_of("network_inversion_published"), attack_of("network_inversion_vector")
    features, logits, images = (recording[name].requires_grad_() for name in ("features", "logits", "images"))
    labels, soft = recording["labels"], recording["soft_labels"]
    one_hot = F.one_hot(labels, logits.shape[1]).float()

    def scene(wanted: Tensor = one_hot, signs: Tensor | None = None, taps: dict | None = None) -> Scene:
        answer = Answer(logits=logits, features=features, taps=taps)
        return Scene(images, labels, wanted, lambda *_: answer, signs, published.perturbation)

    term = {name: weighted.loss for name, weighted in published.terms.items()}
    for key, (loss, seen, moved) in {
        "cosine": (term["cosine"], scene(), features),
        "ortho": (term["orthogonality"], scene(), features),
        "kl_onehot": (term["divergence"], scene(), logits),
        "kl_soft": (term["divergence"], scene(soft), logits),
        "tv": (term["total_variation"], scene(), images),
        "pixel_range": (term["outside_range"], scene(), images),
    }.items():
        value, gradient = told(loss, seen, moved)
        yield recording.compare(f"R/{key}", value)
        yield recording.compare(f"R/{key}_grad", gradient)
    signs = recording["R/perturb_normals"].sign()
    yield recording.compare("R/perturbed_eps1.2", published.perturbation(images, signs))
    map_of = {"stage2": recording["V/feature_map"], "stage3": torch.zeros(5, 1)}  # the sum over stages is that of one
    earlier = {name: weighted.loss for name, weighted in vector.terms.items()}
    at_map = scene(taps=map_of)
    nothing = float(earlier["orthogonality"].of(torch.zeros(5, 1)))
    yield recording.compare("V/cosine_abs", earlier["cosine"](at_map))
    yield recording.compare("V/ortho", earlier["orthogonality"](at_map) - nothing)
    yield recording.compare("V/kl_double_softmax", earlier["divergence"](scene(soft)))


@replays("network_inversion/stat")
def gradients_by_weights(recording: Recording) -> Iterator[Entry]:
    """The gradient's length, and the distance of the weights from a sum of gradients, with what they move."""
    attack = attack_of("network_inversion_published")
    labels, multipliers = recording["y"], recording["a"].requires_grad_()
    # the target takes what the original's takes: the images here are what a generator would have made
    images = recording["x"].requires_grad_()
    target = perceptron(recording.draws, (7, 5), 4, 4)
    apprentice = apprentice_of(attack, Toy(torch.zeros(16, 12), torch.zeros(16)), target, multipliers.detach())
    scene = Scene(images, labels, F.one_hot(labels, 4).float(), apprentice.ask, theta=apprentice.theta)
    scene.multipliers = multipliers.square()
    yield recording.compare("logits", scene.answer.logits)
    yield recording.compare("penultimate", scene.answer.features)
    norm = attack.terms["gradient"].loss(scene)
    yield recording.compare("R/grad_norm_loss", norm)
    yield recording.compare("R/grad_norm_loss_grad_x", torch.autograd.grad(norm, images, retain_graph=True)[0])
    distance = attack.terms["stationarity"].loss(scene)
    yield recording.compare("R/stationary", distance)
    by_image, by_multiplier = torch.autograd.grad(distance, [images, multipliers])
    yield recording.compare("R/stationary_grad_x", by_image)
    yield recording.compare("R/stationary_grad_a", by_multiplier)
    squares = sum(value.detach().square().sum() for value in apprentice.theta.values())
    yield recording.compare("R/theta_sq_norm", squares)


@replays("network_inversion/train")
def steps(recording: Recording) -> Iterator[Entry]:
    """Three steps of generator and multipliers, with all ten losses."""
    attack = attack_of("network_inversion_published")
    weights = [attack.terms[name].weight for name in WEIGHTS.values()]
    yield recording.compare(COEFFICIENTS, torch.tensor([*weights, attack.perturbation.strength]))
    generator = Toy(recording["G0/l.weight"], recording["G0/l.bias"])
    target = perceptron(recording.draws, (7, 5), 4, 4)
    apprentice = apprentice_of(attack, generator, target, recording["a0"])
    latents, labels, normals = (recording[name] for name in ("z", "labels", "perturb_normals"))
    seen, perturbed = [], []
    for step in range(len(labels)):
        wanted = Wanted(latents[step], labels[step], F.one_hot(labels[step], 4).float())
        with torch.no_grad():
            again = apprentice.scene(wanted, normals[step].sign()).perturbed.logits.argmax(1)
        perturbed.append((again == labels[step]).float().mean())
        seen.append(apprentice.update(wanted, normals[step].sign(), step))
    for key, name in LOSSES.items():
        yield recording.compare(f"{key}_loss", torch.stack([one[name] for one in seen]))
    yield recording.compare("accuracy", torch.stack([one["accuracy"] for one in seen]))
    yield recording.compare("perturb_acc", torch.stack(perturbed))
    yield recording.compare("G_after3/l.weight", generator.weight)
    yield recording.compare("G_after3/l.bias", generator.bias)
    yield recording.compare("a_after3", apprentice.bank.raw)


class Halving(nn.Module):
    """The earlier repository's classifier, with the names of its state; `stage2` and `stage3` are behind its second and
    third leaky ReLU."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        hidden = nn.Linear(4 * width * 64, 2 * width)
        self.main = nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(2 * width, classes))

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        # what the preset undoes
        images = (images - 0.1307) / 0.3081
        second = self.main[:6](images)
        third = self.main[6:9](second)
        features = self.main[9:12](third)
        stages = {"stage2": second, "stage3": third}
        return Trace(self.main[12](features), features, {name: stages[name] for name in taps})


def earlier_generator(draws: Draws) -> nn.Module:
    return draws.fill(VectorGenerator(classes=6, channels=1, size=64, latent_size=10, width=4, output="tanh"))


@replays("network_inversion/train_V")
def steps_of_the_earlier_repository(recording: Recording) -> Iterator[Entry]:
    """Two steps of its generator."""
    attack = attack_of("network_inversion_vector")
    generator = earlier_generator(recording.draws).train()
    apprentice = apprentice_of(attack, generator, recording.draws.fill(Halving(4, 6)), None)
    latents, shares = recording["noise"], recording["pdf_logits"].softmax(2)
    seen = [
        apprentice.update(Wanted(latents[step], share.argmax(1), share), None, step)
        for step, share in enumerate(shares)
    ]
    yield recording.compare("loss", torch.stack([one["loss"] for one in seen]))
    means = torch.stack([parameter.detach().abs().mean() for parameter in generator.parameters()])
    yield recording.compare("param_abs_mean_after2", means)


@replays("network_inversion/net")
def networks(recording: Recording) -> Iterator[Entry]:
    """Generators and classifiers, filled, in eval mode."""
    yield from generators(recording)
    images = recording["image28"].float()
    normalised = {"size": 28, "channels": 1, "classes": 10, "mean": 0.0, "std": 1.0}
    for name, (build, table) in CLASSIFIERS.items():
        model = build(**normalised)
        recording.draws.fill(model, table=table)
        yield names_and_shapes(recording, name, model, table)
        count = sum(parameter.numel() for parameter in model.parameters())
        yield recording.compare_exactly(f"{name}/n_params", torch.tensor(count), "weights")
        images = images.detach().requires_grad_()
        trace = model(images)
        yield recording.compare(f"{name}/logits", trace.logits)
        yield recording.compare(f"{name}/penultimate", trace.features)
        (gradient,) = torch.autograd.grad(trace.logits.square().mean(), images)
        yield recording.compare(f"{name}/input_grad_of_mean_square", gradient, tolerance=1e-3, note="known in float16")


def generators(recording: Recording) -> Iterator[Entry]:
    """The three generators, what the matrix of the second one shows, and what the earlier classifier says."""
    told_of = {"classes": 10, "channels": 1, "size": 28, "latent_size": 12}
    for name, generator in {
        "Generator1_nz12_ngf8": TransposedHotGenerator(**told_of, width=8, output="tanh"),
        "Generator_lat12": UpsampledHotGenerator(**told_of, matrix_class="processed"),
    }.items():
        recording.draws.fill(generator)
        yield names_and_shapes(recording, name, generator, generator.published)
        latents, wanted = recording[f"{name}/z"], recording[f"{name}/onehot"]
        with torch.no_grad():
            yield recording.compare(f"{name}/out", generator(latents, wanted))
        if isinstance(generator, UpsampledHotGenerator):
            shown = generator.class_of_matrix(wanted, generator.process(wanted))
            yield recording.compare_exactly(f"{name}/matrix_class_used", shown)
    generator = earlier_generator(recording.draws)
    latents, shares = recording["V_Generator_nz10_ngf4/z"].flatten(1), recording["V_Generator_nz10_ngf4/pdf"]
    with torch.no_grad():
        made = generator(latents, shares)
        yield recording.compare("V_Generator_nz10_ngf4/out_pool2", F.avg_pool2d(made, 2))
        answer = recording.draws.fill(Halving(4, 6))(made * 0.3081 + 0.1307).logits
        yield recording.compare("V_Classifier_ncf4/logits_on_generator_output", answer)


def names_and_shapes(recording: Recording, name: str, module: nn.Module, table: Mapping[str, str]) -> Entry:
    """Whether the state is the original's, name by name."""
    known = json.loads(bytes(recording[f"{name}/state_json"].numpy()))
    own = module.state_dict()
    names = published_names(own, table)
    got = {names[ours]: list(tensor.shape) for ours, tensor in own.items()}
    return Entry(f"{name}/state_json", float(got != known), 0.0, "names and shapes")


# Classifier to how ours is built, and the original's names of its layers.
CLASSIFIERS: dict[str, tuple[Callable[..., nn.Module], dict[str, str]]] = {
    "MLP": (
        NetworkInversionMLP,
        {
            "feature_extractor.0": "stages.hidden1.1",
            "feature_extractor.1": "stages.hidden1.2",
            "feature_extractor.4": "stages.features.1",
            "feature_extractor.5": "stages.features.2",
            "classifier": "classifier",
        },
    ),
    "CNN": (
        NetworkInversionCNN,
        {
            **{f"features.{5 * i + j}": f"stages.stage{i + 1}.{j}" for i in range(3) for j in (0, 1)},
            "classifier.0": "stages.features.1",
            "classifier.1": "stages.features.2",
            "classifier.4": "classifier",
        },
    ),
    "VisionTransformer": (
        functools.partial(TinyViT, encoder_norm=True),
        {
            "cls_token": "stages.embedding.class_token",
            "pos_embed": "stages.embedding.positions",
            "patch_embed": "stages.embedding.patches",
            "transformer_encoder.norm": "stages.features.1",
            "norm": "stages.features.2",
            "pre_head": "stages.features.3",
            "head": "classifier",
        }
        | {
            f"transformer_encoder.layers.{i}.{theirs}": f"stages.layer{i + 1}.{ours}"
            for i in (0, 1)
            for theirs, ours in {
                "self_attn.in_proj_weight": "attention.project_in.weight",
                "self_attn.in_proj_bias": "attention.project_in.bias",
                "self_attn.out_proj": "attention.project_out",
                "linear1": "mixing.0",
                "linear2": "mixing.3",
                "norm1": "attention_norm",
                "norm2": "mixing_norm",
            }.items()
        },
    ),
}
