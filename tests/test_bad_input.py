"""Bad input is refused with a sentence and exit code 2, before anything is trained or written."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from PIL import Image

from midefense.pipeline.pipeline import Pipeline

TOY = ("dataset=toy", "prior=toy")
SMALL = ("dataset=toy", "architecture.widths=[8]", "recipe.epochs=1", "dataset.size=16", "architecture.size=16")
FILES = ("tensors.safetensors", "config.yaml", "metrics.json", "provenance.json")
INIT = "attack.init._target_"
OUTSIDE = "is outside the whitelist (midefense.architectures"


@pytest.fixture
def refused(call, store):
    """`refused(verb, *overrides)`: what a verb says when it refuses, having written nothing but decoded pixels."""

    def run(verb, *overrides):
        code, out, err = call(verb, *overrides, f"store={store}")
        assert code == 2 and out == "" and err.startswith("refused: "), err
        written = [path for path in store.rglob("*") if path.is_file()]
        assert [path for path in written if path.parents[1] != store / "cache"] == [], "decoded pixels may be kept"
        return err

    return run


COMMAND_LINE = [
    ("misspelt group", "attack", ["atack=gmi"], ["got 'atack'; choices: seed", "Did you mean 'attack'?"]),
    (
        "misspelt slot",
        "attack",
        ["attack/objectiv=gmi"],
        ["no such config group: got 'attack/objectiv'; choices:", "mean 'attack/objective'"],
    ),
    (
        "misspelt option",
        "attack",
        ["attack=gmii"],
        ["got 'gmii'; choices: bido_aware, bido_aware_small, brep_mi, ", "Did you mean 'gmi'?"],
    ),
    ("misspelt slot option", "attack", ["attack/objective=poincaree"], ["choices: confidence", "mean 'poincare'?"]),
    ("misspelt key", "attack", ["attack.stepz=3"], ["attack.stepz: no such option: got 'stepz'; choices: views"]),
    ("added key", "attack", ["+attack.stepz=3"], ["SearchAttack has no such option", "remove it with ~attack.stepz"]),
    ("misspelt deep key", "attack", ["attack.search.stepz=3"], ["attack.search.stepz", "Did you mean 'steps'?"]),
    ("added deep key", "attack", ["+attack.search.stepz=3"], ["Gradient has no such option", "mean 'steps'?"]),
    ("added to no options", "train_target", ["+defense.foo=1"], ["NoDefense has no such option: got 'foo'"]),
    ("unknown key", "attack", ["foo=1"], ["foo: no such option: got 'foo'; choices: seed"]),
    ("added unknown key", "attack", ["+foo=1"], ["attack: no such option: got 'foo'; choices: dataset"]),
    ("no value", "train_target", ["defense"], ["expected KEY=VALUE, +KEY=VALUE or ~KEY, got 'defense'; try"]),
    ("group null", "train_target", ["defense=null"], ["expected the name of an option, got null", "try ~GROUP"]),
    (
        "another verb's group",
        "train_target",
        ["attack=gmi"],
        ["attack: expected an option of train_target", "attack and evaluate do: try python attack.py"],
    ),
    (
        "another verb's group in an experiment",
        "train_target",
        ["experiment=midre/ppa_resnet18_celeba"],
        ["experiment/midre/ppa_resnet18_celeba sets what train_target cannot be told. attack: expected an option of"],
    ),
    ("another verb's option", "train_target", ["attack.search.steps=3"], ["attack and evaluate do: try python attack"]),
    ("another verb's metrics", "attack", ["metrics=all"], ["evaluate does: try python evaluate.py"]),
    ("a group in its wrong place", "evaluate", ["evaluator=resnet18"], ["try evaluator@evaluators.main=resnet18"]),
    ("a place that is none", "train_target", ["defense@foo=none"], ["stands there; try defense=none"]),
    ("no key", "train_target", ["=3"], ["GROUP=OPTION: expected the names of both"]),
    ("added twice", "train_target", ["+recipe.epochs=3"], ["An item is already at", "try the same word without +"]),
    ("added group", "train_target", ["+dataset=toy"], ["try the same word without +"]),
    ("several values", "train_target", ["seed=1,2"], ["Ambiguous value", "try -m for one run of each value"]),
    ("range without -m", "train_target", ["seed=range(0,3)"], ["try -m in front of them"]),
    ("dangling", "train_target", ["recipe.epochs=${nope}"], ["recipe.epochs: expected an interpolation that can"]),
    ("circular", "train_target", ["recipe.epochs=${recipe.epochs}"], ["Recursive interpolation"]),
    ("deleted evaluator", "evaluate", ["~evaluators.main"], ["evaluators: expected one or more, got none to judge by"]),
    ("an empty store", "attack", ["target=x"], ["target=x: got 'x'; choices: none. Make one with train_target.py"]),
    ("deleted twice", "train_target", ["~recipe.nope"], ["'recipe.nope' does not exist", "try --cfg job"]),
    ("left over", "attack", ["attack/search=adam", "+attack.search.box=[1,2,3]"], ["attack.search.box"]),
    (
        "left over from another slot option",
        "attack",
        ["attack.search._target_=midefense.attacks.search.gradient.Rest"],
        ["Rest has no such option: got 'optimizer'; choices: cost", "remove it with ~attack.search.optimizer"],
    ),
]
VALUES = [
    ("missing", "train_target", ["missing=maybe"], ["missing: got 'maybe'; choices: make, fail"]),
    ("train_on", "train_target", ["train_on=some"], ["train_on: got 'some'; choices: private, all"]),
    ("seed text", "train_target", ["seed=abc"], ["seeds.target: expected a whole number from 0, got 'abc'; try"]),
    ("seed float", "train_target", ["seeds.target=1.5"], ["seeds.target: expected a whole number from 0, got 1.5"]),
    ("seed null", "train_target", ["seeds.prior=null"], ["seeds.prior: expected a whole number from 0, got None"]),
    ("seed unknown", "train_target", ["+seeds.other=1"], ["seeds: expected target, prior, attack, got", "other"]),
    ("seed absent", "train_target", ["~seeds.prior"], ["seeds: expected target, prior, attack, got"]),
    ("node absent", "attack", ["~attack"], ["attack: expected the option attack, got none; try without ~attack"]),
    ("allow", "train_target", ["allow=5"], ["allow: expected a list of module names, got 5; try 'allow="]),
    ("type", "train_target", ["recipe.epochs=ten"], ["recipe.epochs: expected a whole number from 0, got 'ten'"]),
    ("list", "train_target", ["architecture.widths=[8,b]"], ["architecture.widths: expected a list (a whole number"]),
    ("slot", "attack", ["attack.views=3"], ["attack.views: expected a node with a _target_ (Part) or null, got 3"]),
    ("slot empty", "attack", ["attack.search=null"], ["attack.search: expected a node with a _target_ (Part), got"]),
    (
        "kind of slot",
        "attack",
        ["attack=gmi", f"{INIT}=torch.nn.ReLU", "~attack.init.candidates", "~attack.init.shared"],
        ["got ReLU"],
    ),
    ("kind of node", "train_target", ["defense._target_=torch.nn.ReLU"], ["defense: expected a Defense, got ReLU"]),
    ("nan", "train_target", ["recipe.optimizer.lr=nan"], ["recipe.optimizer.lr: expected a finite number, got nan"]),
    ("range", "attack", ["attack.search.steps=-1"], ["attack.search.steps: expected a whole number from 0, got -1"]),
    ("device", "train_target", ["compute.accelerator=warp"], ["got 'warp'; choices: auto, cpu"]),
    ("evaluator key", "evaluate", ["+evaluators.main.color=3"], ["evaluators.main: expected architecture, recipe"]),
    ("evaluator value", "evaluate", ["evaluators.main.train_on=some"], ["evaluators.main.train_on: got 'some'"]),
    ("evaluator seed", "evaluate", ["evaluators.main.seed=x"], ["evaluators.main.seed: expected a whole number"]),
    ("evaluators none", "evaluate", ["evaluators=null"], ["evaluators: expected evaluators by name, got None; try"]),
    ("metric", "evaluate", ["+metrics.foo=1"], ["metrics.foo: expected a node with a _target_, got 1"]),
    (
        "access",
        "attack",
        ["attack=gmi", "attack.access=labels"],
        ["reads gradient, logits, which access=labels hides", "whitebox"],
    ),
    ("access of a part", "attack", ["attack=pool", "attack.access=scores"], ["which access=scores hides"]),
    ("access name", "attack", ["attack.access=score"], ["got 'score'; choices: labels", "mean 'scores'?"]),
    (
        "prior lacks",
        "attack",
        ["attack=gmi", "prior=pixels"],
        ["needs a prior that offers realism", "choose another prior"],
    ),
    ("class text", "attack", ["evidence.classes=seven"], ["expected \"all\" or a list of class numbers, got 'seven'"]),
    ("class unknown", "attack", ["evidence.classes=[7]"], ["expected class numbers from 0 to 3", "got [7]"]),
    ("class twice", "evaluate", ["evidence.classes=[1,1]"], ["expected distinct class numbers"]),
    (
        "two owners of a slot",
        "train_target",
        ["defense=stack", "defense@defense.members.first=positive_label_smoothing"],
        ["members: expected one owner of slot 'task', got 'first' and 'second'; try"],
    ),
]
CODE = [
    (name, "attack", [f"{INIT}={name}"], [f"attack.init: _target_ {name!r} {OUTSIDE}", "'allow=[its_name]'"])
    for name in (
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.nn.functional.torch.load",
        "torch.nn.modules.module.functools.partial",
        "midefense.store.os.system",
        "midefense.attacks.init.torch.load",
    )
]


@pytest.mark.parametrize(
    ("verb", "overrides", "texts"), [pytest.param(*case[1:], id=case[0]) for case in (*COMMAND_LINE, *VALUES, *CODE)]
)
def test_refused_with_a_sentence_before_anything_is_written(refused, verb, overrides, texts):
    said = refused(verb, *(TOY if verb != "train_target" else TOY[:1]), *overrides)
    for text in texts:
        assert text in said
    assert "Traceback" not in said and "Error executing job" not in said


def test_several_mistakes_are_told_together(refused):
    shape = refused("train_target", "missing=maybe", "train_on=some", "seed=x")
    assert all(text in shape for text in ("got 'maybe'", "got 'some'", "seeds.target: expected"))
    names = refused("train_target", "dataset.size=big", "+architecture.foo=2", "recipe.epochs=ten", "+compute.x=1")
    assert [line.split(":")[0] for line in names.removeprefix("refused: ").splitlines()] == [
        "compute.x",
        "dataset.size",
        "architecture.foo",
        "recipe.epochs",
    ]
    values = refused("train_target", "dataset=toy", "dataset.classes=0", "recipe.epochs=-1")
    assert "dataset.classes: expected a whole number from 2, got 0" in values and "recipe.epochs: expected" in values


@pytest.mark.parametrize(
    ("typed", "verb"), [("attack=gmi", "train_target"), ("evaluator=cnn_wide", "evaluate"), ("metrics=all", "attack")]
)
def test_nobody_is_asked_whether_they_meant_what_they_typed(refused, typed, verb):
    said = refused(verb, typed)
    assert f"Did you mean '{typed.split('=')[0]}'" not in said


FILES_OF_ONES_OWN = {
    "broken": (b"# @package _global_\ndefaults: [\n", ["broken.yaml, line 3: expected YAML, got"]),
    "tabbed": (b"# @package _global_\nrecipe:\n\tepochs: 1\n", ["tabbed.yaml, line 3: expected YAML", "try blanks"]),
    "twice": (b"# @package _global_\nseed: 1\nseed: 2\n", ["twice.yaml, line 3: expected YAML, got: found duplicate"]),
    "binary": (bytes(range(128, 256)), ["own/experiment/binary.yaml: expected YAML as UTF-8 text, got another file"]),
    "late": (
        b"# @package _global_\n" + b"# long\n" * 2000 + b"seed: \xff\n",
        ["own/experiment/late.yaml: expected YAML"],
    ),
    "utf16": ("# @package _global_\nseed: 1\n".encode("utf-16"), ["own/experiment/utf16.yaml: expected YAML as UTF-8"]),
    "nul": (b"# @package _global_\nseed: \0\n", ["own/experiment/nul.yaml: expected YAML as UTF-8 text, got"]),
    "tabbed_inside": (b"# @package _global_\nrecipe: {\tepochs: 1}\n\tseed: 1\n", ["tabbed_inside.yaml, line "]),
    "circle": (b"# @package _global_\ndefaults: [/experiment/circle]\n", ["name each other in a circle"]),
    "homeless": (b"recipe: {epochs: 1}\n", ["its first line must be `# @package _global_`"]),
    "empty": (b"", ["its first line must be `# @package _global_`"]),
    "dangling": (b"# @package _global_\nseed: ${nowhere}\n", ["Interpolation key 'nowhere' not found"]),
    "foreign": (b"# @package _global_\nfoo: 1\n", ["train_target: no such option: got 'foo'"]),
}


@pytest.mark.parametrize("name", FILES_OF_ONES_OWN)
def test_a_file_that_is_no_experiment(refused, tmp_path, name):
    content, texts = FILES_OF_ONES_OWN[name]
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / f"own/experiment/{name}.yaml").write_bytes(content)
    said = refused("train_target", "--config-dir", str(tmp_path / "own"), f"experiment={name}")
    assert [text for text in texts if text not in said] == []


def test_a_sweep_names_the_points_that_were_refused(call, store):
    code, _, said = call("train_target", "dataset=toy", "seed=-1,-2", f"store={store}", "-m")
    assert code == 2
    assert "point 1 (seed=-1): seeds.target: expected" in said and "point 2 (seed=-2): seeds.target: expected" in said


def test_a_sweep_over_a_range_without_steps(call, store):
    code, _, said = call("train_target", "seed=range(0,3,0)", f"store={store}", "-m")
    assert code == 2 and said.startswith("refused: range: expected a step other than 0, got 0")


def test_an_empty_variable_for_the_store(call, monkeypatch, tmp_path):
    monkeypatch.setenv("MIDEFENSE_STORE", "")
    monkeypatch.chdir(tmp_path)
    code, _, err = call("train_target", *TOY[:1])
    assert (
        code == 2 and "store: expected a folder, or a list of folders, got ''" in err and list(tmp_path.iterdir()) == []
    )


def test_the_closed_form_knows_its_own_world_alone(refused):
    said = refused("attack", "dataset=digits", "prior=toy")
    assert (
        "prior=toy: expected dataset=toy, whose images it draws in closed form, got Digits; try prior=gmi_gan" in said
    )


# ------------------------------------------------------------------------------------------------ images


def write_images(folder: Path, count: int, first: int, mode: str = "RGB") -> None:
    folder.mkdir(parents=True)
    shape = (8, 8, 3) if mode == "RGB" else (8, 8)
    for number in range(count):
        pixels = np.random.RandomState(first + number).randint(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Private classes a and b, public classes y and z, five RGB images each."""
    for row, name in enumerate(["private/a", "private/b", "public/y", "public/z"]):
        write_images(tmp_path / "images" / name, 5, first=10 * row)
    return tmp_path / "images"


