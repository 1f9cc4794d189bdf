"""A shadow of an attacked target: the same network, trained the same way on data that the attacker owns. Whatever is
measured of it, its training images included, is the attacker's own to see."""

from __future__ import annotations

from collections.abc import Sequence

from midefense.datasets.splits import Splits, hashes_of, refuse_overlap
from midefense.plan.bind import Node
from midefense.plan.overrides import parsed
from midefense.types import Refused

CLASSES = range(10)  # of the data sets whose private classes are an option
OF_THE_STORE = ("target", "recovered", "prior_artefact")


def shadow_words(words: Sequence[str], shadow: Sequence[str], dataset: Node) -> list[str]:
    """The command-line words that make and attack the shadow: `words`, but what `shadow` says otherwise.

    Without any the shadow has the public classes of the target's dataset as its private ones, as many as the target's.

    Raises `Refused` where the target is one of the store, whose parts the words do not name, where a dataset has no
    classes to take instead, and for shadow words that say nothing of the data.
    """
    if named := [word.text for word in parsed(words) if word.option in OF_THE_STORE]:
        raise Refused(
            f"{named[0]}: expected the target's parts by name, as a shadow is trained by them, got one of the store; "
            "try dataset=, architecture=, defense= and recipe="
        )
    laid = parsed(shadow) if shadow else parsed([_other_classes(dataset)])
    if not any(word.option == "dataset" for word in laid):
        raise Refused(
            f"--shadow: expected words about the data that the attacker owns, got {' '.join(shadow)}; "
            "try --shadow dataset=NAME"
        )
    return [
        *(word.text for word in parsed(words) if not any(word.sets(other.key) for other in laid)),
        *(word.text for word in laid),
    ]


def _other_classes(dataset: Node) -> str:
    """The word that makes public classes the private ones."""
    private = dataset.arguments.get("private_classes")
    others = [] if private is None else [label for label in CLASSES if label not in private][: len(private)]
    if len(others) < 2:
        raise Refused(
            f"--shadow: expected what data the attacker owns, as {dataset.target.__name__} leaves no two public "
            "classes to train a shadow on; try --shadow dataset=NAME"
        )
    return f"dataset.private_classes=[{','.join(map(str, others))}]"


def require_apart(private: Splits, shadow: Splits, same_source: bool) -> None:
    """Refuse a shadow that was made of what is private: a picture that both hold, or, where both are of one source and
    names mean the same, a person or class.

    Pictures are compared as the networks see them, so that both must be of one shape.
    """
    shapes = [tuple(splits.private_train.pixels.shape[1:]) for splits in (private, shadow)]
    if shapes[0] != shapes[1]:
        raise Refused(
            f"--shadow: expected images of the target's shape {list(shapes[0])}, got {list(shapes[1])}; "
            "try --shadow dataset.size=SIDE beside dataset=NAME"
        )
    own = [private.private_train, private.private_test]
    for part in (shadow.private_train, shadow.private_test):
        if same_source:
            refuse_overlap(own, part)
        known = {row.tobytes() for images in own for row in hashes_of(images).numpy()}
        shared = [row for row, key in enumerate(hashes_of(part).numpy()) if key.tobytes() in known]
        if shared:
            raise Refused(
                f"--shadow: expected pictures that are none of the target's, got {len(shared)} of {len(part)} that "
                f"are (first: id {int(part.ids[shared[0]])}); try other data"
            )
