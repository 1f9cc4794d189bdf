"""Bad inputs by the hundred: every one is refused with a sentence that names it, by the plan alone.

The configurations are composed once; each case puts an option's file, with one wrong value, in its place. What a word
of the command line, a file of one's own or images do wrong is in `test_bad_input`.
"""

import copy
import functools

import pytest
import yaml
from contract.listing import composed, within

from midefense.plan.bind import bind
from midefense.plan.compose import CONF
from midefense.plan.read import read_plan
from midefense.types import Refused

BASES = {
    "train_target": ("dataset=toy",),
    "attack": ("dataset=toy", "prior=toy", "attack=gmi"),
    "evaluate": ("dataset=toy", "prior=toy", "attack=gmi"),
}
ATTACKERS = ("prior", "evidence", "attack", "public")
NUMBER = (-1, "many", None)
SHARE = (-0.1, 1.5, "half")
OPEN_SHARE = (0, 1, "half")
COUNT = (0, -3, 2.5, "many")
PAIR = ([0.1], [0.5, 0.1], [0.1, 0.2, 0.3], "wide")
# The option whose file is used, and by the path of a value within it, what it cannot be.
WRONG = {
    "dataset/toy": {
        "classes": (1, 0, -1, 2.5, "three", True, None),
        "images_per_class": COUNT,
        "size": (0, -1, 10**6, 8000, "big", [32]),
        "noise": NUMBER,
        "seed": (-1, 0.5),
    },
    "dataset/digits": {
        "private_classes": ([3], [1, 1], [0, 11], "all", [-1, 2], []),
        "size": (0, 10**6, 8000),
        "test_share": (*OPEN_SHARE, -0.2),
        "split_seed": (-1, 2**32, "x"),
        "images_per_class": COUNT,
    },
    "dataset/synthetic_faces": {"identities": (1, 0, "x"), "images_per_identity": COUNT, "size": (0, 10**5)},
    "architecture/cnn": {
        "widths": ([0], [-8], [8, "b"], [], 8, [60000, 60000, 60000], [10**9]),
        "features": (*COUNT, 10**9),
        "size": (-1, 0, 1, 10**6, "x"),
        "std": (0, -0.5, [0.5, 0], "x"),
    },
    "architecture/mlp": {"widths": ([0], [65537]), "dropout": SHARE},
    "architecture/vit_tiny": {"heads": (5, 0, "x"), "patch": (5, 0), "depth": (0, 10**6), "dropout": SHARE},
    "defense/random_erasing": {
        "p": SHARE,
        "scale": (*PAIR, [-0.1, 0.5], [0.5, 1.5]),
        "ratio": ([0, 1], [1], [2, 1]),
        "fill_space": ("nowhere",),
        "location": ("moon",),
        "value": ("red",),
    },
    "defense/bido_hsic": {
        "sigma": (0, -1, "x"),
        "eps": (0, -1e-5),
        "measure": ("mutual",),
        "layers": (["nope"], "stage1"),
        "dtype": ("float16",),
    },
    "defense/vib": {
        "beta": (-1, "x"),
        "width": SHARE,
        "reduction": ("max",),
        "deployed": ("noise",),
        "neck": ("drop", "cut"),
    },
    "defense/dp_sgd": {
        "noise": (-1, "x"),
        "clip": (0, -1, None),
        "delta": (0, 1, "x"),
        "accountant": ("gdp",),
    },
    "defense/output_rounding": {"step": (0, 1, -0.1, "x"), "white_box": ("maybe",)},
    "defense/output_top_k": {"keep": COUNT[:1], "rest": ("none",)},
    "defense/output_temperature": {"temperature": (0, -1, "x")},
    "defense/output_noise": {"scale": (-1, "x"), "distribution": ("cauchy",), "drawn_per": ("day",)},
    "defense/positive_label_smoothing": {"start": SHARE, "full": SHARE},
    "defense/mixup": {"p": SHARE, "alpha": (0, -1, "x")},
    "defense/cutout": {"p": SHARE, "side": SHARE},
    "defense/gridmask": {"period": PAIR, "kept": SHARE},
    "defense/hide_and_seek": {"grids": ([], [0], 4), "q": SHARE},
    "defense/pixel_dropout": {"q": SHARE},
    "defense/entire_erasing": {"rate": SHARE},
    "recipe/quick": {
        "epochs": (0, -1, 1.5, "ten", None),
        "batch_size": (1, 0, -4, "x"),
        "optimizer.lr": (-1, "fast", [0.1], float("nan"), float("inf")),
        "optimizer.betas": ([0.9], [2, 3], ["a", "b"], 0.9),
        "optimizer.weight_decay": (-1, "x"),
        "optimizer._args_": (5, [5]),
        "optimizer._partial_": ("maybe", False),
        "optimizer._target_": ("torch.nn.ReLU", "torch.optim.Nope", "os.system"),
        "milestones": ([5, 2], [-1], [1.5], ["x"], 3),
        "factor": (-0.1, "x"),
        "warmup": (-1, 0.5),
        "select": ("best",),
        "head": ("none",),
        "precision": ("8-bit", 16),
        "compile": ("maybe", 1),
        "clip_norm": (0, -1),
        "sampler": ("random", {"identities": 0, "images": 4}, {"identities": 4}),
        "augment": ("flip", [3]),
    },
    "recipe/toolbox_sgd": {"optimizer.momentum": (-1, "x"), "optimizer.lr": (-0.1, "x")},
    "compute/cpu": {
        "threads": (0, -1, 100_000, "x"),
        "devices": (0, -1, 10**6),
        "num_nodes": (0, "x"),
        "accelerator": ("warp",),
        "strategy": ("fsdp",),
    },
    "tracking/offline": {"media_limit": (-1, "x"), "finish_seconds": (-1,), "wandb": ("yes",), "tags": ("one",)},
    "prior/gmi_gan_small": {
        "steps": (0, -1, "x"),
        "epochs": COUNT,
        "width": (0, -1, 10**9, "x"),
        "latent_size": (0, 10**8),
        "batch_size": (1, 0),
        "critic_steps": COUNT,
        "learning_rate": (0, -1, "fast"),
        "betas": ([0.9], [1, 2], "x"),
        "penalty": (-1,),
        "precision": ("16-true", 16),
        "compile": ("maybe", 1),
        "unit": (0,),
        "size": (28,),
    },
    "defense/feature_noise": {"scale": (*NUMBER, [0.1]), "distribution": ("poisson", 3)},
    "defense/feature_pruning": {"share": SHARE, "by": ("gradient", 3)},
    "defense/feature_quantisation": {"bits": (-1, 17, 2.5, "many")},
    "defense/adversarial_learning": {
        "weight": SHARE,
        "cut": (3, "moon"),
        "decoder": (3, None),
        "decoder.width": (0, "x"),
    },
    "defense/trap_mid": {
        "opacity": SHARE,
        "weight": SHARE,
        "step_size": (0, -1, "x"),
        "discriminator": ("pixels", 3),
        "augment": ("flip", [3]),
    },
    "defense/adversarial_training": {
        "radius": (-1, "x"),
        "step_size": (-1, "x"),
        "steps": COUNT,
        "norm": ("l1", 2),
        "start": ("maybe", 3),
    },
    "defense/disco": {
        "share": SHARE,
        "alpha": SHARE,
        "steepness": (0, -1, "x"),
        "pruner_loss": ("none", 3),
        "cut": ("moon", "features"),
        "decoder": (3, None),
    },
    "prior/ked_gan_small": {
        "width": (0, -1, 10**9, "x"),
        "latent_size": (0, "x"),
        "epochs": COUNT,
        "steps": (0, -1, "x"),
        "critic_steps": COUNT,
        "learning_rate": (0, -1, "fast"),
        "betas": ([0.9], [1, 2], "x"),
        "unit": (0,),
        "batch_size": (1, 0),
        "entropy_weight": (-1, "x"),
        "target_mode": ("test", 3),
        "size": (28,),
    },
    "prior/plg_gan_small": {
        "width": (0, 10**9, "x"),
        "latent_size": (0, 10**8, "x"),
        "batch_size": (1, 0, "x"),
        "critic_steps": COUNT,
        "learning_rate": (0, "fast"),
        "betas": ([0.9], [1, 2]),
        "unit": (0,),
        "size": (28,),
        "augmentation.flip": SHARE,
        "augmentation.rotation": SHARE,
        "top": (0, -1, "x"),
        "steps": (0, "x"),
        "identity": ("logit", 3),
        "identity_weight": (-1,),
        "noise": SHARE,
        "target_mode": ("test",),
        "augmentation.scale": ([0.9, 0.8], [0, 1], "x"),
        "augmentation.jitter": SHARE,
        "augmentation.degrees": (-1, 200),
    },
    "prior/inpainting_gan_small": {
        "obscuring": (None, 3, {"_target_": "midefense.rectangles.roll"}),
        "obscuring.boxes": ([], [[0.8, 0.2, 0, 1]], [[0, 1, 0.5, 0.5]], [[0, 1, 0]], [[0, 2, 0, 1]], "middle"),
        "obscuring.fill": (2, [0.1, -1, 0], "grey"),
        "width": (0, 10**9, "x"),
        "latent_size": (0, "x"),
        "epochs": COUNT,
        "steps": (0, -1, "x"),
        "batch_size": (1, 0),
        "learning_rate": (0, "fast"),
        "betas": ([0.9], [1, 2]),
        "penalty": (-1, "x"),
        "diversity_weight": (-0.5, "x"),
        "agreement_weight": (-1, "x"),
        "target_mode": ("test", 3),
        "unit": (0,),
        "size": (28,),
    },
    "prior/deblurring_gan_small": {"obscuring.deviation": (0, -0.1, "wide")},
    "prior/stylegan2_small": {
        "steps": (0,),
        "resolution": (31, 4, "x"),
        "channel_base": (0,),
        "mapping_layers": (0, 10**6),
        "mixing": SHARE,
        "r1_every": (0,),
        "average_images": (0, -1),
    },
    "architecture/homogeneous_mlp": {"widths": ([0], []), "first_deviation": (0, -1, "x"), "size": (0, 10**6)},
    "architecture/homogeneous_cnn": {"widths": ([0], [4] * 9), "features": COUNT, "first_deviation": (0, "x")},
    "evidence/weights": {"classes": ("seven", 3, ["a"])},
    "evidence/class_labels": {"classes": ("seven", 3, ["a"])},
    "evidence/masked_images": {
        "classes": ("seven", 3, ["a"]),
        "images": COUNT,
        "part": ("validation", 3, None),
        "seed": (-1, 2**32, "x"),
        "obscuring.boxes": ([], [[0.8, 0.2, 0, 1]], [[0, 2, 0, 1]]),
    },
    "evidence/auxiliary_images": {"obscuring.deviation": (0, -0.1, "wide")},
    "evidence/released_features": {
        "images": (0, -1, "many", 2.5, True),
        "part": ("public", None),
        "repeats": COUNT,
        "transport": ("int4", 16),
        "cut": (3, ["layer1"], "nowhere"),
    },
    "attack/gmi": {
        "access": ("score", "labels"),
        "budget": (0, -1, "x"),
        "group": COUNT,
        "chunk": (0, -1, "some"),
        "precision": ("16-true", 16),
        "compile": ("maybe", 1),
        "channels_last": ("maybe", 1),
        "init": (None, 3),
        "views": (3,),
    },
    "attack/ked_mi": {
        "search.draws": (0, -1, 10**8, "x"),
        "search.log_variance": ("x", None),
        "search.box": (0, -1, "x"),
        "search.reference_batch": (0, -1),
        "search.steps": (-1, 2.5, "x"),
        "search.schedule": ("cosine", 3),
        "search.optimizer.lr": (-1, "fast"),
    },
    "attack/vmi_flow": {
        "search.steps": (-1, "x"),
        "search.batch_size": (0, -1, "x"),
        "search.penalty": (-0.1, "x"),
        "search.layered": ("all", 3),
        "search.rows": ([0], [], "x"),
        "search.over_rows": ("median", 3),
        "search.dtype": ("float16", 64),
        "search.family": (None, "glow"),
        "search.family.levels": (0, 7, "x"),
        "search.family.steps": (0, -1, "x"),
        "search.family.hidden": (0, "x"),
        "search.family.warm_up": (1, 0, "x"),
        "search.optimizer.momentum": (-1,),
        "init.candidates": (0, "x"),
    },
    "attack/vmi_layered_gaussian": {"search.rows": ([99], [-1]), "search.family.draws": (0, -1, "x")},
    "attack/lomma_gmi_small": {
        "objective.terms": ({}, None),
        "objective.terms.features.weight": ("x", None),
        "objective.terms.features.loss.images": (1, 0, "x"),
        "objective.terms.features.loss.batch_size": (0, "x"),
        "objective.terms.features.loss.reference": ("median", 3),
        "surrogate.temperature": (0, -1, "x"),
        "surrogate.students": ({}, None, 3),
        "surrogate.students.narrow.steps": (0, "x"),
        "surrogate.students.narrow.batch_size": (0, "x"),
        "surrogate.students.narrow.unit": (0,),
        "surrogate.students.narrow.optimizer.lr": (-1, "fast"),
        "surrogate.students.narrow.network.widths": ([0], [-8], "x"),
    },
    "attack/plg_mi": {
        "views.flip": SHARE,
        "views.scale": ([0.9, 0.8], [0, 1], "x"),
        "views.jitter": SHARE,
        "views.degrees": (-1, 200),
        "search.looks": (0, "x"),
        "search.optimizer.lr": (-1, "fast"),
    },
    "attack/lokt_small": {
        "surrogate.each": COUNT,
        "surrogate.augmented": SHARE,
        "surrogate.together": ("x",),
        "surrogate.augmentation.flip": SHARE,
    },
    "attack/c2f_mi_small": {
        "init.averaged": COUNT,
        "init.embedding.output": ("probs", 3),
        "search.keep": (2, 33, "x"),
        "search.filler": ("zeros",),
        "search.compare": ("ranks",),
        "search.crossover": SHARE,
        "objective.top": (0, "x"),
    },
    "prior/lokt_gan_small": {
        "steps": COUNT,
        "warmup": (-1, "x"),
        "class_weight": (-1, "x"),
        "clip": ("x",),
        "target_mode": ("test",),
    },
    "defense/bido_coco": {
        "coco_norm": ("nuclear", 3),
        "hsic_form": ("biased",),
        "label_kernel": ("cosine",),
        "sampler": ("random", {"identities": 0, "images": 4}, {"identities": 4}, {"identities": 4, "images": 0}),
    },
}
ALONGSIDE = {  # what an option's file needs beside it
    "prior/plg_gan_small": ("attack/objective=cross_entropy",),
    "attack/vmi_flow": ("attack.search.family.levels=1",),  # a latent of prior=toy has two numbers
    "prior/inpainting_gan_small": ("evidence=masked_images",),
    "prior/deblurring_gan_small": ("evidence=auxiliary_images",),
}
SEARCH = {
    "init.candidates": (0, -1, 10**8, "x"),
    "search.steps": (-1, 2.5, "x"),
    "search.reference_batch": (0, -1),
    "search.keep": ("all",),
    "search.box": (0, -1, [1, 0]),
    "search.optimizer.lr": (-1, "fast"),
    "search.optimizer.momentum": (-1,),
}
PLAIN = {
    "train_target": {
        "seeds.target": (-1, 1.5, "x", None, True),
        "missing": ("maybe",),
        "train_on": ("some", "a\0b"),
        "store": ("", " ", 3, None, "a\0b"),
        "allow": (5, ["nosuchmodule"], ["no.such"], [3], [".."]),
        "tracking.project": ("a\0b", "half \udcff"),
    },
    "evaluate": {
        "evaluators": ({}, None, 3),
        "evaluators.main.seed": (-1, "x"),
        "evaluators.main.train_on": ("some",),
        "evaluators.main.architecture.size": (-1, 0, 1, 10**6),
        "evaluators.main.architecture.widths": ([0], [60000, 60000, 60000]),
        "evaluators.main.recipe.epochs": (0, -1),
        "evaluators.main.recipe.optimizer.lr": (-1, "fast"),
        "metrics": ({}, None),
    },
}


