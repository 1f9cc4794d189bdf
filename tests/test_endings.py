"""How commands end: one sentence, a truthful status and an exit code for what can be foreseen; else a traceback."""

import contextlib
import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import conftest
import numpy as np
import pytest
import torch

from midefense.commands.parsing import refusing
from midefense.datasets.cache import cached_pixels
from midefense.datasets.decoding import _each
from midefense.pipeline import recovery
from midefense.store.space import reserve
from midefense.store.store import Store
from midefense.terminal import Stage
from midefense.tracking.endings import DISK, DIVERGED, MEMORY, RANK, REFUSED, UNFORESEEN, foreseen
from midefense.tracking.run import Run
from midefense.training import loop
from midefense.types import Diverged, RankLost, Refused

TOY = ("dataset=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=3", "compute.threads=1")
LARGE = (*TOY, "architecture.widths=[512]")  # more than `SMALL_FILES`
SMALL_FILES = 1 << 17  # bytes
CLOSED_FORM = (*TOY, "prior=toy", "attack.search.steps=2")
GAN = (*TOY, "prior=gmi_gan", "prior.width=8", "prior.steps=6", "prior.unit=3")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Ctrl-C is heard also where the tests run in the background, for which a shell has it ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def run_folder(store):
    (status,) = (store / "runs").glob("*/*/status.json")
    return status.parent


def status(store):
    return json.loads((run_folder(store) / "status.json").read_text())


def last_line(said):
    """How a command ended: one line behind those of its stages, and no traceback."""
    *before, last = said.splitlines()
    assert all(re.match(r"found  |\d/\d ", line) for line in before), said
    return last


def strike(monkeypatch, place, name, what):
    """`place.name` does `what()` first."""
    original = getattr(place, name)

    def struck(*args, **kwargs):
        what()
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, struck)


def python(script, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=conftest.ROOT, **options)


