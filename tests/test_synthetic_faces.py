"""Synthetic faces: the same bytes everywhere, people who stay themselves, attributes that can be seen."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import process_environment
from PIL import Image

from midefense import seeds
from midefense.datasets.splits import digest
from midefense.datasets.synthetic_faces.__main__ import contact_sheet, main
from midefense.datasets.synthetic_faces.dataset import SyntheticFaces
from midefense.datasets.synthetic_faces.numbers import Record, around, between, chance, one_of, spread
from midefense.datasets.synthetic_faces.renderer import render
from midefense.datasets.synthetic_faces.shapes import Sheet, cosine_of, disc, ellipse, glow, smooth, wave
from midefense.datasets.synthetic_faces.traits import ATTRIBUTES, Conditions, Traits, shown_attributes
from midefense.types import Refused

SMALL = {"identities": 4, "public_identities": 3, "images_per_identity": 3, "test_images_per_identity": 2}
PINNED_SMALL = "6fcd05e3f8ba2903f12c3cf8dfb58c613439c1a31e5a07d20f761b1bd71d8914"
SEES_THE_BYTES = """
import torch
from midefense.datasets.synthetic_faces.dataset import SyntheticFaces
torch.set_num_threads({threads})
print(torch.backends.cpu.get_cpu_capability(), SyntheticFaces({arguments}).load().hash)
"""


def drawn(count, key=0):
    people = torch.arange(count)
    return Traits.draw((key, "people"), people), Conditions.draw((key, "pictures"), people, torch.zeros_like(people))


def changed(record, **values):
    """A copy of the record with some numbers set to one value for all."""
    copy = record.take(torch.arange(len(record.table)))
    for name, value in values.items():
        getattr(copy, name).fill_(value)
    return copy


@pytest.fixture(scope="module")
def faces():
    return SyntheticFaces(**SMALL, size=32).load()


# ------------------------------------------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize(("threads", "capability"), [(1, "default"), (2, "avx2"), (2, "")])
def test_bytes_do_not_depend_on_the_processor_or_its_threads(threads, capability, bytecode):
    arguments = ", ".join(f"{name}={value}" for name, value in SMALL.items())
    environment = process_environment(bytecode, ATEN_CPU_CAPABILITY=capability)
    if not capability:
        del environment["ATEN_CPU_CAPABILITY"]
    script = SEES_THE_BYTES.format(threads=threads, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    used, pinned = done.stdout.split()
    assert pinned == PINNED_SMALL
    assert used.lower() in (capability or used.lower(), "default"), "the kernels asked for, or the build has no others"


def test_rows_do_not_depend_on_their_batch():
    traits, conditions = drawn(9)
    whole = render(traits, conditions, 48)
    backwards = torch.arange(8, -1, -1)
    assert torch.equal(render(traits.take(backwards), conditions.take(backwards), 48), whole[backwards])
    alone = [render(traits.take(row), conditions.take(row), 48) for row in torch.arange(9).split(1)]
    assert torch.equal(torch.cat(alone), whole)


def test_more_of_them_leave_the_others_as_they_were(faces):
    more = SyntheticFaces(identities=6, public_identities=5, images_per_identity=5, test_images_per_identity=3, size=32)
    grown = more.load()
    for before, after in [
        (faces.private_train, grown.private_train),
        (faces.private_test, grown.private_test),
        (faces.public, grown.public),
    ]:
        rows = [after.ids.tolist().index(picture) for picture in before.ids.tolist()]
        assert torch.equal(after.pixels[rows], before.pixels) and torch.equal(after.labels[rows], before.labels)


def test_the_seed_changes_everything(faces):
    other = SyntheticFaces(**SMALL, size=32, seed=1).load()
    assert (other.private_train.pixels != faces.private_train.pixels).flatten(1).any(dim=1).all()


def test_the_public_part_alone_draws_nothing_private(faces, monkeypatch):
    made = SyntheticFaces(**SMALL, size=32)
    monkeypatch.setattr(made, "private_train", lambda: pytest.fail("private pictures drawn"))
    assert digest(made.load_public()) == digest(faces.public)


def test_layers_paint_no_row_outside_their_band(monkeypatch):
    """What a layer skips is out of reach in the most extreme poses too: those of the first 64 pictures."""
    traits, conditions = drawn(96)
    declared = {each.name: each.metadata.get("of") for each in dataclasses.fields(Conditions)}
    for place, name in enumerate(("yaw", "pitch", "roll", "shift_x", "shift_y", "zoom")):
        ends = declared[name](torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        getattr(conditions, name)[:64, 0, 0] = ends[torch.arange(64) >> place & 1].float()
    banded = render(traits, conditions, 40)
    monkeypatch.setattr(Sheet, "rows", lambda sheet, top, bottom: sheet)
    assert torch.equal(render(traits, conditions, 40), banded)


# ---------------------------------------------------------------------------------------------------------- the people


def test_people_stay_themselves_and_differ_from_others(faces):
    """Pictures of one person are nearer to each other than to pictures of others, on average over people."""
    pixels = faces.private_train.floats()[:, :, 6:26, 8:24].flatten(1)
    distances = torch.cdist(pixels, pixels)
    same = faces.private_train.labels[:, None] == faces.private_train.labels
    assert distances[same & ~torch.eye(len(same), dtype=torch.bool)].mean() < 0.8 * distances[~same].mean()


def test_private_and_public_people_are_drawn_apart():
    made = SyntheticFaces(**SMALL)
    zero = torch.zeros(1, dtype=torch.int64)
    private, test, public = (made._drawn(part, zero)[0].table for part in ("train", "test", "public"))
    assert torch.equal(private, test) and (private != public).float().mean() > 0.7


@pytest.mark.parametrize("size", [16, 33, 256])
def test_every_size_is_drawn(size):
    splits = SyntheticFaces(**{**SMALL, "public_images_per_identity": 2}, size=size).load()
    assert splits.private_train.pixels.shape == (12, 3, size, size)


def test_a_larger_picture_shows_the_same_scene():
    traits, conditions = drawn(6)
    small, large = render(traits, conditions, 32), render(traits, conditions, 128)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.02


# ------------------------------------------------------------------------------------------------------ the attributes


SWITCHES = {  # numbers that put an attribute on and off, whoever is drawn
    "bald": ({"ruggedness": 0.55, "bald_choice": 0.0}, {"ruggedness": 0.55, "bald_choice": 0.9}),
    "beard": ({"ruggedness": 0.55, "beard_choice": 0.0}, {"ruggedness": 0.55, "beard_choice": 0.9}),
    "dark_hair": ({"has_dark_hair": 1.0, "bald_choice": 0.9}, {"has_dark_hair": 0.0, "bald_choice": 0.9}),
    "earrings": ({"ruggedness": 0.3, "earring_choice": 0.0}, {"ruggedness": 0.3, "earring_choice": 0.9}),
    "eyeglasses": ({"has_eyeglasses": 1.0}, {"has_eyeglasses": 0.0}),
    "hat": ({"hat_choice": 0.0, "wears_hat": 1.0, "bald_choice": 0.9}, {"wears_hat": 0.0}),
    "long_hair": ({"has_long_hair": 1.0, "ruggedness": 0.3}, {"has_long_hair": 0.0, "ruggedness": 0.3}),
    "moustache": ({"ruggedness": 0.55, "moustache_choice": 0.0}, {"ruggedness": 0.55, "moustache_choice": 0.9}),
    "mouth_open": ({"has_open_mouth": 1.0}, {"has_open_mouth": 0.0}),
    "smiling": ({"is_smiling": 1.0}, {"is_smiling": 0.0}),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_seen_in_every_picture(name):
    traits, conditions = drawn(40)
    pictures, labels = [], []
    for values in SWITCHES[name]:
        own = {each.name for each in dataclasses.fields(Traits)}
        who = changed(traits, **{key: value for key, value in values.items() if key in own})
        how = changed(conditions, **{key: value for key, value in values.items() if key not in own})
        pictures.append((render(who, how, 64) * 255).round())
        labels.append(shown_attributes(who, how)[:, ATTRIBUTES.index(name)])
    assert labels[0].all() and not labels[1].any()
    differing = (pictures[0] - pictures[1]).abs().amax(dim=1) > 16
    assert differing.flatten(1).sum(dim=1).min() >= 8, "pixels that clearly differ"


def test_attributes_are_found_by_id_and_are_neither_rare_nor_common():
    made = SyntheticFaces()
    parts = [(part * 100_000 + torch.arange(100)[:, None]) * 10_000 + torch.arange(10) for part in (0, 1, 2)]
    train, test, public = (made.attributes(ids.flatten()) for ids in parts)
    assert train.dtype == torch.uint8 and train.shape == (1000, 10)
    shares = torch.cat([train, test, public]).float().mean(dim=0)
    assert shares.min() > 0.1 and shares.max() < 0.6
    by_identity = [ATTRIBUTES.index(name) for name in ATTRIBUTES if name not in ("hat", "mouth_open", "smiling")]
    assert torch.equal(train[::10, by_identity], test[9::10, by_identity])
    shuffled = torch.randperm(1000, generator=seeds.generator("rows"))
    assert torch.equal(made.attributes(parts[0].flatten()[shuffled]), train[shuffled])
    with pytest.raises(Refused, match=r"expected ids of this dataset, got -1; try Images.ids"):
        made.attributes(torch.tensor([0, -1]))


def test_ids_of_a_loaded_set_have_attributes(faces):
    made = SyntheticFaces(**SMALL, size=32)
    traits, conditions = made._drawn("public", faces.public.ids)
    assert torch.equal(made.attributes(faces.public.ids), shown_attributes(traits, conditions))
    redrawn = (render(traits, conditions, 32) * 255).round().to(torch.uint8)
    assert torch.equal(redrawn, faces.public.pixels)


# ----------------------------------------------------------------------------------------------- numbers and shapes


def test_numbers_are_drawn_as_declared():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Example(Record):
        even: torch.Tensor = spread(-1.0, 3.0)
        centred: torch.Tensor = around(-1.0, 3.0)
        rare: torch.Tensor = chance(0.25)
        named: torch.Tensor = one_of([(0.0, 0.5, 1.0), (1.0, 0.5, 0.0)])
        mixed: torch.Tensor = between([(0.0, 0.0, 0.0), (1.0, 0.5, 0.0)])

    record = Example.draw(("example", 0), torch.arange(20_000))
    assert record.even.shape == (20_000, 1, 1, 1) and record.named.shape == (20_000, 3, 1, 1)
    assert record.even.min() >= -1 and record.even.max() < 3 and record.even.mean().item() == pytest.approx(1, abs=0.03)
    assert record.centred.min() >= -1 and record.centred.max() < 3
    assert (record.centred - 1).abs().median() < 0.8 * (record.even - 1).abs().median()
    assert record.rare.mean().item() == pytest.approx(0.25, abs=0.02) and set(record.rare.unique().tolist()) == {0, 1}
    assert record.named.flatten(1).unique(dim=0).tolist() == [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]
    torch.testing.assert_close(record.mixed[:, 0], 2 * record.mixed[:, 1])
    together = torch.corrcoef(torch.cat([record.even, record.centred, record.rare], dim=1).flatten(1).T)
    assert (together - torch.eye(3)).abs().max() < 0.04


def test_hashed_uniforms_are_even_and_keyed_by_their_counters():
    rows, columns = torch.arange(1000)[:, None], torch.arange(8)
    numbers = seeds.hashed_uniform(7, rows, columns)
    assert numbers.dtype == torch.float64 and numbers.shape == (1000, 8)
    assert 0 <= numbers.min() < 0.001 and 0.999 < numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01) and len(numbers.unique()) == 8000
    assert torch.corrcoef(numbers.T).sub(torch.eye(8)).abs().max() < 0.12
    assert seeds.hashed_uniform(7, torch.tensor(41), torch.tensor(3)) == numbers[41, 3]
    assert seeds.hashed_uniform(8, torch.tensor(41), torch.tensor(3)) != numbers[41, 3]
    assert seeds.hashed_uniform(7, torch.tensor(3), torch.tensor(41)) != numbers[41, 3]


def test_shapes_are_where_they_should_be():
    places = torch.tensor([0.0, 0.5, 1.0, 2.0])
    assert ellipse(places, torch.zeros(4), 1.0, 3.0).tolist() == [1.0, 0.75, 0.0, -3.0]
    assert disc(places * places, torch.tensor(1.0)).tolist() == [0.5, 0.375, 0.0, -1.5]
    assert glow(torch.tensor([-1.0, 0.0, 0.5])).tolist() == [0.0, 0.0, 0.25]
    assert wave(torch.tensor([-1.0, 0.25, 0.5, 1.5])).tolist() == [0.0, 0.75, 1.0, 1.0]
    assert smooth(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0.0, 0.5, 1.0]
    sines = torch.linspace(-0.45, 0.45, 19)
    torch.testing.assert_close(cosine_of(sines), (1 - sines * sines).sqrt(), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------ refusals, sheets


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": 15}, "dataset.size: expected 16 to 256 pixels, got 15; try 64"),
        ({"size": 257}, "dataset.size: expected 16 to 256 pixels, got 257"),
        ({"identities": 100_001}, "dataset.identities: expected at most 100000, got 100001"),
        ({"images_per_identity": 10_001}, "dataset.images_per_identity: expected at most 10000, got 10001"),
    ],
)
def test_refuses(arguments, text):
    with pytest.raises(Refused) as refusal:
        SyntheticFaces(**arguments)
    assert text in str(refusal.value)


def test_a_contact_sheet_fills_rows_and_leaves_the_rest_white():
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    sheet = contact_sheet(pixels, columns=2)
    assert sheet.size == (8, 8)
    assert [sheet.getpixel(place)[0] for place in ((0, 0), (4, 3), (3, 4), (7, 7))] == [0, 1, 2, 255]


def test_the_sheet_of_the_command_shows_the_private_people(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    options = ["--out", str(path), "--identities", "4", "--columns", "2", "--size", "32"]
    monkeypatch.setattr(sys, "argv", ["synthetic_faces", *options])
    main()
    sheet = Image.open(path)
    assert sheet.size == (64, 64)
    first = SyntheticFaces(**SMALL, size=32).private_train().of_class(3).pixels[0]
    corner = sheet.crop((32, 32, 64, 64))
    assert corner.tobytes() == first.permute(1, 2, 0).contiguous().numpy().tobytes()
