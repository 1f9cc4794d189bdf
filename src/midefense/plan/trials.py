"""What is built once before compute is spent, to see whether it can be: optimisers on a dummy parameter, networks and
priors without memory, those that an attack or a metric teaches on a few empty images. A trial changes nothing and reads
no weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.attacks.learning import Learner, Learning
from midefense.compute import require_memory
from midefense.foreign import path_of
from midefense.oracle import Oracle
from midefense.plan.bind import Node, NotBuilt
from midefense.plan.facts import SOME_CLASSES, deployed, generators_of, without_weights
from midefense.priors.base import Prior
from midefense.store.artefacts import content_id
from midefense.store.plain import plain
from midefense.types import DatasetFacts, Refused

FLOAT = 4  # bytes
COPIES = 4  # of every weight in training: itself, its gradient and the two moments of Adam
LARGE = 500_000_000  # weights from which an image costs too much time and memory for a trial
SOME_LATENTS = (8,)  # the shape of a latent, as long as nobody knows it
FIT: set[str] = set()  # networks that were tried in this process: the next run of a sweep has them too
# What libraries and modules of one's own raise for values and shapes that they cannot work with.
UNFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def optimizer_trials(nodes: Iterable[Node]) -> Iterator[Callable[[], None]]:
    """A trial of every optimiser at any depth of these nodes."""
    for node in nodes:
        for inner in node.within():
            if inner.partial and issubclass(inner.target, torch.optim.Optimizer):
                yield lambda inner=inner: try_optimizer(inner)


def try_optimizer(node: Node) -> None:
    """Let a partial optimiser take one step on a dummy parameter: its class alone knows which values it takes."""
    weight = nn.Parameter(torch.zeros(2, 2))

    def loss() -> Tensor:
        weight.grad = torch.ones_like(weight)
        return weight.sum()

    try:
        node.build()([weight]).step(loss)
    except UNFIT as error:
        raise Refused(f"{_expected_of(node)} ({_first_line(error)}); try those of another recipe") from error
    if not weight.isfinite().all():
        raise Refused(f"{_expected_of(node)} (one step leaves no finite weights); try a smaller lr")


def _expected_of(node: Node) -> str:
    """What an optimiser expects and was given, but for what its defaults say too."""
    defaults = inspect.signature(node.target).parameters
    named = [
        f"{name}={value!r}"
        for name, value in node.arguments.items()
        if name not in defaults or plain(value) != plain(defaults[name].default)
    ]
    got = ", ".join([*map(repr, node.positional), *named])
    return f"{node.path}: expected values that {node.target.__name__} takes, got {got}"


def try_network(architecture: Node, defense: Node, images: DatasetFacts) -> None:
    """Build a network as deployed, and show it one image of the dataset's shape.

    Raises `Refused` for what cannot be built, does not take such images, or has more weights than there is memory. What
    depends on the number of classes is left for later, where nobody knows it.
    """
    told = architecture.arguments.get("classes") or images.classes
    key = content_id([without_weights(architecture).recipe(), defense.recipe(), images.channels, images.size, told])
    if key in FIT:
        return
    _for_classes(told, lambda classes: _built_network(architecture, defense, images, classes))
    FIT.add(key)


def _for_classes(known: int | None, attempt: Callable[[int], object]) -> None:
    """Make an attempt with the number of classes; where nobody knows it, refuse what fails for any number alike."""
    if known:
        attempt(known)
        return
    try:
        attempt(SOME_CLASSES)
    except Refused as refusal:
        try:
            attempt(SOME_CLASSES + 1)
        except Refused as other:
            if str(other) == str(refusal):
                raise refusal from refusal.__cause__


def try_prior(node: Node, images: DatasetFacts) -> Prior | None:
    """A prior as the plan says it, by its shapes, once it made an image; None for one whose files are missing
    (`Prior.require_files` says which).

    Raises `Refused` for values it cannot be built with, for images of another shape than those of the dataset, and for
    more weights than there is memory.
    """
    files = [path_of(place) for place in node.places().values()]
    if not all(file.is_file() for file in files):
        return None
    node = node.given(channels=images.channels, size=images.size, classes=SOME_CLASSES)
    expected = f"{node.path}: expected values that {node.target.__name__} can be built with"
    if files:
        shape = f"[B, {images.channels}, {images.size}, {images.size}]"
        expected = f"{node.path}: expected a generator whose pictures can be made images {shape}, those of the dataset"

    def make() -> Prior:
        prior = replace(node, target=node.target.shaped).build()
        _require_room(prior, node.path)
        return prior

    def use(prior: Prior) -> None:
        made, wanted = list(prior.specimen().shape), [1, images.channels, images.size, images.size]
        if made != wanted:
            raise Refused(
                f"{node.path}: expected a prior of images {wanted}, those of the dataset, got one that makes {made}; "
                "try another prior, or values of it that give this shape"
            )

    return _try(make, use, expected)


def try_generators(defense: Node, images: DatasetFacts) -> None:
    """Try the generators among the parts of a defense as `try_prior` does.

    Raises `Refused` for one that does not offer what the defense asks, and for one that learns from a target: what it
    would learn from is what the defense protects.
    """
    asked = defense.build().asks_of_prior
    for node in generators_of(defense):
        name, lacking = node.target.__name__, set(asked) - node.target.offers
        if lacking or node.target.asks is not None:
            why = f"that offers {', '.join(asked)}" if lacking else "that learns from public images alone"
            raise Refused(f"{node.path}: expected a generator {why}, got {name}; try prior@{node.path}=crafter_gan")
        try_prior(node, images)


def learner_trials(
    attack: Node, target: tuple[Node, Node], ask: Callable[[nn.Module], Oracle], images: DatasetFacts
) -> Iterator[Callable[[], None]]:
    """A trial of every network of the attacker's own, at any depth of an attack: a surrogate, a decoder.

    Args:
        target: the architecture and the defense of the network that is asked.
        ask: the oracle of that network which the attack gets.
    """
    for node in attack.within():
        if any(isinstance(value, Node) and issubclass(value.target, Learning) for value in node.arguments.values()):
            yield lambda path=node.path: _try_learner(attack, path, target, ask, images)


def _try_learner(
    attack: Node,
    path: str,
    target: tuple[Node, Node],
    ask: Callable[[nn.Module], Oracle],
    images: DatasetFacts,
) -> None:
    """Ask the target about a few empty images, and let the network at `path` of the attack say what it loses."""
    told = target[0].arguments.get("classes") or images.classes

    def attempt(classes: int) -> None:
        asked = _built_network(*target, images, classes)
        world = {"channels": images.channels, "size": images.size, "classes": classes}
        (node,) = [node for node in attack.given(**world).within() if node.path == path]

        def use(learner: Learner) -> None:
            count = min(2, learner.learning.batch_size)
            empty = torch.zeros(count, images.channels, images.size, images.size)
            answers = learner.ask(ask(asked), empty)
            shapes = {"observed": answers.shape[1:], "latents": SOME_LATENTS, "embedded": SOME_LATENTS}
            network = learner.learning.build(seeds.generator("trial"), **shapes)
            _require_room(network, f"{path}.learning.network")
            loss = learner.rehearse(network.train(), empty, answers)
            if list(loss.shape) != [count]:
                raise ValueError(f"its loss has the shape {list(loss.shape)} for {count} images")

        expected = f"{path}.learning.network: expected one that learns from what the target answers about images"
        _used_or_refused(node.build(), use, f"{expected} [B, {images.channels}, {images.size}, {images.size}]")

    _for_classes(told, attempt)


def student_trials(metrics: Iterable[Node], images: DatasetFacts) -> Iterator[Callable[[], None]]:
    """A trial of every network that a metric teaches, at any depth: it is told classes and channels."""
    for metric in metrics:
        for node in metric.within():
            if node.partial and issubclass(node.target, Classifier):
                yield lambda node=node: _try_student(node, images)


def _try_student(node: Node, images: DatasetFacts) -> None:
    def make() -> nn.Module:
        student = node.build()(classes=SOME_CLASSES, channels=images.channels)
        _require_room(student, node.path)
        return student

    def use(student: nn.Module) -> None:
        student(torch.zeros(2, images.channels, images.size, images.size))

    shape = f"[B, {images.channels}, {images.size}, {images.size}]"
    try:
        _try(make, use, f"{node.path}: expected a network that can be taught images {shape}, those of the dataset")
    except Refused as refusal:  # what the class says does not know where in the configuration it stands
        said = str(refusal)
        raise (refusal if node.path in said else Refused(f"{node.path}: {said}")) from refusal


def _built_network(architecture: Node, defense: Node, images: DatasetFacts, classes: int) -> nn.Module:
    """A network as deployed, without its weights, after it was shown an image."""
    told = {"channels": images.channels, "size": images.size}
    node = without_weights(architecture).given(classes=classes, **told)

    def make() -> nn.Module:
        model = deployed(node, defense)
        _require_room(model, node.path)
        return model

    def use(model: nn.Module) -> None:
        model(torch.zeros(1, images.channels, images.size, images.size))
        _require_tensors(model, node.path)

    shape = f"[B, {images.channels}, {images.size}, {images.size}]"
    return _try(make, use, f"{node.path}: expected a network for images {shape}, those of the dataset")


def _try(make: Callable[[], nn.Module], use: Callable[[nn.Module], None], expected: str) -> nn.Module:
    """Make a network and use it once: made of shapes alone and filled with zeros, which takes no time; where that fails
    (values are looked at, or there is a mistake), made as it would be."""
    try:
        with torch.device("meta"):
            shapes = make()
        return _used(zeroed(shapes), use) if _weights(shapes) < LARGE else shapes
    except NotBuilt:
        pass  # perhaps only without numbers
    except Refused:
        raise
    except UNFIT:
        pass  # a mistake, or what cannot be done without numbers: that shows below
    try:
        return _used(make(), use)
    except Refused:
        raise
    except UNFIT as error:
        raise _failure(expected, error) from error


def zeroed(model: nn.Module) -> nn.Module:
    """A network that was built without memory, with zeros for all its numbers, in memory."""
    model = model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model


@torch.no_grad()
def _used(model: nn.Module, use: Callable[[nn.Module], None]) -> nn.Module:
    with seeds.isolated("trial"):
        use(model.eval())
    return model


def _used_or_refused(made: object, use: Callable[[object], None], expected: str) -> None:
    """Use once what was made as it would be; gradients may be taken."""
    try:
        with seeds.isolated("trial"):
            use(made)
    except Refused:
        raise
    except UNFIT as error:
        raise _failure(expected, error) from error


def _failure(expected: str, error: Exception) -> Refused:
    return Refused(f"{expected}, got one that fails ({_first_line(error)}); try other values of it")


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _require_room(model: nn.Module, path: str) -> None:
    # how many weights is not said: a text without their number is the same for every number of classes
    require_memory(_weights(model) * FLOAT * COPIES, f"{path} (its weights in training)")


def _require_tensors(model: nn.Module, path: str) -> None:
    """Refuse a network with more to keep than tensors, which is all that the store holds."""
    others = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise Refused(
            f"{path}: expected a network whose state is tensors, got {', '.join(others[:3])} beside them; "
            "try a get_extra_state that returns a tensor, or none"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