def changed(config: dict, path: str, value: object) -> dict:
    """A copy with `value` at a dotted path."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return config


@functools.cache
def needs_composing(option: str) -> bool:
    """Whether an option's file says where the rest of it stands; all others are put in place as they are, which is
    quicker."""
    return option != "attack/gmi" and "defaults" in yaml.safe_load((CONF / f"{option}.yaml").read_text())


def words_of(verb: str, option: str | None) -> tuple[str, ...]:
    """The words that compose the configuration in which an option stands."""
    if option is None or not needs_composing(option):
        return BASES[verb]
    group, name = option.split("/")
    return (*BASES[verb], *ALONGSIDE.get(option, ()), f"{group}={name}")


def cases():
    """(verb, option whose file is put in place or None, path of the wrong value, value)."""
    for option, values in WRONG.items():
        group = option.split("/")[0]
        verb = "attack" if group in ATTACKERS else "train_target"
        yield from ((verb, option, f"{group}.{path}", wrong) for path, many in values.items() for wrong in many)
    yield from (("attack", None, f"attack.{path}", wrong) for path, many in SEARCH.items() for wrong in many)
    for verb, values in PLAIN.items():
        yield from ((verb, None, path, wrong) for path, many in values.items() for wrong in many)


CASES = [pytest.param(*case, id=f"{case[1] or case[0]} {case[2]}={case[3]!r:.40}") for case in cases()]


def test_there_are_as_many_as_were_asked_for():
    assert len(CASES) >= 250 and len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("verb", "option", "path", "wrong"), CASES)
def test_a_wrong_value_is_refused_with_a_sentence_by_the_plan_alone(store, verb, option, path, wrong):
    config, choices = composed(verb, *words_of(verb, option))
    config = within(store, config)
    if option is not None and not needs_composing(option):
        group = option.split("/")[0]
        config[group] = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    with pytest.raises(Refused) as refusal:
        read_plan(verb, changed(config, path, wrong), choices)
    said = str(refusal.value)
    named = [part for part in path.split(".") if not part.startswith("_")][-1]
    assert named in said or "the memory of this machine" in said, said
    assert any(word in said for word in ("expected", "choices", "whitelist", "needs", "levels that would do")), said
    assert len(said) < 700 and all(line == line.strip() for line in said.splitlines()), said


# Constructors that leave the range of an argument to its annotation: one wrong value each, refused by `bind` alone.
RANGED = {
    "attacks.base.SearchAttack": {"group": 0, "budget": 0, "chunk": 0},
    "attacks.adaptive.AdaptiveGenerator": {"images": 0, "epochs": 0, "batch_size": 0, "group": 0},
    "attacks.decoder.Decoder": {"group": 0, "budget": 0},
    "attacks.decoder.AdaptiveDecoder": {"further": 0, "images": 0, "group": 0},
    "attacks.init.Random": {"candidates": 0},
    "attacks.inside.InsideTheClass": {"candidates": 0, "box": 0, "batch_size": 0, "draws": 0, "distinct": 0},
    "attacks.p_space.MirrorPool": {"size": 0, "candidates": 0, "batch_size": 0},
    "attacks.search.genetic.Genetic": {"generations": -1, "mutation": 2, "strength": -1, "deviations": 0, "keep": 0},
    "attacks.search.bounded.Bounded": {"steps": -1, "deviations": 0, "distance": -1, "energy": -1},
    "attacks.search.numeric.FiniteDifferences": {"steps": -1, "delta": 0, "directions": 0},
    "attacks.select.MostAlike": {"places": 0, "shared": 0},
    "attacks.views.Flip": {"p": 2},
    "attacks.inversion.NetworkInversion": {"steps": 0, "batch_size": 1, "bank": 0, "candidates": 0, "unit": 0},
    "attacks.inversion.Weighing": {"step": 0, "accuracy": 1.0, "factor": 0, "limit": 0},
    "attacks.inversion_terms.CrossEntropy": {"smoothing": 1.5},
    "attacks.inversion_terms.Perturbation": {"strength": -1},
    "attacks.inversion_terms.WeightedTerm": {"weight": -1},
    "attacks.init.BestOfPool": {"size": 0, "candidates": 0, "batch_size": 0},
    "attacks.init.BestOfStyles": {"psi": 1.5, "cutoff": -1},
    "attacks.search.flow.Variational": {"steps": -1, "batch_size": 0, "penalty": -0.1},
    "attacks.search.distribution.Distribution": {"steps": -1, "draws": 0, "box": 0, "reference_batch": 0},
    "attacks.miners.Glow": {"levels": 0, "steps": 0, "hidden": 0, "warm_up": 1},
    "attacks.miners.Gaussian": {"draws": 0},
    "attacks.objectives.FeatureRegulariser": {"images": 1, "batch_size": 0},
    "attacks.surrogate.Distilled": {"temperature": 0},
    "attacks.surrogate.Labelled": {"each": 0, "augmented": 1.5},
    "attacks.coarse.Coarse": {"candidates": 0, "averaged": 0, "steps": -1, "top": 0, "batch_size": 0},
    "attacks.scores.Score": {"top": 0},
    "attacks.search.evolution.Evolution": {
        "generations": -1,
        "population": 0,
        "keep": 0,
        "pull": -0.1,
        "pairs": 0,
        "scale": -0.1,
        "taper": -1,
        "taper_over": 0,
        "crossover": 1.5,
    },
    "architectures.inverters.ScoreMapping": {"hidden": 0, "dropout": 1.5},
    "attacks.learning.Learning": {"steps": 0, "batch_size": 0, "unit": 0},
    "attacks.scores.Reward": {"confidence": -1, "margin": -1, "least_margin": 0, "least": 2},
    "attacks.naturalness.Agreement": {"temperature": 0, "floor": 1.0},
    "attacks.naturalness.BatchNormStatistics": {"first_weight": -1.0},
    "attacks.objectives.Poincare": {"xi": 1.0},
    "attacks.purify.Smooth": {"weight": 1.5},
    "attacks.schedules.Milestones": {"milestones": [-1], "factor": -1.0},
    "attacks.schedules.WarmedCosine": {"warmup": -1},
    "attacks.search.voting.Voted": {"draws": 0, "cells": -1, "box": 0, "fill": 1.5},
    "attacks.views.Pool": {"factor": 0},
    "attacks.views.Shift": {"pixels": -1, "flip": 1.5},
    "attacks.search.gradient.Gradient": {"steps": -1, "reference_batch": 0},
    "attacks.search.gradient.Rest": {"patience": 0, "check_every": 0},
    "attacks.search.policy.SoftActorCritic": {
        "episodes": 0,
        "length": 0,
        "diversity": 1.5,
        "hidden": 0,
        "batch_size": 1,
        "memory": 0,
        "discount": 2,
        "soft_update": -1,
        "action_weight": -1,
        "least": 2,
    },
    "attacks.search.repulsion.BoundaryRepulsion": {
        "points": 1,
        "radius": 0,
        "growth": 0.9,
        "grow_above": 1,
        "step_share": 0,
        "longest_step": 0,
        "patience": 0,
        "max_rounds": 0,
        "box": 0,
    },
    "attacks.search.layerwise.Layerwise": {"steps": [], "reference_batch": 0, "latent_radius": [-1.0]},
    "attacks.stationarity.Stationarity": {"decay": 0, "images": 0, "least": -1, "least_weight": -1, "gate": 0},
    "attacks.stationarity.TrainingSet": {"steps": 0, "candidates": 0, "deviation": 0, "range_weight": -1, "chunk": 0},
    "datasets.att_faces.AttFaces": {"private": 1, "public": -1, "images": 0, "test_share": 1.0},
    "datasets.celeba.Celeba": {"identities": 0, "min_images": 0, "public_above": -1, "test_share": 0.0},
    "datasets.celeba.CelebaPpa": {"identities": 0, "public_images": -1, "train_share": 1.0},
    "datasets.cifar10.Cifar10": {"size": 0},
    "datasets.digits.Digits": {"size": 0, "test_share": 1.0},
    "datasets.facescrub.FaceScrub": {"actors": 0, "actresses": 0, "train_share": 1.0},
    "datasets.image_folder.ImageFolder": {"test_share": 0.0},
    "datasets.lfw.Lfw": {"cap": 0, "min_images": 0, "test_share": 1.0},
    "datasets.public_folder.PublicFolder": {"count": 0},
    "datasets.stanford_dogs.StanfordDogs": {"breeds": 1, "train_share": 1.0},
    "datasets.synthetic_faces.SyntheticFaces": {"identities": 0, "public_identities": 0, "images_per_identity": 0},
    "datasets.toy.Toy": {"public_classes": 0, "test_images_per_class": 0, "jitter": -1, "noise": -1},
    "defenses.bido.BiDO": {"sigma": 0, "eps": 0},
    "defenses.amortising.Amortisation": {"steps": -1, "batch_size": 1, "rate": 0, "pool": 0, "passes": 0, "unit": 0},
    "defenses.crafter.Crafter": {
        "beta": -1,
        "steps": -1,
        "saved_every": 0,
        "rate": -0.1,
        "inversion_weight": 0,
        "d": 0,
    },
    "defenses.crafter.CrafterZ": {"beta": -1, "steps": -1, "rate": -0.1, "d": 0, "group": 0, "chunk": 0},
    "defenses.crafting.Critic": {"steps": -1, "rows": 0, "rate": 0, "penalty": -1},
    "defenses.crafting.FictitiousAttacker": {
        "steps": -1,
        "rate": 0,
        "momentum": 1,
        "feature_weight": -1,
        "prior_weight": -1,
    },
    "defenses.implicit.Implicit": {"terms": 0, "alpha": 0, "products": 0},
    "defenses.masking.Cutout": {"p": 1.5, "side": -1},
    "defenses.masking.GridMask": {"kept": 1.1},
    "defenses.masking.HideAndSeek": {"q": 2, "grids": [4, 0]},
    "defenses.masking.PixelDropout": {"q": -0.1},
    "defenses.mixing.CutMix": {"p": -1},
    "evidence.auxiliary.AuxiliaryImages": {"images": 0, "seed": -1},
    "metrics.accuracy.AttackAccuracy": {"top": [0]},
    "metrics.benchmark_fid.BenchmarkFid": {"per_class": 0, "batch_size": 0},
    "metrics.restarts.RestartAccuracy": {"batch_size": 0},
    "metrics.feature_space.FeatureSpace": {"drawn": 0, "batch_size": 0},
    "metrics.knowledge.KnowledgeExtraction": {"epochs": 0, "batch_size": 1},
    "metrics.matched.Matched": {"good": 1.5, "nulls": 0},
    "metrics.unexplained.UnexplainedWeights": {"coefficients": "pairs", "draws": 0, "columns": 0},
    "metrics.prdc.PRDC": {"k": 0},
    "obscuring.Blur": {"deviation": 0},
    "obscuring.Mask": {"boxes": [], "fill": 2},
    "obscuring.RandomMask": {"scale": [0.9, 0.1], "ratio": [0, 1], "fill": -1},
    "priors.augmentation.Augmentation": {"flip": 2, "jitter": -1, "rotation": 1.5},
    "priors.inpainting.InpaintingGan": {
        "width": 0,
        "latent_size": 0,
        "epochs": 0,
        "steps": 0,
        "unit": 0,
        "batch_size": 1,
        "learning_rate": 0,
        "penalty": -1,
        "diversity_weight": -1,
        "agreement_weight": -1,
    },
    "priors.inpainting_public.PublicInpaintingGan": {
        "width": 0,
        "latent_size": 0,
        "epochs": 0,
        "steps": 0,
        "lessons": 0,
        "lesson_rate": 0,
        "unit": 0,
        "batch_size": 1,
        "learning_rate": 0,
        "penalty": -1,
        "diversity_weight": -1,
        "agreement_weight": -1,
    },
    "priors.pixels.Pixels": {"mean": 1.5, "std": 0},
    "priors.nets.network_inversion.TransposedHotGenerator": {"latent_size": 0, "width": 0, "dropout": 1.5},
    "priors.nets.network_inversion.UpsampledHotGenerator": {"latent_size": 0, "width": 0, "dropout": -1},
    "priors.nets.network_inversion.VectorGenerator": {"latent_size": 0, "width": 0, "dropout": 2},
    "priors.ked.KedGan": {
        "classes": 1,
        "width": 0,
        "latent_size": 0,
        "epochs": 0,
        "steps": 0,
        "unit": 0,
        "batch_size": 1,
        "critic_steps": 0,
        "learning_rate": 0,
        "entropy_weight": -1,
    },
    "priors.plg.PlgGan": {
        "classes": 1,
        "width": 0,
        "latent_size": 0,
        "top": 0,
        "steps": 0,
        "unit": 0,
        "batch_size": 1,
        "critic_steps": 0,
        "learning_rate": 0,
        "identity_weight": -1,
        "noise": 2,
    },
    "priors.lokt.LoktGan": {
        "classes": 1,
        "width": 0,
        "latent_size": 0,
        "steps": 0,
        "unit": 0,
        "batch_size": 1,
        "critic_steps": 0,
        "learning_rate": 0,
        "warmup": -1,
        "class_weight": -1,
    },
    "metrics.recognition.FeatureToId": {"epochs": 0, "batch_size": 1, "learning_rate": 0},
    "priors.gmi.GmiGan": {"epochs": 0, "steps": 0, "unit": 0, "critic_steps": 0, "width": 0, "batch_size": 1},
    "training.augmentations.ColorJitter": {"brightness": -0.1, "contrast": 2, "saturation": 1.1, "hue": 0.7},
    "training.augmentations.HorizontalFlip": {"p": 1.5},
    "training.augmentations.Rotation": {"degrees": 181},
    "training.augmentations.Sometimes": {"p": -0.1, "augmentation": 3},
    "training.recipe.Recipe": {"validation_share": 1.0},
}


@pytest.mark.parametrize("name", RANGED)
def test_ranges_stand_in_annotations_and_need_no_code(name):
    with pytest.raises(Refused) as refusal:
        bind({"_target_": f"midefense.{name}", **RANGED[name]}, "node")
    lines = str(refusal.value).splitlines()
    assert [
        argument for argument in RANGED[name] if not any(f"node.{argument}: expected" in line for line in lines)
    ] == []


@pytest.mark.parametrize("verb", BASES)
def test_what_the_wrong_values_stand_in_is_accepted(store, verb):
    config, choices = composed(verb, *BASES[verb])
    read_plan(verb, within(store, config), choices)


@pytest.mark.parametrize("option", [option for option in WRONG if needs_composing(option)])
def test_what_is_composed_is_refused_for_the_wrong_value_alone(store, option):
    """A file that is only in part where the wrong value stands would be refused whatever the value."""
    verb = "attack" if option.split("/")[0] in ATTACKERS else "train_target"
    config, choices = composed(verb, *words_of(verb, option))
    read_plan(verb, within(store, config), choices)
