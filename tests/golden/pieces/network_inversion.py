"""Reconstruction from weights: the search for images and multipliers of Haim et al. and Buzaglo et al., and the
matching of reconstructions with images (`network_inversion.npz`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from midefense.attacks.stationarity import Stationarity
from midefense.metrics.matched import ssim_of_pairs
from midefense.rectifiers import SlopedGate

from .recording import Entry, Recording
from .registry import replays
from .rules import TOLERANCE, relative_error

MOMENTUM = 0.9
LEAST_WEIGHT = 5.0
MNIST = (0.1307, 0.3081)


@dataclass(frozen=True)
class Case:
    """One recorded search: `H/binary/relu` and the like. Arrays of the whole file are read, as their labels stand in
    one piece of it and their numbers in another."""

    recording: Recording
    name: str

    def __getitem__(self, key: str) -> Tensor:
        """A recorded array of float64."""
        return self.recording.elsewhere(f"f64/kkt/{self.name}/{key}")

    @property
    def given(self) -> Tensor:
        """The labels: -1 and 1, class numbers, or the values that a regression was trained on."""
        return self.recording.elsewhere(f"kkt/{self.name}/y")

    @property
    def classes(self) -> int:
        """Outputs of the network."""
        return int(self.given.max()) + 1 if "multiclass" in self.name else 1

    @property
    def labels(self) -> Tensor:
        """The class whose logit is to win. A network with one output f has logits -f/2 and f/2; the multipliers of a
        regression have any sign, so that it is the sum over f itself."""
        if "multiclass" in self.name:
            return self.given.long()
        return (self.given > 0).long() if "binary" in self.name else torch.ones(len(self.given), dtype=torch.long)

    def steps(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Before each update the loss and its gradients, and images and multipliers after it."""
        _, rate, multiplier_rate, least, slope = self.recording.elsewhere(
            "kkt/cfg_initscale_lrx_lrl_minlambda_alpha"
        ).tolist()
        images = self["x0"].clone().requires_grad_()
        multipliers = self["lambda0"][:, 0].clone().requires_grad_()
        theta = self._weights(images[0].numel())
        gate = SlopedGate(slope) if self.name.endswith("modifiedrelu") else torch.relu
        distance = Stationarity(
            coefficients="runner_up",
            least=None if "regression" in self.name else least,
            least_weight=LEAST_WEIGHT,
            start="uniform",
            mean=True,
            relative=False,
        )
        optimizer = torch.optim.SGD(
            [{"params": [images], "lr": rate}, {"params": [multipliers], "lr": multiplier_rate}], momentum=MOMENTUM
        )

        def ask(rows: slice, weights: Mapping[str, Tensor]) -> Tensor:
            hidden = gate(images[rows].flatten(1) @ weights["layers.0.weight"].T + weights["layers.0.bias"])
            outputs = gate(hidden @ weights["layers.1.weight"].T) @ weights["layers.2.weight"].T
            return outputs if self.classes > 1 else torch.cat([-outputs / 2, outputs / 2], 1)

        while True:
            value, images.grad, multipliers.grad = distance(theta, ask, images, self.labels, multipliers)
            outside = images.detach() - images.detach().clamp(-1, 1)
            images.grad = images.grad + 2 * outside
            loss = value + outside.square().sum()
            before = images.grad.clone(), multipliers.grad.clone()
            optimizer.step()
            yield loss, *before, images.detach().clone(), multipliers.detach().clone()

    def _weights(self, inputs: int) -> dict[str, Tensor]:
        shapes = {"layers.0.weight": (10, inputs), "layers.0.bias": (10,), "layers.1.weight": (9, 10)}
        state = self.recording.draws.state({**shapes, "layers.2.weight": (self.classes, 9)})
        return {name: value.double().requires_grad_() for name, value in state.items()}


def cases(recording: Recording) -> list[Case]:
    """The searches that the file holds."""
    ends = "/x0"
    return [
        Case(recording, key[8 : -len(ends)])
        for key in recording.file
        if key.startswith("f64/kkt/") and key.endswith(ends)
    ]


@replays("network_inversion/f64")
def search_from_weights(recording: Recording) -> Iterator[Entry]:
    """Some updates of images and multipliers."""
    for case in cases(recording):
        key = f"kkt/{case.name}"
        recorded = recording[f"{key}/x0"], recording[f"{key}/lambda0"], recording[f"{key}/x"]
        steps = [step for step, _ in zip(case.steps(), recorded[2], strict=False)]
        losses, by_image, by_multiplier, images, multipliers = (
            torch.stack(column) for column in zip(*steps, strict=True)
        )
        totals = recording[f"{key}/total_kkt_verify"][:, 0]
        yield Entry(f"{key}/total_kkt_verify", relative_error(losses, totals), TOLERANCE, "the totals")
        yield recording.compare(f"{key}/grad_x0", by_image[0])
        yield recording.compare(f"{key}/grad_lambda0", by_multiplier[0][:, None])
        yield recording.compare(f"{key}/x", images)
        yield recording.compare(f"{key}/lambda", multipliers[..., None])


@replays("network_inversion/kkt")
def search_and_its_labels(recording: Recording) -> Iterator[Entry]:
    """The labels of the searches: with them the first loss is the recorded one."""
    recording.leave_out("cfg_*", "the searches' rates, which the piece f64 is compared with")
    for case in cases(recording):
        recording[f"{case.name}/y"]
        loss = next(case.steps())[0]
        error = relative_error(loss, case["total_kkt_verify"][0, 0])
        yield Entry(f"{case.name}/y", error, TOLERANCE, "the first loss under these labels")


@replays("network_inversion/ssim")
def matching(recording: Recording) -> Iterator[Entry]:
    """The best one-to-one matching of each class by SSIM."""
    mean, std = MNIST
    made, real = recording["gen"], recording["real_normalised"] * std + mean
    made_of, real_of = recording["gen_labels"], recording["real_labels"]
    rows = []
    for label in sorted(set(real_of.tolist()) & set(made_of.tolist())):
        own, theirs = (made_of == label).nonzero()[:, 0], (real_of == label).nonzero()[:, 0]
        table = ssim_of_pairs(made[own], real[theirs], window=7)
        rows += [(own[i], label, j, table[i, j]) for i, j in zip(*linear_sum_assignment(-table), strict=True)]
    found = torch.tensor([[float(value) for value in row] for row in rows])
    yield recording.compare("matches_gen_class_realidx_ssim", found)
    yield recording.compare("overall_avg", found[:, 3].mean())
    best = [found[found[:, 1] == label, 3].max() for label in found[:, 1].unique()]
    yield recording.compare("max_avg", torch.stack(best).mean())
    yield recording.compare_exactly("total_matched", torch.tensor(len(found)))
    yield recording.compare_exactly("reconstructed", (found[:, 3] >= 0.4).sum())
