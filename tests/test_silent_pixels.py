"""What a file holds beyond what one sees in it: orientation, hidden colours, further frames, deep values, copies. Each
is brought to what one sees, refused by name, or said; `datasets check` tells of all of them."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from contract.listing import node
from PIL import Image

from midefense.commands.datasets import run as command
from midefense.datasets.decoding import Decoding, decode, survey
from midefense.datasets.facescrub import FaceScrub
from midefense.datasets.files import Files
from midefense.datasets.image_folder import ImageFolder
from midefense.datasets.public_folder import PublicFolder
from midefense.datasets.splits import copies
from midefense.types import Refused

SIDE = 16
TURNED = {  # how a picture lies in the file whose EXIF orientation brings it upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def noise(seed=0, channels=3):
    return np.random.RandomState(seed).randint(0, 256, (SIDE, SIDE, channels)).astype(np.uint8)


def corners():
    """A picture whose four quarters differ, flat enough for JPEG."""
    quarters = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (240, 240, 240)]], np.uint8)
    return quarters.repeat(SIDE // 2, 0).repeat(SIDE // 2, 1)


def lying(path, orientation, **options):
    """Write `corners` as a camera held so would, with the EXIF orientation that says so."""
    exif = Image.Exif()
    exif[0x112] = orientation
    picture = Image.fromarray(corners())
    turn = TURNED[orientation]
    (picture if turn is None else picture.transpose(turn)).save(path, exif=exif, **options)


def glass(path, hidden, mode="RGBA"):
    """Green in the middle, and around it, transparent, a colour that nobody sees."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[4:12, 4:12] = (10, 200, 10, 255)
    Image.fromarray(pixels).convert(mode).save(path)


def seen(path, **options):
    """The pixels of one file, [H, W, C]."""
    decoding = Decoding(**{"channels": 3, "size": SIDE, **options})
    (images,) = decode((Files.grouped([[path]], ["a"]),), decoding)
    return images.pixels[0].permute(1, 2, 0).numpy().astype(int)


def told(path, **options):
    """What is remarked of one file."""
    return survey((Files.grouped([[path]], ["a"]),), Decoding(**{"channels": 3, "size": SIDE, **options})).remarks


@pytest.fixture
def folders(tmp_path):
    """`private/{ann,bob}` and `public/{cat,dog}` of five pictures each."""
    for number, place in enumerate(("private/ann", "private/bob", "public/cat", "public/dog")):
        (tmp_path / place).mkdir(parents=True)
        for picture in range(5):
            Image.fromarray(noise(10 * number + picture)).save(tmp_path / place / f"{picture}.png")
    return tmp_path


def of(folders, **options):
    return ImageFolder(private_root=str(folders / "private"), public_root=str(folders / "public"), size=SIDE, **options)


def words(folders, *more):
    roots = [f"private_root={folders / 'private'}", f"public_root={folders / 'public'}", f"size={SIDE}"]
    return ["check", "image_folder", *roots, *more]


# -------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_stand_as_one_sees_them(suffix, orientation, tmp_path):
    path = tmp_path / f"a.{suffix}"
    lying(path, orientation, **({"quality": 98} if suffix in ("jpg", "webp") else {}))
    assert abs(seen(path) - corners()).mean() < 25
    assert bool(told(path)) == (orientation != 1)


def test_the_old_way_takes_pictures_as_they_are_stored(tmp_path):
    path = tmp_path / "a.png"
    lying(path, 6)
    stored = np.asarray(Image.fromarray(corners()).transpose(Image.Transpose.ROTATE_90))
    assert (seen(path, orientation="ignored") == stored).all()
    assert "taken as stored, not upright as their EXIF orientation says" in told(path, orientation="ignored")[0]
    (said,) = told(path)
    assert said.startswith("1 of 1 pictures are turned upright") and said.endswith(f"First: {path}")


def test_a_crop_counts_in_the_upright_picture(tmp_path):
    path = tmp_path / "a.png"
    lying(path, 6)
    top_left = seen(path, crop=(0, 0, 8, 8, 16, 16))
    assert (top_left == (250, 10, 10)).all()


