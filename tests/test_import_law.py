"""What must never import what (ARCHITECTURE, section 10), read off the source: imports inside functions count too."""

import ast
from pathlib import Path

import pytest

from midefense import build

SOURCE = Path(build.__file__).parent
VERBS = [SOURCE.parents[1] / f"{verb}.py" for verb in ("train_target", "attack", "evaluate")]
FILES = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
FILES |= {path.stem + ".py": path for path in VERBS}

# Who (a file or a folder of the package) must not import which parts of the package.
FORBIDDEN = {
    "types": ["*"],
    "seeds": ["*"],
    "architectures": ["defenses", "oracle", "priors", "attacks", "metrics"],
    "datasets": ["defenses", "oracle", "priors", "attacks", "metrics"],
    "defenses": ["oracle", "priors", "attacks", "metrics"],
    "oracle": ["architectures"],
    "hull": ["*"],
    "erasing": ["architectures", "defenses", "oracle", "priors", "attacks", "metrics"],
    "priors": ["attacks", "metrics", "defenses", "datasets"],
    "attacks": ["architectures", "defenses", "datasets", "metrics", "train", "store", "tracking", "evidence"],
    "metrics": ["attacks", "priors", "oracle", "defenses"],
}
# Which files alone may import a library, or a name in it.
ONLY = {
    "hydra": {"build", "verbs", "train_target.py", "attack.py", "evaluate.py"},
    "omegaconf": {"build", "verbs", "train_target.py", "attack.py", "evaluate.py"},
    "wandb": {"tracking"},
    "pickle": {"store", "architectures/checkpoints", "priors/closed_pickle"},
    "torch.load": {"store", "architectures/checkpoints"},
}


def imports(source: str) -> set[str]:
    """Everything a source imports, and every dotted name it reads, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def breaches(who: str, source: str) -> list[str]:
    """Imports of `source`, standing at `who`, that the law forbids."""
    names = imports(source)
    found = [f"{who} imports {name} relatively" for name in names if name.startswith(".")]
    for room, parts in FORBIDDEN.items():
        if who == room or who.startswith(f"{room}/"):
            modules = ["midefense" if part == "*" else f"midefense.{part}" for part in parts]
            found += [f"{who} imports {name}" for name in names for module in modules if within(name, module)]
    for library, allowed in ONLY.items():
        if who not in allowed:
            found += [f"{who} uses {name}" for name in names if within(name, library)]
    return sorted(found)


@pytest.mark.parametrize("who", FILES)
def test_the_law_is_kept(who):
    assert breaches(who, FILES[who].read_text()) == []


def test_every_room_of_the_law_exists():
    rooms = {name.split("/")[0] for name in FILES}
    assert set(FORBIDDEN) <= rooms
    assert {part for parts in FORBIDDEN.values() for part in parts} - {"*"} <= rooms
    assert {"build", "verbs", "tracking", "store", "train_target.py", "attack.py", "evaluate.py"} <= set(FILES)


@pytest.mark.parametrize(
    ("who", "source"),
    [
        ("types", "from midefense import seeds"),
        ("attacks/init", "def late():\n    from midefense.metrics import fid"),
        ("attacks/search/gradient", "import midefense.train as train"),
        ("attacks/base", "from midefense import evidence"),
        ("priors/gan", "from midefense.datasets.base import resize"),
        ("metrics/fid", "from ..oracle import Oracle"),
        ("plan", "from omegaconf import OmegaConf"),
        ("pipeline", "def late():\n    import wandb"),
        ("architectures/resnet", "import torch\nweights = torch.load('file')"),
        ("train", "from torch import load"),
        ("attack.py", "import pickle"),
    ],
)
def test_a_breach_is_seen(who, source):
    assert breaches(who, source)
