"""Data that moved since an artefact was made from it: named beside the artefact, or written down for good."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import plan_for
from PIL import Image

from midefense.commands.main import main
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.overrides import as_typed, with_open_places
from midefense.plan.references import named_artefacts
from midefense.priors.toy import ToyFamily
from midefense.store.artefacts import file_sha256
from midefense.store.store import Store
from midefense.types import Refused

NETWORK = ("architecture=cnn", "architecture.widths=[4]", "architecture.size=8", "recipe.epochs=1", "tracking=none")
JUDGED = ("metrics=utility", "judge_at_chance=true")
JUDGED += ("evaluators.main.architecture.widths=[4]", "evaluators.main.recipe.epochs=1")
ATTACK = ("attack=gmi", "attack/objective=cross_entropy", "attack.search.steps=1", "evidence.classes=[0]")
ATTACK += ("tracking=none",)
WEIGHED, LEARNED = "prior._target_=test_moved.Weighed", "prior._target_=test_moved.Learned"
MINE = "allow=[test_moved]"


class Weighed(ToyFamily):
    """A prior that reads a file, whose content counts."""

    revision = 1
    places = ("weights",)

    def __init__(self, *, channels: int, size: int, weights: str, sha256: str | None = None):
        super().__init__(channels=channels, size=size)
        self.pin({"weights": weights})

    @classmethod
    def require_world(cls, dataset):
        """It may stand before any pictures here: nothing is asked of what it makes."""

    @classmethod
    def pin(cls, arguments):
        return {**arguments, "sha256": file_sha256(Path(arguments["weights"]))}


class Learned(Weighed):
    """The same, kept as an artefact."""

    learns = True

    def fit(self, public, *, seed, oracle=None, state=None):
        yield 1, {}, dict

    def fit_steps(self, public):
        return 1


def pictures(root: Path, seed: int = 0) -> Path:
    """A private and a public folder of three classes each."""
    draws = np.random.default_rng(seed)
    for part in ("private", "public"):
        for name in "abc":
            folder = root / part / f"{part}_{name}"
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(draws.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def folders(root: Path, at: str = "dataset") -> tuple[str, str]:
    return f"{at}.private_root={root}/private", f"{at}.public_root={root}/public"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A store whose artefacts were made from files that are gone, and where these lie now (`now`)."""
    place = tmp_path_factory.mktemp("moved")
    data, store = pictures(place / "data"), place / "store"
    images = ("dataset=image_folder", "dataset.channels=1", "dataset.size=8", *folders(data))
    (data / "weights").write_text("some")
    own = ("prior=toy", "+prior.channels=1", "+prior.size=8", f"+prior.weights={data}/weights", MINE)
    target = Pipeline(plan_for("train_target", *images, *NETWORK, store=store)).target.artefact
    recovered = Pipeline(plan_for("attack", f"target={target.id}", *ATTACK, *own, WEIGHED, store=store)).recovered
    learned = Pipeline(plan_for("attack", f"target={target.id}", *ATTACK, *own, LEARNED, store=store)).prior.artefact
    data.rename(place / "now")
    return {"store": store, "target": target.id, "recovered": recovered.id, "prior": learned.id, "now": place / "now"}


@pytest.fixture
def moved(before, tmp_path):
    """The same with a store of its own."""
    return {**before, "store": shutil.copytree(before["store"], tmp_path / "store")}


def kinds(store: Path) -> list[str]:
    return sorted(artefact.kind for artefact in Store(store).list())


def test_without_the_place_the_folder_is_asked_for(moved, call):
    code, _, said = call("attack", f"target={moved['target']}", "prior=pixels", *ATTACK, f"store={moved['store']}")
    assert code == 2 and "no folder at" in said and "Try dataset.private_root=DIR" in said


def test_the_place_is_given_beside_the_target(moved, call):
    """Also to Hydra, which knows the options of the dataset that is the default."""
    words = (f"target={moved['target']}", "prior=pixels", *ATTACK, *folders(moved["now"]))
    before = kinds(moved["store"])
    code, said, err = call("attack", *words, f"store={moved['store']}")
    assert code == 0, err
    assert kinds(moved["store"]) == sorted([*before, "recovered"]), "no target was trained anew"
    (made,) = [one for one in Store(moved["store"]).list("recovered") if one.reference in said]
    assert f" {folders(moved['now'])[0]} " in made.provenance["command"], "as it was typed"
    assert made.provenance["names"]["dataset"].startswith("image_folder"), "a place is in no name"