@contextlib.contextmanager
def file_size_limit(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Being asked


@pytest.mark.parametrize(("asked", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted")])
def test_asked_to_end_it_says_how_to_go_on_and_goes_on(call, store, monkeypatch, asked, word):
    words = (*TOY, f"store={store}")
    with monkeypatch.context() as patch:
        strike(patch, Run, "log", lambda: signal.raise_signal(asked))
        code, _, said = call("train_target", *words)
    assert code == CODES[asked]
    assert last_line(said) == f"{word}; continue with: {shlex.join(['python', 'train_target.py', *words])}"
    assert status(store)["state"] == "preempted" and not list(store.rglob("*.claim"))
    assert call("train_target", *words)[0] == 0 and status(store)["state"] == "finished"


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    script = """
        import signal, sys, time
        from midefense.tracking.preemption import ending_when_asked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ending_when_asked("the command"):
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(getattr(signal, sys.argv[1]))
                print("cleaned up", flush=True)
    """
    patient, at_once = python(script, "SIGTERM"), python(script, "SIGINT")
    assert patient.returncode == 130 and patient.stdout == "cleaned up\n"
    assert patient.stderr == "interrupted; continue with: the command\n"
    assert (at_once.returncode, at_once.stdout, at_once.stderr) == (-signal.SIGINT, "", "")


def test_an_ignored_ctrl_c_stays_ignored():
    script = """
        import signal
        from midefense.tracking.preemption import ending_when_asked
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with ending_when_asked():
            signal.raise_signal(signal.SIGINT)
        print("went on")
    """
    assert python(script).stdout == "went on\n"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("midefense.pipeline.verbs", ["train_target.py"]),
        ("midefense.pipeline.verbs", ["attack.py"]),
        ("midefense.pipeline.verbs", ["evaluate.py"]),
        ("midefense.commands.attack", ["midefense", "attack"]),
        ("midefense.commands.report", ["midefense", "report"]),
    ],
)
def test_ctrl_c_is_heard_while_torch_is_being_imported(module, command):
    script = """
        import runpy, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module, program, *words = sys.argv[1:]

        class Strike:
            def find_spec(self, name, path=None, target=None):
                if name == module:
                    print("torch" in sys.modules)
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Strike())
        sys.argv = [program, *words]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        from midefense.commands.main import main
        sys.exit(main())
    """
    ended = python(script, module, *command)
    program = "python " if command[0].endswith(".py") else ""
    assert ended.returncode == 130 and ended.stdout == "False\n", ended.stderr
    assert ended.stderr == f"interrupted; continue with: {program}{' '.join(command)}\n"


def test_pictures_that_wait_are_not_decoded_when_asked_to_end(monkeypatch):
    begun = []

    def read(row):
        begun.append(row)
        time.sleep(0.02)

    monkeypatch.setattr(Stage, "at", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        list(_each(read, range(1000), "reading"))
    assert len(begun) < 500


# The disk


def test_a_file_size_limit_is_said_and_work_goes_on_without_it(call, store):
    words = (*LARGE, f"store={store}")
    with file_size_limit(SMALL_FILES):
        code, _, said = call("train_target", *words)
    assert code == DISK and str(store) in last_line(said)
    assert last_line(said).startswith("stopped: a file would exceed the file-size limit (ulimit -f)")
    assert status(store)["state"] == "failed" and "OSError" in status(store)["error"]
    left = [path.name for path in store.rglob(".*") if path.is_file()]
    assert left == [], "what was half written is removed"
    assert call("train_target", *words)[0] == 0 and status(store)["state"] == "finished"


def on_a_small_disk(place, command, bytecode):
    """What `command` (a shell's) does where `place` is a disk of 300 kB."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespaces here")
    script = f"mount -t tmpfs -o size=300k none {place} && {{ {command}; }}"
    options = {"cwd": conftest.ROOT, "env": conftest.process_environment(bytecode)}
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, timeout=300, **options
    )


def test_a_full_disk_ends_in_a_sentence_and_the_status_says_so(tmp_path, bytecode):
    words = shlex.join(["train_target.py", *LARGE, "tracking=none", f"store={tmp_path}/s"])
    show = f"echo $?; cat {tmp_path}/s/runs/*/*/status.json; find {tmp_path} -name '.*' -type f"
    ended = on_a_small_disk(tmp_path, f"{sys.executable} {words}; {show}", bytecode)
    code, status = ended.stdout.splitlines()
    assert code == str(DISK) and last_line(ended.stderr).startswith("stopped: the disk is full")
    assert json.loads(status)["state"] == "failed"


def test_room_for_the_status_is_kept_on_a_disk_without_any(tmp_path, bytecode):
    script = """
        import contextlib, json, pathlib, sys
        from midefense.tracking.run import Run
        from midefense.tracking.settings import Settings

        place = pathlib.Path(sys.argv[1])
        settings = Settings(wandb="disabled", folder=place / "runs")
        with contextlib.suppress(OSError), Run(settings, job_type="attack", name="n", id="i", config={}) as run:
            with contextlib.suppress(OSError), open(place / "fills", "wb", buffering=0) as file:
                while file.write(bytes(512)):
                    pass
            while True:
                run.log({"loss": 1.0}, 1, "attack")
        status = json.loads((run.folder / "status.json").read_text())
        print(status["state"], "No space left" in status["error"])
    """
    command = shlex.join([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)])
    ended = on_a_small_disk(tmp_path, command, bytecode)
    assert ended.stdout == "failed True\n", ended.stderr


def test_a_reserved_file_has_its_room(tmp_path):
    reserve(tmp_path / "map", 1 << 20)
    assert (tmp_path / "map").stat().st_size == 1 << 20 <= (tmp_path / "map").stat().st_blocks * 512
    reserve(tmp_path / "empty", 0)
    assert (tmp_path / "empty").stat().st_size == 0


@pytest.mark.parametrize("able", [True, False])
def test_no_room_to_reserve_leaves_nothing(tmp_path, monkeypatch, able):
    if not able:  # as on file systems that cannot allocate
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no")))
    with file_size_limit(SMALL_FILES), pytest.raises(OSError, match="File too large.*map") as raised:
        reserve(tmp_path / "map", 4 * SMALL_FILES)
    assert foreseen(raised.value).code == DISK and not list(tmp_path.iterdir())


def test_pixels_are_reserved_before_they_are_written(tmp_path):
    shape, room = (64, 3, 64, 64), []

    def fill(array, first):
        (file,) = tmp_path.glob(".writing-*/pixels")
        room.append(file.stat().st_blocks * 512)
        array[:] = 7
        yield len(array)

    pixels, _ = cached_pixels(shape, fill, {}, tmp_path)
    assert room[0] >= np.prod(shape) and bool((pixels == 7).all())


# Memory, divergence, configurations


def too_much_of_torch():
    torch.empty(1 << 60, dtype=torch.uint8)


def too_much_of_numpy():
    np.empty(1 << 60, dtype=np.uint8)


def too_much_of_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore lines")


@pytest.mark.parametrize("ask", [too_much_of_torch, too_much_of_numpy, too_much_of_a_gpu])
@pytest.mark.parametrize(
    ("verb", "place", "name", "texts"),
    [
        ("train_target", loop, "_epoch", ["during train_target", "recipe.batch_size"]),
        ("attack", recovery, "run_group", ["during attack", "attack.chunk", "attack.group"]),
    ],
)
def test_out_of_memory_names_what_may_be_smaller(call, tmp_path_factory, monkeypatch, ask, verb, place, name, texts):
    store = shared_store(tmp_path_factory, call) if verb == "attack" else tmp_path_factory.mktemp("empty")
    strike(monkeypatch, place, name, ask)
    code, _, said = call(verb, *(CLOSED_FORM if verb == "attack" else TOY), f"store={store}")
    assert code == MEMORY and last_line(said).startswith("stopped: out of memory")
    assert all(text in last_line(said) for text in texts)
    (found,) = (store / "runs" / verb).glob("*/status.json")
    assert json.loads(found.read_text())["state"] == "failed"


STORES = []


def shared_store(factory, call):
    """A store with a trained target."""
    if not STORES:
        STORES.append(factory.mktemp("trained"))
        assert call("train_target", *TOY, f"store={STORES[0]}")[0] == 0
    return STORES[0]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train_target", [*TOY, "recipe.optimizer.lr=1e30"]),
        ("attack", [*GAN, "prior.learning_rate=1e30"]),
    ],
)
def test_divergence_is_said_and_nothing_is_kept_of_it(call, store, verb, words):
    code, _, said = call(verb, *words, f"store={store}")
    assert code == DIVERGED and last_line(said).startswith("stopped: ") and " diverged " in last_line(said)
    assert "try a lower learning rate" in last_line(said)
    last = max((store / "runs").glob("*/*/status.json"), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(last.read_text())["state"] == "failed"
    kind = "target" if verb == "train_target" else "prior"
    assert not list(store.glob(f"{kind}/*")) and not list(store.glob(f"work/{kind}/*/*"))


FILES = {
    "cut": ("seed: [1,\n", "line 3: expected YAML"),
    "tabbed": ("seed:\n\t- 3\n", "line 3: expected YAML"),
    "twice": ("seed: 1\nseed: 2\n", "found duplicate key seed"),
    "object": ("seed: !!python/object:os.system 1\n", "line 2: expected YAML"),
    "alias": ("seed: *other\n", "found undefined alias"),
    "binary": ("\udcff\udcfe", "expected YAML as UTF-8 text"),
    "control": ("seed: \0", "control.yaml: expected YAML as UTF-8 text, got another file: unacceptable character"),
    "nowhere": ("seed: ${nowhere}\n", "got: Interpolation key 'nowhere' not found"),
    "itself": ("seed: ${seed}\n", "got: Recursive interpolation detected"),
    "half": ("seed: ${seed\n", "got: no viable alternative"),
    "resolver": ("seed: ${clock:1}\n", "got: Unsupported interpolation type clock"),
    "environment": ("seed: ${oc.env:NOT_SET_ANYWHERE}\n", "Environment variable 'NOT_SET_ANYWHERE' not found"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_configuration_that_is_none(call, tmp_path, name):
    text, expected = FILES[name]
    (tmp_path / "experiment").mkdir()
    content = f"# @package _global_\n{text}".encode(errors="surrogateescape")
    (tmp_path / "experiment" / f"{name}.yaml").write_bytes(content)
    words = (f"hydra.searchpath=[file://{tmp_path}]", f"experiment={name}", f"store={tmp_path / 'store'}")
    code, _, said = call("train_target", *words)
    assert code == REFUSED and said.startswith("refused: ") and said.count("\n") == 1
    assert expected in said and not (tmp_path / "store").exists()


# The rest


def test_what_nobody_foresaw_brings_the_traceback_and_the_run_folder(call, store, monkeypatch):
    def fail():
        raise ZeroDivisionError("of a plugin")

    strike(monkeypatch, loop, "_epoch", fail)
    code, _, said = call("train_target", *TOY, f"store={store}")
    assert code == UNFORESEEN and "Traceback" in said and "ZeroDivisionError: of a plugin" in said
    assert said.splitlines()[-1].endswith(f"the run's folder: {run_folder(store)}")
    assert status(store)["state"] == "failed" and "of a plugin" in status(store)["error"]


def test_a_sweep_goes_on_after_a_point_that_failed(call, store):
    code, _, said = call("train_target", "-m", *TOY, "recipe.optimizer.lr=1e30,1e-3", f"store={store}")
    assert code == DIVERGED and said.count("diverged") == 1 and "Traceback" not in said
    assert len(Store(store).list("target")) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "report.html"), DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DISK),
        (MemoryError(), MEMORY),
        (Diverged("nan"), DIVERGED),
        (RankLost("another of the 2"), RANK),
        (Refused("expected a store"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "weights.pt"), 1),
    ],
)
def test_the_other_commands_end_so_too(capsys, error, code):
    def act():
        raise error

    assert refusing(act) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_disk_that_fails_is_foreseen(number):
    assert foreseen(OSError(number, os.strerror(number), "file")).code == DISK


def test_what_is_like_it_and_was_not_foreseen():
    for error in (RuntimeError("shape mismatch"), OSError(errno.ENOENT, "No such file"), KeyError("x")):
        assert foreseen(error) is None
