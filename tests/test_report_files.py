"""Pages and tables are written whole or not at all, never in place of better ones, and run nothing in a spreadsheet."""

import csv
import errno
import os
import signal
import subprocess
import sys

import pytest
from report_rows import document, put

from midefense.commands.report import run
from midefense.report import Row, read_rows, write_csv
from midefense.report.files import save
from midefense.report.spreadsheet import quoted
from midefense.tracking.endings import DISK


@pytest.fixture
def store(tmp_path):
    put(tmp_path / "store", document(), "none")
    return tmp_path / "store"


@pytest.fixture
def outputs(tmp_path):
    """Three files of an earlier report, and the words that would write them anew."""
    places = [tmp_path / name for name in ("page.html", "rows.csv", "rows.wide.csv")]
    for place in places:
        place.write_text("earlier")
    return places, ["--out", str(places[0]), "--csv", str(places[1])]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_what_was_there_and_one_sentence(store, outputs, tmp_path, monkeypatch, capsys):
    places, words = outputs
    before = listing(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(["--store", str(store), *words]) == DISK
    assert capsys.readouterr().err.startswith("stopped: the disk is full ([Errno 28]")
    assert [place.read_text() for place in places] == ["earlier"] * 3 and listing(tmp_path) == before
    monkeypatch.undo()
    assert run(["--store", str(store), *words]) == 0
    assert all("random" in text or "digits" in text for text in (place.read_text() for place in places))
    assert listing(tmp_path) == before


def test_a_kill_while_writing_leaves_what_was_there(store, outputs):
    places, words = outputs
    killed = "import os, signal, sys; os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); "
    killed += "from midefense.commands.report import run; run(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", killed, "--store", str(store), *words], timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert [place.read_text() for place in places] == ["earlier"] * 3


@pytest.mark.parametrize("made", ["nothing", "a file", "an empty folder", "a folder of something else"])
def test_without_results_no_page_is_replaced(made, outputs, tmp_path, capsys):
    places, words = outputs
    typo = tmp_path / "stroe"
    if made == "a file":
        typo.write_text("")
    elif made != "nothing":
        typo.mkdir()
    if made == "a folder of something else":
        (typo / "picture.png").write_text("")
    assert run(["--store", str(typo), *words]) == 1
    said = capsys.readouterr()
    expected = f"store: expected a folder, got the file {typo}" if made == "a file" else f"--store {typo}: expected "
    assert said.err.startswith(f"refused: {expected}") and said.err.count("\n") == 1 and not said.out
    assert [place.read_text() for place in places] == ["earlier"] * 3
    assert typo.exists() == (made != "nothing"), "a store is not made by looking for one"


def test_a_missing_store_writes_no_first_page_either(tmp_path, capsys):
    assert run(["--store", str(tmp_path / "none"), "--out", str(tmp_path / "page.html")]) == 1
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "."), "expected the name of a file to write, got a folder"),
        (("--out", "/dev/null"), "got something that is no file"),
        (("--out", "same.csv", "--csv", "same.csv"), "the same one twice"),
        (("--out", "rows.wide.csv", "--csv", "rows.csv"), "the same one twice"),
        (("--out", "link.csv", "--csv", "rows.csv"), "the same one twice"),
    ],
)
def test_odd_places_are_refused_before_anything_is_read(store, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.csv").symlink_to("rows.csv")
    before = listing(tmp_path)
    assert run(["--store", str(store), *words]) == 1
    captured = capsys.readouterr()
    assert said in captured.err and not captured.out and listing(tmp_path) == before


def test_a_link_keeps_leading_where_it_leads(tmp_path):
    (tmp_path / "served").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to("served/page.html")
    save(link, "text")
    assert link.is_symlink() and (tmp_path / "served" / "page.html").read_text() == "text"


FORMULAS = ('=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "＠x")


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_is_quoted_wherever_it_stands(text, tmp_path):
    names = ("dataset", "defense", "prior", "attack", "architecture", "public", "device", "date", "selection")
    content = document(**dict.fromkeys(names, text), stopped=[text])
    content["metrics"][text] = {"value": -3.5, "reason": text, "kind": text}
    flat, wide = write_csv([Row.parse(content)], tmp_path / "rows.csv")
    for path in (flat, wide):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert not [cell for cell in cells if cell.lstrip(" ").startswith(FORMULAS[0][0]) or cell == text]
        assert f"'{text}" in cells and "-3.5" in cells, "numbers stay numbers"


def test_ordinary_cells_stay_as_they_are(tmp_path, store):
    for cell in ("gmi", "", "'", "a=b", "2026-01-02", -2380.0, float("nan"), 3, None, True):
        assert quoted(cell) is cell
    rows, _ = read_rows(store)
    text = write_csv(rows, tmp_path / "rows.csv")[0].read_text()
    assert ",'" not in text
