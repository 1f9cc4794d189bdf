"""Which classes a configuration may name: `_target_` must not become a way to run anything."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable

from midefense.plan.stored_names import present_name
from midefense.types import Refused, refuse_unknown

ROOMS = (
    "architectures",
    "attacks",
    "compute",
    "datasets",
    "defenses",
    "evidence",
    "metrics",
    "obscuring",
    "priors",
    "tracking.settings",
    "training",
)
LIBRARIES = ("torch.optim", "torch.nn", "torchvision.transforms")


def look_here_too() -> None:
    """Let Python find modules of the user's own in the current folder, as `python -m` does: last, so that nothing
    installed is shadowed."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


def resolve(name: str, allow: Iterable[str] = ()) -> Callable:
    """The class a `_target_` names, if it is *defined* in a place that configurations may name.

    The string alone decides nothing: `torch.nn.functional.torch.load` begins with torch.nn and is torch.load. What is
    tested is the module the resolved object says it was defined in. A module outside the list is never imported. One of
    the user's own (`allow`) may also lie in the folder that the command is called from.
    """
    name, admitted = present_name(name), (*(f"midefense.{room}" for room in ROOMS), *LIBRARIES, *allow)
    outside = Refused(
        f"_target_ {name!r} is outside the whitelist ({', '.join(admitted)}); "
        "a module of your own is added on purpose with 'allow=[its_name]'"
    )
    if not _within(name, admitted):
        raise outside
    if "." not in name:
        raise Refused(f"_target_: expected module.Class, got {name!r}")
    parts = name.split(".")
    if _within(name, allow):
        look_here_too()
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and module_name.startswith(error.name):
                continue
            raise _not_imported(name, module_name, error) from error
        except Exception as error:
            if not _within(module_name, allow):
                raise
            raise _not_imported(name, module_name, error) from error
        break
    else:
        raise Refused(f"_target_ {name!r}: no such module; expected module.Class")
    for part in parts[cut:]:
        inside = getattr(found, "__dict__", {}).items()
        found = getattr(found, part, None)
        if found is None:
            classes = [key for key, value in inside if inspect.isclass(value) and _within(value.__module__, admitted)]
            raise refuse_unknown(f"_target_ {name!r}", part, sorted(classes))
    if not _within(getattr(found, "__module__", None) or "", admitted):
        raise outside
    if not inspect.isclass(found):
        raise Refused(f"_target_ {name!r}: expected a class, got a {type(found).__name__}")
    return found


def _not_imported(name: str, module: str, error: Exception) -> Refused:
    """The refusal of a module whose own code, or what that imports, failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{error.filename}, line {error.lineno}" if isinstance(error, SyntaxError) else None
    return Refused(
        f"_target_ {name!r}: expected a module that Python can import, got {type(error).__name__} from {module}: "
        f"{error} ({where or f'{frame.filename}, line {frame.lineno}'}); try python -c 'import {module}'"
    )


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
