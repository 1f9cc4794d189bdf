"""What must never import what (ARCHITECTURE, section 10), read off the source: imports inside functions count too."""

import ast
import functools
from pathlib import Path

import pytest

import midefense

SOURCE = Path(midefense.__file__).parent
VERBS = [SOURCE.parents[1] / f"{verb}.py" for verb in ("train_target", "attack", "evaluate")]
FILES = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
FILES |= {path.stem + ".py": path for path in VERBS}

# Who (a file or a folder of the package) must not import which parts of the package.
FORBIDDEN = {
    "types": ["*"],
    "ranges": ["*"],
    "seeds": ["*"],
    "closed_form": ["*"],
    "resampling": ["*"],
    "terminal": ["*"],
    "training_state": ["*"],
    "foreign": ["architectures", "datasets", "priors", "store", "plan", "pipeline"],
    "architectures": ["defenses", "oracle", "priors", "attacks", "metrics"],
    "datasets": ["defenses", "oracle", "priors", "attacks", "metrics"],
    "defenses": ["oracle", "priors", "attacks", "metrics"],
    "oracle": ["architectures"],
    "metrics/hull": ["*"],
    "rectangles": ["architectures", "defenses", "oracle", "priors", "attacks", "metrics"],
    "obscuring": ["architectures", "defenses", "oracle", "priors", "attacks", "metrics"],
    "identity_losses": ["*"],
    "priors": ["attacks", "metrics", "defenses", "datasets"],
    "attacks": [
        "architectures",
        "defenses",
        "datasets",
        "metrics",
        "training",
        "store",
        "tracking",
        "evidence",
        "plan",
        "pipeline",
        "exchange",
        "report",
        "commands",
    ],
    "metrics": ["attacks", "priors", "oracle", "defenses"],
}
# From the ground up: a room imports from rooms that stand before it, never from one behind it.
FLOORS = (
    "types",
    "ranges",
    "seeds",
    "closed_form",
    "terminal",
    "precision",
    "compiling",
    "doubling",
    "channels_last",
    "capturing",
    "training_state",
    "foreign",
    "rectangles",
    "obscuring",
    "identity_losses",
    "resampling",
    "compute",
    "store",
    "rectifiers",
    "oracle",
    "architectures",
    "datasets",
    "defenses",
    "priors",
    "evidence",
    "attacks",
    "training",
    "metrics",
    "tracking",
    "plan",
    "pipeline",
    "exchange",
    "report",
    "studies",
    "commands",
    "__main__",
)
# Which files alone may import a library, or a name in it.
ONLY = {
    "hydra": {"plan/compose", "plan/hydra_node", "pipeline/verbs"},
    "omegaconf": {"plan/compose", "plan/hydra_node", "pipeline/verbs"},
    "wandb": {"tracking/wandb_mirror"},
    "pickle": {"architectures/checkpoints", "priors/stylegan2/closed_pickle"},
    "torch.load": {"architectures/checkpoints"},
}


@functools.cache
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


def room_of(who: str) -> str:
    """The room of a file; a `__main__` is nobody's: nothing imports it, and it may start any command."""
    return "__main__" if who.endswith("/__main__") else who.split("/")[0]


def own_imports(who: str) -> set[str]:
    """The files of the package that a file imports."""
    found = set()
    for name in imports(FILES[who].read_text()):
        place = name.removeprefix("midefense.").replace(".", "/") if name.startswith("midefense.") else ""
        # `from midefense.store.claims import claim` names a thing in a file; a package's own file is its __init__
        candidates = (place, place.rpartition("/")[0], f"{place}/__init__", f"{place.rpartition('/')[0]}/__init__")
        found |= set(candidates[:1] if place in FILES else [c for c in candidates if c in FILES][:1])
    return found - {who}


@functools.cache
def whole_graph() -> dict[str, set[str]]:
    """The files of the package that each imports."""
    return {who: own_imports(who) for who in FILES}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach one another: nodes are taken away while nothing, or nobody, leads on from them."""
    left = {node: set(to) & set(graph) for node, to in graph.items()}
    while ends := [node for node, to in left.items() if not to & left.keys()]:
        for node in ends:
            del left[node]
    return [{node, *to & left.keys()} for node, to in left.items()]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that run from a room to one that stands behind it."""
    floor = {room: number for number, room in enumerate(FLOORS)}
    return [
        f"{who} imports {other}"
        for who, others in graph.items()
        for other in others
        if floor[room_of(other)] > floor[room_of(who)]
    ]


def test_no_file_reaches_itself():
    assert circles(whole_graph()) == []


def test_no_import_runs_upwards():
    inside = {who: to for who, to in whole_graph().items() if not who.endswith(".py") and who != "__init__"}
    assert {room_of(who) for who in inside} == set(FLOORS), "a room that the floors do not know"
    assert upward(inside) == []


def test_circles_and_upward_imports_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert upward({"store/store": {"commands/store"}}) and not upward({"commands/store": {"store/store"}})
    assert "store/artefacts" in whole_graph()["pipeline/pipeline"] and "seeds" in whole_graph()["training/loop"]
    assert whole_graph()["attack.py"] == {"commands/attack"}


def test_every_room_of_the_law_exists():
    for name in {*FORBIDDEN, *(part for parts in FORBIDDEN.values() for part in parts)} - {"*"}:
        assert any(who == name or who.startswith(f"{name}/") for who in FILES), name
    assert {file for files in ONLY.values() for file in files} <= set(FILES)


@pytest.mark.parametrize(
    ("who", "source"),
    [
        ("types", "from midefense import seeds"),
        ("attacks/init", "def late():\n    from midefense.metrics import fid"),
        ("attacks/search/gradient", "import midefense.training.loop as loop"),
        ("attacks/base", "from midefense import evidence"),
        ("priors/gan", "from midefense.datasets.base import resize"),
        ("metrics/fid", "from ..oracle import Oracle"),
        ("plan/read", "from omegaconf import OmegaConf"),
        ("pipeline/pipeline", "def late():\n    import wandb"),
        ("architectures/resnet", "import torch\nweights = torch.load('file')"),
        ("training/loop", "from torch import load"),
        ("attack.py", "import pickle"),
    ],
)
def test_a_breach_is_seen(who, source):
    assert breaches(who, source)
