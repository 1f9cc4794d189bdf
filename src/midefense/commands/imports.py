"""`midefense import FILE --as target|evaluator|prior|stylegan2`: weights that others trained, into the store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from midefense.commands.parsing import add_choice, add_store, is_override, refusing
from midefense.store.store import Store
from midefense.types import Refused

SELECTIONS = ("unknown", "last", "validation", "test_legacy")
TENSORS = "a torch file or .safetensors; nothing but tensors is read"


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused)."""
    roles = {"target": _classifier, "evaluator": _classifier, "prior": _prior, "stylegan2": _stylegan2}
    opening = argparse.ArgumentParser(prog="midefense import", add_help=False)
    opening.add_argument("--as", dest="role", choices=roles)
    role = opening.parse_known_args(words)[0].role
    parser = argparse.ArgumentParser(
        prog="midefense import",
        usage=f"midefense import FILE --as {role or '{' + ','.join(roles) + '}'} [options] [KEY=VALUE ...]",
        description="Bring in weights that others trained. `--as ROLE --help` says what a role takes.",
        epilog="KEY=VALUE: as in `midefense train` (for a prior, in `midefense attack`), such as dataset.root=DIR.",
    )
    add_store(parser)
    parser.add_argument("--as", dest="role", choices=roles, required=True)
    parser.add_argument("file", help=TENSORS)
    carry_out = roles[role](parser) if role else None
    options, rest = parser.parse_known_args(words)
    options.overrides = [word for word in rest if is_override(word)]
    if options.overrides != rest or (rest and role == "stylegan2"):
        parser.error(f"expected KEY=VALUE, got {' '.join(rest)}")
    return refusing(lambda: carry_out(options))


Act = Callable[[argparse.Namespace], int]


def _classifier(parser: argparse.ArgumentParser) -> Act:
    parser.add_argument("--dataset", required=True, help="an option of conf/dataset: what the weights know")
    parser.add_argument("--architecture", required=True, help="an option of conf/architecture")
    parser.add_argument("--name", help="what to call the artefact")
    parser.add_argument("--class-names", help="file with the classes in the order of the head, one per line or JSON")
    reorder = "put the head's rows in the dataset's order of the names"
    parser.add_argument("--reorder", action="store_true", help=reorder)
    expect = "test accuracy that was reported, in [0, 1]; refused well below it"
    parser.add_argument("--expect", type=float, help=expect)
    parser.add_argument("--select", choices=SELECTIONS, default="unknown", help="how its authors chose the epoch")
    add_choice(parser)
    return _import_classifier


def _import_classifier(options: argparse.Namespace) -> int:
    from midefense.exchange.classifiers import Choice, import_classifier

    artefact = import_classifier(
        Store(options.store),
        options.file,
        role=options.role,
        architecture=options.architecture,
        dataset=options.dataset,
        overrides=options.overrides,
        name=options.name,
        class_names=options.class_names,
        reorder=options.reorder,
        expect=options.expect,
        select=options.select,
        choice=Choice(options.entry, options.strip, options.add),
    )
    place = "evaluators.main.artefact" if options.role == "evaluator" else "target"
    print(artefact.reference)
    print(f"test accuracy {artefact.metrics['test_accuracy_top1']:.4f}; use it as {place}={artefact.id}")
    if doubt := artefact.metrics["claim"].get("doubt"):
        print(f"note: {doubt}")
    return 0


def _prior(parser: argparse.ArgumentParser) -> Act:
    parser.add_argument("--dataset", required=True, help="an option of conf/dataset: whose images it makes")
    parser.add_argument("--prior", required=True, help="an option of conf/prior; FILE is its generator")
    parser.add_argument("--critic", help="the file of the prior's critic")
    parser.add_argument("--learned-from", metavar="REF", help="the target that the prior learned from, if it asks one")
    parser.add_argument("--name", help="what to call the artefact")
    add_choice(parser)
    return _import_prior


def _import_prior(options: argparse.Namespace) -> int:
    from midefense.exchange.classifiers import Choice
    from midefense.exchange.priors import import_prior

    artefact = import_prior(
        Store(options.store),
        options.file,
        critic=options.critic,
        prior=options.prior,
        dataset=options.dataset,
        overrides=options.overrides,
        name=options.name,
        choice=Choice(options.entry, options.strip, options.add),
        learned_from=options.learned_from,
    )
    print(artefact.reference)
    print(f"use it as prior_artefact={artefact.id}")
    return 0


def _stylegan2(parser: argparse.ArgumentParser) -> Act:
    parser.description = (
        "Turn a published StyleGAN2 into tensors that prior=stylegan2_* reads. Nothing of a file is run."
    )
    parser.add_argument("--out", help="the file to write (default: STORE/stylegan2/<name of FILE>.safetensors)")
    parser.add_argument("--sha256", help="the hash that FILE must have")
    what = "what FILE does not say, as conv_clamp=256; or JSON"
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help=what)
    return _import_stylegan2


def _import_stylegan2(options: argparse.Namespace) -> int:
    from midefense.priors.stylegan2.importer import import_file, read_imported

    out = Path(options.out or Store(options.store).root / "stylegan2" / f"{Path(options.file).stem}.safetensors")
    told = {name: value for word in options.config for name, value in _argument(word).items()}
    import_file(options.file, out, sha256=options.sha256, told=told)
    config, _, critic, notes = read_imported(out)
    print(f"{notes['source']}: SHA-256 {notes['source_sha256']}")
    print(f"generator{'' if critic is None else ' and critic'} of {config}")
    print(f"use it as prior.weights={out}")
    return 0


def _argument(word: str) -> dict[str, object]:
    """What one word of `--config` gives: KEY=VALUE, or JSON of several."""
    from midefense.priors.stylegan2.generator import CRITICS

    key, equals, value = word.partition("=")
    try:
        if equals and not word.startswith("{"):
            return {key: value if value in CRITICS else json.loads(value)}
        return dict(json.loads(word))
    except (TypeError, ValueError) as error:
        raise Refused(f"--config: expected KEY=VALUE or JSON, got {word}; try conv_clamp=256") from error
