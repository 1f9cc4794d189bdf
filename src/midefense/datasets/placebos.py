"""What a placebo target learns from: images that tell it nothing of the identities whose numbers its outputs bear.

The same attack on such a target can recover nobody: whom an evaluator sees all the same is a false positive of the
evaluator, the prior and chance together. A placebo is a choice of `train_on` beside the real ones, so that it is a
target like any other: trained, defended, stored and attacked by the same words.

- `permuted`: the private images, their labels dealt round among the images of every identity, so that each label holds
  the same share of everybody and tells of nobody. As many images, classes and epochs; what is learned is by heart.
- `left_out`: the private identities are left out, and as many people of the public part stand in for them. The target
  is as good a classifier as the real one, of others; the attacker's public images hold those people.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from midefense import seeds
from midefense.datasets.splits import EVERYTHING_SEED, Splits, choose_classes, cut, refuse_small_classes
from midefense.types import Images, Refused

PERMUTED, LEFT_OUT = "permuted", "left_out"
PLACEBOS = (PERMUTED, LEFT_OUT)


def placebo_images(kind: str, splits: Splits) -> tuple[Images, Images]:
    """What a placebo target of a kind is trained and tested on; as many classes as are private."""
    if kind == PERMUTED:
        return dealt(splits.private_train, "train"), dealt(splits.private_test, "test")
    return _stand_ins(splits)


def dealt(images: Images, part: str) -> Images:
    """The same images under labels that are dealt round in an order drawn for the `part`: every label has as many
    images as any other, and of every identity, as nearly as can be."""
    rng = seeds.generator("placebo", PERMUTED, part)
    order = torch.randperm(len(images), generator=rng)
    by_identity = order[torch.argsort(images.labels[order], stable=True)]
    deal = torch.randperm(len(images.names), generator=rng)
    labels = torch.empty_like(images.labels)
    labels[by_identity] = deal[torch.arange(len(images)) % len(deal)]
    return replace(images, labels=labels)


def _stand_ins(splits: Splits) -> tuple[Images, Images]:
    """The public people with most pictures, as many as are private, cut at the share of the private test set."""
    wanted, people = splits.classes, len(splits.public.names) if len(splits.public) else 0
    if people < wanted:
        raise Refused(
            f"train_on={LEFT_OUT}: expected at least {wanted} public people, who stand in for the private ones, got "
            f"{people}; try train_on={PERMUTED}"
        )
    counts = torch.bincount(splits.public.labels, minlength=people)
    most = torch.argsort(counts, descending=True, stable=True)[:wanted].sort().values
    chosen = choose_classes(splits.public, most.tolist())
    share = len(splits.private_test) / (len(splits.private_train) + len(splits.private_test))
    train, test = cut(chosen, share, EVERYTHING_SEED)
    refuse_small_classes(train, test, "public")
    return train, test
