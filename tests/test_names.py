"""Names are no paths: what is given as one leads nowhere else, and what was saved under one is found again."""

import pytest
import torch

from midefense.commands.main import main
from midefense.plan.read import name_of
from midefense.store.artefacts import Draft
from midefense.store.names import LONGEST, require_name, safe_name
from midefense.store.store import Store
from midefense.types import Refused

PATHS = ("../../../evil", "/etc/evil", "a/b", "..", ".", ".hidden", "a\\b", "~root", "/dev/stdin")
UNSEEN = ("a\0b", "a\nb", "a\x1b[31m", "a\u202eb", "\udcff", "", " ", "-rf", "x" * (LONGEST + 1), "é" * LONGEST)


@pytest.mark.parametrize("name", (*PATHS, *UNSEEN))
def test_what_is_no_name_is_refused_and_another_is_offered(name):
    with pytest.raises(Refused, match="^--name: expected a name of at most 120 bytes") as refusal:
        require_name(name, "--name")
    assert str(refusal.value).isprintable()
    with pytest.raises(Refused, match="the name of a target: expected a name"):
        Draft("target", name, {})
    tried = safe_name(name)
    assert not tried or require_name(tried, "--name") == tried and "/" not in tried


@pytest.mark.parametrize("name", ["toy-cnn-none", "mine_x", "my model", "größe", "v1.2+b(3)"])
def test_ordinary_names_stay(name):
    assert require_name(name, "--name") == name


def test_an_artefact_is_called_by_its_options():
    names = {"dataset": "toy", "architecture": "mine/x y", "defense": "../../evil(p=1)"}
    assert name_of(names, "dataset", "architecture", "defense") == "toy-mine_x_y-.._.._evil"
    assert name_of({"dataset": "../evil"}, "dataset") == "_evil"  # it would be hidden
    assert name_of({}, "dataset") == "own"


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("role", ["target", "prior"])
def test_nothing_is_imported_under_a_path(tmp_path, capsys, role, name):
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")
    options = {"target": ["--architecture", "mlp"], "prior": ["--prior", "gmi_gan", "--critic", "x"]}[role]
    words = [str(tmp_path / "weights.pt"), "--as", role, *options, "--dataset", "toy", f"--name={name}"]
    assert main(["import", *words, "--store", str(tmp_path / "deep" / "store")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("refused: --name: expected a name") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(
    "word",
    [
        "dataset=../../conf/dataset/toy",
        "dataset=./toy",
        "dataset=/etc/toy",
        "defense=mine/../none",
        "+experiment=../../../etc/passwd",
        "recipe=../recipe/quick",
    ],
)
def test_no_option_is_a_path(call, store, word):
    code, _, said = call("train_target", word, f"store={store}")
    assert code == 2 and said.startswith("refused: ") and said.count("\n") == 1 and not store.exists()
    assert "expected the name of an option, got a path" in said


def test_evaluators_and_metrics_have_names(call, store, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    named = "evaluators: {../x: {artefact: null}}\nmetrics: {a/b: 1, 3: 4}\n"
    (tmp_path / "own/experiment/x.yaml").write_text(f"# @package _global_\n{named}")
    code, _, said = call("evaluate", "--config-dir", str(tmp_path / "own"), "experiment=x", f"store={store}")
    assert code == 2 and "evaluators.'../x': expected a name" in said and "metrics.'a/b': expected a name" in said


def test_an_option_of_ones_own_in_a_folder_is_saved_where_it_is_found(call, store, tmp_path):
    (tmp_path / "own/defense/mine").mkdir(parents=True)
    (tmp_path / "own/defense/mine/x.yaml").write_text("_target_: midefense.defenses.base.NoDefense\n")
    words = ("--config-dir", str(tmp_path / "own"), "dataset=toy", "architecture=mlp", "defense=mine/x")
    words += ("recipe.epochs=1", "tracking=none", f"store={store}")
    assert call("train_target", *words)[0] == 0
    (target,) = Store(store).list("target")
    assert target.path == store / "target" / f"toy-mlp-mine_x@{target.id}"
    code, _, said = call("train_target", *words, "missing=fail")
    assert code == 0, said
