"""The command line over a store: list, show, verify, rm, and weights of others: import, export."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

from midefense.artefacts import KINDS, Artefact
from midefense.store import Store
from midefense.types import Refused


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (1: refused, or something was found broken)."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    options.overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if options.overrides != rest or (rest and options.command is not _import):
        parser.error(f"unrecognised: {' '.join(word for word in rest)}; import alone takes KEY=VALUE")
    try:
        return options.command(Store(options.store), options)
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1


def _list(store: Store, options: argparse.Namespace) -> int:
    for artefact in store.list(options.kind):
        size = sum(path.stat().st_size for path in artefact.path.iterdir())
        print(f"{artefact.provenance['created']}  {size / 1e6:8.2f} MB  {artefact.reference}")
    broken = store.broken(options.kind)
    for problem in broken.values():  # each begins with its folder
        print(f"BROKEN   {problem}")
    return 1 if broken else 0


def _show(store: Store, options: argparse.Namespace) -> int:
    artefact = _find(store, options.reference)
    print(f"# {artefact.path}\n\n# config.yaml")
    print(yaml.safe_dump(artefact.recipe, sort_keys=False))
    for name, content in (("provenance.json", artefact.provenance), ("metrics.json", artefact.metrics)):
        print(f"# {name}\n{json.dumps(content, indent=1)}\n")
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    paths = [_only(store, options.reference)] if options.reference else None
    found = list(store.check(paths))
    for reference, problem in found:
        print(f"BROKEN   {problem}" if problem else f"ok       {reference}")
    broken = sum(bool(problem) for _, problem in found)
    print(f"{len(found)} checked, {broken} broken")
    return 1 if broken else 0


def _remove(store: Store, options: argparse.Namespace) -> int:
    path = _only(store, options.reference)
    reference = f"{path.parent.name}/{path.name}"  # the folder's name: its provenance may be broken
    dependants = store.dependants(reference)
    if dependants and not options.dependants:
        names = "\n  ".join(other.reference for other in dependants)
        print(f"{reference} is needed by\n  {names}\nnothing was removed; add --dependants to remove them too")
        return 1
    for doomed in [*(other.path for other in reversed(dependants)), path]:
        store.remove(doomed)
        print(f"removed {doomed.parent.name}/{doomed.name}")
    return 0


def _import(store: Store, options: argparse.Namespace) -> int:
    from midefense.published_priors import import_prior
    from midefense.published_weights import import_classifier

    common = {"dataset": options.dataset, "overrides": options.overrides, "name": options.name}
    if options.role == "prior":
        _require(options, prior="--prior")
        artefact = import_prior(store, options.file, critic=options.critic, prior=options.prior, **common)
        print(artefact.reference)
        print(f"use it as prior_artefact={artefact.id}")
        return 0
    _require(options, architecture="--architecture")
    artefact = import_classifier(
        store,
        options.file,
        role=options.role,
        architecture=options.architecture,
        class_names=options.class_names,
        reorder=options.reorder,
        expect=options.expect,
        select=options.select,
        **common,
    )
    place = "evaluators.main.artefact" if options.role == "evaluator" else "target"
    print(artefact.reference)
    print(f"test accuracy {artefact.metrics['test_accuracy_top1']:.4f}; use it as {place}={artefact.id}")
    return 0


def _require(options: argparse.Namespace, **flags: str) -> None:
    for name, flag in flags.items():
        if getattr(options, name) is None:
            raise Refused(f"import --as {options.role}: expected {flag} NAME, got none; see --help")


def _export(store: Store, options: argparse.Namespace) -> int:
    from midefense.published_weights import export_classifier

    print(export_classifier(store, options.reference, options.file, options.format))
    return 0


def _find(store: Store, reference: str) -> Artefact:
    artefact = store.read(_only(store, reference))
    artefact.verify()
    return artefact


def _only(store: Store, reference: str) -> Path:
    kind, _, name = reference.strip("/").rpartition("/")
    found = store.named(name, kind if kind in KINDS else None)
    if len(found) != 1:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in found) or "none"
        raise Refused(
            f"expected one artefact called {reference}, got {len(found)}: {names}; see `python -m midefense.store list`"
        )
    return found[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m midefense.store", description="Look after the store of artefacts.")
    default = os.environ.get("MIDEFENSE_STORE", "store")
    parser.add_argument("--store", default=default, help=f"folder of the store (default: {default})")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="every artefact, oldest first")
    listing.add_argument("kind", nargs="?", choices=KINDS)
    listing.set_defaults(command=_list)
    show = commands.add_parser("show", help="configuration, provenance and metrics of one artefact")
    show.set_defaults(command=_show)
    verify = commands.add_parser("verify", help="compare every file with its recorded hash")
    verify.set_defaults(command=_verify)
    remove = commands.add_parser("rm", help="remove one artefact")
    remove.add_argument("--dependants", action="store_true", help="also remove what was made from it")
    remove.set_defaults(command=_remove)
    _add_import(commands.add_parser("import", help="weights that others trained, as a target or a prior"))
    export = commands.add_parser("export", help="the weights of a target as one file")
    export.add_argument("reference")
    export.add_argument("file", help="a new .pt, .pth, .tar or .safetensors")
    names = "names of the original implementation, or ours (default: published)"
    export.add_argument("--format", choices=("published", "plain"), default="published", help=names)
    export.set_defaults(command=_export)
    show.add_argument("reference")
    remove.add_argument("reference")
    verify.add_argument("reference", nargs="?", default="", help="one artefact (default: all)")
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "KEY=VALUE words are those of train_target.py (of attack.py for a prior): dataset.root=DIR ..."
    parser.add_argument("file", help="a torch file or .safetensors; nothing but tensors is read")
    parser.add_argument("--as", dest="role", choices=("target", "evaluator", "prior"), required=True)
    parser.add_argument("--dataset", required=True, help="an option of conf/dataset: what the weights know")
    parser.add_argument("--architecture", help="an option of conf/architecture")
    parser.add_argument("--prior", help="an option of conf/prior; the file is its generator")
    parser.add_argument("--critic", help="the file of the prior's critic")
    parser.add_argument("--name", help="what to call the artefact")
    parser.add_argument("--class-names", help="file with the classes in the order of the head, one per line or JSON")
    parser.add_argument(
        "--reorder", action="store_true", help="put the head's rows in the dataset's order of the names"
    )
    parser.add_argument(
        "--expect", type=float, help="test accuracy that was reported, in [0, 1]; refused well below it"
    )
    selections = ("unknown", "last", "validation", "test_legacy")
    parser.add_argument("--select", choices=selections, default="unknown", help="how its authors chose the epoch")
    parser.set_defaults(command=_import)
