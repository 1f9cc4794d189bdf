"""Weights that others trained, in and out of the store: every format, every way a file can be the wrong one."""

import importlib.util
import json
import os
import pickle
import runpy
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import conftest
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from midefense.architectures.checkpoints import read_checkpoint
from midefense.architectures.mnist_cnn import MCNN
from midefense.architectures.state_names import to_published
from midefense.commands.main import main
from midefense.exchange.accuracy import doubt_of, require_accuracy
from midefense.exchange.class_order import (
    names_in,
    order_of,
    published_names_of,
    read_names,
    refuse_order,
    suspect_order,
)
from midefense.exchange.classifiers import import_classifier, reordered, translated
from midefense.exchange.roles import looks_like
from midefense.pipeline.classifiers import get_classifier, open_target
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.session import Session
from midefense.plan.read import stored_target
from midefense.priors.gmi import GmiGan
from midefense.store.store import Store
from midefense.types import Refused

REFERENCE = Path(conftest.ROOT).parent / "shared" / "reference" / "networks.json"
WORDS = ("--as", "target", "--architecture", "mcnn", "--dataset", "toy")
SMALL = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=2", "attack.search.steps=5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A target trained here in a second, and its weights under the names of the original implementation."""
    store = tmp_path_factory.mktemp("trained") / "store"
    overrides = ("dataset=toy", "architecture=mcnn", "recipe=dmi_mnist", "recipe.epochs=3")
    pipeline = Pipeline(conftest.plan_for("train_target", *overrides, store=store))
    return pipeline.target.artefact, to_published(pipeline.target.model)


@pytest.fixture
def state(trained):
    return {name: tensor.clone() for name, tensor in trained[1].items()}


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pt"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def bring(store, capsys):
    """`bring(FILE, *words)`: the exit code of `import`, and what it said."""

    def bring_in(file, *words, as_=WORDS):
        code = main(["import", "--store", str(store), str(file), *as_, *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return bring_in


def only(store, kind="target"):
    (artefact,) = Store(store).list(kind)
    return artefact


def same(left, right):
    """Whether two state dicts are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FILES = {
    "plug_and_play_attacks": lambda s: {
        "epoch": 3,
        "model_state_dict": prefixed(s, "model."),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
    },
    "plug_and_play_attacks compiled": lambda s: {"epoch": 3, "model_state_dict": prefixed(s, "model._orig_mod.")},
    "ked_mi": lambda s: {"epoch": 3, "best_precision": 0.9, "state_dict": prefixed(s, "module.")},
    "mibench": lambda s: {"state_dict": s, "config": {"num_classes": 4}, "model_name": "mcnn"},
    "state_dict": lambda s: s,
    "checkpoint": lambda s: {"net": s, "acc": 0.9},
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_gives_the_accuracy_it_had(kind, trained, state, save, bring, store):
    file = save(FILES[kind](state), "weights.tar" if kind == "ked_mi" else "weights.pt")
    accuracy = trained[0].metrics["test_accuracy_top1"]
    assert accuracy > 0.5
    code, said = bring(file, "--expect", str(accuracy), "--name", "theirs")
    assert code == 0 and f"test accuracy {accuracy:.4f}; use it as target=" in said
    artefact = only(store)
    assert artefact.name == "theirs" and artefact.metrics["test_accuracy_top1"] == accuracy
    assert artefact.metrics["claim"]["expected"] == accuracy and len(artefact.metrics["claim"]["test_split"]) == 64
    assert artefact.recipe["recipe"]["format"] == kind.split()[0]
    assert artefact.provenance["places"]["recipe.file"] == file
    assert same(artefact.tensors(), trained[0].tensors())
    assert bring(file) == (0, said) and only(store).path == artefact.path, "a second import finds the first"


def test_an_imported_target_is_attacked_and_judged_as_any_other(state, save, bring, store, run_verb):
    bring(save(state))
    target = only(store)
    result = run_verb("evaluate", f"target={target.id}", "prior=toy", *SMALL)
    row = result.metrics["row"]
    assert row["ids"]["target"] == target.id and row["architecture"] == "mcnn" and row["selection"] == "unknown"
    assert result.metrics["metrics"]["utility/test_accuracy_top1"]["value"] == target.metrics["test_accuracy_top1"]


def test_how_its_authors_selected_is_said_in_every_row(state, save, bring, store):
    bring(save(state), "--select", "test_legacy")
    assert only(store).metrics["selection"] == "test_legacy"


def test_an_evaluator_is_named_instead_of_trained(state, save, bring, store, run_verb):
    words = ("--as", "evaluator", "--architecture", "mcnn", "--dataset", "toy")
    code, said = bring(save(state), as_=words)
    evaluator = only(store)
    assert code == 0 and f"use it as evaluators.main.artefact={evaluator.id}" in said
    attack = ("dataset=toy", "architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1", "prior=toy")
    named = (*attack, "attack.search.steps=5", f"evaluators.main.artefact={evaluator.id}")
    result = run_verb("evaluate", *named)
    assert result.metrics["row"]["ids"]["evaluators"] == {"main": evaluator.id}
    assert len(Store(store).list("target")) == 2, "the target and the imported evaluator, no other"
    for beside in ("evaluators.main.recipe.epochs=3", "evaluator@evaluators.main=cnn_wide"):
        with pytest.raises(Refused, match=r"evaluators.main.artefact=... brings its own .*leave out evaluator"):
            run_verb("evaluate", *named, beside)
    with pytest.raises(Refused, match="expected an evaluator of the target's dataset"):
        run_verb("evaluate", *named, "dataset.seed=1")
    defended = run_verb("train_target", *attack[:-1], "defense=random_erasing")
    with pytest.raises(Refused, match="expected a target without a defense"):
        run_verb("evaluate", *attack, f"evaluators.main.artefact={defended.id}")


def test_an_evaluator_may_not_be_defended(state, save, bring):
    words = ("--as", "evaluator", "--architecture", "mcnn", "--dataset", "toy")
    code, said = bring(save(state), "defense=bido_hsic", as_=words)
    assert code == 1 and "expected a network without a defense" in said


def test_a_network_of_torchvision_answers_as_it_did_there(save, bring, store):
    theirs = torchvision.models.resnet18(num_classes=4)
    theirs.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    file = save({"model_state_dict": prefixed(theirs.state_dict(), "model.")})
    words = ("--as", "target", "--architecture", "resnet18", "--dataset", "toy", "architecture.size=32")
    code, said = bring(file, "--expect", "0", as_=words)
    assert code == 0, said
    session = Session(conftest.plan_for("train_target", store=store))
    images = torch.rand(5, 1, 32, 32)
    logits = open_target(session, only(store)).model(images).logits
    torch.testing.assert_close(logits, theirs.eval()((images - 0.5) / 0.5))


def test_what_was_imported_is_not_trained_again(state, save, bring, store):
    bring(save(state))
    plan = conftest.plan_for("train_target", "dataset=toy", store=store)
    imported = stored_target(only(store))
    assert get_classifier(Session(plan), imported).id == only(store).id
    with pytest.raises(Refused, match="they were imported, so nothing here can train them; try `midefense"):
        get_classifier(Session(plan), replace(imported, seed=7))


# A network of one's own

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, bias=True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mask", torch.full((2,), float("inf")))
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(4 * width, 4, bias=bias)

    def forward(self, x):
        return self.fc(self.scale * self.body(x).flatten(1))
"""
OWN = (
    *("--as", "target", "--architecture", "custom", "--dataset", "toy", "--expect", "0"),
    *("~architecture.network._args_", "architecture.network._target_=ownnet.Net", "architecture.feature_layer=fc"),
    "allow=[ownnet]",
)


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A module of the user's own, in the folder that the command is called from and nowhere else."""
    (tmp_path / "ownnet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    theirs = importlib.util.spec_from_file_location("theirs", tmp_path / "ownnet.py")  # as the user's own script has it
    module = importlib.util.module_from_spec(theirs)
    theirs.loader.exec_module(module)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield module.Net
    sys.modules.pop("ownnet", None)


WRAPPED = {
    "as it is": lambda s: s,
    "of DataParallel": lambda s: prefixed(s, "module."),
    "compiled in part": lambda s: {name.replace("body.", "body._orig_mod."): tensor for name, tensor in s.items()},
    "a moving average": lambda s: {"n_averaged": torch.tensor(7), **prefixed(s, "module.")},
    "a moving average of DataParallel": lambda s: {"n_averaged": torch.tensor(7), **prefixed(s, "module.module.")},
    "a part of another": lambda s: prefixed(s, "target.backbone."),
    "of before torch 0.4.1": lambda s: {n: tensor for n, tensor in s.items() if "num_batches" not in n},
    "of Opacus": lambda s: prefixed(s, "_module."),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_the_state_dict_of_ones_own_module_fits(how, net, save, bring, store):
    theirs = net()
    code, said = bring(save(WRAPPED[how](theirs.state_dict())), as_=OWN)
    assert code == 0, said
    session = Session(conftest.plan_for("train_target", "allow=[ownnet]", store=store))
    images = torch.rand(5, 1, 32, 32)
    logits = open_target(session, only(store)).model(images).logits
    assert torch.equal(logits, theirs.eval()((images - 0.5) / 0.5))


def test_ones_own_names_come_in_go_out_and_are_started_from(net, save, bring, store, tmp_path, run_verb):
    theirs = net(bias=False)
    words = (*OWN, "+architecture.network.bias=false")
    code, said = bring(save(theirs.state_dict()), as_=words)
    assert code == 0, said
    out, export = tmp_path / "out.safetensors", ("export", "--store", str(store), only(store).id)
    assert main([*export, str(out)]) == 1, "its class is admitted by nobody"
    assert main([*export, str(out), "--allow", "ownnet"]) == 0
    written = safetensors.torch.load_file(out)
    assert same({name: written[name] for name in theirs.state_dict()}, theirs.state_dict())
    named = [word for word in OWN if word.startswith(("~", "architecture.", "allow="))]
    words = ("dataset=toy", "architecture=custom", *named, "recipe.epochs=1", f"recipe.start={out}")
    assert run_verb("train_target", *words).recipe["recipe"]["start"]["sha256"]
    code, said = bring(out, "--name", "again", as_=OWN)
    assert code == 0, said


def test_weights_lacking_a_head_or_a_layer_are_still_refused(net, save, bring):
    state = net().state_dict()
    del state["fc.bias"]
    code, said = bring(save(state), as_=OWN)
    assert code == 1 and "1 missing (fc.bias)" in said
    code, said = bring(save({**net().state_dict(), "body.9.weight": torch.zeros(1)}), as_=OWN)
    assert code == 1 and "1 unexpected (body.9.weight)" in said


# What to take of a file


def test_an_entry_is_chosen_by_name_and_is_part_of_the_id(state, save, bring, store):
    blind = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    file = save({"epoch": 3, "state_dict": blind, "state_dict_ema": state, "nets": {"ema": state, "raw": blind}})
    code, said = bring(file)
    assert code == 1 and "state_dict_ema (a state dict)" in said and "try --entry state_dict" in said
    code, said = bring(file, "--entry", "state_dict_em")
    assert code == 1 and "Did you mean 'state_dict_ema'?" in said
    assert bring(file, "--entry", "state_dict_ema")[0] == 0 == bring(file, "--entry", "nets.ema")[0]
    code, said = bring(file, "--entry", "state_dict", "--expect", "0")
    assert code == 0, said
    ids = {artefact.recipe["recipe"]["entry"]: artefact.id for artefact in Store(store).list("target")}
    assert set(ids) == {"state_dict_ema", "nets.ema", "state_dict"} and len(set(ids.values())) == 3
    code, said = bring(file, "--entry", "epoch")
    assert code == 1 and "--entry epoch: expected a state dict, got a int" in said
    code, said = bring(file, "--entry", "nets.none")
    assert code == 1 and "--entry" in said


def test_a_prefix_is_stripped_or_added(state, save, bring, store):
    file = save({**prefixed(state, "model."), "criterion.weight": torch.ones(4)})
    code, said = bring(file)
    assert code == 1 and "the names are all there behind a prefix, beside others: try --strip model" in said
    code, said = bring(file, "--strip", "model")
    assert code == 0, said
    assert only(store).recipe["recipe"]["strip"] == "model" and "add" not in only(store).recipe["recipe"]
    code, said = bring(file, "--strip", "modl")
    assert code == 1 and "Did you mean 'model'?" in said
    assert bring(file, "--strip", "model", "--add", "module")[0] == 0


# Wrong files


def test_another_role_is_named(trained, save, bring):
    gan = GmiGan(channels=1, size=32, width=8)
    for part, module in (("generator", gan.generator), ("critic", gan.critic)):
        code, said = bring(save({"state_dict": to_published(module)}))
        assert code == 1 and f"weights: expected a classifier, got what looks like a {part}" in said
    with pytest.raises(Refused, match="expected a generator, got what looks like a classifier"):
        translated(gan.generator, trained[1], "generator")


def test_a_head_of_other_classes_is_counted(save, bring):
    code, said = bring(save(to_published(MCNN(classes=6, channels=1))))
    assert code == 1 and "classes: expected a head of 4, the classes of the dataset, got one of 6; try" in said


def test_names_and_shapes_that_differ_are_listed(state, save, bring):
    code, said = bring(save({name.replace("feature.8.", "feature.7."): tensor for name, tensor in state.items()}))
    assert code == 1 and "2 missing (feature.8.weight, feature.8.bias); 2 unexpected (feature.7.weight" in said
    code, said = bring(save({**state, "feature.0.weight": torch.zeros(64, 3, 7, 7)}))
    assert code == 1 and "feature.0.weight [64, 3, 7, 7] instead of [64, 1, 7, 7]" in said
    assert bring(save({"epoch": 3}))[0] == 1


class Bomb:
    """What a pickle may hide."""

    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_nothing_of_a_file_is_run(new, state, tmp_path, bring):
    file, sentinel = tmp_path / "bomb.pt", tmp_path / "sprung"
    torch.save({"state_dict": state, "note": Bomb(sentinel)}, file, _use_new_zipfile_serialization=new)
    code, said = bring(file)
    assert code == 1 and "asks for posix.mkdir" in said and not sentinel.exists()


class Whole(nn.Linear):
    """A module that somebody pickled whole."""


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def quantised(path):
    tensor = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    torch.save({"a.weight": tensor}, path)


NO_WEIGHTS = {
    "TorchScript": (
        lambda p: torch.jit.script(nn.Linear(2, 2)).save(str(p)),
        "holds a TorchScript module; try torch.sa",
    ),
    "an exported program": (lambda p: zipped(p, ["a/archive_format", "a/data.pkl"]), "an exported program"),
    "a zip": (lambda p: zipped(p, ["photos/1.png"]), "a zip archive of photos/1.png; try unpacking it"),
    "numpy": (lambda p: zipped(p, ["w.npy"]), "arrays of numpy"),
    "a whole module": (
        lambda p: torch.save(Whole(2, 2), p),
        "Whole: a whole object, not its weights; try torch.save(mod",
    ),
    "a whole module, old": (
        lambda p: torch.save(Whole(2, 2), p, _use_new_zipfile_serialization=False),
        "Whole: a whole object, not its weights",
    ),
    "a module beside": (lambda p: torch.save({"net": Whole(2, 2)}, p), "Whole beside tensors"),
    "a web page": (lambda p: p.write_text("\n<!DOCTYPE html><p>Sign in"), "a web page instead of the file"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"), "a pointer of Git LFS"),
    "StyleGAN3": (
        lambda p: p.write_bytes(pickle.dumps({"G": "torch_utils.persistence training/networks_stylegan3.py"})),
        "a network pickle of StyleGAN3, which is not read here",
    ),
    "EG3D": (
        lambda p: p.write_bytes(pickle.dumps({"G": "torch_utils.persistence class TriPlaneGenerator"})),
        "a network pickle of EG3D, which is not read here",
    ),
    "StyleGAN2": (lambda p: p.write_bytes(pickle.dumps({"G": "torch_utils.persistence"})), "--as stylegan2"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a pickle that torch did not write"),
    "nothing": (lambda p: p.write_bytes(b""), "nothing: it is empty"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(300)), "a gzip archive; try unpacking it"),
    "tar": (lambda p: p.write_bytes(bytes(257) + b"ustar"), "a tar archive"),
    "meta": (lambda p: torch.save({"a": torch.empty(2, device="meta")}, p), "1 tensors without values"),
    "sparse": (
        lambda p: torch.save({"a": torch.eye(2).to_sparse()}, p),
        "1 sparse tensors among 1 (a, ...); try saving",
    ),
    "quantised": (quantised, "1 quantised tensors"),
    "more than tensors": (
        lambda p: torch.save({"fc.weight": torch.ones(1), "fc._extra_state": {"scale": 2}, "step": 3}, p),
        "holds 1 tensors, and what is none beside them: fc._extra_state (dict), step (int); try torch.save({name: v",
    ),
    "more than tensors within": (
        lambda p: torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1), "a._extra_state": b"x"}}, p),
        "1 tensors, and what is none beside them: a._extra_state (bytes)",
    ),
    "a quantised network": (
        lambda p: torch.save({"fc.scale": torch.ones(1), "fc._packed_params._packed_params": (1, 2)}, p),
        "the state of a quantised network",
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of jit and quantisation that it gives up
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_a_file_that_holds_no_weights_is_named(what, name, tmp_path):
    make, said = NO_WEIGHTS[what]
    make(tmp_path / name)
    with pytest.raises(Refused) as refusal:
        read_checkpoint(tmp_path / name)
    assert said in str(refusal.value) and "cut short" not in str(refusal.value), refusal.value


def test_the_bytes_of_a_file_decide_how_it_is_read_and_not_its_name(state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "weights.bin")
    torch.save(state, tmp_path / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        assert same(read_checkpoint(tmp_path / name).state, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(value, state, save, bring):
    state["feature.0.weight"][0, 0, 0, 0] = value
    code, said = bring(save(state))
    assert code == 1 and "NaN or infinity in 1 of 23 tensors (feature.0.weight)" in said


def test_numbers_of_another_kind_are_named(state, save, bring):
    for kind in (torch.int8, torch.complex64):
        code, said = bring(save({**state, "feature.0.weight": state["feature.0.weight"].to(kind)}))
        assert code == 1 and f"(feature.0.weight {str(kind)[6:]})" in said
    assert bring(save({name: tensor.double() for name, tensor in state.items()}))[0] == 0


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_cut_short_is_refused(name, trained, store, tmp_path, bring):
    whole = tmp_path / f"whole{Path(name).suffix}"
    artefact = trained[0]
    assert main(["export", "--store", str(artefact.path.parents[1]), artefact.id, str(whole)]) == 0
    content = whole.read_bytes()
    for share in (0.0, 0.001, 0.3, 0.9, 0.9999):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        code, said = bring(tmp_path / name)
        assert code == 1 and "refused: weights: expected a safetensors file" in said
    assert bring(tmp_path / "absent.pt")[0] == 1 and Store(store).list() == []


def test_an_accuracy_below_the_one_expected_is_refused(state, save, bring, store):
    state["feature.0.weight"] = torch.zeros_like(state["feature.0.weight"])  # blind: one answer to every image
    code, said = bring(save(state), "--expect", "0.99")
    assert code == 1 and "expected 0.9900 or at most 0.02 less" in said and "the normalisation" in said
    code, said = bring(save(state), "--expect", "88")
    assert code == 1 and "expected an accuracy in [0, 1], got 88.0; try 0.88" in said
    assert Store(store).list() == []


def test_few_images_are_said_to_be_too_few_and_many_judge():
    assert "3 test images of 3 classes are too few to judge" in doubt_of(3, 3) and "1 of 27 tries" in doubt_of(3, 3)
    assert doubt_of(40, 4) == "" == doubt_of(100, 4, expect=0.9) and "too few to measure" in doubt_of(10, 4, expect=0.9)
    require_accuracy(1.0, 3, 3, None, "")
    require_accuracy(2 / 3, 3, 3, None, "")
    with pytest.raises(Refused, match="expected more than chance"):
        require_accuracy(1 / 3, 3, 3, None, "")  # no more than chance, and few images do not excuse that
    with pytest.raises(Refused, match=r"got 0.4000 \(8 of 20, as blind guessing does or better in 10.2 % of all tries"):
        require_accuracy(0.4, 20, 4, None, "")
    require_accuracy(0.75, 20, 4, None, "")
    require_accuracy(2 / 3, 3, 3, 0.88, "")  # one image less than all is no accuracy of 0.67
    with pytest.raises(Refused, match=r"expected 0.8800 or at most 0.02 less, got 0.0000"):
        require_accuracy(0.0, 10, 3, 0.88, "")
    with pytest.raises(Refused, match="or at most 0.02 less"):
        require_accuracy(0.85, 100, 3, 0.88, "")


# The order of the classes


def shifted(state):
    """The head's rows moved by one, as if the labels had been numbered otherwise."""
    return {name: tensor.roll(1, 0) if name.startswith("fc_layer") else tensor for name, tensor in state.items()}


def test_an_order_that_differs_is_suspected_named_and_put_right(trained, state, save, bring, store, tmp_path):
    accuracy = trained[0].metrics["test_accuracy_top1"]
    file = save(shifted(state))
    code, said = bring(file)
    assert code == 1 and "expected more than chance" in said
    assert "the order of the labels, as" in said and "of the images get the label that their class mostly gets" in said
    names = tmp_path / "names.txt"
    names.write_text("private 3\nprivate 0\nprivate 1\nprivate 2\n")
    code, said = bring(file, "--class-names", str(names))
    assert code == 1 and "label 0 is 'private 0' in the dataset and 'private 3' in the head; try --reorder" in said
    code, said = bring(file, "--class-names", str(names), "--reorder")
    assert code == 0 and f"test accuracy {accuracy:.4f}" in said
    assert only(store).recipe["recipe"]["order"] == [1, 2, 3, 0]
    assert same(only(store).tensors(), trained[0].tensors())


def test_a_head_is_put_in_order_with_or_without_a_bias():
    state = {"classifier.weight": torch.arange(3.0)[:, None], "stages.a": torch.zeros(3)}
    assert reordered(state, [2, 0, 1])["classifier.weight"].flatten().tolist() == [2, 0, 1]
    assert set(reordered({**state, "classifier.bias": torch.zeros(3)}, [2, 0, 1])) == {
        f"classifier.{n}" for n in ("weight", "bias")
    }
    with pytest.raises(Refused, match="--reorder: expected a head called classifier.weight"):
        reordered({"model.classifier.weight": torch.zeros(3, 1)}, [2, 0, 1])


def test_names_in_the_checkpoint_are_compared_too(state, save, bring):
    names = [f"private {label}" for label in (0, 1, 3, 2)]
    code, said = bring(save({"state_dict": state, "class_names": names}))
    assert code == 1 and "label 2 is 'private 2' in the dataset and 'private 3' in the head" in said
    code, said = bring(save({"state_dict": state, "idx_to_class": {0: "anna", 1: "bert", 2: "carl", 3: "dora"}}))
    assert code == 1 and "that lack 4 of them (private 0, private 1, private 2)" in said
    assert bring(save({"state_dict": state, "class_to_idx": {f"private {i}": i for i in range(4)}}))[0] == 0
    code, said = bring(save(state), "--reorder")
    assert code == 1 and "--reorder: expected class names" in said


def test_numbers_sorted_as_text_are_recognised():
    names = [str(label) for label in range(12)]
    with pytest.raises(
        Refused, match=r'sorted as text \("10" before "2"\): label 2 is \'2\' in the dataset and \'10\''
    ):
        refuse_order(sorted(names), names)
    with pytest.raises(Refused, match=r'sorted by number \("2" before "10"\)'):
        refuse_order(names, sorted(names))
    labels = torch.arange(12).repeat(5)
    row = torch.tensor([sorted(names).index(name) for name in names])
    assert "look sorted as text" in suspect_order(row[labels], labels, names)
    assert "1.0000 of the answers would be right" in suspect_order(row[labels], labels, names)
    assert suspect_order(labels, labels, names) == ""
    guesses = torch.randint(12, (60,), generator=torch.Generator().manual_seed(0))
    assert suspect_order(guesses, labels, names) == ""
    assert order_of(sorted(names), names)[:4] == [0, 1, 4, 5]


def test_class_names_are_read_from_text_lists_and_mappings(tmp_path):
    (tmp_path / "a.txt").write_text("anna\n\n bert \n")
    assert read_names(tmp_path / "a.txt") == ["anna", "bert"]
    for name, content in [("list", ["a", "b"]), ("by_name", {"b": 1, "a": 0}), ("by_label", {"0": "a", "1": "b"})]:
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert read_names(tmp_path / f"{name}.json") == ["a", "b"]
    for content in ("{", "[1, 2]", '{"a": 0, "b": 2}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(Refused, match="--class-names: expected"):
            read_names(tmp_path / "bad.json")
    with pytest.raises(Refused, match="expected a file"):
        read_names(tmp_path / "absent")
    assert published_names_of({"classes": 4}) is None and names_in([]) is None


# Out of the store


@pytest.mark.parametrize("name", ["out.pt", "out.tar", "out.safetensors"])
@pytest.mark.parametrize("names", ["published", "plain"])
def test_what_goes_out_comes_back_bit_for_bit(name, names, trained, store, tmp_path, bring):
    artefact, file = trained[0], tmp_path / name
    words = ["--store", str(artefact.path.parents[1]), artefact.reference, str(file), "--format", names]
    assert main(["export", *words]) == 0
    if name == "out.pt":
        content = torch.load(file, weights_only=True)
        assert ("fc_layer.weight" in content) is (names == "published")
    code, said = bring(file)
    assert code == 0, said
    assert same(only(store).tensors(), artefact.tensors())


def test_an_export_overwrites_nothing_and_knows_its_endings(trained, tmp_path, capsys):
    artefact, file = trained[0], tmp_path / "out.pt"
    words = ["export", "--store", str(artefact.path.parents[1]), artefact.id]
    assert main([*words, str(file)]) == 0 == main([*words, str(tmp_path / "again.pt")])
    assert main([*words, str(file)]) == 1 and "which exists" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out.onnx")]) == 1
    assert "choices: .pt, .pth, .tar, .safetensors" in capsys.readouterr().err


# The command line


def test_words_that_do_not_fit_are_refused(state, save, bring, store, capsys):
    file = save(state)
    for words, as_, expected in [
        (("recipe.epochs=3",), WORDS, "expected no recipe, as nothing is trained"),
        ((), (*WORDS[:-1], "tow"), "Did you mean 'toy'?"),
        (("dataset.colour=3",), WORDS, "dataset.colour"),
    ]:
        code, said = bring(file, *words, as_=as_)
        assert code == 1 and expected in said, said
    with pytest.raises(SystemExit):
        bring(file, "--colour")
    for role, lacking in (("target", "--architecture"), ("prior", "--prior")):
        with pytest.raises(SystemExit):
            bring(file, as_=("--as", role, "--dataset", "toy"))
        assert f"required: {lacking}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["store", "--store", str(store), "list", "seed=1"])
    with pytest.raises(Refused, match="never loaded.*midefense import"):
        Store(store).open(file, "target")


def test_the_former_name_of_the_commands_still_works(trained, tmp_path, monkeypatch, capsys):
    out, reference = str(tmp_path / "out.pt"), trained[0].reference
    monkeypatch.setenv("MIDEFENSE_STORE", str(trained[0].path.parents[1]))
    for words, said in ((["export", trained[0].id, out], out), (["list"], reference)):
        monkeypatch.setattr(sys, "argv", ["-m", *words])
        with pytest.raises(SystemExit) as ending:
            runpy.run_module("midefense.store", run_name="__main__")
        assert ending.value.code == 0 and said in capsys.readouterr().out


# Priors


@pytest.fixture
def gan(save):
    """The files of a generator and a critic, and the prior they make up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = GmiGan(channels=1, size=32, width=8)
    files = [
        save({"state_dict": prefixed(to_published(module), "module.")}, f"{name}.tar")
        for name, module in (("generator", prior.generator), ("critic", prior.critic))
    ]
    return *files, prior


PRIOR = ("--as", "prior", "--prior", "gmi_gan", "--dataset", "toy", "prior.width=8")


def test_a_prior_comes_in_as_its_two_files_and_is_attacked_with(gan, bring, store, run_verb):
    generator, critic, prior = gan
    code, said = bring(generator, "--critic", critic, as_=PRIOR)
    artefact = only(store, "prior")
    assert code == 0 and f"use it as prior_artefact={artefact.id}" in said
    assert same(artefact.tensors(), prior.state_dict())
    target = ("dataset=toy", "architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1")
    named = (*target, f"prior_artefact={artefact.id}", *SMALL)
    result = run_verb("evaluate", *named)
    assert result.metrics["row"]["ids"]["prior"] == artefact.reference
    assert result.metrics["row"]["prior"] == "gmi_gan(imported)"
    assert [one.id for one in Store(store).list("prior")] == [artefact.id], "no other was trained"
    recovered = run_verb("evaluate", f"recovered={result.metrics['row']['ids']['recovered']}", *SMALL[:2])
    assert recovered.id == result.id
    with pytest.raises(Refused, match=r"prior_artefact=... brings its own prior; leave out prior=toy"):
        run_verb("evaluate", *named, "prior=toy")
    with pytest.raises(Refused, match=r"expected a prior of images with \(channels, size\) = \(1, 64\)"):
        run_verb("attack", *named[:-3], "dataset.size=64", "architecture.size=64")


def test_files_of_the_wrong_parts_are_named(gan, bring, store):
    generator, critic, _ = gan
    code, said = bring(critic, "--critic", generator, as_=PRIOR)
    assert code == 1 and "expected a generator, got what looks like a critic" in said
    code, said = bring(generator, as_=PRIOR)
    assert code == 1 and "--critic: expected the file of the critic of gmi_gan, got none" in said
    code, said = bring(generator, "--critic", critic, as_=("--as", "prior", "--prior", "pixels", "--dataset", "toy"))
    assert code == 1 and "expected one made of generator and critic, got pixels" in said
    assert Store(store).list() == []


# Roles


def test_roles_of_the_original_networks_are_recognised():
    if not REFERENCE.is_file():
        pytest.skip(f"needs {REFERENCE}, the names and shapes of the original implementations")
    kinds = {"Generator": "generator", "Discriminator": "critic", "DGWGAN": "critic"}
    for name, network in json.loads(REFERENCE.read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in network["state"].items()}
        expected = next((role for kind, role in kinds.items() if kind in name), "classifier")
        assert looks_like(state) == expected, name


def test_a_role_that_nothing_tells_is_unknown():
    assert looks_like({"a": torch.zeros(3)}) == "unknown"
    assert looks_like({"synthesis.b4.const": torch.zeros(1), "mapping.fc0.weight": torch.zeros(2, 2)}) == "generator"


def test_an_unknown_role_is_refused_with_the_names_alone(store, save):
    with pytest.raises(Refused, match=r"^state: expected the \d+ names"):
        import_classifier(Store(store), save({"a": torch.zeros(3)}), role="target", architecture="mcnn", dataset="toy")
