"""README, CONTRIBUTING and `docs/`: short where it was promised, no broken link, and no command that does not run.

Every command of the README is run here, on small settings, or is a target of the Makefile (`make demo` is what shows it
works); one that is not known below fails. Commands of the pages are planned, as the verbs would, and not run.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import field_trees
import folder_trees
import pytest
import torch
from conftest import ROOT, plan_for
from PIL import Image

from midefense.architectures.state_names import to_published
from midefense.commands.main import COMMANDS, main
from midefense.pipeline.pipeline import Pipeline

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
VERBS = {"train_target": "target", "attack": "recovered", "evaluate": "result"}  # and what each makes
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NETWORK = """import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3072, 5)
    def forward(self, images):
        return self.fc(images.flatten(1).repeat(1, 3))
"""


def midefense(words: list[str], store: Path) -> int:
    """Run `midefense WORDS`; its exit code."""
    command, *rest = words
    return main([command, *([] if command == "datasets" else ["--store", str(store)]), *rest])


# ------------------------------------------------------------------------------------------------ what a page says


def code(page: Path, language: str = "") -> str:
    """What a page's code blocks in a language hold; commands stand in blocks that name none."""
    return "".join(text for named, text in BLOCK.findall(page.read_text()) if named == language)


def commands(page: Path) -> list[str]:
    """The commands of a page, without the remarks behind them; a line that ends with a backslash goes on."""
    lines = code(page).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s#.*$", "", line).split()) for line in lines if line.strip()]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Where a page can be entered, as GitHub names it."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


def broken(page: Path) -> list[str]:
    """The links and pictures of a page that lead nowhere in the repository."""
    return [link for link in links_of(page) if not re.match(r"https?://|mailto:", link) and not leads(page, link)]


