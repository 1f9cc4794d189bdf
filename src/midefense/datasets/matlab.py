"""Tables in MATLAB's own file format (version 5), which several sets publish."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from midefense.types import Refused

# scipy's ways to say broken; IndexError: of a file shorter than its header.
BROKEN = (MatReadError, OSError, ValueError, TypeError, IndexError, NotImplementedError, zlib.error)


def read_variables(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The variables `names` and no others, dimensions of length 1 removed but for the last. Refused, the file named,
    where it is broken or lacks one of them."""
    try:
        found = scipy.io.loadmat(path, variable_names=list(names), squeeze_me=True)
    except BROKEN as error:
        raise Refused(f"{path} cannot be read as a MATLAB 5 file ({error}). Try unpacking the set again.") from error
    absent = [name for name in names if name not in found]
    if absent:
        raise Refused(
            f"{path}: expected the variables {', '.join(names)}, got no {absent[0]}. Try unpacking the set again."
        )
    return {name: np.atleast_1d(found[name]) for name in names}
