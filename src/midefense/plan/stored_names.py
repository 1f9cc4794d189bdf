"""The name of a class in a recipe, which an artefact's id hashes, does not depend on where its file lies.

A class is stored under the module that first held it. A module that moves, or a class that moves to another, gets a
line here, once; what it stored before keeps its ids, and configurations that name the former place still find it.
"""

from __future__ import annotations

from collections.abc import Callable

FORMER = {  # where classes lie now, a module or one class: what they are stored under
    "midefense.attacks.scores.Reward": "midefense.attacks.objectives.Reward",
    "midefense.attacks.scores.Score": "midefense.attacks.objectives.Score",
    "midefense.attacks.scores.WrongLabel": "midefense.attacks.objectives.WrongLabel",
    "midefense.compute": "midefense.parallel",
    "midefense.datasets.synthetic_faces.dataset": "midefense.datasets.synthetic_faces",
    "midefense.evidence.class_labels": "midefense.evidence",
    "midefense.priors.stylegan2.prior": "midefense.priors.stylegan2",
    "midefense.tracking.settings": "midefense.tracking",
    "midefense.training.augmentations": "midefense.augmentations",
    "midefense.training.recipe": "midefense.recipe",
}
PRESENT = {former: present for present, former in FORMER.items()}


def stored_name(target: Callable) -> str:
    """What a recipe calls a class."""
    name = f"{target.__module__}.{target.__qualname__}"
    return FORMER.get(name, f"{FORMER.get(target.__module__, target.__module__)}.{target.__qualname__}")


def present_name(name: str) -> str:
    """Where the class that a recipe or a configuration names lies now."""
    module, _, cls = name.rpartition(".")
    return PRESENT.get(name, f"{PRESENT.get(module, module)}.{cls}" if module else name)