def leads(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    aim = (page.parent / path).resolve() if path else page
    return aim.exists() and (not anchor or anchor in anchors(aim))


def test_the_readme_takes_two_minutes():
    lines = README.read_text().splitlines()
    assert len(lines) <= 130, f"expected at most 130 lines, got {len(lines)}; what is longer belongs into docs/"
    assert [line for line in lines if len(line) > 130] == []


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    good = "[a](#a-title-here) [d](page.md#a-title-here) [e](https://a.b) `[f](f)`"
    page.write_text(f"# A title, here\n{good}\n```\n# no title\n[g](g)\n```\n[b](#no-title) ![c](c.png)\n")
    assert broken(page) == ["#no-title", "c.png"]


def test_every_page_is_reached_from_the_readme():
    assert set(PAGES) <= {(ROOT / link.partition("#")[0]).resolve() for link in links_of(README)}


def test_the_demos_numbers_are_those_of_its_file():
    """The README's table is written by hand; the header of the experiment says the same."""
    rows = re.findall(r"^\| ([a-z ]+) \| ([\d.]+) % \| ([\d.]+ ± [\d.]+ %) \|", README.read_text(), re.M)
    assert [name for name, _, _ in rows] == ["none", "random erasing"]
    (_, accuracy, attack), (_, after, erased) = rows
    header = (ROOT / "conf" / "experiment" / "demo.yaml").read_text()
    assert f"target accuracy {accuracy} %, attack accuracy {attack} undefended, {erased} under random erasing" in header
    assert f"target accuracy {after} ± " in header


# ------------------------------------------------------------------------------------------------ commands that run

TRAIN = ("recipe.epochs=1", "tracking=none", "compute=cpu", "compute.threads=1")
GAN = ("prior.steps=2", "prior.width=4", "prior.batch_size=8")
SEARCH = ("attack.search.steps=2", "attack.init.candidates=4", "evidence.classes=[0,1]", *GAN)
JUDGE = ("evaluators.main.recipe.epochs=1", "evaluators.main.architecture.widths=[4,8,8]", "judge_at_chance=true")
CNN = ("architecture.widths=[4,8,8]",)
SMALL = {"train_target": TRAIN, "attack": (*TRAIN, *SEARCH), "evaluate": (*TRAIN, *SEARCH, *JUDGE)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store, in which the README's commands run one after another."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture
def here(place, monkeypatch):
    """`place`, as the folder that commands run in, with a network of one's own in it."""
    (place / "mynet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    yield place
    sys.modules.pop("mynet", None)


def verb(place: Path, name: str, *words: str) -> None:
    """Run a command (of a sweep, its first member) with small settings behind what is written."""
    words = single(words)
    small = [*SMALL[name], *(CNN if not any(re.match(r"(architecture|target)=", word) for word in words) else ())]
    if any(word.startswith("target=") for word in words):  # brings its own recipe
        small = [word for word in small if not word.startswith("recipe.")]
    pipeline = Pipeline(plan_for(name, *words, *small, store=place / "store"))
    made = pipeline.target.artefact if name == "train_target" else getattr(pipeline, VERBS[name])
    assert made.kind == VERBS[name]


def single(words: Sequence[str]) -> list[str]:
    """The overrides of a sweep's first member; of no sweep, all."""
    return [word if "[" in word else word.split(",")[0] for word in words if word != "-m"]


def images(place: Path) -> list[str]:
    """Two folders of images, private and public, one folder per class."""
    for number in range(48):
        part, name = ("private", "ab"[number % 2]) if number < 24 else ("public", "yz"[number % 2])
        folder_trees.picture(place / part / name / f"{number}.png", seed=number, size=(20, 20))
    return [f"dataset.private_root={place / 'private'}", f"dataset.public_root={place / 'public'}"]


def run_on_images(place, name, *words):
    placed = [word for word in words if not word.endswith("_root=DIR")]
    assert len(placed) == len(words) - 2
    verb(place, name, *placed, *images(place), "attack=gmi_small", *CNN)


def run_on_a_stored_target(place, name, *words):
    target = Pipeline(plan_for("train_target", "dataset=digits", *CNN, *TRAIN, store=place / "store")).target.artefact
    assert words[0] == "target=REF"
    verb(place, name, f"target={target.reference}", *words[1:])


def import_mcnn(place, *words):
    """Bring in a file that the original implementation could have written, of a network that knows its digits."""
    root = field_trees.mnist_tree(place / "mnist", train=12, test=2)
    for part, of_each in (("train", 12), ("t10k", 2)):  # each digit a bright band at a place of its own
        labels = field_trees.balanced(of_each)
        pixels = field_trees.noise(part, len(labels), 28, 28) // 4
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label : 2 * label + 8] |= 192
        (root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte").write_bytes(field_trees.idx_bytes(pixels))
    data = f"dataset.root={root}"
    trained = ("dataset=mnist", data, "architecture=mcnn", *TRAIN, "recipe.epochs=5", "recipe.batch_size=16")
    model = Pipeline(plan_for("train_target", *trained, store=place / "others")).target.model
    torch.save({"state_dict": to_published(model)}, place / "FILE")
    assert midefense([data if word == "dataset.root=DIR" else word for word in words], place / "store") == 0


def audit(place, *words):
    """A checkpoint of the network of one's own, of two people: one in the dark, one in the light."""
    for number in range(12):
        for name, shade in (("dark", 20), ("light", 200)):
            folder_trees.picture(place / "DIR" / name / f"{number}.png", seed=number, size=(32, 32), mode="L")
            path = place / "DIR" / name / f"{number}.png"
            Image.open(path).point([shade + value // 8 for value in range(256)]).save(path)
        folder_trees.picture(place / "DIR2" / f"{number}.png", seed=100 + number, size=(32, 32), mode="L")
    weight = torch.ones(1, 3072) * torch.tensor([[-1.0], [1.0]])
    torch.save({"fc.weight": weight, "fc.bias": torch.zeros(2)}, place / "CHECKPOINT")
    assert midefense([*words, *AUDIT], place / "store") == 0


def run_midefense(place, *words):
    assert midefense(list(words), place / "store") == 0


def run_make(_, target):
    assert target in targets(), f"make {target}: no such target"


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


DIGITS = "dataset=digits architecture=cnn defense=random_erasing"
OWN_NETWORK = (
    "architecture=custom '~architecture.network._args_' architecture.network._target_=mynet.Net "
    "architecture.feature_layer=fc 'allow=[mynet]'"
)
FOLDERS = "dataset.private_root=DIR dataset.public_root=DIR dataset.channels=3 dataset.size=64"
AUDIT = (*GAN, "attack.search.steps=2", "compute=cpu", "compute.threads=1", *JUDGE)
# Every command of the README, in its order, and how it is run here.
KNOWN = {
    "make demo": run_make,
    "make test": run_make,
    f"python train_target.py {DIGITS}": verb,
    f"python attack.py {DIGITS} attack=gmi_small": verb,
    f"python evaluate.py {DIGITS} attack=gmi_small": verb,
    "python evaluate.py -m defense=none,random_erasing attack=gmi_small seed=0,1,2": verb,
    "python evaluate.py attack=gmi_small attack/objective=poincare": verb,
    "python attack.py target=REF attack=pool_small": run_on_a_stored_target,
    "midefense report": run_midefense,
    "midefense store list": run_midefense,
    "midefense doctor": run_midefense,
    "midefense audit CHECKPOINT --network mynet:Net --images DIR --public DIR2": audit,
    f"python evaluate.py dataset=image_folder {FOLDERS}": run_on_images,
    f"python train_target.py {OWN_NETWORK}": verb,
    "midefense import FILE --as target --architecture mcnn --dataset mnist dataset.root=DIR": import_mcnn,
}


def test_every_command_of_the_readme_is_known():
    assert commands(README) == list(KNOWN), "a command that changed: say above how it is run, at its place"


@pytest.mark.parametrize("command", KNOWN)
def test_a_command_of_the_readme_runs(command, here):
    program, *words = shlex.split(command)
    if program == "python":
        words[0] = words[0].removesuffix(".py")
    KNOWN[command](here, *words)


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=lambda page: page.name)
def test_commands_of_the_pages_are_accepted(page, store):
    for command in commands(page):
        program, *words = shlex.split(command)
        if program == "make":
            run_make(None, *words)
        elif program == "midefense":
            assert words[0] in COMMANDS
        elif program != "wandb":
            accepted(words, store)


def accepted(words: list[str], store: Path) -> None:
    """Plan a verb's command as written, unless it names what must be in the store or in a folder of the reader's."""
    script = next(at for at, word in enumerate(words) if word.endswith(".py"))
    name, words = words[script].removesuffix(".py"), single(words[script + 1 :])
    assert name in VERBS and (ROOT / f"{name}.py").is_file()
    if not any(
        re.match(r"--config-dir|(target|recovered|prior_artefact)=|allow=|(.*\.)?recipe\.start=", word)
        for word in words
    ):
        plan_for(name, *words, store=store)


def test_the_configuration_of_ones_own_is_accepted(tmp_path, store):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text(code(ROOT / "docs" / "your_own.md", "yaml"))
    words = (f"hydra.searchpath=[file://{tmp_path}]", "attack=mine")  # what --config-dir does
    mine = plan_for("attack", *words, store=store)
    assert mine.names["attack"] == "mine" and mine.names["prior"] == "gmi_gan_small"
