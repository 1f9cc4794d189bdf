"""Options of a prior in an attack's file, for the priors that it names:

    defaults: [gmi, override /prior@_global_.prior: gmi_gan_small, _self_]
    prior_options:
      gmi_gan_small: {width: 8}

If that prior is the one chosen, they are laid over it once everything is composed, except where the command line, or a
file above the attack (an experiment), says otherwise. Such a file is known by a value that differs from the one in the
prior's own file: one that repeats the very value of that file is taken for silence. `--cfg job` stops before this: it
shows `attack.prior_options` as they were written, and the prior without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from midefense.plan.overrides import Override
from midefense.types import Refused, refuse_unknown

KEY = "prior_options"


def options_for(chosen: str | None, said: object, priors: Iterable[str], where: str) -> dict:
    """What `prior_options` say of the chosen prior; refused where they name a prior that is not among `priors`."""
    priors = sorted(priors)
    for name in _mapping(said, where):
        if name != chosen and name not in priors:
            raise refuse_unknown(f"{where}.{name}: no such prior", name, priors)
    return _mapping(said.get(chosen, {}), f"{where}.{chosen}")


def require_known(options: Mapping, own: Mapping, where: str) -> None:
    """Refuse options that the prior's file (`own`) does not have, at every depth."""
    for name, value in options.items():
        if name not in own:
            raise refuse_unknown(f"{where}.{name}: no such option", name, own)
        if isinstance(value, dict) and isinstance(own[name], dict):
            require_known(value, own[name], f"{where}.{name}")


def lay_over(prior: dict, options: Mapping, own: Mapping, words: Sequence[Override], path: str = "prior") -> None:
    """Change values of `prior` to those of `options`, where nobody set them.

    Somebody did if a word of the command line sets the value or the part that holds it, or if it is not what the file
    of the prior (`own`) says.

    Args:
        path: where `prior` stands in the configuration.
    """
    for name, value in options.items():
        here, held = f"{path}.{name}", prior.get(name)
        if any(word.key == here for word in words):
            continue
        if isinstance(value, dict) and isinstance(own[name], dict) and isinstance(held, dict):
            lay_over(held, value, own[name], words, here)
        elif name in prior and held == own[name] and not any(word.sets(here) for word in words):
            prior[name] = value


def _mapping(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise Refused(f"{where}: expected options by prior, got {value!r}; try {{gmi_gan: {{...}}}}")
    return value
