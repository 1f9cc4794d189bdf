"""The only door to a target. An oracle answers at one access level, counts every image it is asked, and checks
the budget before it answers (methods card: query budgets)."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.precision import at_least_float32
from midefense.rectifiers import with_sloped_gates
from midefense.types import Access, Answer, Images, Moments, Refused, refuse_unknown

MODES = ("eval", "train")
Way = Callable[[nn.Module], Callable]  # makes of a network what answers as it does
BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BudgetExceeded(Exception):
    """The next answer would cost more images than a target's budget allows. Nothing was answered."""


class Oracle:
    """Answers questions about one deployed classifier.

    White-box oracles let gradients flow through the answer. All others answer under `no_grad`, refuse images
    that require gradients, and no attribute of theirs leads to the model.

    Args:
        model: called as `model(images)`, returns a `Trace`. It is copied, frozen and put in `mode`.
        access: what may be read.
        budget: images that may be asked per target; None is unlimited.
        cut: a tap's name; `features` then means the output there instead of the head's input.
        ids: the targets that may be charged; None admits any. With a budget, every image must name its target.
        mode: `eval`, as deployed; or `train`, which is how scripts that forgot to switch their target asked it: answers
            then come from the statistics of their own batch, with dropout, and the copy's running statistics move.
        key: of what a deployed network draws for its answers (a module says so in `draws_when_deployed`): draws depend
            on it and on how many images were asked before, whatever else was drawn meanwhile. None: they come from the
            stream around the question.
        asked: images that stand on the shared bill already, from before work was interrupted.
    """

    def __init__(
        self,
        model: nn.Module,
        access: Access | str,
        budget: int | None = None,
        cut: str | None = None,
        ids: Iterable[int] | None = None,
        mode: str = "eval",
        key: tuple[object, ...] | None = None,
        asked: int = 0,
    ):
        self.access = Access.parse(access)
        if budget is not None and budget < 1:
            raise Refused(f"attack.budget: expected at least 1 image per target or null, got {budget}")
        self.budget = budget
        self._chargeable = None if ids is None else frozenset(int(i) for i in ids)
        self._asked: Counter[int | None] = Counter({None: asked})  # None: for all targets together
        draws = any(getattr(module, "draws_when_deployed", False) for module in model.modules())
        self._key, self._key_of_draws = (key if draws else None), key
        # The model lives in the closure alone: a black-box attack holds nothing it could open by mistake.
        self._ask, self._copy_weights, self._run_by, self._switch = _ways_in(model, self.access, cut, mode)

    def __call__(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        reads: Sequence[str] = ("probs",),
        weights: dict[str, Tensor] | None = None,
        gate: float | None = None,
        taps: Sequence[str] = (),
    ) -> Answer:
        """Answer about images [B, C, H, W]; one forward serves all of `reads`.

        Args:
            ids: the target each image is charged to (hand it over on the CPU); None charges the shared bill.
            reads: fields of `Answer` to fill.
            weights: parameters to use instead of the model's own (white-box; they take gradients).
            gate: ask a copy whose ReLUs have gates of this slope in their gradient (white-box; `rectifiers.py`).
            taps: stages whose outputs are told too (white-box).
        Raises:
            Refused: a field the access level hides, or gradients through a black box.
            BudgetExceeded: before answering, if any target would pass its budget.
        """
        self.access.require([*reads, *(["weights"] if weights or gate or taps else [])], "this question")
        if self.access is not Access.WHITEBOX and images.requires_grad:
            raise Refused(
                f"expected images without gradients at access={self.access.value}, got images that require them; "
                "detach them, or attack with access=whitebox"
            )
        self._charge(images, ids)
        keyed = self._key is not None
        with seeds.isolated("answer", *self._key, self._asked.total()) if keyed else contextlib.nullcontext():
            return self._ask(images, tuple(reads), weights, gate, tuple(taps))

    def weights(self) -> dict[str, Tensor]:
        """Copies of the parameters and buffers (white-box only)."""
        self.access.require(["weights"], "Oracle.weights")
        return self._copy_weights()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters alone: what training moves by its gradient (white-box only)."""
        self.access.require(["weights"], "Oracle.parameters")
        return self._copy_weights(parameters=True)

    def drawing(self, on: bool) -> Oracle:
        """The same door with the same bill; behind it every module that may draw for an answer does (`on`), or none
        does, however it was deployed: whoever holds the weights chooses (white-box). A network without such modules
        answers as it did."""
        self.access.require(["weights"], "Oracle.drawing")
        other = copy.copy(self)
        other._key = self._key_of_draws if on else None
        other._ask, other._copy_weights, other._run_by, other._switch = self._switch(on)
        return other

    def run_by(self, way: Way) -> Oracle:
        """The same door with the same bill; behind it the network runs as `way` makes it run."""
        other = copy.copy(self)
        other._ask = self._run_by(way)
        return other

    @property
    def bill(self) -> dict[int, int]:
        """Images asked so far per target id."""
        return {target: asked for target, asked in self._asked.items() if target is not None}

    @property
    def shared_bill(self) -> int:
        """Images asked so far for all targets together."""
        return self._asked[None]

    def _charge(self, images: Tensor, ids: Tensor | Sequence[int] | None) -> None:
        if ids is None:
            if self.budget is not None:
                raise Refused("expected the target of every image, because the budget is per target; got ids=None")
            self._asked[None] += len(images)
            return
        # ids live on the CPU, so counting never waits for the device
        wanted = Counter(ids.tolist() if isinstance(ids, Tensor) else ids)
        if sum(wanted.values()) != len(images):
            raise Refused(f"expected one id per image, got {sum(wanted.values())} ids for {len(images)} images")
        if self._chargeable is not None and (strange := sorted(set(wanted) - self._chargeable)):
            raise Refused(f"ids: expected targets of this group, got {strange[:3]}, to whom nothing can be charged")
        if self.budget is not None:
            over = {i: self._asked[i] + n for i, n in wanted.items() if self._asked[i] + n > self.budget}
            if over:
                target, total = next(iter(over.items()))
                raise BudgetExceeded(
                    f"target {target} would reach {total} images, the budget is {self.budget} per target"
                )
        self._asked.update(wanted)


class SharedBill:
    """An oracle whose every question is charged to the shared bill: for work that is done once, for no target.

    Args:
        oracle: who answers.
    """

    def __init__(self, oracle: Oracle):
        self._oracle = oracle

    @property
    def access(self) -> Access:
        """That of the oracle."""
        return self._oracle.access

    def __call__(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        reads: Sequence[str] = ("probs",),
        weights: dict[str, Tensor] | None = None,
    ) -> Answer:
        """As `Oracle`, whatever `ids` are named."""
        return self._oracle(images, None, reads, weights)


class Edge:
    """The deployed edge, as anyone may use it on pictures of their own: what leaves it, by its defense and transport
    as they are for private ones.

    Args:
        release: what arrives of images [N], on the CPU [N, ...]; the same whenever it is asked.
    """

    def __init__(self, release: Callable[[Images], Tensor]):
        self._release = release
        self._asked: set[int] = set()

    def __call__(self, images: Images) -> Tensor:
        """What arrives of each image [N, ...]."""
        self._asked.update(images.ids.tolist())
        return self._release(images)

    @property
    def bill(self) -> int:
        """Pictures asked about so far; one that is asked about again is answered as before, and counts once."""
        return len(self._asked)


class Ensemble:
    """A target and networks of the attacker's own, asked together (LOMMA's model augmentation): it answers as the
    target does, which charges for it, with the logits of the others beside its own.

    Args:
        target: the oracle of the target.
        others: oracles of the attacker's own networks, white-box.
    """

    def __init__(self, target: Oracle, others: Sequence[Oracle]):
        self._target, self._others = target, tuple(others)

    @property
    def access(self) -> Access:
        """That to the target."""
        return self._target.access

    def __call__(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        reads: Sequence[str] = ("probs",),
        weights: dict[str, Tensor] | None = None,
    ) -> Answer:
        """As `Oracle`; the others are asked where `logits` are read."""
        answer = self._target(images, ids, reads, weights)
        if "logits" in reads:
            answer.beside = tuple(other(images, reads=("logits",)).logits for other in self._others)
        return answer

    def run_by(self, way: Way) -> Ensemble:
        """The same, all of them run that way."""
        return Ensemble(self._target.run_by(way), [other.run_by(way) for other in self._others])

    def weights(self) -> dict[str, Tensor]:
        """Copies of the target's parameters and buffers."""
        return self._target.weights()