def test_it_is_given_beside_what_was_recovered_also_for_its_prior(moved):
    weights = f"prior.weights={moved['now']}/weights"
    words = (f"recovered={moved['recovered']}", *JUDGED, "tracking=none", MINE)
    with pytest.raises(Refused, match="no folder at"):
        Pipeline(plan_for("evaluate", *words, weights, store=moved["store"])).result  # noqa: B018
    with pytest.raises(FileNotFoundError, match="weights"):
        Pipeline(plan_for("evaluate", *words, *folders(moved["now"]), store=moved["store"])).result  # noqa: B018
    result = Pipeline(plan_for("evaluate", *words, weights, *folders(moved["now"]), store=moved["store"])).result
    assert result.provenance["parents"]["recovered"].endswith(moved["recovered"])


def test_it_is_given_beside_a_prior(moved):
    words = (f"target={moved['target']}", f"prior_artefact={moved['prior']}", *ATTACK, *folders(moved["now"]), MINE)
    plan = plan_for("attack", *words, f"prior.weights={moved['now']}/weights", store=moved["store"])
    assert Pipeline(plan).prior.artefact.id == moved["prior"]


def test_it_is_given_beside_an_evaluator(moved):
    at, now = "evaluators.main", f"{moved['now']}/private"
    words = (f"target={moved['target']}", "prior=pixels", *ATTACK, *folders(moved["now"]), *JUDGED[:2])
    words += (f"{at}.artefact={moved['target']}", f"{at}.dataset.private_root={now}")
    pipeline = Pipeline(plan_for("evaluate", *words, store=moved["store"]))
    assert pipeline.result.provenance["parents"]["evaluator.main"].endswith(moved["target"])
    assert Store(moved["store"]).list("target")[-1].id == moved["target"]
    for beside in (f"{at}.dataset.size=4", f"{at}.architecture.dropout=0", f"{at}.defense.p=1"):
        with pytest.raises(Refused, match=rf"{at}.artefact=... brings its own .*; leave out {re.escape(beside)}"):
            plan_for("evaluate", *words, beside, store=moved["store"])


@pytest.mark.parametrize(
    "beside",
    ["dataset.size=4", "dataset=image_folder", "+dataset.mine=1", "~dataset.private_root", "recipe.epochs=2"],
)
def test_nothing_else_of_it_may_be_given(moved, beside):
    with pytest.raises(Refused) as refusal:
        words = [f"target={moved['target']}", beside]
        named_artefacts({"target": moved["target"]}, Store(moved["store"]), words)
    said = str(refusal.value)
    assert "target=... brings its own" in said and f"leave out {beside}; given anew may be where its files lie" in said
    assert "dataset.private_root, dataset.public_root" in said


def test_a_place_is_a_text(moved, call):
    code, _, said = call("attack", f"target={moved['target']}", "dataset.private_root=5", f"store={moved['store']}")
    assert code == 2 and "dataset.private_root: expected a folder or a file, got 5" in said


def test_other_images_in_its_place_are_refused(moved, tmp_path):
    others = folders(pictures(tmp_path / "others", seed=1))
    before = kinds(moved["store"])
    for words in ((f"target={moved['target']}", "prior=pixels"), (f"recovered={moved['recovered']}", *JUDGED)):
        verb = "evaluate" if words[0].startswith("recovered") else "attack"
        attack = ATTACK if verb == "attack" else (f"prior.weights={moved['now']}/weights", MINE)
        with pytest.raises(Refused, match=r"expected the images that it learned from .*, got others"):
            Pipeline(plan_for(verb, *words, *attack, *others, store=moved["store"])).target  # noqa: B018
    assert kinds(moved["store"]) == before, "nothing was trained on them"


