"""What became of the points of sweeps, kept beside the artefacts that they made:

<root>/sweeps/<id>/points/<point>.json    one point's outcome, replaced when it is tried again
<root>/sweeps/<id>/logs/<point>.log       what its processes said, one after another
<root>/sweeps/<id>/claims/                who works on which point
<root>/sweeps/<id>/journal                the trials of a search
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from midefense.foreign import MOST_JSON, json_of, read_foreign
from midefense.store.artefacts import write_whole
from midefense.types import Refused

FOLDER = "sweeps"  # in the store
FINISHED, REFUSED, FAILED = "finished", "refused", "failed"
STATES = (FINISHED, REFUSED, FAILED)


@dataclass(frozen=True)
class Outcome:
    """How a point ended.

    Args:
        label: the words that tell it from the sweep's other points.
        state: `finished` (its artefact is in the store), `refused` (it has no meaning: nothing was computed), `failed`.
        names: what people call its parts, by option, as rows do.
        reason: why it was refused, or what its process said last.
        reference: of the artefact it is there for.
        log: where its processes' words are; "" where none was started.
        command: what does the same by hand.
        seconds: how long it took; 0 for what was there.
    """

    label: str
    state: str
    names: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    reference: str = ""
    log: str = ""
    command: str = ""
    seconds: float = 0.0


def keep(folder: Path, point: str, outcome: Outcome) -> None:
    """Write down the outcome of the point `point` of the sweep in `folder`."""
    path = folder / "points" / f"{point}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(outcome), ensure_ascii=False).encode())


def files(root: Path) -> list[Path]:
    """The files of the outcomes of all points of all sweeps in the store at `root`."""
    return sorted((root / FOLDER).glob("*/points/*.json"))


def read(path: Path) -> Outcome:
    """The outcome that a file keeps.

    Raises `Refused` for a file that is none.
    """
    said = json_of(read_foreign(path, MOST_JSON, "the outcome of a point"), path)
    try:
        outcome = Outcome(**said)
        "".join([outcome.label, outcome.reason, outcome.reference, outcome.log, outcome.command])
        "".join([*outcome.names.keys(), *outcome.names.values()])
    except (TypeError, AttributeError) as error:
        raise Refused(f"{path}: expected the outcome of a point, got something else ({error}); remove it") from error
    if outcome.state not in STATES:
        raise Refused(f"{path}: expected a state of {', '.join(STATES)}, got {outcome.state!r}; remove it")
    return outcome
