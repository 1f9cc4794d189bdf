"""Nodes: what may be named, how arguments are bound, and how a recipe becomes the same node again."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from stylegan2_files import write_imported

from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.part import Part
from midefense.attacks.search.gradient import Gradient
from midefense.datasets.image_folder import ImageFolder
from midefense.datasets.toy import Toy
from midefense.plan.annotations import fits, in_words
from midefense.plan.bind import bind, bind_all, bind_recipe
from midefense.plan.compose import CONF, compose, plain_config
from midefense.plan.whitelist import resolve
from midefense.store.artefacts import canonical, content_id
from midefense.types import Refused

GROUPS = ("dataset", "architecture", "defense", "recipe", "public", "prior", "evidence", "attack")
IDS = json.loads((ROOT / "tests" / "data" / "recipe_ids.json").read_text())
OPTIONS = [(g, path.stem) for g in GROUPS for path in sorted((CONF / g).glob("*.yaml"))]
TOY = {"_target_": "midefense.datasets.toy.Toy", "classes": 3}
RANDOM = {"_target_": "midefense.attacks.init.Random", "candidates": 2}
CNN = {"_target_": "midefense.architectures.small.CNN", "widths": [4]}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1}


# ------------------------------------------------------------------------------------------------ the whitelist


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "pickle.loads",
        "torch.load",
        "torch.hub.load",
        "torch.nn.functional.torch.load",
        "torch.nn.modules.module.functools.partial",
        "torch.optim.adam.cast",
        "torchvision.transforms.functional.torch.load",
        "torch.nnx.Module",
        "midefense.store.os.system",
        "midefense.store.store.Store",
        "midefense.plan.bind.bind",
        "midefense.attacks.init.torch.load",
        "midefense",
        "midefense.datasets.files.Path",
    ],
)
def test_what_is_defined_elsewhere_cannot_be_named(name):
    with pytest.raises(Refused, match=r"is outside the whitelist \(midefense.architectures.*'allow=\[its_name\]'"):
        resolve(name)


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "torch.nn.modules.Linear", "torch.optim.SGD", "midefense.datasets.toy.Toy"]
)
def test_what_is_defined_inside_can(name):
    assert resolve(name).__name__ == name.split(".")[-1]


def test_functions_and_unknown_names_are_told_apart():
    with pytest.raises(Refused, match="expected a class, got a function"):
        resolve("torch.nn.init.normal_")
    with pytest.raises(Refused, match="got 'Toys'; choices: Dataset, Splits, Toy. Did you mean 'Toy'"):
        resolve("midefense.datasets.toy.Toys")
    with pytest.raises(Refused, match="expected module.Class, got 'own_name'"):
        resolve("own_name", allow=["own_name"])
    with pytest.raises(Refused, match="no such module; expected module.Class"):
        resolve("own_name_that_is_nowhere.Class", allow=["own_name_that_is_nowhere"])


def test_a_module_outside_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "dangerous.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused, match="outside the whitelist"):
        resolve("dangerous.Thing")
    with pytest.raises(Refused, match="outside the whitelist"):
        resolve("dangerous.Thing", allow=["danger"])
    assert "dangerous" not in sys.modules
    assert resolve("dangerous.Thing", allow=["dangerous"]).__name__ == "Thing"


# ------------------------------------------------------------------------------------------------ binding


def test_defaults_are_filled_in_and_stand_in_the_recipe():
    bound = bind(TOY, "dataset")
    assert bound.recipe() == {
        "_target_": "midefense.datasets.toy.Toy",
        "revision": 1,
        "classes": 3,
        "public_classes": 8,
        "images_per_class": 40,
        "test_images_per_class": 10,
        "size": 32,
        "jitter": 0.05,
        "noise": 0.03,
        "seed": 0,
    }
    assert isinstance(bound.build(), Toy) and bound.build().classes == 3
    written_out = bind({**TOY, "jitter": 0.05}, "dataset")
    assert content_id(written_out.recipe()) == content_id(bound.recipe())


def test_a_higher_revision_is_another_id(monkeypatch):
    before = content_id(bind(TOY, "dataset").recipe())
    monkeypatch.setattr(Toy, "revision", 2)
    assert content_id(bind(TOY, "dataset").recipe()) != before


def test_lists_and_tuples_are_the_same_recipe():
    lists, tuples = ({**ADAM, "betas": kind([0.9, 0.99])} for kind in (list, tuple))
    assert canonical(bind(lists, "x").recipe()) == canonical(bind(tuples, "x").recipe())


def test_mistakes_are_told_all_at_once_with_their_paths():
    attack = {
        "_target_": "midefense.attacks.base.SearchAttack",
        "init": {**RANDOM, "candidatez": 3},
        "select": None,
        "objective": {"_target_": "os.system"},
        "search": {"_target_": "torch.nn.Linear", "in_features": 3},
    }
    with pytest.raises(Refused) as refusal:
        bind_all({"attack": (attack, False), "dataset": ({**TOY, "seeed": 1}, False), "prior": ({"size": 1}, False)})
    lines = str(refusal.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "attack.init.candidatez",
        "attack.objective",
        "attack.search.out_features",
        "dataset.seeed",
        "prior",
    ]
    assert "got 'candidatez'; choices: candidates, shared. Did you mean 'candidates'" in lines[0]
    assert "~attack.init.candidatez" in lines[0] and "Linear needs this option" in lines[2]
    assert "expected a node with a _target_, got {'size': 1}" in lines[4]


def test_types_are_checked_where_annotations_say_them():
    bad = {"classes": "three", "size": 8.5, "jitter": True, "noise": None}
    with pytest.raises(Refused) as refusal:
        bind({**TOY, **bad}, "dataset")
    assert str(refusal.value).splitlines() == [
        "dataset.classes: expected a whole number from 2, got 'three'",
        "dataset.size: expected a whole number from 1 to 8192, got 8.5",
        "dataset.jitter: expected a number from 0, got True",
        "dataset.noise: expected a number from 0, got None",
    ]
    with pytest.raises(Refused, match=r"attack.init: expected a node with a _target_ \(Part\), got Toy"):
        parts = {name: TOY if name == "init" else RANDOM for name in ("init", "objective", "search", "select")}
        bind({"_target_": "midefense.attacks.base.SearchAttack", **parts}, "attack")


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (1, int, "a whole number"),
        (1, float, "a number"),
        (None, int | None, "a whole number or null"),
        ([1, 2], Sequence[int], "a list (a whole number each)"),
        ([0.5, 1], tuple[float, float], "a list of 2"),
        (["a"], tuple[str, ...], "a list (a text each)"),
        ({"a": 1}, Mapping[str, int], "a mapping (a whole number each)"),
        ("runs", Path, "a path"),
        (bind(RANDOM, "x"), Part, "a node with a _target_ (Part)"),
    ],
)
def test_what_fits_an_annotation(value, hint, words):
    assert fits(value, hint) and in_words(hint) == words
    assert not fits(object(), hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        ("1", int),
        (None, int),
        (1, str),
        ("ab", Sequence[str]),
        ([1, "b"], Sequence[int]),
        ([1.0], tuple[float, float]),
        ({"a": "b"}, Mapping[str, int]),
        (bind(TOY, "x"), Part),
        (bind(ADAM, "x"), Part),
    ],
)
def test_what_does_not_fit_an_annotation(value, hint):
    assert not fits(value, hint)


# ------------------------------------------------------------------------------------------------ what a dataset tells


def test_what_the_dataset_tells_is_filled_in_at_every_depth():
    with pytest.raises(Refused, match="architecture.classes: CNN needs this option"):
        bind(CNN, "architecture")
    bound = bind(CNN, "architecture", beside_dataset=True)
    assert bound.awaits == {"classes", "channels"}
    with pytest.raises(Refused, match="channels, classes must come from a dataset"):
        bound.build()
    told = bound.given(classes=5, channels=1, size=99)
    assert not told.awaits and bound.awaits
    assert (told.arguments["classes"], told.arguments["channels"], told.arguments["size"]) == (5, 1, 32)  # size was set
    assert told.build()(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 5)
    holder = {"_target_": "torch.nn.Sequential", "_args_": [CNN]}
    nested = bind(holder, "network", beside_dataset=True).given(classes=2, channels=3, size=8)
    assert nested.positional[0].arguments["classes"] == 2


def test_what_is_written_wins_over_the_dataset():
    told = bind({**CNN, "classes": 7}, "architecture", beside_dataset=True).given(classes=5, channels=1)
    assert told.arguments["classes"] == 7


def test_a_partial_network_may_wait_and_a_part_of_an_attack_is_told_nothing():
    bound = bind({**CNN, "_partial_": True}, "network", beside_dataset=True)
    assert bound.awaits == {"classes", "channels"} and bound.build()(classes=3, channels=1).classes == 3
    assert bound.given(classes=2, channels=1).build()().classes == 2
    pool = {"_target_": "midefense.attacks.init.BestOfPool", "size": None}
    with pytest.raises(Refused, match="init.size: expected a whole number from 1 to 1000000, got None"):
        bind(pool, "init", beside_dataset=True)


def test_partials_and_positional_arguments():
    bound = bind(ADAM, "optimizer")
    assert isinstance(bound.build(), functools.partial) and bound.recipe()["_partial_"] is True
    weight = torch.nn.Parameter(torch.ones(1))
    assert bound.build()([weight]).param_groups[0]["lr"] == 0.1
    linear = {"_target_": "torch.nn.Linear", "_args_": [3], "out_features": 2}
    assert bind(linear, "x").build().weight.shape == (2, 3)
    assert bind(linear, "x").recipe()["_args_"] == [3]
    with pytest.raises(Refused, match="in_features: Linear has no such option"):
        bind({**linear, "in_features": 3}, "x")


# ------------------------------------------------------------------------------------------------ recipes


def bound_option(group, option, *overrides):
    verb = "train_target" if group in ("dataset", "architecture", "defense", "recipe") else "attack"
    config, _ = compose(verb, [f"{group}={option}", *overrides])
    bound = bind(config[group], group, beside_dataset=group in ("architecture", "prior", "attack"))
    return bound.given(classes=3, channels=1, size=32)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_comes_back_from_its_recipe_and_keeps_its_id(group, option, tmp_path):
    """`recipe_ids.json`: the ids that commit c187d75 gave the options it had. Those of attack/ppa* and attack/if_gmi*
    (not `_small`, `_masked`) are of later: PPA selects as published (`select.clip`, `select.views.fit`), IF-GMI keeps
    pictures for evaluators of 299 px (`search.picture_size`). So are recipe/bido_adam and dmi_identity_sgd: images that
    do not fill a group are left out (`sampler.leftover`)."""
    imported = group == "prior" and option.startswith("stylegan2_") and option != "stylegan2_small"
    file = [f"prior.weights={write_imported(tmp_path / 'tiny.safetensors')}"] if imported else []
    bound = bound_option(group, option, *file)  # the recipe holds the hash of the file
    assert IDS.get(f"{group}/{option}") in (None, content_id(bound.recipe()))
    stored = json.loads(canonical(bound.recipe()))
    again = bind_recipe(stored, bound.places())
    assert canonical(again.recipe()) == canonical(bound.recipe())
    assert again.places() == bound.places() and again.target is bound.target and not again.awaits


@pytest.mark.parametrize("attack", ["gmi", "gmi_small", "mi_face"])
def test_a_slot_that_an_attack_leaves_empty_can_be_filled(attack):
    assert bound_option("attack", attack).build().views is None
    assert type(bound_option("attack", attack, "attack/views=clip").build().views).__name__ == "Clip"


def test_an_argument_that_came_later_leaves_ids_as_they_were(monkeypatch):
    before = bind(TOY, "dataset").recipe()
    monkeypatch.setattr(Toy, "later", {"noise": 0.03}, raising=False)
    silent = bind(TOY, "dataset").recipe()
    assert silent == {name: value for name, value in before.items() if name != "noise"}
    assert bind_recipe(silent, {}).recipe() == silent and bind_recipe(silent, {}).build().noise == 0.03
    assert bind({**TOY, "noise": 0.1}, "dataset").recipe()["noise"] == 0.1


def test_places_are_no_part_of_a_recipe_and_come_back():
    folder = {"_target_": "midefense.datasets.image_folder.ImageFolder", "public_root": "/here"}
    bound = bind({"_target_": "midefense.datasets.base.PublicFrom", "dataset": folder}, "public")
    elsewhere = {"_target_": "midefense.datasets.base.PublicFrom", "dataset": {**folder, "public_root": "/there"}}
    assert content_id(bound.recipe()) == content_id(bind(elsewhere, "public").recipe())
    assert set(ImageFolder.places) & set(bound.recipe()["dataset"]) == set()
    assert bound.places()["dataset.public_root"] == "/here"
    again = bind_recipe(bound.recipe(), {**bound.places(), "dataset.public_root": "/moved"})
    assert again.build().dataset.public_root == "/moved"


@pytest.mark.parametrize("changed", [SearchAttack, Random, Gradient])
def test_a_recipe_of_another_revision_is_refused(monkeypatch, changed):
    stored = bound_option("attack", "gmi").recipe()
    bind_recipe(stored, {})
    monkeypatch.setattr(changed, "revision", 2)
    with pytest.raises(
        Refused, match=rf"{changed.__name__}: expected revision 2, that of the code, got 1 .* Try naming"
    ):
        bind_recipe(stored, {})


def test_missing_values_are_named():
    config = OmegaConf.create({"a": "???", "b": {"c": "???", "d": 1}})
    with pytest.raises(Refused, match=r"these options need a value: a, b.c; give them on the command line"):
        plain_config(config)
