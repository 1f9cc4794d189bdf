"""How the verbs begin: they listen for Ctrl-C and SIGTERM before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from midefense.tracking.preemption import ending_when_asked

if TYPE_CHECKING:
    from midefense.pipeline.pipeline import Pipeline
    from midefense.store.artefacts import Artefact


def entry(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """The `main` of a verb; see `pipeline.verbs.verb`."""

    def main() -> None:
        with ending_when_asked():
            from midefense.pipeline.verbs import verb

            verb(name, work, say)()

    return main
