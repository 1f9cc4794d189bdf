"""Check what a configuration names, whole, and build it.

A node with `_target_` names a class. `bind` resolves it against the whitelist and binds every argument to its
signature, for the whole tree, before anything is built; all mistakes are reported at once.
"""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from midefense.plan.annotations import fits, hints_of, in_words
from midefense.plan.stored_names import stored_name
from midefense.plan.whitelist import resolve
from midefense.types import Refused, refuse_unknown

# What a class of the user's own raises where its code and the values it is given do not fit.
MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
OURS = ("midefense.", "torch.", "torchvision.")
FROM_DATASET = ("classes", "channels", "size")  # what the dataset beside a node tells its constructor
TOLD = ("midefense.architectures.", "midefense.priors.")  # whose constructors are told: a pool's `size` is its own


class NotBuilt(Refused):
    """A class of the user's own failed while it was built."""


@dataclass(frozen=True)
class Node:
    """A checked node: a class, its arguments (defaults included, nested nodes bound), and where it stood. What stands
    `aside` is said of what is built and not to its constructor (a class's `aside` names it, with its annotation and
    its default): no number of it depends on that, so that recipes do not hold it."""

    target: Callable
    arguments: dict[str, object]
    path: str
    positional: tuple = ()
    partial: bool = False
    awaits: frozenset[str] = field(default_factory=frozenset)
    aside: Mapping[str, object] = field(default_factory=dict)

    def given(self, **world: object) -> Node:
        """The same node with what the dataset tells it filled in, at every depth, where the file left it open."""
        arguments = {
            name: world.get(name, value) if name in self.awaits else _walk(value, lambda node: node.given(**world))
            for name, value in self.arguments.items()
        }
        positional = tuple(_walk(self.positional, lambda node: node.given(**world)))
        return replace(self, arguments=arguments, positional=positional, awaits=self.awaits - set(world))

    def build(self) -> object:
        """The object, its nested nodes built first. A partial may wait for the dataset until it is called."""
        if self.awaits and not self.partial:
            raise Refused(f"{self.path}: {', '.join(sorted(self.awaits))} must come from a dataset")
        known = {name: value for name, value in self.arguments.items() if name not in self.awaits}
        arguments = {name: _walk(value, Node.build) for name, value in known.items()}
        positional = _walk(self.positional, Node.build)
        make = functools.partial(self.target, *positional, **arguments)
        return make if self.partial else self._made(make)

    def _made(self, make: Callable[[], object]) -> object:
        """What the class makes; where a class of the user's own fails, in words that name it and the line."""
        try:
            return make()
        except MISTAKES as error:
            if isinstance(error, torch.OutOfMemoryError) or str(self.target.__module__).startswith(OURS):
                raise  # no mistake of who asked
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise NotBuilt(
                f"{self.path}: expected {self.target.__name__} of {self.target.__module__} to be built from these "
                f"values, got {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno}); try other "
                "values of it, or mend that line"
            ) from error

    def within(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for value in (self.positional, *self.arguments.values()):
            yield from _nodes_in(value)

    def recipe(self) -> dict:
        """What decides the content of what is built: class, revision and arguments, without places and without what
        changes no number (a class's `unhashed`).

        A class's `pin` says arguments as recipes hold them (a file by its hash, a part in the form it had before);
        where the constructor would not take them so, its `unpin` puts them back (`bind_recipe`).

        A class's `later` names arguments that it got after artefacts had been stored, each with the value at which it
        does what it did before: at that value the argument is left out, so that their ids stand.
        """
        arguments = {name: _walk(value, Node.recipe) for name, value in self.arguments.items()}
        if pin := getattr(self.target, "pin", None):
            arguments = pin(arguments)
        revision = {"revision": self.target.revision} if hasattr(self.target, "revision") else {}
        partial = {"_partial_": True} if self.partial else {}
        positional = {"_args_": _walk(self.positional, Node.recipe)} if self.positional else {}
        left_out = {*_places(self.target), *getattr(self.target, "unhashed", ())}
        later = getattr(self.target, "later", {}).items()  # a subclass may do without an argument
        left_out |= {name for name, before in later if name in arguments and arguments[name] == before}
        kept = {name: value for name, value in arguments.items() if name not in left_out}
        return {"_target_": stored_name(self.target), **revision, **partial, **positional, **kept}

    def places(self) -> dict[str, object]:
        """File locations among the arguments, at every depth, by path within the node."""
        found = {name: value for name, value in self.arguments.items() if name in _places(self.target)}
        for name, value in self.arguments.items():
            if isinstance(value, Node):
                found |= {f"{name}.{inner}": place for inner, place in value.places().items()}
        return found


def bind(node: Mapping[str, object], path: str, allow: Iterable[str] = (), beside_dataset: bool = False) -> Node:
    """Check a node and everything below it. `Refused` lists all mistakes at once.

    Args:
        node: a plain mapping with `_target_`.
        path: where it stands, for messages.
        allow: modules of the user's own that may be named by `_target_`.
        beside_dataset: whether it may be told the classes, channels and size of a dataset, where it leaves them open.
    """
    return bind_all({path: (node, beside_dataset)}, allow)[path]


def bind_recipe(recipe: Mapping[str, object], places: Mapping[str, object], allow: Iterable[str] = ()) -> Node:
    """Bind a stored recipe again; its revisions must still be those of the code.

    Args:
        places: file locations by path, which a recipe does not hold.
    Raises:
        Refused: a class has another revision than the stored one: the code would give other numbers.
    """
    for name, stored in _revisions(recipe):
        if stored != (now := getattr(resolve(name, allow), "revision", None)):
            raise Refused(
                f"{name}: expected revision {now}, that of the code, got {stored} in the artefact: the code now gives "
                "other numbers. Try naming the parts instead of the artefact, so that it is made anew, or check out "
                "the commit in its provenance"
            )
    node = _as_written(recipe, allow)
    for path, value in places.items():
        inner = node
        *parents, last = path.split(".")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return bind(node, "stored recipe", allow)


def bind_all(nodes: Mapping[str, tuple[Mapping, bool]], allow: Iterable[str] = ()) -> dict[str, Node]:
    """Bind several nodes ({path: (node, whether a dataset stands beside it)}); reports the mistakes of all together."""
    problems: list[str] = []
    bound = {}
    for path, (node, beside) in nodes.items():
        if isinstance(node, Mapping) and "_target_" in node:
            bound[path] = _bind(node, path, tuple(allow), FROM_DATASET if beside else (), problems)
        else:
            problems.append(
                f"{path}: expected a node with a _target_, got {node!r}; choose one of the options of its group"
            )
    if problems:
        raise Refused("\n".join(problems))
    return bound


def _bind(node: object, path: str, allow: tuple[str, ...], awaited: tuple[str, ...], problems: list[str]) -> object:
    if isinstance(node, list | tuple):
        return [_bind(item, f"{path}[{i}]", allow, awaited, problems) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        if isinstance(node, float) and not math.isfinite(node):
            problems.append(f"{path}: expected a finite number, got {node}")
        return node
    if "_target_" not in node:
        return {key: _bind(value, f"{path}.{key}", allow, awaited, problems) for key, value in node.items()}
    try:
        target = resolve(str(node["_target_"]), allow)
    except Refused as refusal:
        problems.append(f"{path}: {refusal}")
        return None
    hints = dict(getattr(target, "aside", {}))
    aside = {name: node.get(name, default) for name, (_, default) in hints.items()}
    for name, value in aside.items():
        if not fits(value, hints[name][0]):
            problems.append(f"{path}.{name}: expected {in_words(hints[name][0])}, got {value!r}")
    node = {name: value for name, value in node.items() if name not in aside}
    partial, listed = node.get("_partial_", False), node.get("_args_", [])
    if not isinstance(partial, bool):
        problems.append(f"{path}._partial_: expected true or false, got {partial!r}")
        partial = False
    if not isinstance(listed, list | tuple):
        problems.append(f"{path}._args_: expected a list of positional values, got {listed!r}; try [{listed}]")
        listed = []
    positional = _bind(list(listed), path, allow, awaited, problems)
    written = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "_args_")}
    parameters = _parameters(target, partial, len(positional))
    if len(positional) > (most := _most_positional(target)):
        problems.append(
            f"{path}: {target.__name__} takes at most {most} positional values, got {len(positional)}; "
            f"if another choice left them there, remove them with ~{path}._args_"
        )
    told = awaited if target.__module__.startswith(TOLD) else ()
    arguments, awaits = _match(written, parameters, path, target, partial, told, problems)
    found_before = len(problems)
    nested = {name: _bind(value, f"{path}.{name}", allow, awaited, problems) for name, value in arguments.items()}
    if target.__module__.startswith("midefense.") and len(problems) == found_before:
        _check_types(nested, awaits, path, target, problems)
    return Node(target, nested, path, tuple(positional), partial, frozenset(awaits), aside)


