"""Words of the command line as Hydra reads them, and what was chosen. Every file that asks what an override sets asks
here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from midefense.types import Refused

BARE = re.compile(r"[\w./+%-]+", re.ASCII)  # text that Hydra's grammar takes without quotes, wherever it stands
TARGET_NODES = ("dataset", "architecture", "defense", "recipe")
# What names an artefact of the store, and the nodes it brings: their places may be given beside it.
BRINGS = {
    "target": TARGET_NODES,
    "recovered": (*TARGET_NODES, "prior"),
    "prior_artefact": ("prior",),
}


@dataclass(frozen=True)
class Override:
    """`attack.budget=5`, `+attack/search@attack.search=adam`, `~attack.views`.

    `text` is the word whole, `key` what stands before the value without its sign, `group` the key up to an `@`, and
    `package` what stands behind it ("" where there is none).
    """

    text: str
    key: str
    group: str
    package: str

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read one word; what is no override (no sign and no `=`) is its own key."""
        key = text.lstrip("+~").split("=")[0]
        group, _, package = key.partition("@")
        return cls(text, key, group, package.removeprefix("_global_").removeprefix("."))

    @property
    def option(self) -> str:
        """The verb's option it belongs to: `attack` for `attack/objective`, `metrics` for an architecture that is
        mounted within it (`architecture@metrics.knowledge.student`)."""
        return (self.package or self.group).replace("/", ".").split(".")[0]

    @property
    def gives(self) -> bool:
        """Whether it gives a value, instead of taking one away."""
        return "=" in self.text and not self.text.startswith("~")

    def sets(self, name: str) -> bool:
        """Whether it sets `name`, or something within it."""
        if self.key == name or self.key.startswith((f"{name}.", f"{name}/")):
            return True
        return self.key.startswith(f"{name}@") and self.option == name

    def inside(self, group: str) -> str | None:
        """What it changes within the choice of a group, as a name says it; None if nothing."""
        for opening in (f"{group}.", f"{group}/", f"{group}@{group}."):
            if self.text.startswith(opening):
                return self.text.removeprefix(opening)
        return None


def parsed(words: Iterable[str]) -> list[Override]:
    """The words of a command line in order."""
    return [Override.parse(word) for word in words]


def laid_over(own: Iterable[str], ours: Iterable[str]) -> list[str]:
    """Our words that no word of the user's own replaces, whole or by choosing another option, and the user's own."""
    own = parsed(own)
    kept = [word.text for word in parsed(ours) if not any(word.sets(chosen.key) for chosen in own)]
    return [*kept, *(word.text for word in own)]


def written(value: object) -> str:
    """A value (a number, a text, null, a list or a dict of such) as a word of the command line holds it behind its `=`,
    so that Hydra reads the same value again, whatever the text has in it: commas, brackets, quotes, spaces.

    A text of letters, digits and `./+%-` alone stays as it is, so that one which reads as a number or as null is one,
    as it would be if a person typed it: YAML takes `1e-3` for a text. Interpolations stay interpolations.

    Raises `Refused` for what no command line can say: another kind of value, and a dict with other keys than names.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if BARE.fullmatch(value) else _quoted(value)
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str) or not BARE.fullmatch(key)]:
            raise Refused(f"expected names as keys, got {strange[0]!r}; try an option's own file")
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(written, value)) + "]"
    raise Refused(f"expected a number, a text, null, a list or a dict, got {value!r} ({type(value).__name__})")


def words_of(key: str, value: object) -> Iterator[str]:
    """The word that sets `key` to a value; of a dict, a word for each that is in it."""
    if not isinstance(value, Mapping) or not value:
        yield f"{key}={written(value)}"
        return
    for name, inner in value.items():
        yield from words_of(f"{key}.{name}", inner)


def as_swept(words: Iterable[str], parameters: Mapping[str, object]) -> list[str]:
    """The words of a process that a W&B agent started, with what it varies as Hydra reads it.

    The agent writes a value as Python prints it: null as a text, a text with a comma as two values. With the
    `parameters` of its run, by key, each of these words is put as `words_of` puts it.
    """
    swept = {f"{key}={value}": list(words_of(key, value)) for key, value in parameters.items()}
    return [one for word in words for one in swept.get(word, [word])]


def _quoted(text: str) -> str:
    """Backslashes mean something before a quote alone, and there, as at the end, each is written twice."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def chosen_of(choices: Mapping[str, str], group: str) -> str | None:
    """The option chosen of a group (`choices`: Hydra's `runtime.choices`)."""
    # an attack that chooses its prior leaves the choice under the group's full address
    return choices.get(f"{group}@_global_.{group}", choices.get(group))


def with_open_places(words: Iterable[str]) -> list[str]:
    """The words with `++` before each that may say where a file of a stored artefact lies (`target=REF
    dataset.root=DIR`): Hydra knows the options of the dataset chosen by default, not those of the one that REF brings.
    What is no place after all is refused by `plan.references`."""
    words = list(words)
    brought = _brought(words)
    return [f"++{word}" if _is_inside(word, brought) else word for word in words]


def as_typed(words: Iterable[str]) -> list[str]:
    """The words that `with_open_places` was given."""
    words = list(words)
    brought = _brought(words)
    return [word[2:] if word.startswith("++") and _is_inside(word[2:], brought) else word for word in words]


def _brought(words: Iterable[str]) -> set[str]:
    """The nodes that artefacts named among the words bring."""
    nodes = set()
    for override in parsed(words):
        if re.fullmatch(r"evaluators\.[^.]+\.artefact", override.key):
            nodes |= {f"{override.key.removesuffix('artefact')}{node}" for node in TARGET_NODES}
        nodes |= set(BRINGS.get(override.key, ()))
    return nodes


def _is_inside(word: str, nodes: Iterable[str]) -> bool:
    """Whether a word without a sign sets an option within one of the nodes."""
    key = word.split("=")[0]
    return "=" in word and any(key.startswith(f"{node}.") for node in nodes)
