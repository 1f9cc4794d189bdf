"""Splits: private training and test images and public images, disjoint in identity and content, and hashed.

Every recipe here is pinned: it depends on the images, their order and a seed, on nothing of the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from midefense import seeds
from midefense.datasets.cache import picture_hashes
from midefense.datasets.files import Files
from midefense.store.plain import writable
from midefense.types import Images, Refused

Part = TypeVar("Part", Images, Files)  # what can be split: images, or files not yet decoded
EVERYTHING_SEED = 42  # cuts the public images into train and test for classifiers that know all classes


@dataclass(eq=False)
class Splits:
    """A dataset's three parts. Both private parts share their names (label k is `names[k]`); the public part has
    names of its own, or is empty: then the attacker's images come from another dataset. `ids` are unique over all
    three. `stratified`: every private class has test images; False where a published split is drawn over all images."""

    private_train: Images
    private_test: Images
    public: Images
    stratified: bool = True

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the private classes, by label."""
        return self.private_train.names

    @property
    def classes(self) -> int:
        """Number of private classes."""
        return len(self.class_names)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all three parts, see `digest`."""
        return digest(self.private_train, self.private_test, self.public)

    @cached_property
    def references_hash(self) -> str:
        """SHA-256 of the private training part: what metrics compare with."""
        return digest(self.private_train)

    def everything(self) -> tuple[Images, Images]:
        """Train and test images of all classes, for evaluators: private classes first, then the public ones.

        The public images are cut by `stratify` with a pinned seed, at the share of the private test set. Refused if
        a public class is too small to be cut.
        """
        if not len(self.public):
            return self.private_train, self.private_test
        share = len(self.private_test) / (len(self.private_train) + len(self.private_test))
        public_train, public_test = cut(self.public, share, EVERYTHING_SEED)
        refuse_small_classes(public_train, public_test, "public")
        return follow(self.private_train, public_train), follow(self.private_test, public_test)

    def check(self) -> None:
        """Refuse parts that are malformed, too small to learn from, or that share an identity or a picture."""
        parts = {"private_train": self.private_train, "private_test": self.private_test, "public": self.public}
        if not len(self.public):
            del parts["public"]
        for name, part in parts.items():
            _refuse_malformed(part, name)
        _refuse_mixed_shapes(parts)
        for part in parts.values():
            refuse_unwritable(part.names)
        refuse_few_classes(self.class_names)
        if list(self.private_test.names) != list(self.private_train.names):
            raise Refused("private_test: expected the class names of private_train, in their order, got others")
        refuse_small_classes(self.private_train, self.private_test, "private", tested=int(self.stratified))
        _refuse_unused_names(self.public, "public")
        _refuse_repeated_ids(list(parts.values()))
        refuse_overlap([self.private_train, self.private_test], self.public)


def require_same_pictures(option: str, splits: Splits, others: Splits) -> None:
    """Refuse `others` unless its private parts hold the pictures of `splits`, in their order, whatever their size; the
    `option` that gave them is named."""
    pairs = ((splits.private_train, others.private_train), (splits.private_test, others.private_test))
    if splits is not others and not all(
        torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels) for one, other in pairs
    ):
        raise Refused(
            f"{option}: expected the private pictures of the target's dataset in their order, got others; this dataset "
            f"splits its pictures by their size, so try {option}=null"
        )


def copies(parts: Sequence[Images]) -> list[str]:
    """Pictures that are another of their class over again, in sentences: none, or how many, how many of them stand in
    another part than the first (a copy among the test images is known by heart), and the first. Classes are told apart
    by their names; `parts` are those of one dataset.
    """
    seen: dict[tuple[str, bytes], tuple[int, int]] = {}
    found = []
    for place, part in enumerate(parts):
        for row, key in enumerate(_texts(hashes_of(part))):
            first = seen.setdefault((part.names[int(part.labels[row])], key), (place, row))
            if first != (place, row):
                found.append((first, (place, row)))
    if not found:
        return []
    total, apart = sum(map(len, parts)), sum(first[0] != again[0] for first, again in found)
    (place, row), (other, again) = found[0]
    return [
        f"{len(found):,} of {total:,} pictures are copies of another of their class, {apart:,} of them in another part "
        f"of the split. First: id {int(parts[other].ids[again])}, as id {int(parts[place].ids[row])} of class "
        f"{parts[place].names[int(parts[place].labels[row])]!r}"
    ]


def digest(*parts: Images) -> str:
    """SHA-256 (hex) over the shapes, names, picture hashes and labels of `parts`, in order. Ids stay out, so that the
    same public images have the same hash beside any private ones."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(json.dumps([list(part.pixels.shape), list(part.names)]).encode())
        sha.update(hashes_of(part).contiguous().numpy())
        sha.update(part.labels.contiguous().numpy())
    return sha.hexdigest()


