"""What is built once, without weights, to be refused before anything is trained: imported generators, networks that an
attack or a metric teaches, classes of a user's own."""

import contextlib
import copy

import pytest
from contract.listing import composed, within
from stylegan2_files import write_imported

from midefense.plan import trials
from midefense.plan.read import read_plan
from midefense.types import Refused

TOY = ("dataset=toy", "dataset.size=16", "architecture=mlp", "architecture.widths=[8]", "architecture.size=16")
BASE = {
    "attack": (*TOY, "prior=pixels", "attack=gmi", "attack/objective=cross_entropy", "attack/search=adam"),
    "evaluate": (*TOY, "prior=pixels", "attack=mi_face", "metrics=[all,knowledge]"),
    "train_target": TOY,
}
OWN = ["learned_doubles", "trial_doubles"]
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}


def planned(store, verb, *overrides, **changes):
    """A plan of the verb with values put at dotted paths ("__" for a dot) of its configuration."""
    chosen = {word.split("=")[0] for word in overrides}
    replaced = tuple(f"{group}{mark}" for group in chosen & {"architecture", "attack"} for mark in ".=/")
    config, choices = composed(verb, *(word for word in BASE[verb] if not word.startswith(replaced)), *overrides)
    config = copy.deepcopy({**within(store, config), "allow": OWN})
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return read_plan(verb, config, choices, overrides)


# ------------------------------------------------------------------------------------------------ imported generators