class Panel:
    """Networks of the attacker's own, asked together in the target's place: probabilities are their mean, and the label
    that of the largest; the logits and the features are those of the first, with the logits of the others `beside`.

    Args:
        members: an oracle of each.
    """

    def __init__(self, members: Sequence[Oracle]):
        self._members = tuple(members)

    @property
    def access(self) -> Access:
        """That to the first."""
        return self._members[0].access

    def __call__(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        reads: Sequence[str] = ("probs",),
        weights: dict[str, Tensor] | None = None,
    ) -> Answer:
        """As `Oracle`."""
        asked = (*reads, "probs") if "labels" in reads else reads
        answer, *others = (member(images, ids, asked, weights) for member in self._members)
        if "probs" in asked:
            probs = torch.stack([each.probs for each in (answer, *others)]).mean(0)
            answer.probs = probs if "probs" in reads else None
            answer.labels = probs.argmax(1) if "labels" in reads else None
        if "logits" in reads:
            answer.beside = tuple(other.logits for other in others)
        return answer

    def run_by(self, way: Way) -> Panel:
        """The same, all of them run that way."""
        return Panel([member.run_by(way) for member in self._members])


def _ways_in(model: nn.Module, access: Access, cut: str | None, mode: str):
    """The closures of an oracle: ask a question, copy the weights, make a way to ask a network that runs otherwise, and
    make all of these for a copy that draws for its answers or does not."""
    if mode not in MODES:
        raise refuse_unknown("oracle.mode", mode, MODES)
    model = copy.deepcopy(model).train(mode == "train").requires_grad_(False)
    if access is Access.WHITEBOX and getattr(getattr(model, "output", None), "removable", False):
        model.output = None  # who holds the weights need not change what they say
    names = {name: None for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    gated = functools.lru_cache(maxsize=1)(functools.partial(with_sloped_gates, model))

    def ask(
        images: Tensor,
        reads: tuple[str, ...],
        weights: dict[str, Tensor] | None,
        gate: float | None = None,
        also: tuple[str, ...] = (),
        forward: Callable = model,
    ) -> Answer:
        asked = model if gate is None else gated(gate)
        taps = (*((cut,) if cut and "features" in reads else ()), *also)
        grad = contextlib.nullcontext() if access is Access.WHITEBOX else torch.no_grad()
        watch = _batchnorm_inputs(asked) if "batchnorm" in reads else contextlib.nullcontext()
        with grad, watch as statistics:
            if weights is None:
                # hooks that collect moments are none of the network's: it runs as it is under them
                plain = statistics is not None or gate is not None
                trace = (asked if plain else forward)(images, taps=taps)
            else:
                if unknown := set(weights) - set(names):
                    raise Refused(f"weights name parameters the target has not: {sorted(unknown)[:3]}")
                trace = torch.func.functional_call(asked, weights, (images,), {"taps": taps})
        answer = Answer(batchnorm=statistics, taps={name: trace.taps[name] for name in also} if also else None)
        if "logits" in reads:
            answer.logits = at_least_float32(trace.logits)
        if "probs" in reads:
            answer.probs = trace.logits.float().softmax(1) if trace.probs is None else trace.probs
        if "labels" in reads:
            answer.labels = trace.logits.argmax(1)
        if "features" in reads:
            answer.features = at_least_float32(trace.taps[cut] if cut else trace.features)
        return answer

    def copy_weights(parameters: bool = False) -> dict[str, Tensor]:
        tensors = dict(model.named_parameters()) if parameters else model.state_dict()
        return {name: value.detach().clone() for name, value in tensors.items()}

    def run_by(way: Way) -> Callable[..., Answer]:
        return functools.partial(ask, forward=way(model))

    def switched(on: bool):
        other = copy.deepcopy(model)
        for module in other.modules():
            if hasattr(module, "draws_when_deployed"):
                module.draws_when_deployed = on
        return _ways_in(other, access, cut, mode)

    return ask, copy_weights, run_by, switched


def batchnorm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers of a network, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BATCHNORM)}


@contextlib.contextmanager
def _batchnorm_inputs(model: nn.Module) -> Iterator[dict[str, Moments]]:
    """Collect the moments of the input of every BatchNorm, in forward order. A layer that is passed again is listed
    again, as `name (2)`."""
    layers = batchnorm_layers(model)
    if not layers:
        raise Refused("batchnorm was asked of a target that has no BatchNorm; choose another objective or target")
    seen: dict[str, Moments] = {}
    passes: Counter[str] = Counter()

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        passes[name] += 1
        seen[name if passes[name] == 1 else f"{name} ({passes[name]})"] = _moments(layer, inputs[0])

    handles = [layer.register_forward_pre_hook(functools.partial(hook, name=name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _moments(layer: nn.Module, inputs: Tensor) -> Moments:
    """Moments over batch and space of `inputs` [B, C, ...], in float32 at least; the layer's own are copied."""
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    flat = wide.transpose(0, 1).flatten(1)
    kept = (None if kept is None else kept.detach().clone() for kept in (layer.running_mean, layer.running_var))
    return Moments(flat.mean(1), flat.var(1, unbiased=False), *kept, spatial=inputs.ndim > 2)
