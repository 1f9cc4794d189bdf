"""Knowledge extraction score: how much of the private classes can be learned from reconstructions alone?

Source: Struppek et al., "Be Careful What You Smooth For", ICLR 2024: a student network that has seen nothing but the
selected reconstructions is asked about the target's private images; its accuracy is what the attack has extracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from midefense import seeds
from midefense.datasets.cache import picture_hashes
from midefense.datasets.splits import hashes_of
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes
from midefense.metrics.features import ask, batch_rows
from midefense.metrics.intervals import SHARE
from midefense.ranges import Batch, Count, NotNegative, Positive, Share, Whole
from midefense.training.recipe import shuffled_batches
from midefense.types import Images, Refused, to_pixels

STUDENT = "student"


class KnowledgeExtraction(Metric):
    """`knowledge_extraction_train/student` and `knowledge_extraction_test/student`: top-1 accuracy in [0, 1] on the
    private training and test images of the attacked classes, of a student taught by the reconstructions alone.

    The student knows the attacked classes in ascending order, and so do the private images it is asked about (the
    authors' code renumbers the classes of the student and not those of the images, which is wrong unless all classes
    are attacked; it also takes equal counts per class for granted, where ours takes the label of every image).

    Test images that it was taught are not asked about: of the anchor of real images only the training number stands,
    the ceiling of what this student can learn. This metric alone keeps images: as uint8, M x C x H x W bytes.

    Args:
        student: an architecture, called with the number of classes and channels.
        augment: augmentations, called in order with images [B, C, H, W] and a generator; drawn per image.
        epochs, batch_size, learning_rate, momentum, weight_decay: SGD, the rate falling along a cosine to
            `final_learning_rate`.
        seed: of initial weights, order and augmentations.
    """

    revision = 2
    higher_leaks = True

    def __init__(
        self,
        *,
        student: Callable[..., nn.Module],
        augment: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = (),
        epochs: Count = 75,
        batch_size: Batch = 32,
        learning_rate: Positive = 0.1,
        final_learning_rate: NotNegative = 1e-4,
        momentum: Share = 0.9,
        weight_decay: NotNegative = 1e-4,
        seed: Whole = 0,
    ) -> None:
        super().__init__()
        if not callable(student):
            raise Refused(f"student: expected a function of classes and channels, got {student!r}; try _partial_: true")
        self.student = student
        self.augment = list(augment)
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate, self.final_learning_rate = learning_rate, final_learning_rate
        self.momentum, self.weight_decay = momentum, weight_decay
        self.key = ("metrics", "knowledge extraction", seed)

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {"pixels": to_pixels(judged.images)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        if world.tests is None:
            raise Refused(
                "knowledge extraction: expected private test images to ask about, got none; try World(tests=)"
            )
        classes, owners = rows["label"].unique(return_inverse=True)
        asked = {
            "knowledge_extraction_train": (world.references, _rows_of(world.references, classes)),
            "knowledge_extraction_test": (world.tests, _unseen(world.tests, classes, rows["pixels"])),
        }
        if len(classes) < 2:
            reason = "one class only: a student that knows no other is always right"
            return {f"{name}/{STUDENT}": Measured.undefined(reason, len(owners), True) for name in asked}
        student = self._taught(rows["pixels"], owners, len(classes), world)
        if not all(tensor.isfinite().all() for tensor in student.state_dict().values()):
            reason = f"the student diverged; try metrics.knowledge.learning_rate={self.learning_rate / 10:g}"
            return {f"{name}/{STUDENT}": Measured.undefined(reason, len(owners), True) for name in asked}
        return {f"{name}/{STUDENT}": _accuracy(student, *of, classes, world) for name, of in asked.items()}

    def _taught(self, pixels: Tensor, owners: Tensor, classes: int, world: World) -> nn.Module:
        """A fresh student after all epochs on images uint8 [M, C, H, W] of classes `owners` [M]."""
        with seeds.isolated(*self.key, "init"):
            student = self.student(classes=classes, channels=pixels.shape[1]).to(world.device).train()
        optimizer = torch.optim.SGD(
            student.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in range(self.epochs):
            optimizer.param_groups[0]["lr"] = self._rate(epoch)
            order = seeds.generator(*self.key, "order", epoch)
            for step, rows in enumerate(shuffled_batches(len(pixels), self.batch_size, 2, False, order)):
                rng = seeds.generator(*self.key, "batch", epoch, step)
                images = pixels[rows.to(pixels.device)].to(world.device).float() / 255
                for index, augment in enumerate(self.augment):
                    images = augment(images, seeds.fork(rng, f"augment/{index}"))
                with seeds.isolated(*self.key, "step", epoch, step):
                    loss = cross_entropy(student(images).logits, owners[rows.to(owners.device)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return student

    def _rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0: half a cosine down to the final one."""
        share = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.final_learning_rate + share * (self.learning_rate - self.final_learning_rate)


def _rows_of(images: Images, classes: Tensor) -> Tensor:
    """The rows of the attacked classes."""
    return torch.isin(images.labels, classes.cpu()).nonzero()[:, 0]


def _unseen(images: Images, classes: Tensor, taught: Tensor) -> Tensor:
    """The rows of the attacked classes without pictures that are among those `taught`, uint8 [M, C, H, W]."""
    known = {key.tobytes() for key in picture_hashes(taught.cpu()).numpy()}
    rows, keys = _rows_of(images, classes), hashes_of(images).numpy()
    return rows[torch.tensor([keys[row].tobytes() not in known for row in rows.tolist()], dtype=torch.bool)]


def _accuracy(student: nn.Module, images: Images, rows: Tensor, classes: Tensor, world: World) -> Measured:
    """Top-1 accuracy on the images at `rows`, whose labels are among `classes`, in the order of the student's."""
    if not len(rows):
        reason = "no private image of the attacked classes that the student was not taught"
        return Measured.undefined(reason, 0, higher_leaks=True)
    size = batch_rows(256, images.pixels.shape[-1], student)
    batches = (images.floats(part, world.device) for part in rows.split(size))
    answers = classes[ask(student, batches, STUDENT).logits.argmax(1)].cpu()
    return over_classes(answers == images.labels[rows], images.labels[rows], True, SHARE)
