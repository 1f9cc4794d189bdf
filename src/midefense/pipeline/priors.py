"""How priors are learned and loaded: the attacker's, and those that defenses need at release."""

from __future__ import annotations

from collections.abc import Callable

import torch

from midefense import seeds
from midefense.metrics.features import evaluating
from midefense.oracle import Oracle
from midefense.pipeline import judge
from midefense.pipeline.classifiers import StoredTarget
from midefense.pipeline.session import Session
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft
from midefense.store.store import Work
from midefense.tracking.progress import consume
from midefense.tracking.run import Run
from midefense.types import Images, to_pixels


def fit_prior(
    session: Session,
    draft: Draft,
    prior: Prior,
    public: Images,
    seed: int,
    work: Work,
    target: StoredTarget | None = None,
) -> Artefact:
    """Let a prior learn from public images, in a run of its own; one that asks a target is given it."""
    oracle = None if prior.asks is None else Oracle(target.model, prior.asks, mode=prior.target_mode)
    saved = work.load("state")
    already = work.notes("state").get("shared_queries", 0) if saved else 0
    parents = {} if prior.asks is None else {"target": target.artefact}
    with session.run(draft, "train_prior", parents) as run:
        prior.to(session.device)
        progress = prior.fit(public, seed=seed, oracle=oracle, state=saved)
        total = prior.fit_steps(public)
        previews = {-(-total * quarter // 4) for quarter in (1, 2, 3)}

        def asked() -> int:
            return already + (oracle.shared_bill if oracle else 0)

        def save(step: int, state: Callable) -> None:
            work.save("state", state(), {"shared_queries": asked()})
            if due := [preview for preview in previews if preview <= step < total]:
                previews.difference_update(due)
                show_samples(run, prior, seed, f"samples_at_{step}")

        consume(progress, run, total=total, namespace="prior", save=save)
        show_samples(run, prior.eval(), seed, "samples")
        return session.finish(run, work, prior.state_dict(), {}, bill={"shared_queries": asked()})


def show_samples(run: Run, prior: Prior, seed: int, name: str) -> None:
    """Sixteen samples, of the same latents every time; a prior that is being trained goes on as it was."""
    latents = prior.sample(16, seeds.generator(seed, "prior", "pictures"))
    with evaluating(prior):
        samples = to_pixels(judge.decode_clipped(prior, latents, prior.device)).cpu()
    run.pictures(name, [{"sample": i, "image": image} for i, image in enumerate(samples)], ["sample", "image"])


def load_prior(prior: Prior, artefact: Artefact, device: torch.device) -> Prior:
    """A prior with the weights of an artefact, ready to answer."""
    prior.load_state_dict(artefact.tensors())
    return frozen(prior, device)


def frozen(prior: Prior, device: torch.device) -> Prior:
    """A prior that answers and learns no more."""
    return prior.to(device).eval().requires_grad_(False)