def _match(
    written: Mapping[str, object],
    parameters: Mapping[str, inspect.Parameter],
    path: str,
    target: Callable,
    partial: bool,
    awaited: tuple[str, ...],
    problems: list[str],
) -> tuple[dict[str, object], set[str]]:
    """Arguments in the signature's order with defaults filled in, and those that wait for the dataset."""
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for name in [] if free else [name for name in written if name not in named]:
        problem = refuse_unknown(f"{path}.{name}: {target.__name__} has no such option", name, named)
        problems.append(f"{problem} If another choice left it there, remove it with ~{path}.{name}")
    arguments, awaits = {}, set()
    for name, parameter in named.items():
        value = written.get(name, parameter.default)
        if name in awaited and value in (None, parameter.empty):
            awaits.add(name)
            value = None
        if value is not parameter.empty:
            arguments[name] = value
        elif not partial:
            problems.append(f"{path}.{name}: {target.__name__} needs this option; set {path}.{name}=...")
    if free:
        arguments |= {name: value for name, value in written.items() if name not in named}
    return arguments, awaits


def _check_types(
    arguments: Mapping[str, object], awaits: set[str], path: str, target: Callable, problems: list[str]
) -> None:
    """Values must be what the constructor's annotations say; files are left to the class, whose words are better."""
    for name, hint in hints_of(target).items():
        if name in arguments and name not in awaits and name not in _places(target):
            value = arguments[name]
            if not fits(value, hint):
                got = value.target.__name__ if isinstance(value, Node) else repr(value)
                problems.append(f"{path}.{name}: expected {in_words(hint)}, got {got}")


