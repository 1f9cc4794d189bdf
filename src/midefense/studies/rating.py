"""What people see in reconstructions: blinded pairs, their answers, and how far they agree.

A pair is a reconstruction beside a private image: of the person it was recovered for, or of somebody else. Half of a
sheet are of either kind, and nobody who answers can know which: the share of strangers that a rater takes for the same
person is what that rater's answers are worth nothing below. The image is any of that person's training images, drawn
alike for both kinds: the one that is nearest to the reconstruction, beside strangers of whom no such choice was made,
would look the same where nothing was recovered. Answers are appended to a file and never changed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from midefense import seeds
from midefense.datasets.splits import Splits, digest
from midefense.metrics.agreement import cohen_kappa, fleiss_kappa
from midefense.plan.bind import bind_recipe
from midefense.plan.read import by_identity
from midefense.plan.whitelist import resolve
from midefense.store.artefacts import Artefact
from midefense.store.store import Store
from midefense.types import Images, Refused

ANSWERS = ("same", "different")
FEWEST_CLASSES = 2
LONGEST = 64  # characters of a rater's name
OURS = "midefense."
CUT_OFF = b" (cut off)"  # ends a line that was


@dataclass(frozen=True)
class Pair:
    """The reconstruction at row `left` of a result's pictures, and the one at `right` of the private images beside it;
    `same`: whether both are of one person."""

    left: int
    right: int
    same: bool


@dataclass(frozen=True)
class Sheet:
    """The pairs of a result and their pictures, uint8: reconstructions [K, C, H, W], private images [N, C, H, W]; drawn
    alike every time for one `seed`."""

    pairs: tuple[Pair, ...]
    reconstructions: np.ndarray
    private: np.ndarray

    @classmethod
    def of(cls, result: Artefact, private: Images, count: int, seed: int) -> Sheet:
        """At most `count` pairs, each of another reconstruction, half of them of one person, in an order drawn with
        them. Strangers are people who were attacked as well; of either, one of the `private` images is drawn.

        Raises `Refused` for results without pictures, or of one person alone.
        """
        tensors = result.tensors()
        if "reconstructions" not in tensors or not len(tensors["labels"]):
            raise Refused(f"{result.reference}: expected a result with pictures, got one without; try another result")
        labels = tensors["labels"]
        if len(labels.unique()) < FEWEST_CLASSES:
            raise Refused(
                f"{result.reference}: expected pictures of two people or more, to pair some with a stranger's, got one "
                "person's; try a result of more classes"
            )
        rng = seeds.generator(seed, "rating", result.id)
        chosen = torch.randperm(len(labels), generator=rng)[:count].tolist()
        pairs = []
        for place, left in enumerate(chosen):
            same = place % 2 == 0
            others = labels.unique()
            others = others[others != labels[left]]
            stranger = others[torch.randint(len(others), (1,), generator=rng)]
            theirs = (private.labels == (labels[left] if same else stranger)).nonzero()[:, 0]
            pairs.append(Pair(left, int(theirs[torch.randint(len(theirs), (1,), generator=rng)]), same))
        order = torch.randperm(len(pairs), generator=rng).tolist()
        return cls(tuple(pairs[place] for place in order), tensors["reconstructions"].numpy(), private.pixels.numpy())

    def picture(self, item: int, side: str) -> np.ndarray:
        """The picture of a pair on a side (`left` or `right`), uint8 [C, H, W]."""
        pair = self.pairs[item]
        return self.reconstructions[pair.left] if side == "left" else self.private[pair.right]


class Answers:
    """The answers to the sheets of one result: a line of JSON each, in a file that is only ever appended to.

    Args:
        folder: of the study, made with the first answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "answers.jsonl"

    def read(self) -> list[dict]:
        """All answers, oldest first, without lines that were cut off. Raises `Refused` for others that are none."""
        lines, _ = self._lines()
        found = []
        for number, line in enumerate(lines, start=1):
            if line.endswith(CUT_OFF):
                continue
            try:
                one = json.loads(line.decode())
                found.append({key: one[key] for key in ("rater", "item", "answer")})
            except (ValueError, KeyError, TypeError) as error:
                raise Refused(f"{self.file}: expected an answer in line {number}, got {line[:80]!r}") from error
        return found

    @property
    def cut_off(self) -> int:
        """How many lines were cut off, because who wrote them was killed or had no room."""
        lines, torn = self._lines()
        return sum(line.endswith(CUT_OFF) for line in lines) + bool(torn)

    def _lines(self) -> tuple[list[bytes], bytes]:
        """The lines of the file, and what stands behind the last end of a line: nothing, or a line that was cut off."""
        *lines, torn = self.file.read_bytes().split(b"\n") if self.file.is_file() else [b""]
        return lines, torn

    def of(self, rater: str) -> dict[int, str]:
        """What a rater said of each item."""
        return {one["item"]: one["answer"] for one in self.read() if one["rater"] == rater}

    def add(self, rater: str, item: int, answer: str, seconds: float) -> None:
        """Append an answer; the first of a rater to an item stays. A line that was cut off is ended before, as such.

        Raises `Refused` for an answer that there is not, and for a second one.
        """
        if answer not in ANSWERS:
            raise Refused(f"answer: expected {' or '.join(ANSWERS)}, got {answer!r}")
        if item in self.of(rater):
            raise Refused(f"item {item}: expected one answer of {rater}, got another; the first stays")
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {"rater": rater, "item": item, "answer": answer, "seconds": round(seconds, 1), "at": int(time.time())}
        with self.file.open("ab", buffering=0) as file:  # one write of one line, whoever else appends
            torn = self._lines()[1]
            file.write((CUT_OFF + b"\n" if torn else b"") + json.dumps(told, sort_keys=True).encode() + b"\n")
            os.fsync(file.fileno())


