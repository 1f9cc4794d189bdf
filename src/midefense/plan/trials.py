"""What is built once before compute is spent, to see whether it can be: optimisers on a dummy parameter, networks and
priors without memory. A trial changes nothing and reads no file of weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.compute import require_memory
from midefense.plan.bind import Node
from midefense.plan.facts import SOME_CLASSES, deployed, without_weights
from midefense.priors.base import Prior
from midefense.store.artefacts import content_id
from midefense.store.plain import plain
from midefense.types import DatasetFacts, Refused

FLOAT = 4  # bytes
COPIES = 4  # of every weight in training: itself, its gradient and the two moments of Adam
LARGE = 500_000_000  # weights from which an image costs too much time and memory for a trial
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

    defaults = inspect.signature(node.target).parameters
    named = [
        f"{name}={value!r}"
        for name, value in node.arguments.items()
        if name not in defaults or plain(value) != plain(defaults[name].default)
    ]
    got = ", ".join([*map(repr, node.positional), *named])
    expected = f"{node.path}: expected values that {node.target.__name__} takes, got {got}"
    try:
        node.build()([weight]).step(loss)
    except UNFIT as error:
        raise Refused(f"{expected} ({_first_line(error)}); try those of another recipe") from error
    if not weight.isfinite().all():
        raise Refused(f"{expected} (one step leaves no finite weights); try a smaller lr")


def try_network(architecture: Node, defense: Node, images: DatasetFacts) -> None:
    """Build a network as deployed, and show it one image of the dataset's shape.

    Raises `Refused` for what cannot be built, does not take such images, or has more weights than there is memory. What
    depends on the number of classes is left for later, where nobody knows it.
    """
    told = architecture.arguments.get("classes") or images.classes
    key = content_id([without_weights(architecture).recipe(), defense.recipe(), images.channels, images.size, told])
    if key in FIT:
        return
    if told:
        _try_network(architecture, defense, images, told)
    else:
        _try_for_some_classes(architecture, defense, images)
    FIT.add(key)


def _try_for_some_classes(architecture: Node, defense: Node, images: DatasetFacts) -> None:
    try:
        _try_network(architecture, defense, images, SOME_CLASSES)
    except Refused as refusal:
        try:
            _try_network(architecture, defense, images, SOME_CLASSES + 1)
        except Refused as other:
            if str(other) == str(refusal):
                raise refusal from refusal.__cause__


def try_prior(node: Node, images: DatasetFacts) -> Prior | None:
    """A prior as the plan says it, without weights, once it made an image; None for one that is read from a file
    (`Prior.require_files` looks at that).

    Raises `Refused` for values it cannot be built with, and for more weights than there is memory.
    """
    if node.places():
        return None
    node = node.given(channels=images.channels, size=images.size, classes=SOME_CLASSES)

    def make() -> Prior:
        prior = node.build()
        _require_room(prior, node.path)
        return prior

    def use(prior: Prior) -> None:
        prior.decode(prior.sample(1, seeds.generator("trial")).to(prior.device))

    return _try(make, use, f"{node.path}: expected values that {node.target.__name__} can be built with")


def _try_network(architecture: Node, defense: Node, images: DatasetFacts, classes: int) -> None:
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
    _try(make, use, f"{node.path}: expected a network for images {shape}, those of the dataset")


def _try(make: Callable[[], nn.Module], use: Callable[[nn.Module], None], expected: str) -> nn.Module:
    """Make a network and use it once: made of shapes alone and filled with zeros, which takes no time; where that fails
    (values are looked at, or there is a mistake), made as it would be."""
    try:
        with torch.device("meta"):
            shapes = make()
        return _used(zeroed(shapes), use) if _weights(shapes) < LARGE else shapes
    except Refused:
        raise
    except UNFIT:
        pass  # a mistake, or what cannot be done without numbers: that shows below
    try:
        return _used(make(), use)
    except Refused:
        raise
    except UNFIT as error:
        raise Refused(f"{expected}, got one that fails ({_first_line(error)}); try other values of it") from error


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
