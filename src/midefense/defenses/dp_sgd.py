"""DP-SGD (Abadi et al., CCS 2016; card dp_sgd.md): the gradient of every image is clipped, and noise is added to their
sum. Per-sample gradients, clipping, noise and the account of privacy are Opacus'."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense, share_right
from midefense.ranges import InnerShare, NotNegative, Positive
from midefense.types import Batch, Origin, Refused, refuse_unknown

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

ACCOUNTANTS = ("rdp", "prv")


class DPSGD(Defense):
    """Each update clips the gradient of every image of its batch to the length `clip`, over all weights together, adds
    noise of deviation noise x clip to their sum, and divides by the expected size of a batch. Batches are drawn by
    Poisson's rule, each image with the rate batch size / images, as the account assumes.

    Batch norm, whose statistics tie images together, is replaced by group norm, as Opacus' validator does; weights that
    it had are lost. The guarantee is for one image, not for a person of whom there are many.

    Args:
        noise: deviation of the noise as a multiple of `clip`. Below about 0.5 the guarantee is void in practice.
        clip: largest length of an image's gradient; None and noise 0 train as without a defense.
        delta: the probability with which the guarantee may fail, at which epsilon is told.
        accountant: Opacus' `rdp` (orders 1.1 to 10.9 and 12 to 63), or `prv`.
    """

    revision = 1
    neutral: ClassVar[dict[str, object]] = {"noise": 0.0, "clip": None}
    owns = ("sampler", "step")
    steps: Tensor
    rate: Tensor

    def __init__(
        self, *, noise: NotNegative, clip: Positive | None, delta: InnerShare = 1e-5, accountant: str = "rdp"
    ) -> None:
        super().__init__()
        if accountant not in ACCOUNTANTS:
            raise refuse_unknown("defense.accountant", accountant, ACCOUNTANTS)
        if noise and clip is None:
            raise Refused(f"defense.clip: expected a length, of which noise={noise} is a multiple, got null; try 1.0")
        self.noise, self.clip, self.delta, self.accountant = noise, clip, delta, accountant
        self.sampler = None if clip is None else "poisson"
        self.private = self.one_process = clip is not None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rate", torch.zeros((), dtype=torch.float64))

    def check_training(self, recipe: Any, processes: int) -> None:
        """Refuses several processes, compiled networks, and a recipe that clips by itself."""
        super().check_training(recipe, processes)
        if self.clip is None:
            return
        for what, wrong, wanted in (
            ("compile", recipe.compile, "false"),
            ("clip_norm", recipe.clip_norm is not None, "null, as DP-SGD clips"),
        ):
            if wrong:
                raise Refused(f"recipe.{what}: expected {wanted}, beside defense=dp_sgd, got {getattr(recipe, what)}")

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Replace batch norms, and operations in place, which hooks on gradients do not bear."""
        if self.clip is None:
            return model
        model = _opacus().validators.ModuleValidator.fix(model)
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        return model

    def step(self, trainer: Any, batch: Batch) -> dict[str, Tensor]:
        """One private update. Raises `Refused` for terms that tie a batch together, which have no gradient of a single
        image, and for batches larger than the set of images."""
        if self.clip is None:
            return trainer.step(batch)
        if any(parameter.requires_grad for parameter in trainer.defense.parameters()):
            raise Refused(
                "defense: expected no network of a defense's own to train beside DP-SGD, whose engine keeps gradients "
                "of single images of the classifier alone, got one; try leaving out the defense that trains it"
            )
        rate = self._rate_of(trainer)
        optimizer = self.private_optimizer(trainer.optimizer, trainer.recipe.batch_size)
        hooks = _opacus().grad_sample.GradSampleHooks(trainer.model, loss_reduction="sum")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")  # pixels need no gradient
                trace, terms = trainer.learner(batch)
                if tied := [name for name, term in terms.items() if term.dim() == 0]:
                    raise Refused(f"defense: expected losses per image beside DP-SGD, got {tied[0]!r}; leave it out")
                loss = torch.stack([term.float() for term in terms.values()]).sum(0)
                optimizer.zero_grad()
                trainer.fabric.backward((loss * batch.weight).sum())
                optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
            hooks.remove_hooks()
        self.steps += 1
        self.rate.fill_(rate)
        logs = {f"loss/{name}": trainer.reduce(term.detach(), batch) for name, term in terms.items()}
        right = trainer.reduce(share_right(trace.logits.detach(), batch.labels), batch)
        return {"loss": trainer.reduce(loss.detach(), batch), "accuracy": right, **logs}

    def private_optimizer(self, optimizer: torch.optim.Optimizer, expected: int) -> DPOptimizer:
        """An optimizer that clips, adds noise (from torch's global stream) and divides by `expected` images."""
        return _opacus().optimizers.DPOptimizer(
            optimizer, noise_multiplier=self.noise, max_grad_norm=self.clip, expected_batch_size=expected
        )

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        """Logs the epsilon spent so far, where there is one."""
        return self.told()

    def told(self) -> dict[str, float]:
        """`privacy_epsilon` of all updates so far, and the `privacy_delta` it holds at."""
        if not (self.noise and self.steps):
            return {}
        spent = epsilon(self.accountant, self.noise, self.rate.item(), int(self.steps), self.delta)
        return {"privacy_epsilon": spent, "privacy_delta": self.delta}

    def _rate_of(self, trainer: Any) -> float:
        """The share of the images that an update draws, at most 1."""
        wanted = trainer.recipe.batch_size
        if wanted > trainer.count:
            raise Refused(
                f"recipe.batch_size: expected at most {trainer.count}, the training images, beside defense=dp_sgd, got "
                f"{wanted}"
            )
        return wanted / trainer.count


def epsilon(accountant: str, noise: float, rate: float, steps: int, delta: float) -> float:
    """What `steps` updates have spent by Opacus' account, at a noise multiplier, a sampling rate and a delta."""
    made = _opacus().accountants.create_accountant(mechanism=accountant)
    made.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")  # of little or much noise: still a bound
        return float(made.get_epsilon(delta=delta))


def _opacus() -> Any:
    """The library, which only this needs; it logs to the root logger and says nothing of its own here."""
    try:
        import opacus
        import opacus.accountants
        import opacus.grad_sample
        import opacus.optimizers
        import opacus.validators
    except ModuleNotFoundError as error:
        raise Refused(
            "expected opacus, which clips and accounts, got no such module; try pip install 'midefense[private]'"
        ) from error
    logging.getLogger("opacus").setLevel(logging.WARNING)
    return opacus
