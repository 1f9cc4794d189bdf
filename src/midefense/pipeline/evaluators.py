"""Who judges: every evaluator by its name and by what it knows of real test images. A guesser is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from midefense.metrics.features import batch_rows
from midefense.pipeline.candidates import BATCH
from midefense.store.artefacts import Artefact
from midefense.training.chance import Trial
from midefense.training.inference import answers_of
from midefense.types import Images, Refused


@dataclass(frozen=True)
class Judge:
    """An evaluator: what people call it, where it is stored, and how it stood the `trial` of real test images."""

    name: str
    reference: str
    trial: Trial

    def plain(self) -> dict[str, object]:
        """What a row says of it: `accuracy` on so many `images`, and whether it `guessed`."""
        trial = self.trial
        return {"name": self.name, "accuracy": trial.accuracy, "images": trial.images, "guessed": trial.guessed}


def stored_judge(artefact: Artefact, test: Images) -> Judge:
    """An evaluator by the accuracy that was measured when it was stored, on its own test images."""
    return Judge(name_of(artefact), artefact.reference, _trial(artefact, artefact.metrics["test_accuracy_top1"], test))


def tested_judge(artefact: Artefact, network: nn.Module, test: Images, device: torch.device) -> Judge:
    """An evaluator by what it answers now about the private test images, where all the classes it knows compete."""
    rows = batch_rows(BATCH, test.pixels.shape[-1], network)
    answers = answers_of(network, test, batch_size=rows, device=device)
    accuracy = (answers == test.labels).double().mean().item()
    return Judge(name_of(artefact), artefact.reference, _trial(artefact, accuracy, test))


def name_of(artefact: Artefact) -> str:
    """What people call it: the option of its architecture, or the artefact's own name."""
    return artefact.provenance["names"].get("architecture", artefact.name).removesuffix(" (evaluator)")


def refuse_guessers(judges: Mapping[str, Judge], forced: bool) -> None:
    """Refuse evaluators whose answers about real test images are what guessing gives, unless `forced`."""
    guessers = {} if forced else {name: judge for name, judge in judges.items() if judge.trial.guessed}
    if guessers:
        raise Refused("\n".join(_sentence(name, judge) for name, judge in guessers.items()))


def _trial(artefact: Artefact, accuracy: float, test: Images) -> Trial:
    return Trial.of(accuracy, test.labels, artefact.metrics["classes"])


def _sentence(name: str, judge: Judge) -> str:
    trial = judge.trial
    return (
        f"evaluators.{name}: expected an evaluator that knows the images it judges by, got {judge.reference}, which is "
        f"right about {trial}; guessing, which is right about {100 * trial.chance:.1f} %, does as well or better in "
        f"{100 * trial.odds:.0f} % of all tries. Try training it for longer (evaluators.{name}.recipe.epochs), another "
        f"one (evaluator@evaluators.{name}=...), or judge_at_chance=true for numbers that mean nothing"
    )
