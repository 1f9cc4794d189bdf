"""Every dataset of `conf/dataset`: those that need files on a small tree drawn here."""

import re

import numpy as np
import pytest
import torch
from field_trees import celeba_tree, cifar_folders, lfw_tree, mnist_tree, svhn_tree
from folder_trees import dogs_tree, facescrub_tree
from PIL import Image

from contract.listing import node, options
from midefense import seeds
from midefense.types import Refused

NAMES = options("dataset")
PINNED = {
    "digits": "017dc6f9269c1f9c36b08a27227d0e58fbabb52dec5c291d6b08286faee183b8",
    "synthetic_faces": "68c1b323ac0869c813e5c2031bc1c98d84c6b20a9c9cad3bd9e14ec4a97020cf",
    "toy": "96c0419b83431f386898375095196c72eb3c987dbfc6531af97c125682029283",
    "att_faces": "ab5614b58410cd06f05c911f474dd00615da9ed922a669e1fe99d0cf2ce2380b",  # of the small tree below
    "image_folder": "dc0cc343a1bc3ab381f8dbd342e4649decfb1d35fcba865568fbbb9d74d832d4",  # of the small tree below
    "celeba": "958f7d1255c788b10581c733daa183f02e7e5d7d15b124789d056621edaec521",
    "celeba_ppa": "c4d18b9ddbc9a21506ac21cbcc72869e281eff9625fc8ad6ab298a62f2b906ff",
    "cifar10": "2a067c5e71a313707d253048e044377cdaf516d33328f4add64bfc3e1d4656f0",
    "fashion_mnist": "b16b4e0fe75e17474c7d2930a930b4ca0c4fb0f75e73dd059de75694cf57a466",
    "lfw": "d6fd843561874728bd830ef71586a5c446dce77dd89d3458fc27d6ff19432995",
    "mnist": "11f1bacb204e47296724412193f0838dd785ac624de7b7711ba9b129d7c31404",
    "svhn": "51c71078a65e6691db5777a31c0f075569c309ee290c31684588d52a4ee42edc",
    "facescrub": "396fe41a11e0c1d3684fa900395458dd83c60a978b5466c9c351534ae768b08b",
    "stanford_dogs": "4450b99eb2e6a7359e868d53f080e5d3fbf70a0c630f45ad062d8bcb4ccbc37a",
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


def mnist(root):
    return [f"dataset.root={mnist_tree(root)}", "dataset.size=28"]


def fashion_mnist(root):
    return [f"dataset.root={mnist_tree(root, 'FashionMNIST')}", "dataset.size=14"]


def cifar10(root):
    return [f"dataset.root={cifar_folders(root)}", "dataset.size=16"]


def svhn(root):
    return [f"dataset.root={svhn_tree(root)}", "dataset.size=16"]


def lfw(root):
    lfw_tree(root, {"Ann": 5, "Bob": 4, "Cat": 3, "Dan": 1})
    return [f"dataset.root={root}", "dataset.min_images=4", "dataset.crop=[5,5,20,20,25,25]", "dataset.size=8"]


def celeba(root):
    celeba_tree(root, [2001, 3, 8, 2002] * 3 + [3, 8] * 2)
    few = ["identities=2", "min_images=5", "test_share=0.2", "public_images=6", "size=8"]
    return [f"dataset.root={root}", *(f"dataset.{override}" for override in few)]


def celeba_ppa(root):
    celeba_tree(root, [9, 3, 8, 7] * 3 + [3, 8] * 8, suffix="png")
    return [f"dataset.root={root}", "dataset.identities=2", "dataset.public_images=5", "dataset.size=8"]


def facescrub(root):
    few = ["actors=3", "actresses=2", "private=3", "train_share=0.5", "size=8"]
    return [f"dataset.root={facescrub_tree(root, images=(8, 5))}", *(f"dataset.{override}" for override in few)]


def stanford_dogs(root):
    few = ["breeds=3", "private=2", "cropped=true", "train_share=0.5", "size=8"]
    return [f"dataset.root={dogs_tree(root)}", *(f"dataset.{override}" for override in few)]


TREES = {
    "att_faces": att_faces,
    "facescrub": facescrub,
    "image_folder": image_folder,
    "stanford_dogs": stanford_dogs,
    "celeba": celeba,
    "celeba_ppa": celeba_ppa,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
    "lfw": lfw,
    "mnist": mnist,
    "svhn": svhn,
}


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
