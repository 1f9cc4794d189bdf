"""Files of strangers by the hundred: each is read or refused in one sentence, within seconds, and nothing in it runs.

Every case is made by a name and a number, so that what fails can be made again. A few of each kind run every time.
"""

import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from report_rows import document, put

from midefense.architectures.checkpoints import BEGINNINGS, read_checkpoint
from midefense.commands.main import main
from midefense.exchange.class_order import read_names
from midefense.priors.stylegan2.importer import import_file, read_imported
from midefense.report import read_rows, table
from midefense.store import claims
from midefense.store.artefacts import Draft, content_digest
from midefense.store.claims import claim
from midefense.store.moved import read_moved
from midefense.store.store import Store
from midefense.tracking.run_folder import RunFolder
from midefense.types import Refused

SECONDS = 5
EVERY_TIME = 12  # cases of a kind that run every time


class Touch:
    """Runs where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TooLong(BaseException):
    """What no reader catches."""


@pytest.fixture(autouse=True)
def limits(tmp_path, monkeypatch):
    """Nothing may take longer, or leave the sentinel."""
    monkeypatch.setenv("SENTINEL", str(tmp_path / "sentinel"))

    def too_long(*_):
        raise TooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "sentinel").exists()


def refused_or_read(read: Callable[[], object]) -> str:
    """What a reader says: "" where it reads. Anything but a refusal in one sentence fails."""
    signal.alarm(SECONDS)
    try:
        read()
    except Refused as refusal:
        said = str(refusal)
        assert said.count("\n") == 0 and len(said) < 2000, said[:200]
        return said
    return ""


def kinds(makers: dict[str, Callable], count: int) -> list:
    """`count` cases, the makers in turn; the first of each, and a few more, run every time."""
    names = list(makers)
    return [
        pytest.param(names[i % len(names)], i, marks=() if i < max(len(names), EVERY_TIME) else pytest.mark.slow)
        for i in range(count)
    ]


def number(i: int) -> random.Random:
    return random.Random(f"midefense {i}")


# ------------------------------------------------------------------------------------------------ weights


def zipped(pickled: bytes, packing: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A torch file by hand."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, entry in entries.items():
            archive.writestr(f"archive/{name}", entry)
    return content.getvalue()


def of_old(pickled: bytes) -> bytes:
    """A torch file from before 1.6 by hand."""
    return BEGINNINGS[1] + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + pickled


def saved(content: object, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


STATE = {"body.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.zeros(2)}


def deep(rng: random.Random, levels: int, key: bool) -> bytes:
    opening, closing = (b"}", b"K\x01s.") if key else (b"", b".")
    inside = rng.choice([b")", b"K\x05", b"N"]) + rng.choice([b"\x85", b"K\x01\x86"]) * levels
    return b"\x80\x02" + opening + inside + closing


def flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 20])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def header(content: object, more: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + more


def one_tensor(rng: random.Random) -> dict:
    odd = {
        "dtype": rng.choice(["F32", "X9", "", None, 3]),
        "shape": rng.choice([[1 << 60, 1 << 60], [-1], [2, 2], "x", []]),
        "data_offsets": rng.choice([[0, 4], [4, 0], [0, 1 << 62], [-4, 0], "x", [0]]),
    }
    return {"w": odd, "__metadata__": rng.choice([{"a": "b"}, {"a": 1}, [], "x"])}


CALLS = [("os", "system"), ("builtins", "eval"), ("pathlib", "Path.touch"), ("torch", "load"), ("numpy", "load")]


def asks(rng: random.Random) -> bytes:
    module, name = rng.choice(
        [*CALLS, ("torch.\x1b[31m", "x"), ("a" * 100_000, "b"), ("torch._utils", "_rebuild_tensor_v2")]
    )
    argument = f"touch {os.environ['SENTINEL']}".encode()
    return (
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(argument)) + argument + b"\x85R."
    )


def repeated(rng: random.Random) -> bytes:
    side = rng.choice([1 << 16, 1 << 20])
    return saved({"w": torch.zeros(1).expand(side, side)})


WEIGHTS: dict[str, Callable[[random.Random], bytes]] = {
    "tuples": lambda rng: zipped(deep(rng, rng.choice([200, 10**4, 10**6]), key=False)),
    "tuples as a key": lambda rng: zipped(deep(rng, rng.choice([200, 10**5, 10**6]), key=True)),
    "tuples of old": lambda rng: of_old(deep(rng, rng.choice([200, 10**5, 10**6]), key=True)),
    "lists": lambda rng: zipped(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "a long number": lambda rng: zipped(b"\x80\x02\x8b" + struct.pack("<i", 4 << 20) + b"\x11" * (4 << 20) + b"."),
    "a number in words": lambda rng: zipped(b"I" + b"9" * rng.choice([5000, 2 << 20]) + b"\n."),
    "instructions": lambda rng: zipped(b"\x80\x02" + b"N0" * 10**6 + b"N."),
    "packed": lambda rng: zipped(b"\x80\x02N.", zipfile.ZIP_DEFLATED, data=bytes(1 << 24)),
    "a call": lambda rng: zipped(asks(rng)),
    "a call of old": lambda rng: of_old(asks(rng)),
    "an object": lambda rng: saved({"model": Touch(Path(os.environ["SENTINEL"]))}),
    "bytes flipped": lambda rng: flipped(rng, saved(STATE)),
    "bytes flipped of old": lambda rng: flipped(rng, saved(STATE, new=False)),
    "cut": lambda rng: saved(STATE)[: rng.randrange(1, 900)],
    "cut of old": lambda rng: saved(STATE, new=False)[: rng.randrange(1, 700)],
    "values that repeat": repeated,
    "flipped safetensors": lambda rng: flipped(rng, safetensors.torch.save(STATE)),
    "a header": lambda rng: header(one_tensor(rng), bytes(16)),
    "a deep header": lambda rng: header(b'{"a":' * 10**5, bytes(8)),
    "a long header": lambda rng: struct.pack("<Q", rng.choice([1 << 63, 1 << 40, (1 << 64) - 1])) + b'{"a": 1}',
    "noise": lambda rng: rng.choice([b"", b"PK\x03\x04", b"\x80\x02", BEGINNINGS[1], b"\0"]) + rng.randbytes(500),
    "strange names": lambda rng: saved(
        {rng.choice(["\x1b[2J", "\u202e", "a\nb", "x" * 5000, ""]): torch.zeros(1), "y": 3}
    ),
}


@pytest.mark.parametrize(("kind", "i"), kinds(WEIGHTS, 240))
def test_weights_of_strangers(tmp_path, kind, i):
    file = tmp_path / number(i).choice(["x.pt", "x.safetensors", "x.pkl"])
    file.write_bytes(WEIGHTS[kind](number(i)))
    signal.alarm(SECONDS)  # from here on: the making took time too
    said = refused_or_read(lambda: read_checkpoint(file))
    if kind not in ("bytes flipped", "bytes flipped of old", "flipped safetensors", "strange names", "cut of old"):
        assert said.startswith("weights: expected")
    refused_or_read(lambda: import_file(file, tmp_path / "out.safetensors"))
    refused_or_read(lambda: read_imported(file))


@pytest.mark.parametrize("special", ["pipe", "folder", "loop", "zero", "~nobody_is_called_so/x", "absent"])
@pytest.mark.parametrize("role", ["target", "stylegan2"])
def test_what_is_no_file(tmp_path, monkeypatch, capsys, special, role):
    """As a checkpoint, as a store, as class names."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("zero").symlink_to("/dev/zero")
    options = ["--architecture", "mlp", "--dataset", "toy"] if role == "target" else []
    assert main(["import", special, "--as", role, *options, "--store", "store"]) == 1
    refused_or_read(lambda: read_names(special))
    stores = [] if special in ("folder", "absent") else [main(["store", "--store", special, "list"])]
    said = capsys.readouterr().err
    assert stores in ([], [1]) and said.startswith("refused: ") and said.count("\n") == 1 + len(stores)


