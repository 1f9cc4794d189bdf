"""Datasets: pinned splits, private and public kept apart, and every wrong input named in words."""

import inspect
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from midefense.closed_form import render
from midefense.datasets.att_faces import AttFaces
from midefense.datasets.base import Own, PublicFrom, resize_pixels, to_uint8
from midefense.datasets.digits import Digits
from midefense.datasets.files import natural_key
from midefense.datasets.image_folder import ImageFolder
from midefense.datasets.splits import Splits, digest, stratify
from midefense.datasets.toy import Toy
from midefense.types import Images, Refused

REPOSITORY = Path(__file__).parents[1]
FACES_PACK = REPOSITORY.parent / "shared" / "data" / "att_faces.tar.xz"
PINNED = {
    "digits": "017dc6f9269c1f9c36b08a27227d0e58fbabb52dec5c291d6b08286faee183b8",
    "toy": "96c0419b83431f386898375095196c72eb3c987dbfc6531af97c125682029283",
    "att_faces": "cfc8432bae78b766b02e794013fbb4514ba24f544b2a754da2db67919e313c0d",
}


def refused(call, *texts):
    with pytest.raises(Refused) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


def picture(path, seed, size=(12, 10), mode="RGB"):
    """A picture of noise that no other seed gives, as a file."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)).save(path)


def folder_tree(root, classes, images=5, mode="RGB", first_seed=0):
    for place, name in enumerate(classes):
        for number in range(images):
            picture(root / name / f"{number + 1}.png", first_seed + 100 * place + number, mode=mode)
    return str(root)


def faces_tree(root, people, images):
    for person in range(1, people + 1):
        for number in range(1, images + 1):
            picture(root / f"s{person}" / f"{number}.pgm", 100 * person + number, size=(9, 11), mode="L")
    return root


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture
def folders(tmp_path):
    private = folder_tree(tmp_path / "private", ["10", "2", "1"])
    public = folder_tree(tmp_path / "public", ["cat", "dog"], first_seed=1000)
    return {"private_root": private, "public_root": public, "size": 8}


# ---------------------------------------------------------------------------------------------------- the members


def test_digits_are_pinned(digits):
    assert digits.hash == PINNED["digits"]
    assert (len(digits.private_train), len(digits.private_test), len(digits.public)) == (721, 180, 896)
    assert digits.private_test.labels.bincount().tolist() == [36, 36, 35, 37, 36]
    assert digits.class_names == ["0", "1", "2", "3", "4"] and digits.public.names == ["5", "6", "7", "8", "9"]
    assert digits.private_train.pixels.shape[1:] == (1, 32, 32)


def test_digits_keep_the_order_of_private_classes():
    splits = Digits(private_classes=[7, 3], size=8).load()
    assert splits.class_names == ["7", "3"] and splits.classes == 2
    sevens = splits.private_train.of_class(0)
    table = load_digits()
    assert set(table.target[sevens.ids.numpy()]) == {7}
    expected = np.round(table.images[sevens.ids.numpy()] / 16 * 255).astype(np.uint8)
    assert np.array_equal(sevens.pixels[:, 0].numpy(), expected)


@pytest.mark.parametrize("private", [[0, 0], [0], list(range(10)), [3, 11]])
def test_digits_refuse_odd_private_classes(private):
    refused(lambda: Digits(private_classes=private), "2 to 9 different digits", str(private))


def test_toy_is_pinned_and_knows_its_answer():
    toy = Toy()
    splits = toy.load()
    assert splits.hash == PINNED["toy"]
    assert (len(splits.private_train), len(splits.private_test), len(splits.public)) == (160, 40, 320)
    train, _ = splits.everything()
    means = torch.stack([train.of_class(label).floats().mean(dim=0) for label in range(12)])
    distances = torch.cdist(means.flatten(1), toy.answer(torch.arange(12)).flatten(1))
    assert distances.argmin(dim=1).tolist() == list(range(12))
    assert distances.diagonal().max() < distances.add(torch.eye(12) * 100).min() / 5


def test_toy_depends_on_its_seed_alone():
    assert Toy(seed=1).load().hash == Toy(seed=1).load().hash != Toy(seed=2).load().hash


def test_toy_classes_are_apart_for_any_count():
    for classes, public_classes in [(2, 1), (4, 8), (10, 3), (7, 40)]:
        toy = Toy(classes=classes, public_classes=public_classes)
        places = toy.latents(torch.arange(classes + public_classes))
        assert places.abs().max() < 1
        assert torch.pdist(places).min() > 1.5 / (classes + public_classes) ** 0.5


def test_render_puts_the_bell_where_the_latents_say():
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    pictures = render(latents, 33)
    assert pictures.shape == (3, 1, 33, 33)
    assert pictures.detach().flatten(1).argmax(dim=1).tolist() == [16 * 33 + 16, 16 * 33 + 28, 4 * 33 + 16]
    assert pictures[0, 0, 16, 16].item() == pytest.approx(0.9)
    assert pictures.min().item() == pytest.approx(0.1)
    pictures[:, :, 20, 20].sum().backward()
    assert (latents.grad[0] > 0).all()


def test_att_faces_on_a_small_tree(tmp_path):
    root = faces_tree(tmp_path, people=12, images=5)
    (root / "README").write_text("left alone")
    dataset = AttFaces(root=str(root), private=9, public=3, images=5, size=8, test_share=0.4)
    splits = dataset.load()
    assert list(splits.class_names) == [f"s{n}" for n in range(1, 10)] and splits.public.names == ["s10", "s11", "s12"]
    assert splits.private_test.labels.bincount().tolist() == [2] * 9
    assert splits.public.ids.tolist() == list(range(45, 60))
    squashed = Image.open(root / "s10" / "2.pgm").resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(splits.public.pixels[1, 0].numpy(), np.asarray(squashed))


def test_att_faces_framing(tmp_path):
    root = faces_tree(tmp_path, people=3, images=3)
    dataset = AttFaces(root=str(root), private=2, public=1, images=3, size=9, framing="centre_crop")
    middle = np.asarray(Image.open(root / "s3" / "1.pgm"))[1:10]
    assert np.array_equal(dataset.load().public.pixels[0, 0].numpy(), middle)
    refused(lambda: AttFaces(framing="centre"), "dataset.framing", "centre_crop, squash")


def test_att_faces_name_the_first_difference(tmp_path):
    refused(AttFaces(root=str(tmp_path / "gone")).load, str(tmp_path / "gone"), "ROOT/s1/1.pgm", "dataset.root=DIR")
    root = faces_tree(tmp_path / "faces", people=3, images=3)
    dataset = AttFaces(root=str(root), private=2, public=1, images=3, size=8)
    refused(AttFaces(root=str(tmp_path), private=2, public=1).load, "expected s1, got faces", f"dataset.root={root}")
    refused(AttFaces(root=str(root)).load, "ROOT/s40/10.pgm", "expected s4, got nothing more")
    (root / "s2" / "3.pgm").rename(root / "s2" / "03.pgm")
    refused(dataset.load, f"first difference in {root / 's2'}: expected 3.pgm, got 03.pgm")


def test_att_faces_on_the_real_pack(tmp_path):
    if not FACES_PACK.exists():
        pytest.skip(f"the AT&T pack is not at {FACES_PACK}")
    with tarfile.open(FACES_PACK) as pack:
        pack.extractall(tmp_path, filter="data")
    splits = AttFaces(root=str(tmp_path / "att_faces")).load()
    assert splits.hash == PINNED["att_faces"]
    assert (len(splits.private_train), len(splits.private_test), len(splits.public)) == (240, 60, 100)
    assert splits.class_names[1:10:8] == ["s2", "s10"] and splits.public.names[0] == "s31"


# ------------------------------------------------------------------------------------------------ image folders


def test_image_folder_counts_in_numbers(folders):
    splits = ImageFolder(**folders).load()
    assert splits.class_names == ["1", "2", "10"] and splits.public.names == ["cat", "dog"]
    assert (len(splits.private_train), len(splits.private_test), len(splits.public)) == (12, 3, 10)
    assert splits.private_train.pixels.shape[1:] == (3, 8, 8)


def test_image_folder_does_not_depend_on_the_listing(folders, monkeypatch):
    before = ImageFolder(**folders).load().hash
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(listed(path))))
    assert ImageFolder(**folders).load().hash == before


def test_image_folder_crops_the_centre(folders):
    path = Path(folders["public_root"]) / "cat" / "1.png"
    splits = ImageFolder(**{**folders, "size": 10}).load()
    middle = np.asarray(Image.open(path))[:, 1:11].transpose(2, 0, 1)
    assert np.array_equal(splits.public.pixels[0].numpy(), middle)


def test_image_folder_with_its_own_test_folder(folders, tmp_path):
    test_root = folder_tree(tmp_path / "test", ["1", "2", "10"], images=2, first_seed=5000)
    splits = ImageFolder(**folders, private_test_root=test_root).load()
    assert len(splits.private_train) == 15 and splits.private_test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "test" / "2").rename(tmp_path / "test" / "3")
    refused(ImageFolder(**folders, private_test_root=test_root).load, "first difference: expected 2, got 3")


def test_an_image_folder_without_public_pictures_has_only_private_ones(folders):
    splits = ImageFolder(**{**folders, "public_root": None}).load()
    assert len(splits.public) == 0 and len(splits.public.names) == 0
    whole = ImageFolder(**folders).load()
    assert digest(splits.private_train, splits.private_test) == digest(whole.private_train, whole.private_test)


def test_image_folder_refuses_missing_roots(folders, tmp_path):
    refused(ImageFolder().load, "dataset.private_root is not set", "dataset.private_root=DIR", "ROOT/<class>/<image>")
    missing = {**folders, "public_root": str(tmp_path / "nowhere")}
    refused(ImageFolder(**missing).load, str(tmp_path / "nowhere"), "dataset.public_root=DIR")


def test_image_folder_refuses_a_wrong_layout(folders):
    root = Path(folders["private_root"])
    refused(ImageFolder(**{**folders, "private_root": str(root / "2")}).load, "ROOT/<class>", "got image 1.png")
    (root / "2" / "features.npy").write_bytes(b"")
    refused(ImageFolder(**folders).load, f"first difference in {root / '2'}", "got file features.npy")
    (root / "2" / "features.npy").unlink()
    (root / "2" / "more").mkdir()
    refused(ImageFolder(**folders).load, "got folder more")


def test_image_folder_names_a_corrupt_image(folders):
    path = Path(folders["private_root"]) / "2" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    refused(ImageFolder(**folders).load, str(path), "cannot be read as an image")
    path.write_bytes(b"\x80\x04not an image")
    refused(ImageFolder(**folders).load, str(path), "cannot be read as an image")


def test_image_folder_names_small_classes(folders):
    empty = Path(folders["private_root"]) / "7"
    empty.mkdir()
    refused(ImageFolder(**folders).load, f"class folder {empty} is empty")
    picture(empty / "1.png", seed=77)
    refused(ImageFolder(**folders).load, "private class '7' has 1 image (0 to train on, 1 to test on)")
    picture(empty / "2.png", seed=78)
    refused(ImageFolder(**folders).load, "private class '7' has 2 images (1 to train on, 1 to test on)")


def test_image_folder_refuses_grey_among_colour_unless_told(folders):
    path = Path(folders["public_root"]) / "dog" / "2.png"
    picture(path, seed=99, mode="L")
    refused(ImageFolder(**folders).load, f"{path} is grey; expected RGB", "dataset.channels=1", "convert=true")
    colour = Path(folders["private_root"]) / "1" / "1.png"
    refused(ImageFolder(**folders, channels=1).load, f"{colour} is RGB; expected grey", "dataset.channels=3")
    converted = ImageFolder(**folders, convert=True).load().public
    grey = converted.pixels[converted.labels == 1][1]
    assert (grey == grey[:1]).all()
    assert ImageFolder(**folders, channels=1, convert=True).load().public.pixels.shape[1] == 1


def test_image_folder_never_clips_deep_images(folders):
    path = Path(folders["private_root"]) / "1" / "1.png"
    Image.fromarray(np.full((10, 12), 40000, dtype=np.uint16)).save(path)
    refused(ImageFolder(**folders, convert=True).load, str(path), "more than 8 bits")


def test_image_folder_applies_exif_rotation_unless_it_is_to_be_ignored(folders):
    path = Path(folders["public_root"]) / "cat" / "1.png"
    before = ImageFolder(**folders).load().public.pixels[0]
    stored, tags = Image.open(path), Image.Exif()
    tags[0x0112] = 6  # orientation: rotated by a quarter turn
    stored.save(path, exif=tags)
    assert not torch.equal(ImageFolder(**folders).load().public.pixels[0], before)
    assert torch.equal(ImageFolder(**folders, orientation="ignored").load().public.pixels[0], before)


def test_private_and_public_share_nothing(folders):
    private, public = Path(folders["private_root"]), Path(folders["public_root"])
    picture(public / "dog" / "6.png", seed=0)  # the first picture of private class "10"
    refused(ImageFolder(**folders).load, "the same picture is private (class '10'", "public (class 'dog'")
    (public / "dog" / "6.png").unlink()
    os.rename(private / "2", private / "Dog")
    refused(ImageFolder(**folders).load, "share 1 of their identities: 'dog'")


def test_image_folder_as_public_needs_no_private_folder(folders, digits):
    alone = ImageFolder(public_root=folders["public_root"], channels=1, convert=True)
    images = PublicFrom(dataset=alone).public(digits, channels=1, size=32)
    assert images.pixels.shape == (10, 1, 32, 32) and images.names == ["cat", "dog"]


# ----------------------------------------------------------------------------------------- splits and public images


def test_natural_order():
    assert sorted(["s10", "s2", "s1", "a", "2", "10", "s02"], key=natural_key) == [
        "2",
        "10",
        "a",
        "s1",
        "s02",
        "s2",
        "s10",
    ]


@pytest.mark.parametrize("dataset", [Digits(size=8), Toy(size=8)])
def test_every_image_is_in_one_part(dataset):
    splits = dataset.load()
    parts = [splits.private_train, splits.private_test, splits.public]
    ids = torch.cat([part.ids for part in parts])
    assert len(ids.unique()) == len(ids)
    assert not set(splits.class_names) & set(splits.public.names)
    train, test = splits.everything()
    assert set(train.ids.tolist()).isdisjoint(test.ids.tolist())
    assert len(train) + len(test) == len(ids)
    assert train.names == test.names == [*splits.class_names, *splits.public.names]
    own = train.labels < splits.classes
    assert torch.equal(train.pixels[own], splits.private_train.pixels)
    shares = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (shares - len(splits.private_test) / (len(ids) - len(splits.public))).abs().max() < 0.01


def test_stratified_split_is_pinned():
    labels = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 2, 2])
    train, test = stratify(labels, 0.4, seed=42)
    assert test.tolist() == [2, 3, 7, 8, 11]  # 2 of 5 zeros, 2 of 5 ones, 1 of 2 twos
    assert sorted(train.tolist() + test.tolist()) == list(range(12))


def test_hashes_tell_pixels_labels_names_and_parts_apart():
    splits = Toy(size=8).load()
    train, test, public = splits.private_train, splits.private_test, splits.public
    pixels = public.pixels.clone()
    pixels[0, 0, 0, 0] += 1
    changes = [
        replace(public, pixels=pixels),
        replace(public, labels=public.labels.flip(0)),
        replace(public, names=["other", *public.names[1:]]),
    ]
    others = [Splits(train, test, changed) for changed in changes]
    assert len({splits.hash, *(other.hash for other in others)}) == 4
    assert len({digest(public), *map(digest, changes)}) == 4
    assert {other.references_hash for other in others} == {splits.references_hash}
    moved = Splits(train, test, replace(public, ids=public.ids + 7))
    assert moved.hash == splits.hash


def broken_splits():
    splits = Toy(size=8).load()
    train, test, public = splits.private_train, splits.private_test, splits.public
    high = public.labels.clone()
    high[0] = 8
    nine = [*public.names, "nobody"]
    return {
        "expected pixels uint8": Splits(replace(train, pixels=train.floats()), test, public),
        "N >= 1": Splits(train, test.take(torch.arange(0)), public),
        "expected labels int64 [320]": Splits(train, test, replace(public, labels=public.labels.int())),
        "expected labels 0 to 7, one per name, got 0 to 8": Splits(train, test, replace(public, labels=high)),
        "'nobody' has 0 images": Splits(train, test, replace(public, names=nine)),
        "private class 'private 2' has 40 images (40 to train on, 0 to test on)": Splits(
            train, test.take(test.labels != 2), public
        ),
        "one label per class name": Splits(train, test, replace(public, names=["A", "a", *public.names[2:]])),
        "class names of private_train": Splits(train, replace(test, names=test.names[::-1]), public),
        "of one shape in all parts": Splits(train, test, replace(public, pixels=public.pixels.repeat(1, 3, 1, 1))),
        "got 200 repeated": Splits(train, test, replace(public, ids=torch.arange(320))),
        "identities: 'PRIVATE 1'": Splits(train, test, replace(public, names=["PRIVATE 1", *public.names[1:]])),
    }


@pytest.mark.parametrize("text, splits", broken_splits().items())
def test_check_refuses(text, splits):
    refused(splits.check, text)


def test_everything_refuses_public_classes_that_cannot_be_cut():
    splits = Toy(size=8).load()
    lonely = (splits.public.labels != 5) | (splits.public.ids == splits.public.of_class(5).ids[0])
    splits.public = splits.public.take(lonely)
    splits.check()
    refused(splits.everything, "public class 'public 5' has 1 image")


def test_floats_are_stored_only_if_finite_and_in_range():
    assert to_uint8(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    refused(lambda: to_uint8(torch.tensor([0.0, float("nan"), float("inf")])), "2 NaN or infinite values")
    refused(lambda: to_uint8(torch.tensor([0.0, 255.0])), "range from 0 to 255; expected [0, 1]")


def test_resizing_averages_and_keeps_what_fits():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert resize_pixels(pixels, 16) is pixels
    small = resize_pixels(pixels.repeat(3, 1, 1, 1), 8, rows=2)
    assert small.shape == (3, 1, 8, 8) and torch.equal(small[0], small[2])
    assert small[0, 0, 4, 4] == 144  # rows and columns 7 to 10, weights 1 3 3 1: 16 * 8.5 + 8.5, rounded to even


def test_own_public_images(digits):
    assert Own().public(digits, channels=1, size=32) is digits.public


def test_public_images_from_another_dataset(digits):
    public = PublicFrom(dataset=Toy(size=16)).public(digits, channels=1, size=32)
    assert public.pixels.shape == (320, 1, 32, 32) and public.pixels.dtype == torch.uint8
    whole = PublicFrom(dataset=Toy(size=16), part="all").public(digits, channels=1, size=32)
    assert len(whole) == 520 and len(whole.names) == 12 and int(whole.labels.max()) == 11
    refused(lambda: PublicFrom(dataset=Toy(), part="private"), "public.part", "choices: public, all")


def test_public_images_that_do_not_fit_are_refused(digits):
    whole = PublicFrom(dataset=Digits(), part="all")
    refused(lambda: whole.public(digits, 1, 32), "share 5 of their identities: '0', '1', '2', '3', '4'")
    refused(lambda: whole.public(digits, 3, 32), "have 1 channel(s)", "3 channel(s)", "public.dataset.convert=true")

    class Renamed(Digits):
        def read(self, cache):
            splits = super().read(cache)
            return Splits(*(self._rename(p) for p in (splits.private_train, splits.private_test, splits.public)))

        def _rename(self, part: Images) -> Images:
            return replace(part, names=[f"no {name}" for name in part.names])

    renamed = PublicFrom(dataset=Renamed(), part="all")
    refused(lambda: renamed.public(digits, 1, 32), "the same picture is private (class '0'", "public (class 'no 0'")


def test_a_dataset_must_deliver_what_it_declares():
    dataset = Toy(size=8)
    dataset.channels = 3
    refused(dataset.load, "Toy: expected images [C, S, S] = (3, 8, 8), got (1, 8, 8)")


# ---------------------------------------------------------------------------------------------------- the YAML files


def composed(group, name):
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return hydra.compose(overrides=[f"+{group}={name}"])[group]


def listing(group):
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))


def test_the_listing():
    assert {"att_faces", "digits", "image_folder", "toy"} <= set(listing("dataset"))
    assert {"att_faces", "digits", "image_folder", "own"} <= set(listing("public"))


@pytest.mark.parametrize("name", ["att_faces", "digits", "image_folder", "toy"])
def test_dataset_yaml_writes_out_every_default(name):
    node = composed("dataset", name)
    target = hydra.utils.get_class(node["_target_"])
    parameters = inspect.signature(target).parameters.values()
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert {key: value for key, value in node.items() if key != "_target_"} == defaults
    assert set(target.places) <= set(defaults)
    hydra.utils.instantiate(node)


@pytest.mark.parametrize("name", ["att_faces", "digits", "image_folder"])
def test_public_yaml_holds_the_dataset(name):
    node = composed("public", name)
    assert node["dataset"] == composed("dataset", name)
    assert isinstance(hydra.utils.instantiate(node), PublicFrom)
