"""The order of the classes in a head that others trained: told by names, or suspected from wrong answers.

A head whose rows are in another order than the dataset's labels is confident and wrong: users of published classifiers
measured 10 % where 88 % were reported. The usual cause is numbers sorted as text: 10 before 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from midefense.datasets.files import natural_key
from midefense.foreign import MOST_JSON, json_of, path_of, read_foreign
from midefense.types import Refused

ENTRIES = ("class_names", "classes", "class_to_idx", "idx_to_class")  # where checkpoints keep the names
GAIN = 0.1  # by how much another order must be better to be suspected
LEAST_IMAGES = 3  # of a class, to see that it is mostly answered with one label
CONSISTENT = 0.6  # from this share on, classes are answered with a label each


def read_names(file: str | Path) -> list[str]:
    """Class names in the order of the head: one per line, or JSON (a list, or {name: label}, or {label: name})."""
    file = path_of(file)
    try:
        text = read_foreign(file, MOST_JSON, "a file of class names").decode()
    except FileNotFoundError as error:
        raise Refused(f"--class-names: expected a file, got {file}; try one with a class name per line") from error
    except UnicodeDecodeError as error:
        raise Refused(f"--class-names: expected UTF-8 text, got {file} ({error}); try a class name per line") from error
    if file.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = names_in(json_of(text, file))
    except Refused as refusal:
        raise Refused(f"--class-names: expected names; {refusal}; try a class name per line") from refusal
    if names is None:
        raise Refused(f"--class-names: expected a list of names, or names and labels, got {file}; try a name per line")
    return names


def published_names_of(entries: Mapping[str, object]) -> list[str] | None:
    """Class names among the entries of a checkpoint, in the order of the head; None if there are none."""
    found = (names_in(entries[name]) for name in ENTRIES if name in entries)
    return next((names for names in found if names is not None), None)


def names_in(value: object) -> list[str] | None:
    """The names in a list of texts, in {name: label} or in {label: name}, by label; None for anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return list(value)
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(name, str) for name in value.values()):
        value = {name: label for label, name in value.items()}
    if sorted(map(str, value.values())) != sorted(map(str, range(len(value)))):
        return None
    return [str(name) for name, _ in sorted(value.items(), key=lambda pair: int(pair[1]))]


def order_of(names: Sequence[str], expected: Sequence[str]) -> list[int]:
    """For each label of the dataset (`expected` names), the row of the head that has its name.

    Raises `Refused` where the two do not hold the same names.
    """
    if unknown := [name for name in expected if name not in set(names)]:
        raise Refused(
            f"class names: expected the dataset's {len(expected)}, got {len(names)} that lack {len(unknown)} of them "
            f"({', '.join(unknown[:3])}); try the dataset that the weights were trained on"
        )
    if len(names) != len(expected):
        raise Refused(f"class names: expected the dataset's {len(expected)}, got {len(names)}; try its own list")
    row = {name: index for index, name in enumerate(names)}
    return [row[name] for name in expected]


def refuse_order(names: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse class names in another order than the dataset's, and say how they seem to be sorted."""
    order = order_of(names, expected)
    first = next((label for label, row in enumerate(order) if row != label), None)
    if first is not None:
        how = next((how for how, other in other_orders(expected).items() if other == list(names)), "in another order")
        raise Refused(
            f"class names: expected the order of the dataset, got them {how}: label {first} is {expected[first]!r} in "
            f"the dataset and {names[first]!r} in the head; try --reorder, which puts the head's rows in the "
            "dataset's order"
        )


def other_orders(names: Sequence[str]) -> dict[str, list[str]]:
    """The names in the orders that labels are often numbered by, where that is not theirs."""
    sorts = {
        'sorted as text ("10" before "2")': sorted(names),
        'sorted by number ("2" before "10")': sorted(names, key=natural_key),
    }
    return {how: order for how, order in sorts.items() if order != list(names)}


def suspect_order(answers: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """Whether wrong `answers` [N] to images of `labels` [N] look like another order of the classes: words for a
    message, "" if they do not."""
    measured = _share(answers == labels)
    for how, order in other_orders(names).items():
        meant = torch.tensor([list(names).index(name) for name in order])
        if (share := _share(meant[answers] == labels)) > measured + GAIN:
            return f", which look {how}: {share:.4f} of the answers would be right"
    counts = torch.bincount(labels * len(names) + answers, minlength=len(names) ** 2).view(len(names), -1)
    counts = counts[counts.sum(1) >= LEAST_IMAGES]
    share = counts.max(1).values.sum().item() / max(int(counts.sum()), 1) if len(counts) else 0.0
    if share > max(CONSISTENT, measured + GAIN):
        return f", as {share:.4f} of the images get the label that their class mostly gets"
    return ""


def _share(right: Tensor) -> float:
    return right.double().mean().item()