def hashes_of(part: Images) -> Tensor:
    """SHA-256 of each picture, uint8 [N, 32]; computed once per set of images."""
    if part.hashes is None:
        part.known = part.pixels, picture_hashes(part.pixels)
    return part.hashes


def stratify(
    labels: Tensor, test_share: float, seed: int, rounded: Callable[[float], int] = round
) -> tuple[Tensor, Tensor]:
    """Rows for training and for testing (both ascending): of every class, `test_share`, `rounded`, at least one image,
    is tested on. The draw is numpy's `RandomState`, whose stream is frozen across versions."""
    rng = np.random.RandomState(seed)
    order = np.argsort(labels.numpy(), kind="stable")
    _, starts = np.unique(labels.numpy()[order], return_index=True)
    tested = [rng.permutation(rows)[: max(1, rounded(test_share * len(rows)))] for rows in np.split(order, starts[1:])]
    test = np.zeros(len(labels), dtype=bool)
    test[np.concatenate(tested)] = True
    return torch.from_numpy(np.flatnonzero(~test)), torch.from_numpy(np.flatnonzero(test))


def cut(images: Part, test_share: float, seed: int) -> tuple[Part, Part]:
    """`images` as a training and a test set, see `stratify`."""
    train, test = stratify(images.labels, test_share, seed)
    return images.take(train), images.take(test)


def fewer(images: Part, count: int | None, seed: int) -> Part:
    """`count` images of each class, drawn alike each time, in the order they had; None: all of them. Refused where a
    class has fewer."""
    if count is None:
        return images
    found = torch.bincount(images.labels, minlength=len(images.names))
    if int(found.min()) < count:
        small = int(found.argmin())
        raise Refused(
            f"dataset.images_per_class: expected at most {int(found[small])}, the training images of "
            f"{images.names[small]!r}, got {count}"
        )
    order = torch.randperm(len(images.labels), generator=seeds.generator(seed, "dataset", "images per class"))
    rows = [order[images.labels[order] == label][:count] for label in range(len(images.names))]
    return images.take(torch.cat(rows).sort().values)


def legacy_shuffle_split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for training and for testing, both in shuffled order: rows 0 to `count` - 1 are shuffled, the first
    int(`share` x `count`) train. Not stratified. The split of Plug & Play Attacks (Struppek et al., ICML 2022), drawn
    as there by numpy's legacy generator, so that what their published classifiers trained on is known."""
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    train = int(share * count)
    return order[:train], order[train:]


def choose_classes(images: Part, classes: Sequence[int]) -> Part:
    """The images of `classes`; label k of the result is `classes[k]`."""
    position = torch.full((len(images.names),), -1, dtype=torch.int64)
    position[list(classes)] = torch.arange(len(classes))
    labels = position[images.labels]
    names = [images.names[label] for label in classes]
    return replace(images, labels=labels, names=names).take(labels >= 0)


def split_classes(images: Part, private: Sequence[int], test_share: float, seed: int) -> tuple[Part, Part, Part]:
    """Private training, private test and public part: classes `private` become the private ones, in that order; all
    others are public."""
    train, test = cut(choose_classes(images, private), test_share, seed)
    return train, test, choose_classes(images, _others(images, private))


def split_shuffled(images: Part, private: Sequence[int], train_share: float, seed: int) -> tuple[Part, Part, Part]:
    """The same parts, the private images cut by `legacy_shuffle_split` into `train_share` and the rest."""
    own = choose_classes(images, private)
    train, test = legacy_shuffle_split(len(own), train_share, seed)
    return own.take(train), own.take(test), choose_classes(images, _others(images, private))


def _others(images: Part, private: Sequence[int]) -> list[int]:
    taken = set(private)
    return [label for label in range(len(images.names)) if label not in taken]


def join(first: Images, second: Images) -> Images:
    """Images of the same classes, one after the other."""
    pixels = torch.cat([first.pixels, second.pixels])
    return Images(
        pixels=pixels,
        labels=torch.cat([first.labels, second.labels]),
        ids=torch.cat([first.ids, second.ids]),
        names=first.names,
        known=(pixels, torch.cat([hashes_of(first), hashes_of(second)])),
    )


def follow(first: Images, second: Images) -> Images:
    """Images of different classes: the labels of `second` count on after those of `first`."""
    counted_on = replace(second, labels=second.labels + len(first.names))
    return replace(join(first, counted_on), names=[*first.names, *second.names])


