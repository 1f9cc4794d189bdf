"""What a placebo target learns from: images that tell it nothing of the identities whose numbers its outputs bear.

The same attack on such a target can recover nobody but by chance. Which label goes to whom is drawn, apart from all
that the target sees: whatever the attack recovers for a label, and whatever an evaluator takes that for, it is one of
the K identities as often as another. In expectation over that draw the top-1 accuracy is at most 1 / K, whatever the
habits of evaluator and prior (less where an evaluator sees none of the K).

A placebo is a choice of `train_on` beside the real ones, so that it is a target like any other: trained, defended,
stored and attacked by the same words.

- `permuted`: the private images, the labels dealt round among the images of every identity, in an order of its own. The
  target sees the identities and is never told who is who: no label holds more of one than, as nearly as can be, of any
  other; an identity of fewer images than there are labels is spread over as many labels as it has images. As many
  images, classes and epochs; what is learned is by heart.
- `left_out`: the private identities are left out, and as many people of the public part stand in for them, in an order
  that is drawn. The target is as good a classifier as the real one, of others; the attacker's public images hold those
  people.
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
    """The same images under labels that are dealt to each identity in an order of its own, drawn for the `part`.

    Of every identity each label has as many images as any other, but for one, and of all images as well. Where
    identities share an order, those of few images would share their labels too, and these would tell who is who.
    """
    rng = seeds.generator("placebo", PERMUTED, part)
    count = len(images.names)
    labels = torch.empty_like(images.labels)
    held = torch.zeros(count, dtype=torch.int64)
    for identity in torch.randperm(count, generator=rng).tolist():
        rows = (images.labels == identity).nonzero()[:, 0]
        drawn = torch.randperm(count, generator=rng)
        turn = drawn[torch.argsort(held[drawn], stable=True)]  # labels that hold least come first
        own = turn[torch.arange(len(rows)) % count]
        labels[rows[torch.randperm(len(rows), generator=rng)]] = own
        held += torch.bincount(own, minlength=count)
    return replace(images, labels=labels)


def _stand_ins(splits: Splits) -> tuple[Images, Images]:
    """The public people with most pictures, as many as are private, in an order that is drawn, so that nobody's number
    says anything; cut at the share of the private test set."""
    wanted, people = splits.classes, len(splits.public.names) if len(splits.public) else 0
    if people < wanted:
        raise Refused(
            f"train_on={LEFT_OUT}: expected at least {wanted} public people, who stand in for the private ones, got "
            f"{people}; try train_on={PERMUTED}"
        )
    counts = torch.bincount(splits.public.labels, minlength=people)
    most = torch.argsort(counts, descending=True, stable=True)[:wanted]
    order = torch.randperm(wanted, generator=seeds.generator("placebo", LEFT_OUT))
    chosen = choose_classes(splits.public, most[order].tolist())
    share = len(splits.private_test) / (len(splits.private_train) + len(splits.private_test))
    train, test = cut(chosen, share, EVERYTHING_SEED)
    refuse_small_classes(train, test, "public")
    return train, test
