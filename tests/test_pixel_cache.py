"""Pixels decoded once: as without a cache, made anew when a file or the decoding changes, there whole or not at all."""

import io
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from midefense.datasets import cache as cache_module
from midefense.datasets import decoding as decoding_module
from midefense.datasets.cache import cached_pixels, picture_hashes
from midefense.datasets.decoding import Decoding, decode
from midefense.datasets.files import Files
from midefense.datasets.image_folder import ImageFolder
from midefense.types import Refused


def picture(path, seed, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "pictures" / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        picture(path, number)
    return Files(paths, torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(6), ["a", "b", "c"])


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are opened."""
    opened = []
    original = decoding_module._open
    monkeypatch.setattr(decoding_module, "_open", lambda path, *how: opened.append(path.name) or original(path, *how))
    return opened


RGB = Decoding(channels=3, size=8, framing="squash")


def test_pixels_are_those_of_memory_and_are_decoded_once(files, reads, tmp_path):
    (plain,) = decode((files,), RGB)
    assert len(reads) == 6
    for _ in range(2):
        (cached,) = decode((files,), RGB, tmp_path / "cache")
        assert torch.equal(cached.pixels, plain.pixels) and torch.equal(cached.hashes, plain.hashes)
    assert len(reads) == 12
    assert torch.equal(plain.hashes, picture_hashes(plain.pixels))
    assert cached.labels is files.labels and cached.names is files.names


def test_parts_share_one_file_and_keep_their_rows(files, tmp_path):
    whole = decode((files,), RGB)[0]
    parts = decode((files.take(torch.tensor([4, 1])), files.take(torch.tensor([0]))), RGB, tmp_path / "cache")
    assert torch.equal(parts[0].pixels, whole.pixels[[4, 1]]) and torch.equal(parts[1].pixels, whole.pixels[[0]])
    assert parts[0].pixels.untyped_storage().data_ptr() == parts[1].pixels.untyped_storage().data_ptr()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_decides_the_pixels_makes_them_anew(files, reads, tmp_path):
    cache = tmp_path / "cache"
    decode((files,), RGB, cache)
    decode((files,), Decoding(channels=3, size=9, framing="squash"), cache)
    assert len(reads) == 12 and len(list(cache.iterdir())) == 2
    picture(files.paths[3], seed=99)
    os.utime(files.paths[3], ns=(1, 1))
    (changed,) = decode((files,), RGB, cache)
    assert len(reads) == 18 and not torch.equal(changed.pixels, decode((files.take(torch.arange(3)),), RGB)[0].pixels)
    boxed = Files(files.paths, files.labels, files.ids, files.names, torch.tensor([[0.0, 0, 6, 5]] * 6))
    assert not torch.equal(decode((boxed,), RGB, cache)[0].pixels, changed.pixels)


def filling(value=lambda row: row + 1, seen=None, stop=None):
    """A `fill` whose picture at each row is of one value; it notes the rows in `seen`, and is killed at row `stop`."""

    def fill(array, first):
        for row in range(first, len(array)):
            if row == stop:
                raise KeyboardInterrupt
            array[row] = value(row)
            if seen is not None:
                seen.append(row)
            yield row + 1

    return fill


SIX = (6, 1, 4, 4)


@pytest.mark.parametrize("stop", range(6))
def test_a_killed_decoding_goes_on_after_what_it_saved(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(cache_module, "UNIT", 2)
    seen, again, notes = [], [], np.zeros(6, dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt):
        cached_pixels(SIX, filling(seen=seen, stop=stop), {}, tmp_path, np.arange(6, dtype=np.uint8))
    pixels, hashes = cached_pixels(SIX, filling(seen=again), {}, tmp_path, notes)
    assert again == list(range(stop - stop % 2, 6)), "at most one unit is decoded twice"
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6] and torch.equal(hashes, picture_hashes(pixels))
    assert notes[: stop - stop % 2].tolist() == list(range(stop - stop % 2))
    assert len(list(tmp_path.iterdir())) == 1, "nothing unfinished is left"


@pytest.mark.parametrize(("file", "place", "from_row"), [("pixels", 33, 2), ("hashes", 64, 2), ("hashes", 0, 0)])
def test_saved_pictures_that_were_spoilt_are_decoded_again(tmp_path, monkeypatch, file, place, from_row):
    monkeypatch.setattr(cache_module, "UNIT", 2)
    with pytest.raises(KeyboardInterrupt):
        cached_pixels(SIX, filling(stop=5), {}, tmp_path)
    (path,) = tmp_path.glob(f".writing-*/{file}")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    seen = []
    pixels, hashes = cached_pixels(SIX, filling(seen=seen), {}, tmp_path)
    assert seen == list(range(from_row, 6))
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6] and torch.equal(hashes, picture_hashes(pixels))


@pytest.mark.parametrize("file", ["pixels", "hashes", "notes"])
@pytest.mark.parametrize("content", [None, b"", b"x" * 1000])
def test_half_a_folder_of_saved_pictures_is_completed(tmp_path, file, content):
    """A kill while the room is reserved leaves less of a file, or none; None: none."""
    notes = np.zeros(6, dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt):
        cached_pixels(SIX, filling(stop=5), {}, tmp_path, notes)
    (path,) = tmp_path.glob(f".writing-*/{file}")
    path.unlink() if content is None else path.write_bytes(content)
    pixels, hashes = cached_pixels(SIX, filling(), {}, tmp_path, notes)
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6] and torch.equal(hashes, picture_hashes(pixels))


def test_an_error_while_decoding_leaves_nothing(tmp_path, monkeypatch):
    """The picture may be mended, and is another one then; the disk may be full."""
    monkeypatch.setattr(cache_module, "UNIT", 2)

    def fill(array, first):
        array[:] = 1
        yield from (2, 4)
        raise Refused("no picture")

    with pytest.raises(Refused, match="no picture"):
        cached_pixels(SIX, fill, {}, tmp_path / "cache")
    assert not list(tmp_path.rglob("*"))


def test_files_that_were_decoded_before_a_kill_are_not_read_again(files, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "UNIT", 2)
    save, whole = cache_module._Saved._save, decode((files,), RGB)[0]
    reads.clear()

    def killed_after_the_first(saved, rows):
        save(saved, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module._Saved, "_save", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        decode((files,), RGB, tmp_path / "cache")
    monkeypatch.setattr(cache_module._Saved, "_save", save)
    reads.clear()
    (images,) = decode((files,), RGB, tmp_path / "cache")
    assert sorted(reads) == ["2.png", "3.png", "4.png", "5.png"]
    assert torch.equal(images.pixels, whole.pixels)


def test_two_at_once_decode_once_and_who_waits_is_told_for_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", heard := io.StringIO())  # only ever added to, so that no line is lost
    entered, go, calls, got = threading.Event(), threading.Event(), [], []

    def fill(array, first):
        calls.append(1)
        entered.set()
        assert go.wait(300)
        array[:] = 3
        yield len(array)

    def work():
        got.append(cached_pixels((2, 1, 4, 4), fill, {}, tmp_path / "cache")[0])

    threads = [threading.Thread(target=work) for _ in range(2)]
    threads[0].start()
    assert entered.wait(300)
    threads[1].start()
    until = time.monotonic() + 120
    while "waiting" not in heard.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)  # some rounds more, of which nothing is said
    go.set()
    for thread in threads:
        thread.join(300)
    assert calls == [1] and len(got) == 2 and all((pixels == 3).all() for pixels in got)
    (claimed,) = re.findall(r"see (\S+\.claim), for \d+ s now\n", heard.getvalue())
    assert f"the same pictures: process {os.getpid()} on {socket.gethostname()}, see {claimed}" in heard.getvalue()
    assert Path(claimed).parent == tmp_path / "cache"


def test_a_folder_behind_lends_its_pixels_and_is_never_written(files, reads, tmp_path):
    decode((files,), RGB, tmp_path / "shared")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shared").rglob("*"))
    reads.clear()
    both = [tmp_path / "mine", tmp_path / "shared"]
    (lent,) = decode((files,), RGB, both)
    assert (
        reads == [] and not (tmp_path / "mine").exists() and torch.equal(lent.pixels, decode((files,), RGB)[0].pixels)
    )
    other = Decoding(channels=3, size=4, framing="squash")
    for _ in range(2):
        decode((files,), other, both)
    assert len(reads) == 2 * len(files.paths), "once without a cache, and once into the folder in front"
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shared").rglob("*")) == before


def test_a_cut_file_is_refused_with_what_to_do(files, tmp_path):
    decode((files,), RGB, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "pixels").write_bytes(b"short")
    with pytest.raises(Refused, match="expected 1152 bytes, got 5; try removing"):
        decode((files,), RGB, tmp_path / "cache")


def test_a_dataset_of_files_reads_through_the_cache(reads, tmp_path):
    for row, name in enumerate(["private/a", "private/b", "public/y"]):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png", 10 * row + number)
    roots = {"private_root": str(tmp_path / "private"), "public_root": str(tmp_path / "public")}
    dataset = ImageFolder(**roots, size=8)
    first = dataset.load(tmp_path / "cache")
    again = dataset.load(tmp_path / "cache")
    assert len(reads) == 15 and first.hash == again.hash == dataset.load().hash
    batch = again.private_train.floats(torch.tensor([2, 0]))
    assert torch.equal((batch * 255).round().byte(), first.private_train.pixels[[2, 0]])


# ------------------------------------------------------------------------------------------------------- framing


def ramp(width, height):
    """A picture whose red tells the column and whose green tells the row."""
    columns = np.tile(np.arange(width), (height, 1))
    rows = np.tile(np.arange(height)[:, None], (1, width))
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1).astype(np.uint8))


def test_the_crop_of_aligned_celeba_on_a_ramp():
    decoding = Decoding(channels=3, size=108, crop=(35, 55, 143, 163, 178, 218))
    pixels = np.asarray(decoding.frame(ramp(178, 218)))
    assert pixels[0, :, 0].tolist() == list(range(35, 143)) and pixels[:, 0, 1].tolist() == list(range(55, 163))
    half = np.asarray(Decoding(channels=3, size=54, crop=decoding.crop).frame(ramp(89, 109)))
    assert abs(half[0, :, 0].astype(int) - np.arange(17.5, 71.5)).max() <= 0.51


def test_a_box_comes_before_the_framing():
    frame = Decoding(channels=3, size=10, framing="centre_crop").frame
    pixels = np.asarray(frame(ramp(60, 50), (20.0, 10.0, 40.0, 20.0)))
    assert pixels[0, :, 0].tolist() == list(range(25, 35)) and pixels[:, 0, 1].tolist() == list(range(10, 20))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 2}, "expected 1 (grey) or 3 (RGB), got 2"),
        ({"size": 0}, "dataset.size: expected at least 1, got 0"),
        ({"framing": "stretch"}, "got 'stretch'; choices: centre_crop, squash"),
        ({"resample": "lanczos"}, "got 'lanczos'; choices: bilinear, bicubic"),
        ({"crop": (0, 0, 200, 10, 100, 100)}, "with the box inside the picture, got [0, 0, 200, 10, 100, 100]"),
    ],
)
def test_impossible_decodings_are_refused(options, text):
    with pytest.raises(Refused) as refusal:
        Decoding(**{"channels": 3, "size": 8, **options})
    assert text in str(refusal.value)


def test_nothing_is_written_beside_the_pictures(files, tmp_path):
    before = sorted(Path(tmp_path / "pictures").iterdir())
    decode((files,), RGB, tmp_path / "cache")
    assert sorted(Path(tmp_path / "pictures").iterdir()) == before
