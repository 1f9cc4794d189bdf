"""Who may look at which images: the roles of split inference (`public`, `private_train`, `private_test`, and a `shadow`
part for whoever tunes an attack), held against each other before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from midefense.datasets.splits import Splits, digest, hashes_of, refuse_overlap
from midefense.types import Images, Refused

PRIVATE = ("private_train", "private_test")
MOST_COPIES = 0.1  # of the pictures of private_test


def roles_of(splits: Splits, public: Images, shadow: Images | None = None) -> dict[str, Images]:
    """The images of each role: from `public` the attacker, the generators and a target of public attributes learn; from
    `private_train` a target of private ones and the oracles; what is attacked is of `private_test`."""
    roles = {"public": public, "private_train": splits.private_train, "private_test": splits.private_test}
    return roles if shadow is None else {**roles, "shadow": shadow}


def manifest_of(roles: Mapping[str, Images]) -> dict[str, dict[str, object]]:
    """How many images and identities each role has, and the SHA-256 of them (`splits.digest`), once they were checked.

    The private parts show the same people in different pictures; of the few `copies` that published sets have among
    them, the number is said. Raises `Refused` where else a person or a picture is in two roles.
    """
    own = [roles[name] for name in PRIVATE]
    apart = {name: images for name, images in roles.items() if name not in PRIVATE}
    for images in apart.values():
        refuse_overlap(own, images)
    named = list(apart.items())
    for number, (_, images) in enumerate(named):
        refuse_overlap([other for _, other in named[:number]], images)
    _refuse_other_people(*own)
    copies = {"private_test": {"copies": _copies(*own)}}
    return {
        name: {"images": len(images), "identities": len(images.labels.unique()), "digest": digest(images)}
        | copies.get(name, {})
        for name, images in roles.items()
    }


def _refuse_other_people(train: Images, test: Images) -> None:
    strangers = [
        train.names[label] for label in test.labels.unique().tolist() if not bool((train.labels == label).any())
    ]
    if strangers:
        raise Refused(
            f"private_test shows {len(strangers)} people that private_train does not: {strangers[0]!r}; expected the "
            "same people, whom the oracles know. Try another split."
        )


def _copies(train: Images, test: Images) -> int:
    """How many pictures of `test` are in `train` too. Refused where they are many: then the parts were not split."""
    known = {row.tobytes() for row in hashes_of(train).numpy()}
    copies = [row for row, key in enumerate(hashes_of(test).numpy()) if key.tobytes() in known]
    if len(copies) > MOST_COPIES * len(test):
        raise Refused(
            f"{len(copies)} of {len(test)} pictures of private_test are in private_train too (first: id "
            f"{int(test.ids[copies[0]])}); expected other pictures, as an oracle knows by heart what it learned from. "
            "Try removing the copies."
        )
    return len(copies)
