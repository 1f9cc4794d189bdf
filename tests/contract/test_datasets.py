"""Every dataset of `conf/dataset`: those that need files on a small tree drawn here."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from contract.listing import node, options
from midefense import seeds
from midefense.types import Refused

NAMES = options("dataset")
PINNED = {
    "digits": "017dc6f9269c1f9c36b08a27227d0e58fbabb52dec5c291d6b08286faee183b8",
    "toy": "96c0419b83431f386898375095196c72eb3c987dbfc6531af97c125682029283",
    "att_faces": "ab5614b58410cd06f05c911f474dd00615da9ed922a669e1fe99d0cf2ce2380b",  # of the small tree below
    "image_folder": "9029733089f0afa7aed15c784831559a651579c2c39b4abea94f625937d8aa61",  # of the small tree below
}


def draw(path, key, size=(92, 112), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "RGB": 3}[mode]
    rng = np.random.RandomState(seeds.derive("picture", key) % 2**32)  # its stream is frozen
    pixels = rng.randint(0, 256, (size[1], size[0], channels)).astype(np.uint8)
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(path)


def att_faces(root):
    for person in range(1, 41):
        for picture in range(1, 11):
            draw(root / f"s{person}" / f"{picture}.pgm", (person, picture), size=(23, 28))
    return [f"dataset.root={root}", "dataset.size=16"]


def image_folder(root):
    for part, names in {"private": ("ann", "bob", "10", "9"), "public": ("cat", "dog")}.items():
        for name in names:
            for picture in range(5):
                draw(root / part / name / f"{picture}.png", (name, picture), size=(12, 10), mode="RGB")
    return [f"dataset.private_root={root / 'private'}", f"dataset.public_root={root / 'public'}", "dataset.size=8"]


TREES = {"att_faces": att_faces, "image_folder": image_folder}


def dataset(name, *overrides):
    return node("train_target", "dataset", f"dataset={name}", *overrides).build()


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, tmp_path_factory):
    """A dataset's name, the dataset, and its splits."""
    make = TREES.get(request.param)
    made = dataset(request.param, *(make(tmp_path_factory.mktemp("tree")) if make else ()))
    return request.param, made, made.load()


def parts(splits):
    return [splits.private_train, splits.private_test, splits.public]


def test_the_listing():
    assert len(NAMES) == 4
    assert set(PINNED) == set(NAMES)
    assert set(TREES) == {name for name in NAMES if dataset(name).places}


def test_identities_pictures_and_ids_are_disjoint(loaded):
    _, _, splits = loaded
    assert not {name.casefold() for name in splits.class_names} & {name.casefold() for name in splits.public.names}
    pictures = [{image.numpy().tobytes() for image in part.pixels} for part in parts(splits)]
    assert not (pictures[0] | pictures[1]) & pictures[2] and not pictures[0] & pictures[1]
    ids = torch.cat([part.ids for part in parts(splits)])
    assert len(ids.unique()) == len(ids)


def test_the_split_is_pinned(loaded):
    name, made, splits = loaded
    assert splits.hash == PINNED[name]
    assert made.load().hash == splits.hash


def test_labels_are_contiguous_and_every_class_is_in_every_part(loaded):
    _, _, splits = loaded
    for part in parts(splits):
        assert part.labels.dtype == torch.int64
        assert part.labels.unique().tolist() == list(range(len(part.names)))
    assert splits.private_train.names == splits.private_test.names and splits.classes >= 2


def test_images_are_as_declared(loaded):
    _, made, splits = loaded
    for part in parts(splits):
        assert part.pixels.dtype == torch.uint8
        assert part.pixels.shape == (len(part), made.channels, made.size, made.size)
        floats = part.floats()
        assert floats.min() >= 0 and floats.max() <= 1 and floats.flatten(1).std(1).min() > 0
    assert splits.private_train.floats().max() > 0.5, "in [0, 1], not in [0, 1/255]"


def test_the_public_part_is_also_had_alone(loaded):
    _, made, splits = loaded
    alone = made.load_public()
    assert torch.equal(alone.pixels, splits.public.pixels) and list(alone.names) == list(splits.public.names)


@pytest.mark.parametrize("name", sorted(TREES))
def test_a_wrong_layout_is_named_with_the_expected_tree(name, tmp_path):
    absent = [f"dataset.{place}={tmp_path / 'absent'}" for place in dataset(name).places]
    with pytest.raises(Refused, match=re.escape(str(tmp_path / "absent"))) as refusal:
        dataset(name, *absent).load()
    assert "/" in str(refusal.value).split("expected", 1)[1], "the tree is drawn"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Refused, match="expected"):
        dataset(name, *[override.replace("absent", "empty") for override in absent]).load()


@pytest.mark.parametrize("name", sorted(TREES))
def test_unset_places_are_named_with_the_option(name):
    unset = [f"dataset.{place}=null" for place in dataset(name).places]
    with pytest.raises(Refused, match="Try dataset.(private_)?root=DIR"):
        dataset(name, *unset).load()