def open_study(store: Store, reference: str, count: int, seed: int) -> tuple[Sheet, Answers]:
    """The sheet of a result and the answers there are; refused where its pictures may not be shown."""
    result = store.open(reference, "result")
    target = store.open(result.provenance["parents"]["target"], "target")
    require_showable(result, target)
    dataset = bind_recipe(target.recipe["dataset"], target.places_within("dataset"), ())
    splits = by_identity(dataset).build().load(store.caches)
    require_own_prior(store, result, splits)
    folder = store.root / "ratings" / f"{result.id}-{count}-{seed}"
    return Sheet.of(result, splits.private_train, count, seed), Answers(folder)


def require_showable(result: Artefact, target: Artefact) -> None:
    """Refuse a result of a dataset whose pictures may not be shown to whoever rates, or of an attack that was handed
    public pictures of unknown origin: a reconstruction may show them."""
    dataset = target.recipe["dataset"]["_target_"]
    allowed = dataset.startswith(OURS) and getattr(resolve(dataset), "may_be_shown", False)
    if not allowed:
        raise Refused(
            f"{result.reference}: expected a dataset that may be shown, got {dataset.rpartition('.')[2]}, whose "
            "pictures are of people or of unknown origin; try a result of synthetic_faces, digits or mnist"
        )
    public = result.provenance["names"].get("public", "own")
    if public != "own":
        raise Refused(
            f"{result.reference}: expected a prior that learned from the dataset's own public part, got "
            f"public={public}, whose pictures may show through; try a result of public=own"
        )


def require_own_prior(store: Store, result: Artefact, splits: Splits) -> None:
    """Refuse a result whose prior brought its weights in a file, or learned from other pictures than the public part of
    the dataset, as one of the store may have: by what it learned from, however that is called."""
    recipe = store.open(result.provenance["parents"]["recovered"], "recovered").recipe["prior"]
    named = f"prior={result.provenance['names'].get('prior', 'own')}"
    if any(not name.startswith(OURS) or getattr(resolve(name), "places", ()) for name in _parts_of(recipe["prior"])):
        raise Refused(
            f"{result.reference}: expected a prior that learned here, got {named}, whose weights or code are others', "
            "so that pictures of anybody may show through; try a result of another prior"
        )
    if recipe.get("public") not in (None, digest(splits.public)):
        raise Refused(
            f"{result.reference}: expected a prior that learned from the dataset's own public part, got {named}, which "
            "learned from other pictures, which may show through; try a prior made with public=own beside this dataset"
        )


def _parts_of(recipe: object) -> Iterator[str]:
    """The names of the classes in a recipe, at any depth, but for those of torch."""
    if isinstance(recipe, Mapping):
        if not str(recipe.get("_target_", "torch.")).startswith("torch."):
            yield recipe["_target_"]
        recipe = list(recipe.values())
    if isinstance(recipe, list | tuple):
        for part in recipe:
            yield from _parts_of(part)


def require_rater(name: str) -> str:
    """A rater's name, as it stands in the file of answers."""
    if not name.strip() or len(name) > LONGEST or not name.isprintable():
        raise Refused(
            f"--rater: expected a name of 1 to {LONGEST} characters, got {name[:LONGEST]!r}; try --rater anna"
        )
    return name


def agreement(pairs: Sequence[Pair], answers: Sequence[Mapping]) -> list[str]:
    """What the answers to a sheet say, in lines: of each rater how many pairs of one person and how many of strangers
    were taken for the same, the difference of which is what was seen; and how far raters agree (Cohen's kappa of two,
    Fleiss' of more, over the pairs that all of them answered)."""
    raters = sorted({one["rater"] for one in answers})
    said = {rater: {one["item"]: one["answer"] for one in answers if one["rater"] == rater} for rater in raters}
    lines = [f"{rater}: {_told(pairs, said[rater])}" for rater in raters]
    shared = sorted(set.intersection(*(set(own) for own in said.values()))) if raters else []
    table = np.array([[said[rater][item] == ANSWERS[0] for item in shared] for rater in raters], dtype=int)
    if len(raters) == 2:
        lines.append(f"Cohen's kappa {_shown(cohen_kappa(*table))} over {len(shared)} pairs that both answered")
    elif len(raters) > 2:
        counts = np.stack([table.sum(0), len(raters) - table.sum(0)], 1)
        lines.append(f"Fleiss' kappa {_shown(fleiss_kappa(counts))} over {len(shared)} pairs that all answered")
    return lines or ["no answers yet"]


def _told(pairs: Sequence[Pair], said: Mapping[int, str]) -> str:
    shares = []
    for same in (True, False):
        own = [answer == ANSWERS[0] for item, answer in said.items() if pairs[item].same is same]
        shares.append(np.mean(own) if own else np.nan)
    own, strangers, seen = (_shown(100 * share) for share in (*shares, shares[0] - shares[1]))
    taken = f"{own} % of pairs of one person taken for the same, {strangers} % of strangers"
    return f"{len(said)} of {len(pairs)} pairs; {taken}; difference {seen} points"


def _shown(number: float) -> str:
    return "n/a" if np.isnan(number) else f"{number:.2f}".rstrip("0").rstrip(".")
