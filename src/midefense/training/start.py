"""Where a training begins that does not begin with drawn weights: a target of the store, or a file of weights.

A recipe names it (`recipe.start=REF` or `recipe.start=FILE`); `plan.references` makes one of these of the name, so that
the recipe holds what was named by its content: the id of the artefact, or the SHA-256 of the file.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from midefense.architectures.checkpoints import read_tensors
from midefense.store.artefacts import file_sha256
from midefense.types import Refused


class Start:
    """A trained network whose body a training takes over; the head is drawn anew for the classes of the dataset."""

    revision = 1


class FromTarget(Start):
    """A target of the store.

    id: of the artefact.
    path: its folder; no part of the id, and the store is asked for the id where the folder is gone.
    """

    revision = 1
    places = ("path",)

    def __init__(self, *, id: str, path: str | None = None) -> None:
        self.id = id
        self.path = path

    @property
    def reference(self) -> str:
        """`target/name@id` where the folder is known, else the id."""
        return self.id if self.path is None else f"target/{Path(self.path).name}"


class FromFile(Start):
    """A file of weights: safetensors, or what torch saved of tensors alone.

    sha256: of the file, in hex.
    file: where it lay; no part of the id.
    """

    revision = 1
    places = ("file",)

    def __init__(self, *, sha256: str, file: str | None = None) -> None:
        self.sha256 = sha256
        self.file = file

    @classmethod
    def hashed(cls, file: Path) -> dict[str, str]:
        """The arguments that name a file as it is now."""
        return {"sha256": file_sha256(file), "file": str(file.resolve())}

    def tensors(self) -> dict[str, Tensor]:
        """Its state dict, under the names it was published with. Refused if it is not the file it was."""
        file = Path(self.file or "")
        now = self.hashed(file)["sha256"] if file.is_file() else "no file"
        if now != self.sha256:
            raise Refused(
                f"recipe.start: expected {file} with SHA-256 {self.sha256[:12]}, got {now[:12]}; try the file it was, "
                "or the same command again, which begins with the file as it is"
            )
        return read_tensors(file)
