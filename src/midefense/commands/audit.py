"""`midefense audit CHECKPOINT --network mynet:Net --images DIR`: from a checkpoint to a verdict, in minutes on a CPU.

Nothing but other commands: it prints each one and does what it does (`midefense import`, `midefense evaluate`, which
makes what is missing on the way, and `midefense report`).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from midefense.commands.parsing import add_choice, add_store, count, is_override, refusing
from midefense.foreign import path_of
from midefense.plan.overrides import laid_over, parsed, written
from midefense.store.artefacts import Artefact
from midefense.store.store import Store
from midefense.terminal import say, shown
from midefense.types import Refused

SIDES = (32, 64)  # pixels that images are made: what the small GAN can make, in minutes
LOOKED_AT = 50  # pictures whose headers say how large they are, and whether grey or colour
# With public images a small GAN learns from them; without any the attacker has only pixels.
WITH_PUBLIC = ("attack=gmi_small", "attack.init.candidates=5")
WITHOUT_PUBLIC = ("attack=mi_face", "attack/objective=cross_entropy_tv")
WEAK = (
    "note: without --public the attacker knows nothing of how such images look, and deep networks then rarely show "
    "anything; pictures of the same kind, of other people, make the attack that counts"
)
ON_THE_TARGET = ("dataset", "architecture", "defense", "train_on")


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused)."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    options.overrides = [word for word in rest if is_override(word)]
    if options.overrides != rest:
        parser.error(f"expected KEY=VALUE, got {' '.join(rest)}")
    return refusing(lambda: _carry_out(commands_of(options), options))


@dataclass(frozen=True)
class Commands:
    """The words of the commands that an audit is made of: of the dataset and the network, for `midefense import`, and
    of the attack, for `midefense evaluate`, which the target is put in front of."""

    architecture: str
    target: tuple[str, ...]
    attack: tuple[str, ...]


def commands_of(options: argparse.Namespace) -> Commands:
    """What the options of an audit mean. The user's own words replace those of the same key, or within it.

    Raises `Refused` for a network that is neither `module:Class` nor an architecture, and for folders without pictures.
    """
    architecture, network = _network(options.network)
    look = Look.into(_absolute(options.images))
    seen = options.size or (min(look.side, SIDES[-1]) if network else None)
    made = next((side for side in SIDES if side >= (seen or look.side)), SIDES[-1])
    if look.side > made:
        say(
            f"note: images are made {made}x{made} (the smallest side found is {look.side}); dataset.size says otherwise"
        )
    shape = (f"channels={options.channels or look.channels}", f"size={made}", "convert=true")
    target = [f"dataset.private_root={written(str(look.folder))}", *(f"dataset.{word}" for word in shape), *network]
    target += [f"architecture.size={seen}"] if seen else []
    target += [f"dataset.private_test_root={written(str(_absolute(options.test)))}"] if options.test else []
    attack = [*_attacker(options.public, shape), *(word for word in network if word.startswith("allow="))]
    if look.classes > options.identities:
        attack.append(f"evidence.classes=[{','.join(map(str, range(options.identities)))}]")
    own = parsed(options.overrides)
    of_target = [word.text for word in own if word.option in (*ON_THE_TARGET, "allow")]
    of_attack = [word.text for word in own if word.option not in ON_THE_TARGET]
    return Commands(architecture, tuple(laid_over(of_target, target)), tuple(laid_over(of_attack, attack)))


def _attacker(public: str | None, shape: Sequence[str]) -> list[str]:
    """The quick attack that there is for what the attacker owns. Nothing leaves this machine unless it is asked for."""
    if public is None:
        return [*WITHOUT_PUBLIC, "tracking=none"]
    folder = ["public=picture_folder", f"public.dataset.root={written(str(_absolute(public)))}"]
    return [*WITH_PUBLIC, "tracking=none", *folder, *(f"public.dataset.{word}" for word in shape)]


def _absolute(folder: str) -> Path:
    return path_of(folder).absolute()


def _network(name: str) -> tuple[str, list[str]]:
    """The architecture that `--network` means, and the words that say which class it is."""
    from midefense.plan.compose import CONF

    module, colon, cls = name.partition(":")
    if colon and module and cls.isidentifier():
        words = ["~architecture.network._args_", f"architecture.network._target_={module}.{cls}"]
        return "custom", [*words, "architecture.feature_layer=null", f"allow=[{module}]"]
    if colon or not (CONF / "architecture" / f"{name}.yaml").is_file():
        raise Refused(
            f"--network: expected module:Class of your own, such as mynet:Net, or one of ours, got {name}; "
            "ours are listed by `midefense train --help`"
        )
    return name, []


@dataclass(frozen=True)
class Look:
    """What a folder of class folders looks like: how many `classes`, the smallest `side` in pixels and the `channels`
    (1: all grey) of the first pictures of each."""

    folder: Path
    classes: int
    side: int
    channels: int

    @classmethod
    def into(cls, folder: Path) -> Look:
        """Look at the headers of some pictures; `Refused` where there are none."""
        from PIL import Image

        from midefense.datasets.image_folder import class_folders, list_folders

        if not folder.is_dir():
            raise Refused(f"--images: expected a folder with one folder per class, got no folder {folder}")
        files = list_folders(class_folders(folder))
        sides, grey = [], True
        for path in files.paths[:: max(1, len(files) // LOOKED_AT)]:
            try:
                with Image.open(path) as picture:
                    sides.append(min(picture.size))
                    grey &= picture.mode in ("1", "L", "LA")
            except OSError as error:
                raise Refused(f"{path}: expected a picture, got what Pillow cannot read ({error})") from error
        return cls(folder, len(files.names), min(sides), 1 if grey else 3)


def _carry_out(commands: Commands, options: argparse.Namespace) -> int:
    from midefense.exchange.classifiers import Choice, import_classifier
    from midefense.report import Row, build, table
    from midefense.report.verdict import verdict

    _say("import", options.checkpoint, "--as", "target", *_import_words(commands, options), *commands.target)
    target = import_classifier(
        Store(options.store),
        options.checkpoint,
        role="target",
        architecture=commands.architecture,
        dataset="image_folder",
        overrides=commands.target,
        class_names=options.class_names,
        reorder=options.reorder,
        expect=options.expect,
        choice=Choice(options.entry, options.strip, options.add),
    )
    tested = "test images" if options.test else "the test images that were cut off, which it may have been trained on"
    say(f"{target.reference}: accuracy {target.metrics['test_accuracy_top1']:.4f} on {tested}")
    if doubt := target.metrics["claim"].get("doubt"):
        say(f"note: {doubt}")
    if options.public is None:
        say(WEAK)
    words = [f"target={target.id}", *commands.attack, f"store={options.store}"]
    seeds = list(range(options.seeds))
    _say("evaluate", "-m", *words, f"seed={','.join(map(str, seeds))}")
    results = [_result([*words, f"seed={seed}"]) for seed in seeds]
    rows = [Row.parse(result.metrics, result.path) for result in results]
    said = verdict(rows)
    _say("report", "--store", options.store, "--out", options.out)
    say(f"{table(rows)}\n\nreport: {build(rows, Path(options.out), lead=said)}\n{said}")
    return 0


def _import_words(commands: Commands, options: argparse.Namespace) -> list[str]:
    """The options of `midefense import` that an audit hands on."""
    words = ["--architecture", commands.architecture, "--dataset", "image_folder", "--store", str(options.store)]
    for name in ("entry", "strip", "add", "class_names", "expect"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *(["--reorder"] if options.reorder else [])]


def _result(words: Sequence[str]) -> Artefact:
    """The artefact of one row, got or made; what has to be made is said before, and each stage as it goes."""
    from midefense.pipeline.ahead import look_ahead
    from midefense.pipeline.pipeline import Pipeline
    from midefense.plan.compose import compose
    from midefense.plan.read import read_plan

    config, choices = compose("evaluate", words)
    pipeline = Pipeline(read_plan("evaluate", config, choices, words))
    agenda = look_ahead(pipeline)
    if agenda.missing:
        print(shown("\n".join(agenda.lines())), file=sys.stderr, flush=True)
    return pipeline.result


def _say(*words: object) -> None:
    """Print a command as a person would type it."""
    say(f"$ midefense {shlex.join(map(str, words))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense audit",
        usage="midefense audit CHECKPOINT --network mynet:Net --images DIR [--public DIR] [options] [KEY=VALUE ...]",
        description="Attack a checkpoint of your own and say whether it leaks: a report and one sentence. It prints "
        "the commands that it is made of, and goes on where it stopped when it is called again.",
        epilog="KEY=VALUE: as in `midefense train` and `midefense evaluate`, such as +architecture.network.width=64, "
        "architecture.mean=[0.485,0.456,0.406] or attack=ppa_small.",
    )
    parser.add_argument("checkpoint", help="a torch file or .safetensors; nothing but tensors is read")
    network = "module:Class of your own (from this folder or PYTHONPATH), or an option of conf/architecture"
    parser.add_argument("--network", required=True, metavar="NAME", help=network)
    parser.add_argument("--images", required=True, metavar="DIR", help="private images, one folder per class")
    parser.add_argument("--test", metavar="DIR", help="images of the same classes that it was not trained on")
    public = "pictures of the same kind that an attacker may own, of nobody in --images; makes the attack far stronger"
    parser.add_argument("--public", metavar="DIR", help=public)
    side = f"pixels of a side that the network sees (default: those of the images, at most {SIDES[-1]})"
    parser.add_argument("--size", type=count, help=side)
    parser.add_argument("--channels", type=int, choices=(1, 3), help="1 grey, 3 RGB (default: as the images are)")
    parser.add_argument("--identities", type=count, default=10, help="how many classes are attacked (default: 10)")
    parser.add_argument("--seeds", type=count, default=3, help="how many attacks (default: 3)")
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    parser.add_argument("--class-names", help="file with the classes in the order of the head, one per line or JSON")
    parser.add_argument("--reorder", action="store_true", help="put the head's rows in the order of the class folders")
    parser.add_argument("--expect", type=float, help="test accuracy that it should have, in [0, 1]")
    add_choice(parser)
    add_store(parser)
    return parser
