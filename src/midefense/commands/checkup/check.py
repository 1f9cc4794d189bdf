"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, FINDING = "ok", "note", "FINDING"


@dataclass(frozen=True)
class Check:
    """What was seen of one thing.

    Args:
        section: what kind of thing (`versions`, `datasets` ...).
        what: what was seen, in words, without secrets.
        state: `OK`; `NOTE`, what is absent and may be wanted; `FINDING`, what is wrong.
        mend: the command that mends a finding, or brings what a note says is absent.
    """

    section: str
    what: str
    state: str = OK
    mend: str = ""

    def __post_init__(self) -> None:
        if self.state == FINDING and not self.mend:
            raise ValueError(f"{self.section}: a finding carries the command that mends it, got none for {self.what!r}")