def test_relocate_keeps_it(moved, call, capsys, monkeypatch):
    store, target = str(moved["store"]), moved["target"]
    path = Store(store).open(target, "target").path
    untouched = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.chdir(moved["now"])
    assert main(["store", "--store", store, "relocate", target, "dataset.private_root=private"]) == 0
    assert main(["store", "--store", store, "relocate", target, f"dataset.public_root={moved['now']}/public"]) == 0
    assert f"dataset.private_root={moved['now']}/private (was " in capsys.readouterr().out
    monkeypatch.chdir(moved["store"])
    code, _, err = call("attack", f"target={target}", "prior=pixels", *ATTACK, f"store={store}")
    assert code == 0, err
    assert {file.name: file.read_bytes() for file in path.iterdir()} == untouched
    assert main(["store", "--store", store, "show", target]) == 0
    assert f'"dataset.private_root": "{moved["now"]}/private"' in capsys.readouterr().out.split("# moved since")[1]
    assert main(["store", "--store", store, "rm", target, "--dependants"]) == 0
    assert not list((moved["store"] / "moved").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TARGET"], "expected REF KEY=DIR"),
        (["dataset.private_root=NOW/private"], "expected REF KEY=DIR"),
        (["TARGET", "dataset.private_root=NOW/nothing"], "got nothing at NOW/nothing"),
        (["TARGET", "dataset.private_root="], "got nothing at"),
        (["TARGET", "dataset.privat_root=NOW"], "Did you mean 'dataset.private_root'?"),
        (["TARGET", "dataset.size=NOW"], "no such place: got 'dataset.size'; choices: dataset.private_root"),
        (["RECOVERED", "dataset.private_root=NOW"], "choices: prior.weights. The images are those of target/"),
        (["nobody", "dataset.private_root=NOW"], "expected one artefact called nobody, got 0"),
    ],
)
def test_relocate_refuses_what_it_cannot_keep(moved, capsys, words, said):
    for name in ("target", "recovered", "now"):
        words = [word.replace(name.upper(), str(moved[name])) for word in words]
    assert main(["store", "--store", str(moved["store"]), "relocate", *words]) == 1
    assert said.replace("NOW", str(moved["now"])) in capsys.readouterr().err
    assert not (moved["store"] / "moved").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dataset.private_root": 5}', "\xff"])
def test_a_spoilt_note_is_named(moved, content):
    note = moved["store"] / "moved" / f"{moved['target']}.json"
    note.parent.mkdir()
    note.write_bytes(content.encode("latin-1"))
    with pytest.raises(Refused, match=rf"{note}.*remove it"):
        Store(moved["store"]).open(moved["target"], "target")


def test_places_are_written_down_from_the_root_on(moved, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures(tmp_path / "near"))
    images = ("dataset=image_folder", "dataset.channels=1", "dataset.size=8", "seed=1", *folders(Path(".")))
    made = Pipeline(plan_for("train_target", *images, *NETWORK, store=moved["store"])).target.artefact
    assert made.places["dataset.private_root"] == f"{tmp_path}/near/private"
    assert made.places["dataset.private_test_root"] is None


def test_words_are_opened_where_an_artefact_is_named_and_closed_again():
    words = ["target=a", "dataset.root=x", "prior.weights=y", "evaluators.main.dataset.root=z", "seed=1", "~recipe.x"]
    opened = with_open_places(words)
    assert opened == ["target=a", "++dataset.root=x", *words[2:]] and as_typed(opened) == words
    more = [*words, "evaluators.main.artefact=b", "prior_artefact=c"]
    assert [word for word in with_open_places(more) if word.startswith("++")] == [f"++{word}" for word in words[1:4]]
    alone = ["dataset.root=x", "++dataset.root=x"]
    assert with_open_places(alone) == as_typed(alone) == alone


def test_a_moved_note_is_json_by_option(moved):
    store = Store(moved["store"])
    store.relocate(store.open(moved["target"], "target"), {"dataset.public_root": "/x"})
    store.relocate(store.open(moved["target"], "target"), {"dataset.private_root": "/y"})
    note = moved["store"] / "moved" / f"{moved['target']}.json"
    assert json.loads(note.read_text()) == {"dataset.public_root": "/x", "dataset.private_root": "/y"}
