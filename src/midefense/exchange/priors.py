"""GANs that others trained: the files of a generator and its critic into the store, as a prior.

midefense import G.tar --critic D.tar --as prior --prior gmi_gan --dataset celeba
midefense import G.tar --critic D.tar --as prior --prior ked_gan --dataset celeba --learned-from REF
python attack.py dataset=celeba prior_artefact=REF ...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from midefense.exchange.classifiers import Choice, read_source, translated
from midefense.plan.bind import bind_all
from midefense.plan.compose import compose
from midefense.plan.read import name_of
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft
from midefense.store.store import Store, Work
from midefense.types import Refused

PARTS = ("generator", "critic")


def import_prior(
    store: Store,
    file: str | Path,
    *,
    critic: str | Path | None,
    prior: str,
    dataset: str,
    overrides: Sequence[str] = (),
    name: str | None = None,
    choice: Choice | None = None,
    learned_from: str | None = None,
) -> Artefact:
    """A prior of the store with the generator in `file` and the critic in `critic`; found if it was imported before.

    Args:
        prior, dataset: options of their groups; the dataset says how many channels and pixels the images have.
            `overrides` are those of `attack.py`.
        name: what the artefact is called; None calls it by its parts.
        choice: what to take of both files.
        learned_from: the target of the store that the prior learned from, where it asks one; its classes count then.
    Raises:
        Refused: a prior that asks a target comes without, or one that asks none with it; the prior has other parts than
            these two; or a file is not that of its part.
    """
    target = None if learned_from is None else store.open(learned_from, "target")
    config, _ = compose("attack", [f"dataset={dataset}", f"prior={prior}", *overrides])
    bound = bind_all({"dataset": (config["dataset"], False), "prior": (config["prior"], True)}, config["allow"])
    images = bound["dataset"].build()
    classes = target.metrics["classes"] if target else images.load(store.root / "cache").classes
    node = bound["prior"].given(channels=images.channels, size=images.size, classes=classes)
    module = node.build()
    _require_two_parts(module, prior)
    _require_target(module, prior, target)
    if critic is None:
        raise Refused(f"--critic: expected the file of the critic of {prior}, got none; try --critic FILE")
    sources = {"generator": read_source(file, choice), "critic": read_source(critic, choice)}
    draft = Draft(
        kind="prior",
        name=name or name_of({"dataset": dataset, "public": "imported", "prior": prior}, "dataset", "public", "prior"),
        recipe={
            "kind": "prior",
            "prior": node.recipe(),
            "imported": {part: source.origin() for part, source in sources.items()},
            **({"target": target.id, "access": module.asks.value} if target else {}),
        },
        parents={"target": target.reference} if target else {},
        names={"prior": f"{prior}(imported)"},
        places=node.places(),
    )

    def make(work: Work) -> Artefact:
        states = {part: translated(getattr(module, part), s.checkpoint.state, part) for part, s in sources.items()}
        flat = {f"{part}.{key}": tensor for part, state in states.items() for key, tensor in state.items()}
        module.load_state_dict(flat)
        _require_images(module)
        return work.finish(module.state_dict(), {"files": {part: str(s.file) for part, s in sources.items()}})

    return store.get_or_make(draft, make)


def _require_two_parts(module: Prior, prior: str) -> None:
    """Refuse a prior that a generator and a critic do not make up."""
    parts = {name.split(".")[0] for name in module.state_dict()}
    if parts != set(PARTS):
        made_of = ", ".join(sorted(parts)) or "nothing that is learned"
        raise Refused(f"--prior: expected one made of {' and '.join(PARTS)}, got {prior}, of {made_of}; try gmi_gan")


def _require_target(module: Prior, prior: str, target: Artefact | None) -> None:
    """Refuse a prior that learned from a target nobody named, and a target named for one that learned from none."""
    if module.asks is not None and target is None:
        raise Refused(
            f"--learned-from: expected the target that this {prior} learned from, got none; import that first, then "
            "try --learned-from REF"
        )
    if module.asks is None and target is not None:
        raise Refused(f"--learned-from: expected none, because {prior} asks no target; leave it out")


@torch.no_grad()
def _require_images(module: Prior) -> None:
    """Refuse a generator whose samples are not finite, or no images in [0, 1]; of one that only learned that range,
    more than a share of pixels outside."""
    images = module.eval().decode(module.sample(16, torch.Generator().manual_seed(0)))
    low, high = images.min().item(), images.max().item()
    outside = ((images < -0.05) | (images > 1.05)).double().mean().item()
    if not (images.isfinite().all() and outside <= module.strays):
        raise Refused(
            f"generator: expected images in [0, 1], got values from {low:.3f} to {high:.3f}, {outside:.1%} of them "
            "outside; try another file"
        )
