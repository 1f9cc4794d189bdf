"""Words of the command line as Hydra reads them, and what was chosen. Every file that asks what an override sets asks
here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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


def chosen_of(choices: Mapping[str, str], group: str) -> str | None:
    """The option chosen of a group (`choices`: Hydra's `runtime.choices`)."""
    # an attack that chooses its prior leaves the choice under the group's full address
    return choices.get(f"{group}@_global_.{group}", choices.get(group))
