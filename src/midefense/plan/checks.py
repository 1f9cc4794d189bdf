"""What a configuration must look like before its nodes are bound. Every check gathers all mistakes of its kind."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping

from midefense.datasets.placebos import PLACEBOS
from midefense.plan.annotations import fits, in_words
from midefense.plan.verb_options import OVER_ALL
from midefense.plan.whitelist import look_here_too
from midefense.ranges import Side, Whole
from midefense.store.folders import folders_of
from midefense.store.names import require_name
from midefense.store.plain import environment_secrets, looks_secret, writable
from midefense.store.store import MISSING
from midefense.types import Refused, refuse_unknown

SEEDS = ("target", "prior", "attack")
EVALUATOR_KEYS = ("architecture", "recipe", "train_on", "seed", "artefact")
EVALUATOR_EXTRAS = ("size",)  # what an evaluator may do without
NO_EVALUATORS: dict = {}  # of a verb that has none
TOLD = ("tracking", "compute", "store")  # parts that no recipe holds; what is told of them is masked
BROUGHT_KEYS = ("dataset", "defense")  # of a stored evaluator: places within them may be given
CHOICES = {"missing": MISSING, "train_on": ("private", "all", "public", *PLACEBOS)}
OF_EVALUATORS = ("private", "all")  # who judges must know the private classes


def check_shape(verb: str, config: Mapping, keys: Iterable[str]) -> None:
    """Refuse unknown and missing options of a verb, and plain values that are not what they must be."""
    keys = tuple(keys)
    refuse_all(
        [
            *(_not_an_option(verb, key, keys) for key in config if key not in keys),
            *(f"{verb}: expected the option {key}, got none; try without ~{key}" for key in keys if key not in config),
        ]
    )
    refuse_all(
        [
            *_unwritable(config),
            *_no_names(config),
            *_secrets(config),
            *_environment_values(config),
            *_plain_values(config),
            *_evaluators(config.get("evaluators", NO_EVALUATORS)),
            *_metrics(config),
        ]
    )


def refuse_all(problems: Iterable[str]) -> None:
    """Refuse if there is any problem, naming each once."""
    if text := "\n".join(dict.fromkeys(problems)):
        raise Refused(text)


def refuse_together(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step; refuse once, with the refusals of all."""
    problems = []
    for step in steps:
        try:
            step()
        except Refused as refusal:
            problems.append(str(refusal))
    refuse_all(problems)


def _not_an_option(verb: str, key: str, keys: tuple[str, ...]) -> str:
    if key in OVER_ALL:
        return (
            f"{key}=...: expected a file that sets options of {verb}, got one whose options stand under {key!r}; "
            "its first line must be `# @package _global_`, and options must follow"
        )
    return str(refuse_unknown(f"{verb}: no such option", key, keys))


def _unwritable(config: Mapping) -> Iterator[str]:
    """Texts end up in names of files and in JSON."""
    for here, text in _texts(config):
        if not writable(text):
            yield f"{here}: expected a text of Unicode characters without a NUL byte, got {text!r}; try retyping it"


def _no_names(config: Mapping) -> Iterator[str]:
    """What evaluators and metrics are called stands in names of files and of numbers."""
    for group in ("evaluators", "metrics"):
        for name in config[group] if isinstance(config.get(group), Mapping) else ():
            try:
                require_name(name, f"{group}.{name!r}")
            except Refused as refusal:
                yield str(refusal)


def _secrets(node: object) -> Iterator[str]:
    """A configuration is written to files, so it may hold no secret."""
    for here, _ in _texts(node):
        if looks_secret(here.rsplit(".", 1)[-1]):
            yield f"{here}: expected no secret in what is written to files; try an environment variable (WANDB_API_KEY)"


def _environment_values(config: Mapping) -> Iterator[str]:
    """What decides an artefact stands in its recipe, unmasked: no value that the environment keeps may be there."""
    hidden = environment_secrets()
    for path, text in _texts({name: value for name, value in config.items() if name not in TOLD}):
        if any(secret in text for secret in hidden):
            yield (
                f"{path}: expected a value that may be written to files, got one of an environment variable, which is "
                "kept out of them unless it is a folder or file that is there; try writing it out"
            )


def _texts(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts at any depth, with their paths."""
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inside:
        here = f"{path}.{name}".lstrip(".")
        if isinstance(value, str):
            yield here, value
        yield from _texts(value, here)


def _plain_values(config: Mapping) -> Iterator[str]:
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            yield str(refuse_unknown(name, config[name], choices))
    try:
        folders_of(config["store"])
    except Refused as refusal:
        yield str(refusal)
    for name in ("judge_at_chance", "foreign_prior"):
        if not isinstance(config.get(name, False), bool):
            yield f"{name}: expected true or false, got {config[name]!r}; try {name}=false"
    allow = config["allow"]
    if not (isinstance(allow, list) and all(isinstance(name, str) for name in allow)):
        yield f"allow: expected a list of module names, got {allow!r}; try 'allow=[my_module]'"
    elif allow:
        look_here_too()
        yield from (
            f"allow: expected modules that Python finds, got {name!r}; try its folder in PYTHONPATH, or its right name"
            for name in allow
            if not _is_module(name)
        )
    if not isinstance(config["seeds"], Mapping) or set(config["seeds"]) != set(SEEDS):
        yield f"seeds: expected {', '.join(SEEDS)}, got {config['seeds']!r}"
    else:
        yield from (_not_a_seed(f"seeds.{name}", value) for name, value in config["seeds"].items() if not _whole(value))


def _evaluators(evaluators: object) -> Iterator[str]:
    if not isinstance(evaluators, Mapping):
        yield f"evaluators: expected evaluators by name, got {evaluators!r}; try evaluator@evaluators.main=cnn_wide"
        return
    if evaluators is not NO_EVALUATORS and not evaluators:
        yield "evaluators: expected one or more, got none to judge by; try evaluator@evaluators.main=cnn_wide"
    for name, node in evaluators.items():
        brought = BROUGHT_KEYS if isinstance(node, Mapping) and node.get("artefact") is not None else ()
        if not isinstance(node, Mapping) or set(node) - {*brought, *EVALUATOR_EXTRAS} != set(EVALUATOR_KEYS):
            got = ", ".join(node) if isinstance(node, Mapping) else repr(node)
            expected = f"{', '.join(EVALUATOR_KEYS)} (and {', '.join(EVALUATOR_EXTRAS)}, if it has one of its own)"
            yield f"evaluators.{name}: expected {expected}, got {got}; try evaluator@evaluators.{name}=cnn_wide"
            continue
        if node["train_on"] not in OF_EVALUATORS:
            yield str(refuse_unknown(f"evaluators.{name}.train_on", node["train_on"], OF_EVALUATORS))
        if not _whole(node["seed"]):
            yield _not_a_seed(f"evaluators.{name}.seed", node["seed"])
        if not fits(node.get("size"), Side | None):
            expected = f"{in_words(Side)} (pixels a side), or null for dataset.size"
            yield f"evaluators.{name}.size: expected {expected}, got {node['size']!r}; try null"


def _metrics(config: Mapping) -> Iterator[str]:
    if "metrics" in config and not (isinstance(config["metrics"], Mapping) and config["metrics"]):
        yield f"metrics: expected metrics by name, got {config['metrics']!r}; try metrics=all"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is not there; no name of a module at all
        return False


def _whole(value: object) -> bool:
    return fits(value, Whole)


def _not_a_seed(name: str, value: object) -> str:
    return f"{name}: expected {in_words(Whole)}, got {value!r}; try {name}=0"