# ------------------------------------------------------------------------------------------------ texts


def yaml_of(rng: random.Random) -> bytes:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(22)
    )
    return rng.choice(
        [
            bomb.encode(),
            b"a: &a [*a]\n",
            b"[" * rng.choice([100, 10**5]),
            b"- " * 50000 + b"x",
            b"a: 1" + b":1" * 10**5,
            b"a: " + b"1" * 10**5,
            b"a: 0x" + b"f" * 10**6,
            b"!!python/object/apply:os.system ['touch $SENTINEL']",
            b"a: !!python/name:os.system",
            b"a: 2001-01-01",
            b"a: !!binary aGVsbG8=",
            b"? [a, b]\n: c\n",
            b"a: .nan",
            b"{a: 1, a: 2}",
            b"--- a\n--- b\n",
            b"\xff\xfe\0",
            b"x" * (5 << 20),
            b"<<: {a: 1}\nb: 2",
            rng.randbytes(300),
        ]
    )


def json_of(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"[" * 10**5,
            b'{"a":' * 10**5,
            b"9" * 10**5,
            b"NaN",
            b'{"a": 1e999}',
            b'"\\ud800"',
            b"null",
            b"[]",
            b"3",
            b'{"\\u001b[2J": "\\u001b[2J"}',
            b"\xff\xfe",
            b"",
            rng.randbytes(200),
        ]
    )


