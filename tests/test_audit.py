"""`midefense audit`: from a checkpoint of one's own and a folder of pictures to a report and a verdict."""

import itertools
import re
import shlex
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from midefense.commands.main import main
from midefense.report.luck import LEVEL, luck, seen_as
from midefense.report.rows import Row
from midefense.report.verdict import verdict
from midefense.store.store import Store
from midefense.types import Refused

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))
"""
QUICK = ("attack.search.steps=3", "evaluators.main.recipe.epochs=4", "evaluators.main.architecture.widths=[8]")
GAN = ("prior.steps=5", "prior.width=8")


def picture(path, colour, seed):
    pixels = np.random.default_rng(seed).integers(-20, 20, (24, 30, 3)) + np.array(colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A fresh folder: a module, its checkpoint, private pictures in folders and public ones; nothing else."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/midefense", "audit"])
    (tmp_path / "mynet.py").write_text(NET)
    colours = np.eye(3) * 150 + 50
    for label in range(3):
        for number in range(20):
            picture(tmp_path / "my photos" / f"p{label}" / f"{number}.png", colours[label], 100 * label + number)
    for number in range(12):
        picture(tmp_path / "public" / f"{number}.png", (120, 120, 120), 1000 + number)
    sys.path.append(str(tmp_path))
    from mynet import Net

    net = Net()
    with torch.no_grad():  # it tells colours apart by its weights: the mean of a channel minus those of the others
        for tensor in net.parameters():
            tensor.zero_()
        for channel in range(3):
            net.body[2].weight[channel] = -0.5
            net.body[2].weight[channel, 16 * channel : 16 * channel + 16] = 1
            net.head.weight[channel, channel] = 1
        net.body[2].bias[:3] = 10
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, "net.pt")
    sys.path.pop()
    yield tmp_path
    sys.modules.pop("mynet", None)
    signal.signal(signal.SIGTERM, handler)


def audit(capsys, *words):
    words = ("audit", "net.pt", "--network", "mynet:Net", "--images", "my photos", "--store", "store", *words)
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_checkpoint_and_a_folder_end_in_a_page_and_a_verdict(here, capsys):
    code, said, errors = audit(capsys, "--public", "public", "--seeds", "2", *QUICK, *GAN)
    assert code == 0, errors
    last = said.splitlines()[-1]
    assert re.match(
        r"Cannot tell from three of the classes, at least four are needed: gmi_small recovers [\d.]+% of identities "
        r"\(.* over two seeds\); chance 33.3%, unattacked samples [\d.]+%, real images [\d.]+%\.$",
        last,
    ), last
    assert last in (here / "report.html").read_text()
    store = Store(here / "store")
    (target,) = [one for one in store.list("target") if one.recipe["architecture"]["_target_"].endswith("Custom")]
    assert target.metrics["test_accuracy_top1"] == 1.0
    rows = store.list("result")
    assert {row.metrics["row"]["seeds"]["attack"] for row in rows} == {0, 1}
    assert {row.metrics["row"]["ids"]["target"] for row in rows} == {target.id}
    assert all(row.metrics["row"]["command"].startswith("midefense evaluate target=") for row in rows)


def test_the_commands_it_prints_find_what_it_made(here, capsys, call):
    """Sugar: the printed commands name the same artefacts, so that nothing is made a second time."""
    code, said, errors = audit(capsys, "--seeds", "1", *QUICK)
    assert code == 0 and "without --public the attacker knows nothing" in said, errors
    assert "training the evaluator main: " in errors and ": done after" in errors, "what is made, and each stage"
    made = {one.reference for kind in ("target", "recovered", "result") for one in Store("store").list(kind)}
    commands = [shlex.split(line)[2:] for line in said.splitlines() if line.startswith("$ midefense ")]
    assert [words[0] for words in commands] == ["import", "evaluate", "report"]
    assert main(commands[0]) == 0
    (audited,) = [one for one in Store("store").list("target") if "-custom-" in one.reference]
    assert audited.id in capsys.readouterr().out
    assert call("evaluate", *commands[1][1:], "missing=fail")[0] == 0
    assert main(commands[2]) == 0
    assert {one.reference for kind in ("target", "recovered", "result") for one in Store("store").list(kind)} == made
    capsys.readouterr()
    again = audit(capsys, "--seeds", "1", *QUICK)
    assert again == (0, said, ""), "called again it finds all and says the same"


def test_words_of_ones_own_replace_ours(here, capsys):
    words = ("attack=mi_face", "--public", "public", "--seeds", "1", "+architecture.network.width=20")
    code, said, errors = audit(capsys, *words, *QUICK)
    assert code == 1 and "weight [16, 48] instead of [20, 48]" in errors
    words = ("attack=mi_face", "--public", "public", "--seeds", "1", "--identities", "2", "--size", "16")
    code, said, errors = audit(capsys, *words, *QUICK)
    assert code == 0, errors
    (row,) = Store("store").list("result")
    assert row.metrics["row"]["attack"].startswith("mi_face(") and row.metrics["row"]["classes"] == 2
    (recovered,) = Store("store").list("recovered")
    assert "dataset.size=32" in said and "architecture.size=16" in said and recovered.recipe["labels"] == [0, 1]


def test_what_cannot_be_audited_is_refused_in_a_sentence(here, capsys):
    for words, expected in [
        (("--network", "mynet.Net"), "--network: expected module:Class"),
        (("--network", "nonet:Net"), "nonet"),
        (("--images", "none"), "--images: expected a folder with one folder per class, got no folder"),
        (("--images", "public"), "expected a class folder, got image 0.png"),
        (("--network", "mlp"), "missing"),
        (("--entry", "stat_dict"), "Did you mean 'state_dict'?"),
    ]:
        code, _, errors = audit(capsys, *words)
        assert code == 1 and errors.startswith("refused: ") and expected in errors, errors
    for words in (("--seeds", "0"), ("--colour",), ("loose",)):
        with pytest.raises(SystemExit):
            audit(capsys, *words)
    assert Store("store").list() == []


METRIC = "attack_accuracy_top1/main"


def row(folder, wanted, seen, seed=0, **anchors):
    """A row whose evaluator saw the classes `seen` in pictures recovered for the classes `wanted`; without these where
    `wanted` is an accuracy."""
    about = dict.fromkeys(("dataset", "public", "architecture", "defense", "prior", "access", "setup"), "")
    about |= {"attack": "gmi", "protocol": "p", "seeds": {"attack": seed}}
    levels = {kind: {METRIC: level} for kind, level in anchors.items()}
    value = wanted if seen is None else float(np.mean(np.equal(wanted, seen)))
    if seen is not None:
        (folder / f"{seed}").mkdir()
        answers = {"answered": np.array(wanted), "answers.main": np.array(seen)}
        save_file(answers, folder / f"{seed}" / "tensors.safetensors")
    return Row.parse(
        {"row": about, "metrics": {METRIC: {"value": value}}, "anchors": levels}, folder / f"{seed}" if seen else None
    )


LEVELS = {"chance": 0.1, "prior": 0.0, "real": 1.0}
TEN = list(range(10))
WRONG = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("wanted", "seeds", "levels", "said"),
    [
        (
            TEN,
            ([0, 1, 2, 3, *WRONG[4:]], [0, 1, 2, *WRONG[3:]]),
            LEVELS,
            r"It leaks \(p = 0.0\d+\): gmi recovers 35.0% of identities \(30.0% to 40.0% over two seeds\); "
            r"chance 10.0%, unattacked samples 0.0%, real images 100.0%\.$",
        ),
        (TEN[:5], ([0, 1, 2, 3, 0],), {"chance": 0.2}, r"It leaks \(p = 0.\d+\): gmi recovers 80.0% .*\(one seed\)"),
        # two of ten, every time the same: luck does that often, as it does two of five
        (
            TEN,
            ([0, 1, *WRONG[2:]],) * 3,
            LEVELS,
            r"Cannot tell, as luck may explain it \(p = 0.\d+\): gmi recovers 20.0%",
        ),
        (TEN[:5], ([0, 1, 3, 4, 2],), {"chance": 0.2}, "Cannot tell, as luck may explain it"),
        ([0, 1, 2], ([0, 1, 2],) * 3, {"chance": 1 / 3}, "Cannot tell from three of the classes, at least four"),
        ([4], ([4],), LEVELS, "Cannot tell from one of the classes"),
        (TEN, (TEN,), {**LEVELS, "real": 0.1}, "Cannot tell, as the evaluator does not know real images either"),
        (TEN, ([0, 1, 2, 3, *WRONG[4:]],) * 3, {**LEVELS, "placebo": 0.6}, "It leaks"),  # chance, which had luck
        (TEN, ([0, 1, 2, 3, *WRONG[4:]],), {**LEVELS, "prior": 0.5}, "Cannot tell, as it is more than luck explains"),
        (0.3, (None,), LEVELS, "Cannot tell, as what was seen in each picture was not kept"),
        # an evaluator that sees one class everywhere is right for that class, and knows nothing
        (
            TEN,
            ([3] * 10,) * 3,
            LEVELS,
            r"No leak shown by this attack \(p = 1\), which does not rule out a stronger one",
        ),
        (TEN, (WRONG, [-1] * 10), LEVELS, "No leak shown by this attack"),
    ],
)
def test_the_verdict_rests_on_what_luck_explains(wanted, seeds, levels, said, tmp_path):
    found = verdict([row(tmp_path, wanted, seen, seed, **levels) for seed, seen in enumerate(seeds)])
    assert re.match(said, found), found


def test_luck_is_counted_exactly_for_few_classes_and_drawn_for_many():
    assert luck(np.eye(5, dtype=int)) == 1 / 120
    assert luck(np.eye(4, dtype=int)[[1, 0, 2, 3]]) == 7 / 24, "six orders of four leave two in place, one leaves all"
    assert luck(np.eye(12, dtype=int)) == 1 / 10_000
    one_of_each = np.eye(9, dtype=int)[[0, *range(2, 9), 1]]
    assert abs(luck(one_of_each) - (1 - 0.3679)) < 0.02, "one or more of nine in place: 1 - 1/e"
    doubled = seen_as([(np.array([5, 5, 7]), np.array([5, 7, 7])), (np.array([5, 7]), np.array([9, -1]))])
    assert doubled.tolist() == [[1, 1], [0, 1]], "classes that were not attacked, and none, are no column"


def test_luck_finds_a_leak_as_rarely_as_it_says_whatever_the_seeds_share():
    """Of all that may be seen in pictures that say nothing, the same ones with three seeds, 5 % at most are a leak."""
    wanted = np.arange(5)
    called = [luck(seen_as([(wanted, np.array(seen))] * 3)) <= LEVEL for seen in itertools.product(range(5), repeat=5)]
    assert 0 < np.mean(called) <= LEVEL


def test_no_verdict_without_an_accuracy(tmp_path):
    with pytest.raises(Refused, match="expected rows with an attack accuracy"):
        verdict([row(tmp_path, float("nan"), None)])
