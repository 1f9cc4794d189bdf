"""Versions, devices, environment variables, and whether W&B knows who is asking."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from midefense.commands.checkup.check import FINDING, NOTE, Check
from midefense.compute import memory_bytes
from midefense.foreign import read_foreign
from midefense.store.plain import looks_secret, plain
from midefense.tracking.wandb_mirror import key_configured

PINS = Path(__file__).resolve().parents[4] / "requirements.txt"  # of a checkout; an installed package has none
MOST_BYTES = 1 << 20  # of that file
CUDA_DRIVER = Path("/dev/nvidiactl")
WANDB_SERVER = "https://api.wandb.ai"
WANDB_MODES = ("online", "offline", "disabled", "dryrun", "shared", "run")
VARIABLES = (
    "MIDEFENSE_STORE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
    "TMPDIR",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "NETRC",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    "WANDB_MODE",
    "WANDB_PROJECT",
    "WANDB_SWEEP_ID",
)


def versions(pins: Path = PINS) -> Iterator[Check]:
    """Python and every package that ours asks for, against what it can work with (a finding) and against the pinned
    versions that its numbers were measured with (a note)."""
    ours = importlib.metadata.metadata("midefense")
    python, allowed = platform.python_version(), ours["Requires-Python"] or ""
    if python in SpecifierSet(allowed):
        yield Check("versions", f"Python {python}")
    else:
        mend = f"python3.11 -m venv .venv && .venv/bin/pip install -r {shlex.quote(str(pins))}"
        yield Check("versions", f"Python {python}, expected {allowed}", FINDING, mend)
    pinned = _pinned(pins)
    for text in ours.get_all("Requires-Dist") or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            yield _version(wanted, pinned.pop(wanted.name.lower(), None), pins)
    others = [name for name, pin in pinned.items() if (has := _installed(name)) and has != pin]
    if others:
        told = ", ".join(f"{name} {_installed(name)} (pinned {pinned[name]})" for name in others)
        yield Check("versions", f"other versions than pinned: {told}", NOTE, _install(pins))


def _version(wanted: Requirement, pin: str | None, pins: Path) -> Check:
    has = _installed(wanted.name)
    if has is None or not wanted.specifier.contains(has, prereleases=True):
        got = "not installed" if has is None else has
        mend = f"pip install {shlex.quote(f'{wanted.name}{wanted.specifier}')}"
        return Check("versions", f"{wanted.name} {got}, expected {wanted.specifier or 'any'}", FINDING, mend)
    if pin is not None and pin != has:
        return Check("versions", f"{wanted.name} {has}, pinned {pin}", NOTE, _install(pins))
    return Check("versions", f"{wanted.name} {has}")


def _installed(name: str) -> str | None:
    """The version of a package, without what its builder added (`2.15.0+cu132`)."""
    try:
        return Version(importlib.metadata.version(name)).public
    except importlib.metadata.PackageNotFoundError:
        return None


def _pinned(file: Path) -> dict[str, str]:
    """The versions that a file of requirements pins for this Python and system, by name."""
    if not file.is_file():
        return {}
    lines = read_foreign(file, MOST_BYTES, "a file of requirements").decode().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    holding = [one for one in wanted if one.marker is None or one.marker.evaluate()]
    return {one.name.lower(): str(one.specifier).removeprefix("==") for one in holding}


def _install(pins: Path) -> str:
    return f"pip install -r {shlex.quote(str(pins))}"


def devices() -> Iterator[Check]:
    """Cores, memory, and GPUs that torch can use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = memory_bytes() / 2**30
    yield Check(
        "devices",
        f"cpu ({platform.machine()}): {cores} cores, {torch.get_num_threads()} threads, {memory:,.0f} GiB of memory",
    )
    for number in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
        name = torch.cuda.get_device_name(number)
        yield Check("devices", f"cuda:{number}: {name}, {free:,.0f} of {total:,.0f} GiB of memory free")
    if torch.cuda.is_available():
        return
    if not CUDA_DRIVER.exists() and shutil.which("nvidia-smi") is None:
        yield Check("devices", "no GPU")
    elif torch.version.cuda is None:
        mend = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"
        yield Check("devices", "a GPU is there, and torch was built without CUDA", FINDING, mend)
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield Check("devices", "the GPUs are hidden from torch", NOTE, "unset CUDA_VISIBLE_DEVICES")
    else:
        yield Check("devices", "a GPU is there, and torch cannot use it", FINDING, "nvidia-smi")


def variables() -> Iterator[Check]:
    """Environment variables that change what a verb does, those that cannot be meant among them."""
    for name in VARIABLES:
        value = os.environ.get(name)
        if value is None:
            continue
        wrong = _wrong(name, value)
        shown = "set, not shown" if looks_secret(name) else without_logins(str(plain(value)))
        if wrong:
            yield Check("variables", f"{name}={shown}: {wrong}", FINDING, f"unset {name}")
        else:
            yield Check("variables", f"{name}={shown}" if not looks_secret(name) else f"{name} is {shown}")


def _wrong(name: str, value: str) -> str:
    """Why a variable cannot be meant so; "" if it can."""
    if name == "OMP_NUM_THREADS" and not all(part.strip().isdecimal() and int(part) for part in value.split(",")):
        return "expected a whole number of at least 1"
    if name == "MIDEFENSE_STORE" and not value.strip():
        return "expected a folder"
    if name == "TMPDIR" and not Path(value).is_dir():
        return "no such folder"
    if name == "WANDB_MODE" and value not in WANDB_MODES:
        return f"expected one of {', '.join(WANDB_MODES)}"
    if name in ("WORLD_SIZE", "LOCAL_RANK") and "TORCHELASTIC_RUN_ID" not in os.environ:
        return "left from a start by torchrun: each verb waits for others"
    return ""


def without_logins(text: str) -> str:
    """A text whose addresses do not say who logs in (https://NAME:PASSWORD@HOST; a password may hold an @)."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def login() -> Check:
    """Whether runs can be sent to W&B, as far as this machine's files and variables say; nobody is asked."""
    server = os.environ.get("WANDB_BASE_URL", WANDB_SERVER)
    shown = without_logins(server)
    if os.environ.get("WANDB_MODE") == "disabled":
        return Check("W&B", "disabled by WANDB_MODE", NOTE, "unset WANDB_MODE")
    if key_configured(server):
        return Check("W&B", f"a login for {shown} is there; not asked whether it is valid")
    return Check("W&B", f"no login for {shown}: runs are kept here, with offline logs", NOTE, "wandb login")
