"""What W&B's own reader says of an offline log: the program behind `wandb leet inspect`, without its command line."""

import json
import subprocess
from pathlib import Path


def inspected(folder: Path, *options: str) -> str:
    """The reader's text about the log in the folder of an offline run, as JSON."""
    from wandb.util import get_core_path

    (log,) = folder.glob("run-*.wandb")
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    command += ["--run-file", str(log), str(folder.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def records(folder: Path) -> list[dict]:
    """All records, in order."""
    return [json.loads(line) for line in inspected(folder).splitlines()]


def summary(folder: Path) -> dict:
    """The summary as it stands at the end."""
    return json.loads(inspected(folder, "--summary"))["summary"]