PPA = ("attack=ppa_small", "prior=stylegan2_ffhq")
IF_GMI = ("attack=if_gmi_small", "prior=stylegan2_ffhq")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Imported files by the channels of their pictures, of 16 pixels a side."""
    folder = tmp_path_factory.mktemp("imported")
    shape = {"resolution": 16, "critic": True}
    return {n: str(write_imported(folder / f"{n}.safetensors", image_channels=n, **shape)) for n in (1, 3, 4)}


def imported(weights, channels, **more):
    return {"prior__weights": weights[channels], "prior__crop": None, **more}


@pytest.mark.parametrize(
    ("attack", "channels", "changes", "expected"),
    [
        (PPA, 4, {}, "prior: expected a generator whose pictures can be made images [B, 1, 16, 16]"),
        (PPA, 3, {"prior__max_resolution": 7}, "prior.max_resolution: expected one of 4, 8, 16, got 7"),
        (PPA, 3, {"prior__crop": "tiny"}, "prior: expected a generator whose pictures can be made images"),
        (
            IF_GMI,
            3,
            {"stages": 4},
            "attack.search.steps: expected at most 3 stages, the blocks of the generator, got 4",
        ),
        (
            IF_GMI,
            3,
            {"prior__max_resolution": 4, "stages": 2},
            "attack.search.steps: expected at most 1 stages, the blocks of the generator, got 2",
        ),
    ],
)
def test_an_imported_generator_is_tried_by_its_header(store, weights, attack, channels, changes, expected):
    stages = changes.pop("stages", 1)
    changes = imported(weights, channels, **changes)
    if changes["prior__crop"] == "tiny":
        changes["prior__crop"] = {"_target_": "midefense.priors.stylegan2.prior.Crop", "side": 1, "of": 100}
    if attack is IF_GMI:
        many = {"steps": [1] * stages, "latent_radius": [0.0] * stages, "feature_radius": [0.0] * stages}
        changes |= {f"attack__search__{name}": value for name, value in many.items()}
    with pytest.raises(Refused) as refusal:
        planned(store, "attack", *attack, **changes)
    assert str(refusal.value).startswith(expected), refusal.value


@pytest.mark.parametrize("channels", [1, 3])
def test_an_imported_generator_that_fits_is_planned_without_its_weights(store, weights, channels, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", None)  # no tensor may be read
    plan = planned(store, "attack", *IF_GMI, **imported(weights, channels))
    assert plan.prior.arguments["weights"] == weights[channels]


def test_files_that_are_not_there_are_left_to_who_names_them(store):
    planned(store, "attack", *PPA, prior__weights="/nowhere/ffhq.safetensors")


def test_a_prior_of_other_images_is_refused(store):
    with pytest.raises(Refused, match=r"expected a prior of images \[1, 1, 16, 16\].* makes \[1, 1, 8, 8\]"):
        planned(store, "attack", prior={"_target_": "trial_doubles.OtherShape", "channels": 1, "size": 16})


# --------------------------------------------------------------------------------------- networks that are taught


def learning(network, **changes):
    network = {"_partial_": True, **network}
    return {
        "_target_": "midefense.attacks.learning.Learning",
        "network": network,
        "optimizer": ADAM,
        "steps": 5,
        **changes,
    }


def surrogate(**network):
    network = {"_target_": "trial_doubles.SevenClasses", **network}
    return {"_target_": "learned_doubles.LabelSurrogate", "learning": learning(network), "count": 20}


def decoder(**network):
    network = {"_target_": "learned_doubles.Inverse", "features": 8, "channels": 1, "size": 16, **network}
    return {"_target_": "midefense.attacks.decoder.Decoder", "learning": learning(network), "group": 2}


WHERE = "attack.surrogate.learning.network: expected one that learns from what the target answers"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attack__surrogate": surrogate(side=8)}, f"{WHERE} about images [B, 1, 16, 16], got one that fails ("),
        ({"attack__surrogate": surrogate(classes="x")}, f"{WHERE} about images"),
        ({"attack": decoder(features=9)}, "attack.learning.network: expected one that learns"),
        ({"attack": decoder(size=15)}, "attack.learning.network: expected images [2, 1, 16, 16], those of the dataset"),
        ({"attack": decoder(size=1)}, "attack.learning.network: expected images [2, 1, 16, 16], those of the dataset"),
    ],
    ids=["side", "no number", "features", "size", "one pixel"],
)
def test_a_network_of_the_attackers_own_is_tried(store, changes, expected):
    with pytest.raises(Refused) as refusal:
        planned(store, "attack", **changes)
    assert str(refusal.value).startswith(expected), refusal.value


def test_networks_that_fit_are_planned_and_unknown_classes_are_left_open(store):
    planned(store, "attack", attack__surrogate=surrogate())  # seven classes, and nobody knows yet how many there are
    planned(store, "attack", attack=decoder())


@pytest.mark.parametrize(("text", "refused"), [("always", True), ("with {} classes", False)])
def test_what_fails_for_some_number_of_classes_alone_is_left_for_later(text, refused):
    def attempt(classes):
        raise Refused(text.format(classes))

    with pytest.raises(Refused, match="always") if refused else contextlib.nullcontext():
        trials._for_classes(None, attempt)
    with pytest.raises(Refused):
        trials._for_classes(2, attempt)


def test_a_network_that_cannot_be_built_of_shapes_alone_is_built_as_it_would_be(store):
    own = {"_target_": "trial_doubles.LooksAtNumbers"}
    changes = {"architecture__network": own, "architecture__feature_layer": None, "architecture__classes": 7}
    planned(store, "train_target", "architecture=custom", "architecture.size=16", **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metrics__knowledge__student__size": 1}, "metrics.knowledge.student: size: expected at least 8 pixels"),
        (
            {"metrics__knowledge__student__widths": [60000, 60000, 60000]},
            "metrics.knowledge.student (its weights in training): expected",
        ),
        ({"metrics__fid__features": "man"}, "FrechetDistance.features: got 'man'"),
        ({"metrics__prdc__features": "iception"}, "PRDC.features: got 'iception'"),
    ],
)
def test_networks_that_metrics_ask_are_tried(store, changes, expected):
    with pytest.raises(Refused) as refusal:
        planned(store, "evaluate", **changes)
    assert expected in str(refusal.value), refusal.value


def test_an_evaluator_may_not_bear_the_name_of_a_network_of_ours(store):
    with pytest.raises(Refused, match="evaluators: expected names other than inception, .* got 'target'; try main"):
        planned(store, "evaluate", "+evaluator@evaluators.target=cnn_wide")


# ------------------------------------------------------------------------------------------- classes of one's own


def test_a_mistake_in_a_class_of_ones_own_is_worded_with_its_line(store):
    with pytest.raises(Refused) as refusal:
        planned(store, "attack", attack__select={"_target_": "trial_doubles.Forgetful"})
    said = str(refusal.value)
    assert "expected Forgetful of trial_doubles to be built from these values, got TypeError: unsupported" in said
    assert "attack" in said and "trial_doubles.py, line 17" in said, said


def test_a_module_that_cannot_be_imported_is_worded_with_its_line(store, tmp_path, monkeypatch):
    (tmp_path / "halfdone.py").write_text("import torch\n\nclass Net(torch.nn.Module)\n    pass\n")
    (tmp_path / "needy.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, expected in [
        ("halfdone", "SyntaxError from halfdone: .*halfdone.py, line 3"),
        ("needy", "needy.py, line 1"),
    ]:
        own = {"_target_": f"{module}.Net"}
        with pytest.raises(Refused, match=f"expected a module that Python can import, got .*{expected}"):
            planned(store, "train_target", "architecture=custom", allow=[module], architecture__network=own)


def test_a_state_of_more_than_tensors_is_refused_before_it_is_trained(store):
    own = {"_target_": "trial_doubles.KeepsMore"}
    changes = {"architecture__network": own, "architecture__feature_layer": None, "architecture__classes": 7}
    with pytest.raises(Refused, match="expected a network whose state is tensors, got .*_extra_state beside them"):
        planned(store, "train_target", "architecture=custom", "architecture.size=16", **changes)
