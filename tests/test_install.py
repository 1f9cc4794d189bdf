"""What `pip install .` gives: the command `midefense` and its configurations, working from any folder."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, process_environment
from test_audit import GAN, QUICK, picture

from midefense.commands.main import COMMANDS, main
from midefense.plan.compose import CONF
from midefense.store.store import Store

BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", "conf")
FIRST_VERB = (
    "train",
    "dataset=digits",
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=1",
    "compute=cpu",
)


KNOWING = (*QUICK[:1], "evaluators.main.recipe.epochs=40", "evaluators.main.architecture.widths=[8]")
BRIGHTNESS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(self.pool(x).flatten(1))


def taught():
    net, levels = Net(), (torch.arange(5) * 50 + 25) / 255 * 2 - 1  # as the network sees them, normalised
    with torch.no_grad():  # the nearest level: -(x - m)^2 up to what all classes share
        net.fc.weight.copy_(2 * levels[:, None].expand(5, 3) / 3)
        net.fc.bias.copy_(-levels.square())
    return net
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which the wheel was installed, which knows nothing of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    unbuilt = shutil.ignore_patterns("*.egg-info", "__pycache__")
    (folder / "source").mkdir()
    for name in BUILT_FROM:
        copy = functools.partial(shutil.copytree, ignore=unbuilt) if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "wheel", *offline, "--wheel-dir", folder / "dist", folder / "source"], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run([*pip, "install", *offline[:2], "--target", folder / "site", wheel], folder)
    return folder / "site"


def run(words, folder, **environment) -> subprocess.CompletedProcess:
    words = [str(word) for word in words]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_holds_the_configurations_and_runs_in_an_empty_folder(installed, tmp_path, bytecode):
    configurations = {path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent.name != "local"}
    assert configurations <= {path.relative_to(installed / "midefense/conf") for path in installed.rglob("*.yaml")}
    package = ROOT / "src" / "midefense"
    pages = {path.relative_to(package) for path in package.rglob("*") if path.suffix in (".html", ".css", ".js")}
    assert len(pages) >= 3 and all((installed / "midefense" / page).is_file() for page in pages)
    environment = process_environment(bytecode, PYTHONPATH=str(installed))
    place = run([sys.executable, "-c", "import midefense; print(midefense.__file__)"], tmp_path, **environment)
    assert Path(place.stdout.strip()).is_relative_to(installed)
    done = run([sys.executable, installed / "bin" / "midefense", *FIRST_VERB], tmp_path, **environment)
    (target,) = Store(tmp_path / "store").list("target")
    assert done.stdout.splitlines()[-2:] == [target.reference, str(target.path)]
    assert target.provenance["command"].startswith("midefense train dataset=digits ")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


@pytest.mark.slow
def test_the_wheel_audits_a_module_of_ones_own_in_a_folder_that_holds_nothing_else(installed, tmp_path, bytecode):
    """Five classes told by their brightness: the network is taught here, and the command sees its file alone."""
    (tmp_path / "mynet.py").write_text(BRIGHTNESS)
    for label in range(5):
        for number in range(30):
            picture(tmp_path / f"private/{label}/{number}.png", (50 * label + 25,) * 3, 100 * label + number)
    for number in range(12):
        picture(tmp_path / f"public/{number}.png", (20 * number + 10,) * 3, 1000 + number)
    make = "import torch, mynet; torch.save({'epoch': 1, 'model': mynet.taught().state_dict()}, 'net.pt')"
    environment = process_environment(bytecode, PYTHONPATH=str(installed))
    run([sys.executable, "-c", make], tmp_path, **environment)
    words = ["audit", "net.pt", "--network", "mynet:Net", "--images", "private", "--public", "public", "--seeds", "2"]
    done = run([sys.executable, installed / "bin" / "midefense", *words, *KNOWING, *GAN], tmp_path, **environment)
    last = done.stdout.splitlines()[-1]
    assert re.match(r"(It leaks|No leak shown|Cannot tell).*: gmi_small recovers .* over two seeds", last), last
    assert last in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        *("mynet.py", "net.pt", "private", "public", "report.html", "store")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is(name, capsys):
    if not COMMANDS[name].verb:
        with pytest.raises(SystemExit) as ending:
            main([name, "--help"])
        assert ending.value.code == 0
        assert f"midefense {name}" in capsys.readouterr().out


def test_help_costs_no_torch(tmp_path, bytecode):
    script = "import sys; from midefense.commands.main import main; main(['--help']); print('torch' in sys.modules)"
    done = run([sys.executable, "-c", script], tmp_path, **process_environment(bytecode))
    assert done.stdout.endswith("False\n") and all(f"  {name} " in done.stdout for name in COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert main(["atack"]) == 2 and "expected a command, got 'atack'" in capsys.readouterr().err
    assert main([]) == 0 and main(["--version"]) == 0


# Configurations of the user's own


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of configurations with one attack of the user's."""
    (tmp_path / "mine" / "attack").mkdir(parents=True)
    (tmp_path / "mine" / "attack" / "quick_look.yaml").write_text(
        "defaults: [gmi_small, _self_]\ninit: {candidates: 1}\nsearch: {steps: 1}\n"
    )
    return tmp_path / "mine"


SMALL = ("dataset=toy", "architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1", "prior=toy", "compute=cpu")


def test_a_configuration_of_ones_own_is_an_option_like_ours(own, call, store):
    words = ("attack=quick_look", *SMALL, "attack/objective=cross_entropy", f"store={store}")
    assert call("attack", "--config-dir", str(own), *words)[0] == 0
    (recovered,) = Store(store).list("recovered")
    assert recovered.name == "toy-mlp-none-toy-quick_look" and recovered.recipe["attack"]["search"]["steps"] == 1


def test_a_name_that_we_have_too_is_refused(own, call):
    (own / "attack" / "quick_look.yaml").rename(own / "attack" / "gmi.yaml")
    code, _, said = call("attack", "--config-dir", str(own), "attack=gmi", *SMALL)
    assert code == 2 and "got attack/gmi.yaml, which midefense has too; rename" in said


@pytest.mark.slow
def test_ranks_start_the_command_that_was_given(tmp_path, bytecode):
    """The launcher starts this process's words again, which must not depend on a script at the root."""
    words = ("dataset=toy", "architecture=mlp", "recipe.epochs=1", "tracking=none", "compute=cpu", "compute.devices=2")
    command = [sys.executable, "-m", "midefense", "train", *words, "compute.strategy=ddp"]
    run(command, tmp_path, **process_environment(bytecode))
    (target,) = Store(tmp_path / "store").list("target")
    assert target.provenance["command"].startswith("midefense train dataset=toy")