def test_exif_that_cannot_be_read_is_refused_by_name_unless_nobody_asks_for_it(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(corners()).save(path, exif=b"Exif\x00\x00no byte order")
    with pytest.raises(Refused, match=r"a\.jpg: its EXIF cannot be read .* dataset.orientation=ignored"):
        seen(path)
    assert abs(seen(path, orientation="ignored") - corners()).mean() < 25


def test_an_orientation_that_is_none_changes_nothing(tmp_path):
    for number, value in enumerate((0, 9, 77)):
        exif = Image.Exif()
        exif[0x112] = value
        Image.fromarray(corners()).save(tmp_path / f"{number}.png", exif=exif)
        assert (seen(tmp_path / f"{number}.png") == corners()).all() and told(tmp_path / f"{number}.png") == []


# -------------------------------------------------------------------------------------------------------------- alpha


def with_colour_key(path, hidden):
    """RGB without an alpha channel, one of whose colours is declared to be transparent."""
    pixels = np.full((SIDE, SIDE, 3), hidden, np.uint8)
    pixels[4:12, 4:12] = (10, 200, 10)
    Image.fromarray(pixels).save(path, transparency=hidden)


def with_palette(path, hidden):
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[4:12, 4:12] = 1
    picture = Image.fromarray(pixels).convert("P")
    picture.putpalette([*hidden, 10, 200, 10])
    picture.save(path, transparency=0)


GLASSES = {"channel": glass, "colour key": with_colour_key, "palette": with_palette}


@pytest.mark.parametrize("kind", GLASSES)
def test_what_cannot_be_seen_is_not_learnt(kind, tmp_path):
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, hidden in zip(paths, ((255, 0, 0), (0, 0, 255)), strict=True):
        GLASSES[kind](path, hidden)
        with pytest.raises(Refused, match=rf"{path.name} is transparent in part.*dataset.alpha=white"):
            seen(path, convert=True)
    for alpha, ground in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        one, two = (seen(path, convert=True, alpha=alpha) for path in paths)
        assert (one == two).all() and tuple(one[0, 0]) == ground and tuple(one[8, 8]) == (10, 200, 10)
        assert f"transparent in part and laid on {alpha}" in told(paths[0], convert=True, alpha=alpha)[0]
    assert tuple(seen(paths[0], convert=True, alpha="ignored")[0, 0]) == (255, 0, 0), "the old way"
    assert "taken with the colours hidden there" in told(paths[0], convert=True, alpha="ignored")[0]


def test_grey_glass_is_laid_on_grey(tmp_path):
    glass(tmp_path / "a.png", (255, 0, 0), mode="LA")
    assert seen(tmp_path / "a.png", channels=1, convert=True, alpha="black")[0, 0].tolist() == [0]
    with pytest.raises(Refused, match="dataset.convert=true dataset.alpha=white to convert"):
        seen(tmp_path / "a.png", channels=1)


def test_an_alpha_channel_that_hides_nothing_is_no_matter(tmp_path):
    Image.fromarray(np.dstack([noise(), np.full((SIDE, SIDE), 255, np.uint8)])).save(tmp_path / "a.png")
    assert (seen(tmp_path / "a.png", convert=True) == noise()).all() and told(tmp_path / "a.png", convert=True) == []


@pytest.mark.parametrize("alpha", ["transparent", "", "#12", "#10203040", "whites"])
def test_a_ground_is_an_opaque_colour(alpha):
    with pytest.raises(Refused, match="dataset.alpha: got .*choices: refused, ignored, a colour"):
        Decoding(channels=3, size=SIDE, alpha=alpha)
    with pytest.raises(Refused, match="dataset.orientation: got 'upright'; choices: applied, ignored"):
        Decoding(channels=3, size=SIDE, orientation="upright")


# ------------------------------------------------------------------------------------------------- frames and depths


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_of_several_frames_the_first_counts_and_that_is_said(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.fromarray(np.full((SIDE, SIDE, 3), grey, np.uint8)) for grey in (10, 200, 100)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert abs(seen(path, convert=True) - 10).max() <= 1
    assert told(path, convert=True) == [
        f"1 of 1 pictures are of several frames or pages, of which the first one counts. First: {path}"
    ]
    frames[0].save(tmp_path / "one.png")
    assert told(tmp_path / "one.png") == []


def deep_png(path, colour, channels):
    """A PNG of 16 bits per value, which Pillow reads but cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    values = np.random.RandomState(0).randint(0, 2**16, (SIDE, SIDE * channels)).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused_however_many_values_a_pixel_has(colour, channels, tmp_path):
    deep_png(tmp_path / "deep.png", colour, channels)
    with pytest.raises(Refused, match=r"deep\.png holds values of more than 8 bits"):
        seen(tmp_path / "deep.png", convert=True, alpha="ignored")


@pytest.mark.parametrize(("magic", "channels"), [("P5", 1), ("P6", 3)])
def test_a_portable_map_of_more_than_255_levels_is_refused(magic, channels, tmp_path):
    path = tmp_path / "deep.ppm"
    path.write_bytes(f"{magic} 4 4 1023\n".encode() + np.arange(16 * channels, dtype=">u2").tobytes())
    with pytest.raises(Refused, match=r"deep\.ppm holds values of more than 8 bits"):
        seen(path, convert=True)
    path.write_bytes(f"{magic} 4 4 255\n".encode() + np.arange(16 * channels, dtype="u1").tobytes())
    assert seen(path, convert=True, size=4).max() == 16 * channels - 1


def formats():
    """A picture as a file of every kind, by suffix; some with EXIF or several frames."""
    exif = Image.Exif()
    exif[0x112], exif[0x110] = 6, "a camera"
    frames = [Image.fromarray(noise(seed)) for seed in range(3)]
    for suffix in ("bmp", "jpg", "pgm", "png", "ppm", "tif", "webp"):
        many = {"save_all": True, "append_images": frames[1:]} if suffix in ("png", "tif", "webp") else {}
        more = {"exif": exif} if suffix in ("jpg", "png", "webp") else {}
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(suffix, suffix)
        content = io.BytesIO()
        (frames[0].convert("L") if suffix == "pgm" else frames[0]).save(content, kind, **many, **more)
        yield suffix, content.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # what Pillow may add
@pytest.mark.parametrize("suffix", ["bmp", "jpg", "pgm", "png", "ppm", "tif", "webp"])
def test_a_damaged_file_is_read_or_refused_by_name(suffix, tmp_path, monkeypatch):
    """Cut anywhere, or with a byte changed: pixels or a sentence, and never another error."""
    content = dict(formats())[suffix]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # sizes that damage makes up
    rng = np.random.RandomState(0)
    path = tmp_path / f"damaged.{suffix}"
    refused = 0
    for turn in range(60):
        damaged = bytearray(content[: rng.randint(len(content))] if turn % 3 == 0 else content)
        for place in rng.randint(0, max(len(damaged) // (1 + turn % 2 * 9), 1), 2) if damaged else ():
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        try:
            seen(path, convert=True, size=4)
        except Refused as refusal:
            refused += 1
            assert str(path) in str(refusal)
    assert refused >= 10


# ------------------------------------------------------------------------------------------------- copies and remarks


def test_copies_within_a_class_are_counted(folders):
    shown = (folders / "private/ann/0.png").read_bytes()
    for number in (7, 8):
        (folders / f"private/ann/{number}.png").write_bytes(shown)
    (folders / "public/cat/9.png").write_bytes((folders / "public/dog/0.png").read_bytes())
    splits = of(folders).load()
    parts = [splits.private_train, splits.private_test, splits.public]
    (said,) = copies(parts)
    assert said.startswith("2 of 23 pictures are copies of another of their class") and "of class 'ann'" in said
    assert copies([splits.private_train.take(splits.private_train.labels == 1)]) == []


def test_a_copy_among_the_test_images_is_said_to_be_one(folders):
    (folders / "test").mkdir()
    for name in ("ann", "bob"):
        (folders / "test" / name).mkdir()
        Image.fromarray(noise(99 + len(name))).save(folders / "test" / name / "new.png")
    (folders / "test/bob/0.png").write_bytes((folders / "private/bob/3.png").read_bytes())
    splits = of(folders, private_test_root=str(folders / "test")).load()
    assert "1 of 23 pictures are copies of another of their class, 1 of them in another part of the split" in str(
        copies([splits.private_train, splits.private_test, splits.public])
    )


def test_remarks_are_made_whenever_a_set_is_read_from_the_cache_too(folders, tmp_path, caplog):
    lying(folders / "private/ann/7.png", 6)
    glass(folders / "private/bob/7.png", (255, 0, 0))
    (folders / "private/bob/8.png").write_bytes((folders / "private/bob/0.png").read_bytes())
    dataset = of(folders, convert=True, alpha="white")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset.load(tmp_path / "cache")
        assert "1 of 23 pictures are turned upright" in caplog.text
        assert "1 of 23 pictures are transparent in part and laid on white" in caplog.text
        assert "1 of 23 pictures are copies" in caplog.text
    caplog.clear()
    of(folders, convert=True, orientation="ignored", alpha="black").load(tmp_path / "cache")
    assert "taken as stored" in caplog.text and "laid on black" in caplog.text


def test_a_plain_set_has_nothing_said_of_it(folders, caplog):
    of(folders).load()
    assert caplog.text == ""


def test_the_attackers_pictures_are_told_of_too(folders, caplog):
    lying(folders / "public/cat/7.png", 3)
    pictures = PublicFolder(root=str(folders / "public"), folders=["cat"], size=SIDE)
    pictures.load_public()
    assert "1 of 6 pictures are turned upright" in caplog.text
    assert PublicFolder(root="d", folders=["."], orientation="ignored").decoding.orientation == "ignored"


def test_check_tells_of_all_of_them(folders, capsys):
    assert command(words(folders)) == 0
    assert "every picture is upright as stored, opaque, a single frame, and there once" in capsys.readouterr().out
    lying(folders / "private/ann/7.png", 8)
    glass(folders / "private/bob/7.png", (255, 0, 0))
    frames = [Image.fromarray(noise(seed)) for seed in (70, 71)]
    frames[0].save(folders / "public/cat/7.png", save_all=True, append_images=frames[1:])
    (folders / "public/dog/8.png").write_bytes((folders / "public/dog/0.png").read_bytes())
    assert command(words(folders, "convert=true")) == 1, "transparent, and nobody said what to make of it"
    err = capsys.readouterr().err
    assert "1 pictures cannot be used" in err and "bob/7.png is transparent in part" in err
    assert command(words(folders, "convert=true", "alpha=white")) == 0
    out = capsys.readouterr().out
    for what in ("turned upright", "transparent in part and laid on white", "of several frames", "copies of another"):
        assert f"1 of 24 pictures are {what}" in out
    assert command(words(folders, "--no-decode")) == 0
    out = capsys.readouterr().out
    assert "no picture was opened; --decode reads them all" in out and "turned" not in out


# --------------------------------------------------------------------------------------------------------- ids, names


@pytest.mark.parametrize("name", ["image_folder", "facescrub"])
def test_options_at_their_old_value_are_in_no_id(name):
    plain = node("train_target", "dataset", f"dataset={name}").recipe()
    assert "orientation" not in plain and "alpha" not in plain
    other = "applied" if name == "facescrub" else "ignored"
    turned = node("train_target", "dataset", f"dataset={name}", f"dataset.orientation={other}", "dataset.alpha=white")
    assert turned.recipe() == {**plain, "orientation": other, "alpha": "white"}


def test_published_protocols_read_pictures_as_their_code_did():
    for decoding in (FaceScrub().decoding, node("train_target", "dataset", "dataset=stanford_dogs").build().decoding):
        assert (decoding.orientation, decoding.alpha) == ("ignored", "ignored")


def test_what_systems_leave_behind_is_no_picture_and_no_class(folders):
    expected = of(folders).load().hash
    for place in ("__MACOSX/ann", "@eaDir/x.png", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".hidden"):
        (folders / "private" / place).mkdir(parents=True)
        (folders / "public/cat" / place).mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "._0.png", "Icon\r"):
        (folders / "private/ann" / name).write_bytes(b"")
    assert of(folders).load().hash == expected
    pictures = PublicFolder(root=str(folders / "public"), folders=["cat"], size=SIDE)
    assert len(pictures.load_public()) == 5