def from_folders(folders):
    roots = (f"dataset.private_root={folders}/private", f"dataset.public_root={folders}/public")
    return ("dataset=image_folder", *roots, "dataset.size=8")


def empty_class(folders):
    (folders / "private/c").mkdir()


def one_image_class(folders):
    write_images(folders / "private/c", 1, first=100)


def corrupt_image(folders):
    path = folders / "private/a/3.png"
    path.write_bytes(path.read_bytes()[:60])


def grey_image(folders):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folders / "public/y/grey.png")


def nan_image(folders):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folders / "private/a/nan.tif")


def shared_identity(folders):
    write_images(folders / "public/A", 5, first=200)


def shared_picture(folders):
    shutil.copy(folders / "private/a/0.png", folders / "public/y/copy.png")


def one_class(folders):
    shutil.rmtree(folders / "private/b")


def unwritable_class(folders):
    (folders / "private/a").rename(os.fsdecode(os.fsencode(folders / "private") + b"/\xff"))


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (one_class, ["expected at least 2 private classes, got 'a'; try a dataset"]),
        (unwritable_class, ["expected names of classes in UTF-8 without a NUL byte, got '\\udcff'"]),
        (empty_class, ["class folder", "private/c is empty; expected images. Try"]),
        (one_image_class, ["private class 'c' has 1 image (", "expected at least 2 to train on and 1 to test on. Try"]),
        (corrupt_image, ["private/a/3.png cannot be read as an image", "Try replacing or removing"]),
        (grey_image, ["public/y/grey.png", "expected"]),
        (nan_image, ["private/a/nan.tif holds values of more than 8 bits", "expected 8-bit images"]),
        (shared_identity, ["private and public images share 1 of their identities: 'A'; expected none. Try"]),
        (shared_picture, ["the same picture is private (class 'a', id 0) and public", "expected no picture in both"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_images_are_named_before_training(refused, folders, spoil, texts):
    spoil(folders)
    said = refused("evaluate", *from_folders(folders), "attack=mi_face")
    for text in texts:
        assert text in said


def test_good_images_are_not_refused(folders, store):
    plan = conftest.plan_for("evaluate", *from_folders(folders), "attack=mi_face", store=store)
    Pipeline(plan).check_images()


def test_public_images_are_looked_at_before_training(refused, folders):
    other = ("public=image_folder", f"public.dataset.public_root={folders}/private", "public.dataset.size=8")
    assert "share 2 of their identities: 'a', 'b'" in refused(
        "attack", *from_folders(folders), "attack=mi_face", *other
    )
    said = refused("attack", "dataset=toy", "prior=toy", *other)
    assert "public images have 3 channel(s), private images have 1; expected the same. Try" in said


def test_a_prior_that_learns_wants_public_images_before_training(refused, tmp_path):
    for person in range(1, 4):
        for number in range(1, 11):
            write_image(tmp_path / "faces" / f"s{person}" / f"{number}.pgm", 100 * person + number)
    faces = (f"dataset.root={tmp_path}/faces", "dataset.private=3", "dataset.public=0", "dataset.size=32")
    said = refused("attack", "dataset=att_faces", *faces, "attack=gmi")
    assert "GmiGan: expected public images to learn from, got none" in said and "try public=..." in said


def test_evaluators_weights_are_looked_for_before_training(refused, tmp_path):
    weights = ("recipe.start=null", f"evaluators.main.recipe.start={tmp_path}/none.pt")
    assert "expected a target of the store or a file of weights, got neither" in refused("evaluate", *TOY, *weights)
    said = refused("evaluate", *TOY, "evaluator@evaluators.main=facenet_vggface2")
    assert "facenet" in said.lower() and "expected" in said


def test_where_public_images_lie_is_asked_for_by_its_right_name(refused, folders, tmp_path):
    said = refused(
        "attack", *from_folders(folders), "attack=mi_face", "public=lfw", f"public.dataset.root={tmp_path}/none"
    )
    assert "Try public.dataset.root=DIR" in said and " dataset.root" not in said


def test_evaluators_images_are_looked_at_before_training(refused, folders):
    write_images(folders / "public/x", 1, first=300)
    assert "public class 'x' has 1 image" in refused("evaluate", *from_folders(folders), "attack=mi_face")


def test_nan_in_a_dataset_of_ones_own(refused, tmp_path, monkeypatch):
    (tmp_path / "own_nan_dataset.py").write_text(
        "from midefense.datasets.base import to_uint8\nfrom midefense.datasets.toy import Toy\nimport torch\n"
        "class Broken(Toy):\n    def read(self, cache):\n        to_uint8(torch.tensor([0.5, float('nan')]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("train_target", "dataset=toy", "dataset._target_=own_nan_dataset.Broken", "allow=[own_nan_dataset]")
    assert "images hold 1 NaN or infinite values; expected finite values in [0, 1]" in said


# ------------------------------------------------------------------------------------------------ code of one's own


OWN = "from midefense.defenses.base import NoDefense\nclass Mine(NoDefense):\n    pass\n"


def test_a_module_of_ones_own_is_imported_only_when_allowed(refused, call, store, tmp_path, monkeypatch):
    (tmp_path / "own_defense.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = (*SMALL, "defense._target_=own_defense.Mine")
    assert "_target_ 'own_defense.Mine' is outside the whitelist" in refused("train_target", *mine)
    assert "own_defense" not in sys.modules
    code, out, err = call("train_target", *mine, "allow=[own_defense]", f"store={store}")
    assert (code, out.splitlines()[0]) == (0, "done"), err


# ------------------------------------------------------------------------------------------------ artefacts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one small target in it."""
    store = tmp_path_factory.mktemp("trained") / "store"
    return Pipeline(conftest.plan_for("train_target", *SMALL, store=store)).target.artefact


@pytest.fixture
def copied(trained, store):
    """The same, to be spoilt."""
    shutil.copytree(trained.path.parents[1], store)
    return store / "target" / trained.path.name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_an_artefact_is_found(call, copied, store, name):
    assert call("train_target", *SMALL, f"store={store}")[0] == 0
    flip(copied / name)
    kept = sorted(store.rglob("*"))
    for verb, overrides in (("train_target", SMALL), ("attack", (f"target={copied.name}", "prior=toy"))):
        code, _, err = call(verb, *overrides, f"store={store}")
        assert code == 2 and name in err and "remove" in err and "Traceback" not in err
    assert sorted(store.rglob("*")) == kept


def test_artefacts_of_another_role(call, copied, store):
    for reference in (copied.name, str(copied), copied.name.rpartition("@")[2]):
        code, _, err = call("evaluate", f"recovered={reference}", f"store={store}")
        assert code == 2
        assert f"recovered={reference}: expected a recovered, got target/{copied.name}, which is a target" in err


def test_what_an_artefact_brings_cannot_be_named_beside_it(call, copied, store):
    code, _, err = call("attack", f"target={copied.name}", "defense=bido_hsic", f"store={store}")
    assert code == 2 and "target=... brings its own defense; leave out defense=bido_hsic" in err


def test_unknown_artefacts_are_answered_with_those_there_are(call, copied, store):
    code, _, err = call("attack", "target=toy-cnn-nome", f"store={store}")
    assert code == 2 and f"got 'toy-cnn-nome'; choices: {copied.name}." in err


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_loaded(refused, tmp_path):
    checkpoint, exploded = tmp_path / "x.pt", tmp_path / "exploded"
    torch.save({"model": Bomb(exploded)}, checkpoint)
    assert "expected an artefact of the store, got a file; a checkpoint" in refused("attack", f"target={checkpoint}")
    assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(exploded)))
    assert exploded.exists()  # the bomb was live


@pytest.mark.parametrize("place", ["under a file", "/proc/midefense"])
def test_a_store_that_cannot_be_written(call, tmp_path, place):
    (tmp_path / "file").touch()
    folder = place if place.startswith("/") else tmp_path / "file" / "store"
    code, _, err = call("train_target", "dataset=toy", f"store={folder}")
    assert code == 2 and f"store: cannot write in {folder}" in err and "choose another folder with store=DIR" in err


# ------------------------------------------------------------------------------------------------ budget


def test_a_spent_budget_keeps_what_was_found_and_marks_it(run_verb):
    attack = (
        *SMALL,
        "attack=gmi",
        "prior=toy",
        "attack.search.steps=20",
        "attack.init.candidates=3",
        "attack.budget=25",
    )
    result = run_verb("evaluate", *attack, "evaluators.main.architecture.widths=[8]", "evaluators.main.recipe.epochs=1")
    stopped = result.metrics["row"]["stopped"]
    assert len(stopped) == 1 and "the budget is 25 per target" in stopped[0]
    recovered = run_verb("attack", *attack)
    assert recovered.metrics["stopped"] == stopped and recovered.metrics["candidates"] == 12
    assert recovered.tensors()["queries"].tolist() == [24] * 4  # eight steps of three candidates
    free = run_verb("attack", *(o for o in attack if "budget" not in o))
    assert free.metrics["stopped"] == [] and free.tensors()["queries"].tolist() == [60] * 4


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("verb", ["train_target", pytest.param("attack", marks=pytest.mark.slow), "evaluate"])
def test_help_lists_groups_and_choices(call, verb):
    code, out, _ = call(verb, "--help")
    assert (
        code == 0
        and "defense: adversarial_learning, adversarial_training, " in out
        and "dataset: att_faces, celeba" in out
    )
    assert ("attack/objective: " in out) == ("\nprior: " in out) == (verb != "train_target")
    assert ("\nevaluator: cnn_wide, facenet112" in out) == ("\nmetrics: all" in out) == (verb == "evaluate")


def test_a_real_process_ends_with_code_2_and_one_sentence(start_process):
    process = start_process("evaluate", *TOY, "evidence.classes=[7]", PYTHONPATH="")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("refused: evidence.classes: expected class numbers from 0 to 3")
    assert "Traceback" not in err and len(err.splitlines()) == 1
