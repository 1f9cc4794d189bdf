"""SecretGen's search (Yuan, Wu, Long, Xiao, Li, ECCV 2022; card secret_gen.md, section 4, stage 2): of what is seen of
a private image many completions are drawn, the target votes whom they show, and the completion it is surest of is
where a descent starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import rectangles
from midefense.attacks.part import Part, Slots
from midefense.attacks.problem import Problem, seen
from midefense.priors.base import Prior
from midefense.ranges import Colour, Draws, Positive, Whole
from midefense.types import Found, Refused, Setting, refuse_unknown

LABELS = ("told", "voted")
ANSWERS = ("probs", "labels")
MEAN_PIXEL = (0.5189, 0.4346, 0.3886)  # of the authors' public images


class Voted(Part):
    """Draws completions for every target, one after the other, and asks about each; the best so far is what is found.
    Where labels are voted, it also asks about the completion with one cell blanked, for every cell of a grid, averages
    all answers, and takes the label of the highest average that some whole completion was given. Then it descends from
    the completions that were given the label, surest first; starts that find none are those of the init, at random.

    Each target is charged draws * (1 + cells * cells) images; where labels are told and answers are probabilities no
    cell is blanked, and it is charged `draws`.

    Args:
        draws: completions per target.
        labels: `told`, the class of the evidence; or `voted`: the attacker was told none, and no other part of the
            attack is either.
        cells: per side of the grid whose cells are blanked when labels are voted; 0 blanks none (the authors' `abl`).
        answers: `probs`, or `labels`: each vote then counts whole, and the surest completion is the one to which most
            blanked views are given the label, too.
        fill: colour of a blanked cell, one value or one per channel; grey images get the mean of several.
        box: latents that are drawn are clamped to [-box, box]; those of the init are not, as in the authors' code.
        asked_twice: ask about every whole completion a second time, as the authors' white-box code; it changes the bill
            alone.
        descent: the search that goes on from what was chosen. An attack must have one, as nothing else asks its
            objective; None is for the votes on their own.
    """

    ignores = MappingProxyType({"views": "shows it completions, whole and with one cell blanked"})

    def __init__(
        self,
        *,
        descent: Part | None = None,
        draws: Draws = 200,
        labels: str = "voted",
        cells: Whole = 4,
        answers: str = "probs",
        fill: Colour = MEAN_PIXEL,
        box: Positive = 1.0,
        asked_twice: bool = False,
    ):
        if labels not in LABELS:
            raise refuse_unknown("attack.search.labels", labels, LABELS)
        if answers not in ANSWERS:
            raise refuse_unknown("attack.search.answers", answers, ANSWERS)
        self.descent, self.draws, self.answers, self.box = descent, draws, answers, box
        self.asked_twice, self.guesses = asked_twice, labels == "voted"
        self.cells = cells if self.guesses or answers == "labels" else 0
        self.fill = fill if isinstance(fill, int | float) else tuple(fill)
        self.reads = tuple(dict.fromkeys([answers, *(() if descent is None else descent.reads)]))
        self.needs = ("sample", *(() if descent is None else descent.needs))
        self.rolls = descent is None or descent.rolls
        if descent is not None:
            self.wants, self.asks_decisions = descent.wants, descent.asks_decisions
            self.coupled, self.separates = descent.coupled, descent.separates

    def check_slots(self, slots: Slots, where: str = "attack") -> None:
        """Refuse to go without a descent, or with one that would begin without the votes, and whatever it refuses."""
        if self.descent is None:
            raise Refused(
                f"{where}.search.descent: expected a search, without which nothing asks {where}.objective, got null; "
                f"try {where}.search.descent.steps=0 for the votes alone"
            )
        if self.descent.begins_anew:
            raise Refused(
                f"{where}.search.descent: expected a search that goes on from what was voted, got "
                f"{type(self.descent).__name__}, which takes of the starts their number alone; try nesterov"
            )
        self.descent.check_slots(slots, where)

    @property
    def steps(self) -> int:
        """Completions that are drawn, then updates."""
        return self.draws + (0 if self.descent is None else self.descent.steps)

    def check(self, setting: Setting) -> None:
        """Refuse a prior that completes nothing, and more cells than there are pixels."""
        if not setting.prior.completes:
            raise Refused(
                f"attack.search ({type(self).__name__}): expected a prior that completes what was observed, got "
                f"{setting.prior.__name__}; try prior=secret_gan evidence=masked_middle"
            )
        if self.cells > setting.dataset.size:
            raise Refused(
                f"attack.search.cells: expected at most {setting.dataset.size}, the side of an image, "
                f"got {self.cells}; try 4"
            )
        if self.descent is not None:
            self.descent.check(setting)

    def check_prior(self, prior: Prior) -> None:
        """Whatever the descent refuses."""
        if self.descent is not None:
            self.descent.check_prior(prior)

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields `optimised` after every completion and every update, with the labels that it goes by."""
        ballot = Ballot(problem, found, guesses=self.guesses)
        rng = problem.draw("votes")
        for _ in range(self.draws):
            latents = self._drawn(problem, rng)
            ballot.add(latents, *self._asked(problem, latents))
            yield ballot.best()
        if self.descent is not None:
            chosen = ballot.best()
            told = replace(problem, evidence=replace(problem.evidence, labels=ballot.labels.cpu()))
            for moved in self.descent(told, chosen):
                yield replace(moved, labels=chosen.labels)

    def _drawn(self, problem: Problem, rng: torch.Generator) -> Tensor:
        """A latent for every target [N, Z]; the entries that no search moves say which."""
        targets = len(problem.evidence)
        latents = problem.prior.sample(targets, rng).clamp(-self.box, self.box).to(problem.device)
        return problem.prior.of_rows(latents, torch.arange(targets, device=problem.device))

    @torch.no_grad()
    def _asked(self, problem: Problem, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the target answers about the completions and their views, averaged [N, K], and about the completions
        alone [N, K], each a share or a probability per class."""
        images = torch.cat([problem.drawn(latents[rows]) for rows in problem.chunks(len(latents))])
        images = problem.prior.frame(images)
        views = blanks(images.shape[-1], self.cells).to(images.device)  # the first hides nothing
        fill = rectangles.fill_on(self.fill, images.shape[1], images.device, images.dtype)
        order = [*range(len(views)), *([0] if self.asked_twice else [])]
        shown = torch.arange(len(images)).repeat_interleave(len(order)), torch.tensor(order).repeat(len(images))
        answers = []
        for rows in problem.chunks(len(shown[0])):
            whose, which = (index[rows] for index in shown)
            picture = torch.where(views[which.to(images.device)], fill, images[whose.to(images.device)])
            answer = problem.oracle(picture, ids=problem.evidence.ids[whose], reads=(self.answers,))
            answers.append(getattr(answer, self.answers))
        told = _shares(torch.cat(answers)).unflatten(0, (len(images), len(order)))[:, : len(views)]
        # of labels the blanked views say how sure the target is of the whole
        return told.mean(1), told[:, 0] if self.answers == "probs" else _weighed(told)


def _shares(answers: Tensor) -> Tensor:
    """Probabilities [M, K] as they are; labels int64 [M] as 1 for the class and 0 for the others."""
    if answers.is_floating_point():
        return answers
    return F.one_hot(answers).float()


def _weighed(told: Tensor) -> Tensor:
    """Votes for completions [N, K] by labels of them and their views [N, V, K]: nothing but for the label of the whole,
    which has the share of all that agree with it."""
    return told[:, 0] * told.mean(1)


def blanks(side: int, cells: int) -> Tensor:
    """Which pixels each view hides, bool [1 + cells * cells, 1, side, side]: none, then one cell of the grid after the
    other. The cells tile the image."""
    edges = [place * side // cells for place in range(cells + 1)] if cells else []
    hidden = torch.zeros(1 + cells * cells, 1, side, side, dtype=torch.bool)
    spans = list(zip(edges, edges[1:], strict=False))
    for number, ((top, bottom), (left, right)) in enumerate(((a, b) for a in spans for b in spans), start=1):
        hidden[number, :, top:bottom, left:right] = True
    return hidden


class Ballot:
    """The completions of a group so far, and what the target said of them.

    Args:
        problem: whose evidence tells the labels, unless the ballot `guesses` them.
        starts: candidates of the init, as many per target as are chosen; they stand in for completions that lack.
    """

    def __init__(self, problem: Problem, starts: Found, guesses: bool):
        self.starts, self.guesses, self.targets = starts, guesses, len(problem.evidence)
        self.labels = problem.evidence.labels.to(problem.device)
        self.latents: list[Tensor] = []  # of each completion [N, Z], its label [N], and how sure the target was [N]
        self.given: list[Tensor] = []
        self.sure: list[Tensor] = []
        self.votes: Tensor | None = None

    def add(self, latents: Tensor, average: Tensor, whole: Tensor) -> None:
        """Count a completion per target: its latents [N, Z], and the answers about its views and itself [N, K]."""
        sure, given = whole.max(1)
        for kept, new in ((self.latents, latents), (self.given, given), (self.sure, sure)):
            kept.append(new)
        self.votes = average if self.votes is None else _sum(self.votes, average)

    def best(self) -> Found:
        """Per target the surest completions that were given its label, then starts of the init, as `optimised`."""
        given, sure, drawn = (torch.stack(kept, 1) for kept in (self.given, self.sure, self.latents))
        if self.guesses:
            self.labels = self._elected(given)
        wanted = len(self.starts) // self.targets
        sure, order = sure.masked_fill(given != self.labels[:, None], -1.0).sort(dim=1, descending=True, stable=True)
        sure, order = sure[:, :wanted], order[:, :wanted]
        picked = drawn.gather(1, order[..., None].expand(-1, -1, drawn.shape[2]))
        chosen = self.starts.latents.unflatten(0, (self.targets, wanted)).clone()
        few = order.shape[1]
        chosen[:, :few] = torch.where((sure >= 0)[..., None], picked, chosen[:, :few])
        loss = 1 - F.pad(sure.clamp_min(0), (0, wanted - few)).flatten()
        labels = self.labels.repeat_interleave(wanted) if self.guesses else None
        latents, owners = chosen.flatten(0, 1), self.starts.evidence
        return Found(latents, loss, owners, stage="optimised", labels=labels, seen=seen(loss, []))

    def _elected(self, given: Tensor) -> Tensor:
        """The label [N] of most votes among those `given` [N, draws] to whole completions; the first of equals."""
        met = torch.zeros_like(self.votes, dtype=torch.bool).scatter_(1, given, True)
        return self.votes.masked_fill(~met, -torch.inf).argmax(1)


def _sum(left: Tensor, right: Tensor) -> Tensor:
    """The sum of votes [N, K], where one side may not have met the last classes yet."""
    classes = max(left.shape[1], right.shape[1])
    return sum(F.pad(votes, (0, classes - votes.shape[1])) for votes in (left, right))