@functools.cache
def _signature(target: Callable) -> inspect.Signature:
    """What a class takes; read off it once, as the same few classes are named all over a configuration."""
    return inspect.signature(target)


def _most_positional(target: Callable) -> float:
    parameters = _signature(target).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return math.inf
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _parameters(target: Callable, partial: bool, positional: int) -> dict[str, inspect.Parameter]:
    """What may be given by name: without what `_args_` fills, and what the caller of a partial adds in front."""
    if target.__init__ is nn.Module.__init__:  # its free signature is not meant: it takes nothing
        return {}
    parameters = dict(_signature(target).parameters)
    ordered = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name in ordered[: positional or int(partial)]:
        parameters.pop(name)
    return parameters


def _walk(value: object, visit: Callable[[Node], object]) -> object:
    """Apply `visit` to every bound node in a tree of lists and dicts; tuples become lists."""
    if isinstance(value, Node):
        return visit(value)
    if isinstance(value, Mapping):
        return {key: _walk(item, visit) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, visit) for item in value]
    return value


def _nodes_in(value: object) -> Iterator[Node]:
    if isinstance(value, Node):
        yield from value.within()
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _nodes_in(item)


def _revisions(recipe: object) -> Iterator[tuple[str, int | None]]:
    """Class name and stored revision of every node in a recipe, at every depth."""
    if isinstance(recipe, Mapping):
        if "_target_" in recipe:
            yield recipe["_target_"], recipe.get("revision")
        for value in recipe.values():
            yield from _revisions(value)
    elif isinstance(recipe, list):
        for item in recipe:
            yield from _revisions(item)


def _as_written(recipe: object, allow: Iterable[str]) -> object:
    """A recipe as a configuration says it today: without revisions, and what `pin` changed put back by `unpin`."""
    if isinstance(recipe, Mapping):
        node = {key: _as_written(value, allow) for key, value in recipe.items() if key != "revision"}
        unpin = getattr(resolve(node["_target_"], allow), "unpin", None) if "_target_" in node else None
        return unpin(node) if unpin else node
    if isinstance(recipe, list):
        return [_as_written(item, allow) for item in recipe]
    return recipe


def _places(target: Callable) -> tuple[str, ...]:
    return tuple(getattr(target, "places", ()))
