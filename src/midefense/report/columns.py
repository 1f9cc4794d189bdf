"""Which numbers a table shows, what they are called, in which unit they read, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from midefense.metrics.relative import without_scale
from midefense.report.rows import Row


@dataclass(frozen=True)
class Column:
    """One metric of a table: its full `metric` name, and how its numbers read (percent, number, relative, count,
    seconds). `higher_leaks`: which direction is worse for the owner of the images."""

    title: str
    metric: str
    unit: str
    higher_leaks: bool | None = None

    @property
    def meaning(self) -> str:
        """A sentence for a reader who meets the number for the first time; "" for a metric that is not known here."""
        return next((text for stem, (_, text) in KNOWN.items() if self.metric.startswith(stem)), "")

    @property
    def leaks(self) -> str:
        """Which direction is worse for the owner of the images, in words."""
        return {True: "higher leaks", False: "lower leaks", None: ""}[self.higher_leaks]


RELATIVE = (
    "in the evaluator's features, whose size has no scale: 0 is where real private images are, 1 where samples of the "
    "prior are without any attack"
)
TARGET, ATTACK = "Target accuracy", "Attack accuracy"
RELEASED, IDENTITY = "Released utility", "Identity accuracy"  # of rows that hold images against their own originals
MATCHED = "Matched SSIM gain"  # of rows that reconstruct a training set
LEADING = (
    (TARGET, ("utility/test_accuracy_top1", "utility/")),
    (RELEASED, ("released_auc", "released_accuracy_top1")),
    (ATTACK, ("attack_accuracy_top1/",)),
    ("Strictest evaluator", ("panel_accuracy_strictest/",)),
    ("Net of fooling", ("leakage_net_of_fooling/",)),
    (IDENTITY, ("paired_accuracy_top1/",)),
    ("Feature cosine", ("id_feature_cosine/",)),
    ("SSIM", ("ssim",)),
    ("Matched SSIM", ("matched_ssim/train",)),
    ("Held-out SSIM", ("matched_ssim/held_out",)),
    (MATCHED, ("matched_ssim_gain/train",)),
    ("Reconstructed", ("reconstructed_share/train",)),
    ("EMD gap", ("emd_gap",)),
    ("Confidence", ("target_class_confidence/",)),
    ("KNN distance", ("knn_distance/",)),
    ("FID", ("fid/inception", "fid_relative/", "fid/")),
    ("KID", ("kid/inception", "kid_relative/", "kid/")),
    ("Queries", ("cost/queries_per_target_mean",)),
    ("Time", ("cost/seconds",)),
)
# Stem: unit and meaning. The first stem that a metric's name begins with counts.
KNOWN = {
    "utility/": ("percent", "the target's accuracy on private test images: what the classifier is good for"),
    "restart_accuracy_std": ("percent", "how far the accuracy of one restart lies from another's (standard deviation)"),
    "restart_accuracy": ("percent", "attack accuracy, the mean over restarts or draws"),
    "best_of_restarts_accuracy": ("percent", "the same of the one restart per target that the target is surest of"),
    "attack_accuracy": ("percent", "how often the evaluator sees the attacked class in what was recovered"),
    "target_class_confidence": ("percent", "how sure the network is of the attacked class"),
    "correct_class_confidence": ("percent", "the same, of the recovered images that the evaluator recognises"),
    "leakage_net_of_fooling": (
        "percent",
        "attack accuracy less what the same attack gets from a target that was never told who is who",
    ),
    "placebo_accuracy": (
        "percent",
        "what the same attack gets from a target that was never told who is who: 1 / identities at most, but for luck",
    ),
    "panel_accuracy_strictest": ("percent", "attack accuracy by the evaluator of the row that recognises least"),
    "panel_accuracy_every": ("percent", "share of recovered images that all evaluators recognise"),
    "panel_accuracy_any": ("percent", "share of recovered images that at least one evaluator recognises"),
    "panel_agreement": ("percent", "share of recovered images of which all evaluators say the same"),
    "panel_kappa": ("number", "Fleiss' kappa of the evaluators: how far they agree beyond chance; 1 at most"),
    "robust_accuracy_always": ("percent", "share of recovered images that are recognised under every small change"),
    "robust_accuracy": ("percent", "attack accuracy after small changes of the recovered image, the mean over them"),
    "recognition_lost": ("percent", "share of recognitions that a small change of the image takes away"),
    "nearest_person_accuracy": ("percent", "how often the recovered image is nearer to the person than to all others"),
    "nearest_person_rank": (
        "percent",
        "share of public people who are farther from what was recovered than the person",
    ),
    "nearest_person_margin": ("number", "how much nearer the person is than the nearest public person, from -1 to 1"),
    "knn_distance": ("number", "squared distance of a recovered image to the nearest private one, in features"),
    "feature_distance": ("number", "squared distance of a recovered image to its class's mean, in features"),
    "fid_relative": ("relative", f"Fréchet distance to the private images {RELATIVE}"),
    "kid_relative": ("relative", f"kernel distance to the private images {RELATIVE}"),
    "fid_": ("number", "what one author's code calls FID; to be compared with that code's numbers alone"),
    "fid": ("number", "Fréchet distance to the private images; comparable only within one feature network"),
    "kid": ("number", "kernel distance to the private images; comparable only within one feature network"),
    "precision": ("percent", "share of recovered images that lie among the private ones"),
    "recall": ("percent", "share of private images that lie among the recovered ones"),
    "density": ("number", "how many private neighbourhoods a recovered image lies in; 1 for a perfect copy"),
    "coverage": ("percent", "share of private images with a recovered one nearby"),
    "knowledge": ("percent", "accuracy of a student that learned from the recovered images alone"),
    "feature_space_hull_share": ("percent", "share of recovered images within the hull of the private ones"),
    "feature_space_centroid_accuracy": ("percent", "how often the nearest class mean is the right one"),
    "paired_accuracy": (
        "percent",
        "how often the evaluator sees the identity of the private image in what was recovered",
    ),
    "matched_ssim_gain": (
        "number",
        "how much more similar training images are to what was recovered than held-out ones",
    ),
    "matched_ssim/train": (
        "number",
        "structural similarity of reconstructions and training images, matched one to one",
    ),
    "matched_ssim/held_out": ("number", "the same matching with as many images of the same classes that were held out"),
    "matched_best": ("number", "the largest structural similarity of any matched pair"),
    "matched_best5": ("number", "mean structural similarity of the five most similar matched pairs"),
    "matched_best10": ("number", "mean structural similarity of the ten most similar matched pairs"),
    "reconstructed_share": (
        "percent",
        "share of training images matched better than any chance match with held-out ones",
    ),
    "unexplained_weights/train": (
        "number",
        "share of the weights that no multipliers of the true training images explain: no attack",
    ),
    "unexplained_weights/held_out": (
        "number",
        "the same with as many images of the same classes that were held out; where both are alike, weights tell "
        "nothing of training images",
    ),
    "id_feature_cosine": ("number", "cosine between the evaluator's features of reconstruction and private image"),
    "ssim": ("number", "structural similarity of reconstruction and private image; 1 for a copy"),
    "fsim": ("number", "feature similarity index (phase congruency and gradients) of the two; 1 for a copy"),
    "psnr": ("number", "peak signal-to-noise ratio in dB; 58.9 for a copy"),
    "lpips": ("number", "learned perceptual distance of reconstruction and private image; 0 for a copy"),
    "feature_to_id_oracle_assisted": (
        "percent",
        "how often a network that learned from private identities names the person behind a feature: no attack",
    ),
    "emd_gap": (
        "number",
        "earth mover's distance of what was recovered from random images of the prior",
    ),
    "released_auc": ("percent", "ROC-AUC of attributes read off released features, by the target's other half"),
    "clean_auc": ("percent", "ROC-AUC of attributes read off the same features before the defense"),
    "released_accuracy": ("percent", "accuracy of the target's other half on released features"),
    "clean_accuracy": ("percent", "accuracy of the target's other half on the same features before the defense"),
    "feature_distortion": ("number", "how far a released feature is from the clean one, over that one's length"),
    "cost/release_seconds": ("seconds", "time that a release takes at the edge, per image"),
    "cost/bytes": ("count", "bytes that a released feature takes on its way"),
    "cost/seconds": ("seconds", "time of the attack"),
    "cost/": ("count", "images that the target was asked, by name per attacked class or in all"),
}


def columns(rows: Sequence[Row]) -> list[Column]:
    """The leading metrics that `rows` have; of several evaluators the one called main speaks. A distance without a
    scale (`metrics.relative`) leads where it can be read as a place between its anchors; else it is a further one."""
    names = sorted({name for row in rows for name in row.metrics}, key=lambda name: (not name.endswith("/main"), name))
    found = []
    for title, prefixes in LEADING:
        fitting = (name for prefix in prefixes for name in names if name.startswith(prefix))
        metric = next((name for name in fitting if _complete(name, rows)), None)
        if metric:
            found.append(_column(title + (", relative" if "_relative/" in metric else ""), metric, rows))
    return found


def axes(shown: Sequence[Column]) -> tuple[Column, Column] | None:
    """Utility and leak of a table's rows, to be held against each other; None where one of them was not measured."""
    by_title = {column.title: column for column in shown}
    pairs = ((RELEASED, IDENTITY), (TARGET, ATTACK), (TARGET, MATCHED))
    return next(((by_title[use], by_title[leak]) for use, leak in pairs if {use, leak} <= set(by_title)), None)


def other_columns(rows: Sequence[Row], shown: Sequence[Column]) -> list[Column]:
    """Every further metric that `rows` have, by name."""
    known = {column.metric for column in shown}
    names = sorted({name for row in rows for name in row.metrics} - known)
    return [_column(name.replace("_", " ").replace("@", " @ ").replace("/", ", "), name, rows) for name in names]


def _column(title: str, metric: str, rows: Sequence[Row]) -> Column:
    unit = next((unit for stem, (unit, _) in KNOWN.items() if metric.startswith(stem)), "number")
    leaks = next(row.metrics[metric].higher_leaks for row in rows if metric in row.metrics)
    return Column(title, metric, unit, leaks)


def _complete(name: str, rows: Sequence[Row]) -> bool:
    """Whether a number can lead: one that is derived from another wherever that is measured, the other where it has a
    scale to be read by, or was measured nowhere, so that all there is to say is why."""
    raw = name.replace("_relative/", "/")
    measured = [row for row in rows if raw in row.metrics and math.isfinite(row.metrics[raw].value)]
    if raw == name:
        return not (measured and without_scale(name))
    return bool(measured) and all(name in row.metrics for row in measured)