def refuse_few_classes(names: Sequence[str]) -> None:
    """Refuse fewer than two private classes: who tells apart one class knows nothing, and nothing can be recovered."""
    if len(names) < 2:
        got = ", ".join(map(repr, names)) or "none"
        raise Refused(f"expected at least 2 private classes, got {got}; try a dataset, or a share of it, with more")


def refuse_unwritable(names: Sequence[str]) -> None:
    """Refuse names of classes that no file can hold: rows, pictures and reports name them."""
    if odd := [name for name in names if not writable(name)]:
        raise Refused(f"expected names of classes in UTF-8 without a NUL byte, got {odd[0]!r}; try renaming its folder")


def refuse_small_classes(train: Part, test: Part, who: str, tested: int = 1) -> None:
    """Refuse classes with fewer than two training images or fewer than `tested` (0 or 1) test images."""
    counts = [torch.bincount(part.labels, minlength=len(train.names)).tolist() for part in (train, test)]
    for name, for_train, for_test in zip(train.names, *counts, strict=True):
        if for_train < 2 or for_test < tested:
            count = for_train + for_test
            raise Refused(
                f"{who} class {name!r} has {count} image{'' if count == 1 else 's'} ({for_train} to train on, "
                f"{for_test} to test on); expected at least 2 to train on and {tested} to test on. Try adding images, "
                "leaving the class out, or another share to test on."
            )


def refuse_overlap(private: Sequence[Images], public: Images) -> None:
    """Refuse public images that share an identity (by name, ignoring case) or a picture (by SHA-256 of its pixels)
    with the private ones."""
    refuse_shared_identities(private, public)
    owners = {key: (part, row) for part in private for row, key in enumerate(_texts(hashes_of(part)))}
    for row, key in enumerate(_texts(hashes_of(public))):
        if key in owners:
            part, private_row = owners[key]
            raise Refused(
                f"the same picture is private ({_describe(part, private_row)}) and public ({_describe(public, row)}); "
                "expected no picture in both. Try removing one of them."
            )


def refuse_shared_identities(private: Sequence[Part], public: Part) -> None:
    """Refuse public names that are private too, ignoring case; needs no pixels."""
    private_names = {name.casefold() for part in private for name in part.names}
    shared = [name for name in public.names if name.casefold() in private_names]
    if shared:
        shown = ", ".join(repr(name) for name in shared[:5]) + (", ..." if len(shared) > 5 else "")
        raise Refused(
            f"private and public images share {len(shared)} of their identities: {shown}; expected none. "
            "Try other classes, or another dataset, as public images."
        )


def _texts(hashes: Tensor) -> list[bytes]:
    return [row.tobytes() for row in hashes.numpy()]


def _describe(images: Images, row: int) -> str:
    return f"class {images.names[int(images.labels[row])]!r}, id {int(images.ids[row])}"


def _refuse_malformed(part: Images, name: str) -> None:
    if part.pixels.dtype != torch.uint8 or part.pixels.ndim != 4 or not len(part):
        shape = list(part.pixels.shape)
        raise Refused(f"{name}: expected pixels uint8 [N, C, H, W] with N >= 1, got {part.pixels.dtype} {shape}")
    for what, values in (("labels", part.labels), ("ids", part.ids)):
        if values.dtype != torch.int64 or values.shape != (len(part),):
            shape = list(values.shape)
            raise Refused(f"{name}: expected {what} int64 [{len(part)}], one per image, got {values.dtype} {shape}")
    low, high = int(part.labels.min()), int(part.labels.max())
    if low < 0 or high >= len(part.names):
        raise Refused(f"{name}: expected labels 0 to {len(part.names) - 1}, one per name, got {low} to {high}")
    if len({text.casefold() for text in part.names}) < len(part.names):
        raise Refused(f"{name}: expected one label per class name, got a name twice (case is ignored)")


def _refuse_mixed_shapes(parts: dict[str, Images]) -> None:
    shapes = {name: tuple(part.pixels.shape[1:]) for name, part in parts.items()}
    _, height, width = shapes["private_train"]
    if len(set(shapes.values())) > 1 or height != width:
        raise Refused(f"expected square images [C, S, S] of one shape in all parts, got {shapes}")


def _refuse_unused_names(part: Images, who: str) -> None:
    counts = torch.bincount(part.labels, minlength=len(part.names)).tolist()
    for name, count in zip(part.names, counts, strict=True):
        if not count:
            raise Refused(f"{who} class {name!r} has 0 images; expected labels without a gap. Try leaving it out.")


def _refuse_repeated_ids(parts: Sequence[Images]) -> None:
    ids = torch.cat([part.ids for part in parts])
    if len(ids.unique()) < len(ids):
        raise Refused(f"expected ids unique over the whole dataset, got {len(ids) - len(ids.unique())} repeated")