READERS: dict[str, Callable[[Path, bytes], object]] = {
    "class names": lambda folder, content: read_names(written(folder / "names.json", content)),
    "places": lambda folder, content: read_moved([written(folder / "moved" / "h1.json", content).parents[1]], "h1"),
    "run": lambda folder, content: RunFolder(written(folder / "run" / "status.json", content).parent, {}).close(
        "finished"
    ),
}


def written(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(("kind", "i"), kinds(READERS, 30))
def test_texts_of_strangers(tmp_path, kind, i):
    refused_or_read(lambda: READERS[kind](tmp_path, json_of(number(i))))


# ------------------------------------------------------------------------------------------------ artefacts


def resealed(folder: Path, **changes: object) -> None:
    """Write the provenance of a folder anew, with a digest that is right."""
    provenance = {**json.loads((folder / "provenance.json").read_text()), **changes}
    provenance = {key: value for key, value in provenance.items() if value is not ... and key != "digest"}
    provenance["digest"] = content_digest(provenance)
    (folder / "provenance.json").write_text(json.dumps(provenance))


FIELDS = ("kind", "name", "id", "created", "names", "parents", "places", "files", "bill", "machine", "versions", "host")
WRONG = (..., None, 3, "", "../../../evil", "\x1b[2J", [], {}, {"a": 1}, {"a": "../../x"}, {"../x": "y"}, ["x"], True)


def wrong_field(rng: random.Random, folder: Path) -> None:
    resealed(folder, **{rng.choice(FIELDS): rng.choice(WRONG)})


def wrong_recipe(rng: random.Random, folder: Path) -> None:
    """With the hash of what it says, as far as it says something."""
    content = yaml_of(rng)
    (folder / "config.yaml").write_bytes(content)
    files = json.loads((folder / "provenance.json").read_text())["files"]
    resealed(folder, files={**files, "config.yaml": sha256(content)})


def wrong_numbers(rng: random.Random, folder: Path) -> None:
    said = document()
    place = rng.choice(
        [said, said["row"], said["metrics"], said["metrics"]["attack_accuracy_top1/main"], said["anchors"]]
    )
    odd = rng.choice([None, 3, "\x1b[2J", [], {"a": {"b": []}}, "nan", 1e999, {"\x1b": 1}])
    place[rng.choice([*place, "evaluators", "made_on", "stopped", "class_names"])] = odd
    content = json_of(rng) if rng.random() < 0.3 else json.dumps(said).encode()
    (folder / "metrics.json").write_bytes(content)
    files = json.loads((folder / "provenance.json").read_text())["files"]
    resealed(folder, files={**files, "metrics.json": sha256(content)})


def no_provenance(rng: random.Random, folder: Path) -> None:
    (folder / "provenance.json").write_bytes(json_of(rng))


def special_file(rng: random.Random, folder: Path) -> None:
    file = folder / rng.choice(["provenance.json", "config.yaml", "metrics.json", "tensors.safetensors"])
    file.unlink()
    rng.choice(
        [lambda: os.mkfifo(file), file.mkdir, lambda: file.symlink_to(file), lambda: file.symlink_to("/dev/zero")]
    )()


def strange_folder(rng: random.Random, folder: Path) -> None:
    folder.rename(folder.with_name(rng.choice(["\x1b[2J@h1", "a\nok       b@h1", "\u202e@h1", "x@", "@"])))


def sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


SPOILERS = {
    "a wrong field": wrong_field,
    "a wrong recipe": wrong_recipe,
    "wrong numbers": wrong_numbers,
    "no provenance": no_provenance,
    "a special file": special_file,
    "a strange folder": strange_folder,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with a result in it."""
    store = tmp_path_factory.mktemp("whole") / "store"
    put(store, document(), "none")
    return store


@pytest.mark.parametrize(("kind", "i"), kinds(SPOILERS, 120))
def test_artefacts_of_strangers(tmp_path, whole, capsys, kind, i):
    """Listed, shown, verified, reported and looked for: what is wrong is said, and no escape reaches the terminal."""
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    (folder,) = (store / "result").iterdir()
    SPOILERS[kind](number(i), folder)
    for words in (["list"], ["show", "none"], ["verify"]):
        assert main(["store", "--store", str(store), *words]) in (0, 1)
    assert main(["report", "--store", str(store), "--out", str(tmp_path / "report.html")]) in (0, 1)
    refused_or_read(lambda: Store(store).open("none", "result"))
    refused_or_read(
        lambda: Store(store).find(Draft("result", "none", {"kind": "result", "of": "none", "note": "<b>&amp;"}))
    )
    rows, broken = read_rows(store)
    said = "".join(capsys.readouterr()) + table(rows)
    assert len(rows) + len(broken) == 1 and "\x1b" not in said.replace(table(rows), "") and "Traceback" not in said


# ------------------------------------------------------------------------------------------------ unfinished work


def wrong_state(rng: random.Random) -> bytes:
    return rng.choice([*WEIGHTS.values()])(rng)


@pytest.mark.parametrize(("kind", "i"), kinds({"a state": wrong_state, "a special file": wrong_state}, 60))
def test_states_of_strangers(tmp_path, capsys, kind, i):
    work = Store(tmp_path).work(Draft("target", "x", {"kind": "target"}))
    work.save("state", {"w": torch.zeros(2)})
    file = work.folder / "state.safetensors"
    if kind == "a state":
        file.write_bytes(wrong_state(number(i)))
    else:
        file.unlink()
        number(i).choice([lambda: os.mkfifo(file), file.mkdir, lambda: file.symlink_to(file)])()
    signal.alarm(SECONDS)
    assert work.load("state") is None and "expected a saved state" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "i"), kinds({"a claim": json_of, "an owner": json_of, "a special file": json_of}, 60))
def test_claims_of_strangers(tmp_path, monkeypatch, kind, i):
    """They are waited for until they are stale, and taken over then."""
    rng, file = number(i), tmp_path / "work" / "all.claim"
    file.parent.mkdir()
    if kind == "a claim":
        file.write_bytes(json_of(rng))
    elif kind == "an owner":
        owner = {
            "host": rng.choice([None, 3, "\x1b[2J", "x"]),
            "pid": rng.choice([-1, 0, 1 << 80, "1", None, 1.5, True]),
        }
        file.write_text(json.dumps(owner))
    else:
        rng.choice(
            [lambda: os.mkfifo(file), file.mkdir, lambda: file.symlink_to(file), lambda: file.symlink_to("/dev/zero")]
        )()
    with claim(file) as mine:
        assert mine in (True, False)
    claims.owner_of(file)
    monkeypatch.setattr(claims, "STALE_SECONDS", -1.0)
    with claim(file) as mine:
        assert mine
