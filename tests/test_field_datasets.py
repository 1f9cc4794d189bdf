"""The field's image sets in their official layouts: counts and splits as published, wrong layouts named in words."""

import csv
import functools
import inspect
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from field_trees import (
    balanced,
    celeba_tree,
    cifar_binary,
    cifar_folders,
    idx_bytes,
    lfw_tree,
    mnist_tree,
    noise,
    pack,
    picture,
    svhn_tree,
)
from PIL import Image

from midefense.datasets import celeba_files
from midefense.datasets.attributes import UNKNOWN
from midefense.datasets.base import PublicFrom
from midefense.datasets.celeba import Celeba, CelebaPpa
from midefense.datasets.celeba_files import ATTRIBUTES
from midefense.datasets.cifar10 import Cifar10
from midefense.datasets.decoding import Decoding
from midefense.datasets.lfw import Lfw, face_boxes, read_landmarks
from midefense.datasets.mnist import FashionMnist, Mnist
from midefense.datasets.splits import legacy_shuffle_split, stratify
from midefense.datasets.svhn import Svhn
from midefense.plan import bind as binding
from midefense.plan.compose import compose
from midefense.types import Refused

NAMES = ["celeba", "celeba_ppa", "cifar10", "fashion_mnist", "lfw", "mnist", "svhn"]
CLASS_SETS = {"mnist": (Mnist, mnist_tree), "cifar10": (Cifar10, cifar_folders), "svhn": (Svhn, svhn_tree)}


def refused(call, *texts):
    with pytest.raises(Refused) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


def unpack(name, folder, wanted=lambda path: True):
    """The files of a pack of real pictures, those that are wanted."""
    if not pack(name).exists():
        pytest.skip(f"the pack of real pictures is not at {pack(name)}")
    with tarfile.open(pack(name)) as archive:
        members = [member for member in archive if member.isdir() or wanted(member.name)]
        archive.extractall(folder, members, filter="data")
    return folder


def counts(splits):
    return len(splits.private_train), len(splits.private_test), len(splits.public)


# ------------------------------------------------------------------------------------- ten classes, official parts


@pytest.mark.parametrize("name", sorted(CLASS_SETS))
def test_class_sets_keep_the_official_split(name, tmp_path):
    kind, tree = CLASS_SETS[name]
    splits = kind(root=str(tree(tmp_path)), private_classes=[7, 2], size=16).load()
    names = kind.class_names
    assert splits.class_names == [names[7], names[2]]
    assert splits.public.names == [names[label] for label in (0, 1, 3, 4, 5, 6, 8, 9)]
    assert counts(splits) == (6, 2, 32)
    assert splits.private_train.ids.max() < 30 <= splits.private_test.ids.min(), "official test images are tested on"
    assert splits.public.labels.bincount().tolist() == [4] * 8


def test_class_sets_hold_the_pixels_of_their_files(tmp_path):
    mnist = Mnist(root=str(mnist_tree(tmp_path)), size=28).load()
    stored = noise(("MNIST", "train"), 30, 28, 28)
    assert np.array_equal(mnist.private_train.pixels[:, 0].numpy(), stored[mnist.private_train.ids.numpy()])
    binary = Cifar10(root=str(cifar_binary(tmp_path))).load()
    assert counts(binary) == (25, 5, 30)
    stored = noise("data_batch_2", 10, 3072).reshape(10, 3, 32, 32)
    assert np.array_equal(binary.private_train.of_class(4).pixels[1].numpy(), stored[4])
    svhn = Svhn(root=str(svhn_tree(tmp_path))).load()
    stored = noise(("svhn", "test"), 32, 32, 3, 10)  # labels 1 to 10: the digit 0 is the last
    assert np.array_equal(svhn.private_test.of_class(0).pixels[0].numpy(), stored[..., 9].transpose(2, 0, 1))


def test_class_sets_may_be_private_as_a_whole(tmp_path):
    splits = Mnist(root=str(mnist_tree(tmp_path)), private_classes=range(10), size=28).load()
    assert counts(splits) == (30, 10, 0) and splits.public.names == []
    refused(lambda: Mnist(private_classes=[3]), "expected 2 to 10 different classes of 0 to 9, got [3]")
    refused(lambda: Cifar10(private_classes=[3, 3]), "dataset.private_classes", "[3, 3]")


def test_class_sets_leave_out_public_pictures_that_are_private(tmp_path):
    images = noise("twins", 30, 28, 28)
    images[5] = images[0]  # a five that is also a zero
    root = mnist_tree(tmp_path)
    (root / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    splits = Mnist(root=str(root), size=28).load()
    assert len(splits.public) == 19 and 5 not in splits.public.ids


def test_class_sets_are_cached_by_files_and_choices(tmp_path):
    root, cache = mnist_tree(tmp_path / "data"), tmp_path / "cache"
    cache.mkdir()
    first = Mnist(root=str(root)).load(cache)
    assert Mnist(root=str(root)).load(cache).hash == first.hash and len(list(cache.iterdir())) == 1
    other = Mnist(root=str(root), private_classes=[1, 0, 2, 3, 4]).load(cache)
    labels = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(balanced(3)[::-1]))
    turned = Mnist(root=str(root)).load(cache)
    assert len({first.hash, other.hash, turned.hash}) == 3 and len(list(cache.iterdir())) == 3


def test_mnist_names_the_first_difference(tmp_path):
    raw = mnist_tree(tmp_path) / "MNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    load = Mnist(root=str(tmp_path)).load
    refused(
        FashionMnist(root=str(tmp_path)).load, "expected FashionMNIST/raw/train-images-idx3-ubyte, got no such file"
    )
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    refused(load, "ROOT/MNIST/raw/t10k-labels-idx1-ubyte", str(images), "expected 23536 bytes for its 30 entries, got")
    images.write_bytes(labels.read_bytes())
    refused(load, "expected the magic number 2051, got 2049")
    images.write_bytes(idx_bytes(noise("wide", 30, 28, 32)))
    refused(load, "expected pictures of 28x28, got 28x32")
    images.write_bytes(b"")
    refused(load, "expected the magic number 2051, got 0")
    images.write_bytes(whole)
    labels.write_bytes(idx_bytes(balanced(1)[:9]))
    refused(load, "expected 10 labels, one per image, got 9")
    labels.write_bytes(idx_bytes(balanced(1) + 1))
    refused(load, "expected labels 0 to 9, got 0 to 10")
    labels.rename(raw / "t10k-labels-idx1-ubyte.gz")
    refused(load, "got t10k-labels-idx1-ubyte.gz, still packed")
    mnist_tree(tmp_path / "untested", test=0)
    refused(Mnist(root=str(tmp_path / "untested")).load, "expected images to train on and to test on, got 30 and 0")


LAYOUTS = {**CLASS_SETS, "cifar10, binary": (Cifar10, functools.partial(cifar_binary, of_each=3))}


@pytest.mark.parametrize(("kind", "tree"), LAYOUTS.values(), ids=LAYOUTS)
def test_as_many_training_images_of_each_class_as_were_asked_for(kind, tree, tmp_path):
    root = str(tree(tmp_path))
    everything = kind(root=root).load()
    few, again = (kind(root=root, images_per_class=2).load() for _ in range(2))
    whole = everything.private_train
    assert whole.labels.bincount().min() > 2 and few.private_train.labels.bincount().tolist() == [2] * 5
    assert torch.equal(few.private_train.ids, again.private_train.ids)
    rows = torch.isin(whole.ids, few.private_train.ids)
    assert torch.equal(few.private_train.pixels, whole.pixels[rows]), "the same pictures under the same ids"
    for one, other in ((few.private_test, everything.private_test), (few.public, everything.public)):
        assert torch.equal(one.ids, other.ids)
    with pytest.raises(Refused, match=r"dataset\.images_per_class: expected at most"):
        kind(root=root, images_per_class=1000).load()


def test_cifar10_names_the_first_difference(tmp_path):
    refused(Cifar10(root=str(tmp_path)).load, "expected one of these layouts, got none", "dataset.download=true")
    batch = cifar_binary(tmp_path / "binary") / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    refused(Cifar10(root=str(tmp_path / "binary")).load, str(batch), "expected a multiple of 3073 bytes", "got 30729")
    batch.unlink()
    refused(Cifar10(root=str(tmp_path / "binary")).load, "expected cifar-10-batches-bin/data_batch_3.bin, got no such")
    root = cifar_folders(tmp_path / "folders")
    load = Cifar10(root=str(root)).load
    (root / "test" / "frog").rename(root / "test" / "toad")
    refused(load, "in test, expected frog, got horse", "ROOT/train/<class>/<image>")
    (root / "test" / "toad").rename(root / "test" / "frog")
    next((root / "train" / "cat").iterdir()).write_bytes(b"no picture")
    refused(load, str(root / "train" / "cat"), "cannot be read as an image")


def test_cifar10_for_python_is_read_only_if_it_is_the_published_one(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    source = torchvision.datasets.CIFAR10
    names = [name for name, _ in source.train_list + source.test_list]
    for name in names:
        entry = {"data": noise(name, 10, 3072), "labels": balanced(1).tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    refused(Cifar10(root=str(tmp_path)).load, "expected cifar-10-batches-py/batches.meta, got no such file")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(Cifar10.class_names)}))
    md5 = "c99cafc152244af753f735de768cd75f"
    refused(Cifar10(root=str(tmp_path)).load, f"expected data_batch_1 with MD5 {md5}, got another file")

    def known(name):
        return torchvision.datasets.utils.calculate_md5(folder / name)

    monkeypatch.setattr(source, "train_list", [[name, known(name)] for name in names[:5]])
    monkeypatch.setattr(source, "test_list", [[names[5], known(names[5])]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": known("batches.meta")})
    splits = Cifar10(root=str(tmp_path)).load()
    assert counts(splits) == (25, 5, 30)
    stored = noise("test_batch", 10, 3072).reshape(10, 3, 32, 32)
    assert np.array_equal(splits.private_test.of_class(3).pixels[0].numpy(), stored[3])


def test_svhn_names_the_first_difference(tmp_path):
    path = svhn_tree(tmp_path) / "test_32x32.mat"
    load = Svhn(root=str(tmp_path)).load
    labels = balanced(1)[:, None] + 1
    whole = path.read_bytes()
    scipy.io.savemat(path, {"X": noise("svhn", 32, 32, 3, 10), "y": labels}, do_compression=True)
    packed = path.read_bytes()
    torn = packed[:300] + b"torn" + packed[304:]
    for broken in (b"no matrix at all", b"", whole[:2000], whole[:200], packed[:9000], torn):
        path.write_bytes(broken)
        refused(load, f"{path} cannot be read as a MATLAB 5 file")
    scipy.io.savemat(path, {"X": noise("svhn", 32, 32, 3, 10)})
    refused(load, "expected the variables X, y, got no y")
    scipy.io.savemat(path, {"X": noise("svhn", 10, 32, 32, 3), "y": labels})
    refused(load, "expected X uint8 [32, 32, 3, N], got uint8 [10, 32, 32, 3]")
    scipy.io.savemat(path, {"X": noise("svhn", 32, 32, 3, 10), "y": labels[:9]})
    refused(load, "expected y with 10 whole numbers, one per image, got 9")
    path.unlink()
    refused(load, "ROOT/train_32x32.mat", "expected test_32x32.mat, got no such file")


def test_downloading_is_left_to_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(Mnist, "source", staticmethod(lambda root, download: download and mnist_tree(root)))
    wanted = Mnist(root=str(tmp_path / "new"), download=True, size=28)
    assert counts(wanted.load()) == (15, 5, 20)
    monkeypatch.setattr(Mnist, "source", None)  # what is there is not fetched again
    assert counts(wanted.load()) == (15, 5, 20)

    def offline(root, download):
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMnist, "source", staticmethod(offline))
    absent = str(tmp_path / "absent")
    refused(FashionMnist(root=absent, download=True).load, "could not be downloaded", "no network", "by hand")
    refused(FashionMnist(root=absent).load, f"no folder at {absent}")


# ------------------------------------------------------------------------------------------------------- CelebA


def few(root, **changes):
    chosen = {"identities": 2, "min_images": 5, "test_share": 0.2, "public_images": None, "size": 8, **changes}
    return Celeba(root=str(root), **chosen)


@pytest.fixture
def celebrities(tmp_path):
    """Numbers 8 and 3 are photographed often; 7 and 2001 to 2003 are not, 7 has a low number."""
    return celeba_tree(tmp_path / "celeba", [2001, 8, 3, 7] * 3 + [3, 8, 2002, 2003] * 2)


def test_celeba_splits_as_the_low_resolution_papers_do(celebrities):
    splits = few(celebrities).load()
    assert splits.class_names == ["3", "8"] and splits.public.names == ["2001", "2002", "2003"]
    assert counts(splits) == (8, 2, 7)
    assert splits.private_test.labels.bincount().tolist() == [1, 1]
    assert splits.public.ids.tolist() == [1, 5, 9, 15, 16, 19, 20], "ids are the numbers of pictures"
    drawn = few(celebrities, public_images=4).load_public()
    assert len(drawn) == 4 and set(drawn.ids.tolist()) < set(splits.public.ids.tolist())
    assert few(celebrities, public_images=0).load().public.names == []
    assert few(celebrities, public_above=5).load().public.names == ["7", "2001", "2002", "2003"]


def test_celeba_rounds_the_test_share_up():
    labels = torch.arange(3).repeat_interleave(torch.tensor([30, 31, 110]))
    celeba = Celeba()
    whole = celeba_files.Files([Path(str(row)) for row in range(171)], labels, torch.arange(171), ["a", "b", "c"])
    assert celeba.split(whole)[1].labels.bincount().tolist() == [3, 4, 11]
    assert stratify(labels, 0.1, 42)[1].shape == (3 + 3 + 11,)


def test_celeba_crops_the_centre(tmp_path):
    celeba_tree(tmp_path, [1001, 3, 3, 3, 4, 4, 4], size=(178, 218))
    splits = few(tmp_path, identities=2, min_images=3, size=108).load()
    whole = np.asarray(Image.open(tmp_path / "img_align_celeba" / "000001.jpg"))
    assert np.array_equal(splits.public.pixels[0].numpy(), whole[55:163, 35:143].transpose(2, 0, 1))
    half = Decoding(channels=3, size=54, crop=(35, 55, 143, 163, 178, 218)).box(89, 109)
    assert half == (17.5, 27.5, 71.5, 81.5), "the centre 54 of a picture of half the size"


def test_celeba_ppa_ranks_shuffles_and_cuts(tmp_path):
    root = celeba_tree(tmp_path, [5, 9, 4, 4, 9, 7, 5, 4, 9, 5, 6, 9], suffix="png", size=(30, 30))
    dataset = CelebaPpa(root=str(root), identities=3, public_images=None, size=30)
    splits = dataset.load()
    assert splits.class_names == ["9", "5", "4"], "9 has most pictures; 5 appears before 4, which has as many"
    assert splits.public.names == ["6", "7"] and splits.public.ids.tolist() == [6, 11]
    private = torch.tensor([1, 2, 3, 4, 5, 7, 8, 9, 10, 12])
    order = torch.tensor([8, 1, 5, 0, 7, 2, 9, 4, 3, 6])
    assert splits.private_train.ids.tolist() == private[order[:9]].tolist()
    assert splits.private_test.ids.tolist() == private[order[9:]].tolist()
    first = np.asarray(Image.open(root / "img_align_celeba" / "000010.png"))
    assert np.array_equal(splits.private_train.pixels[0].numpy(), first.transpose(2, 0, 1))
    picture(root / "img_align_celeba" / "000010.jpg", size=(30, 30))
    assert dataset.listing()[0].paths[0].suffix == ".jpg", "read before the .png of that number"


def test_the_shuffled_split_is_that_of_the_paper():
    train, test = legacy_shuffle_split(10, 0.9, seed=42)
    assert train.tolist() == [8, 1, 5, 0, 7, 2, 9, 4, 3] and test.tolist() == [6]
    train, test = legacy_shuffle_split(20580, 0.9, seed=42)
    assert len(train) == 18522 and train[:5].tolist() == [16226, 3388, 20011, 1427, 19697]
    assert test[:5].tolist() == [14828, 5542, 7993, 10900, 7758]


def test_a_part_of_celeba_will_do_if_asked(celebrities):
    whole = few(celebrities).load()
    for number in (1, 2, 3, 15):
        (celebrities / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    refused(few(celebrities).load, "expected 000002.jpg, got no such file; 2 of 10 pictures are missing")
    refused(few(celebrities).load_public, "expected 000001.jpg, got no such file; 2 of 7 pictures are missing")
    part = few(celebrities, partial=True, min_images=4).load()
    assert counts(part) == (6, 2, 5) and part.class_names == whole.class_names
    refused(few(celebrities, partial=True).load, "expected 2 private identities (dataset.min_images=5 or more", "got 0")
    refused(few(celebrities, public_images=9, partial=True, min_images=4).load, "at least 9", "public_images=null")
    refused(few(celebrities, partial=True, min_images=4, identities=3).load, "expected 3 private identities")
    refused(CelebaPpa(root=str(celebrities), partial=True, identities=9).load, "(dataset.identities=9)", "got 6")


def test_celeba_names_what_is_wrong(celebrities, tmp_path):
    inside = few(celebrities / "img_align_celeba").load
    refused(inside, "ROOT/img_align_celeba/000001.jpg", "expected img_align_celeba", f"dataset.root={celebrities}")
    refused(few(celebrities, images="images").load, f"in {celebrities}: expected images, got identity_CelebA.txt")
    refused(few(celebrities, public_root=str(tmp_path / "no")).load, "dataset.public_root=DIR", str(tmp_path / "no"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "img_align_celeba").mkdir(parents=True)
    refused(
        few(celebrities, public_root=str(elsewhere)).load, "expected identity_CelebA.txt", "dataset.public_root=DIR"
    )
    table = celebrities / "identity_CelebA.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:4], "000005.jpg", *lines[5:]]))
    refused(few(celebrities).load, f"{table}, line 5", "got '000005.jpg'")
    table.write_text("\n".join([*lines, lines[0]]))
    refused(few(celebrities).load, "expected every picture once")
    table.write_text("")
    refused(few(celebrities).load, "expected 2 private identities", "got 0 among 0 pictures")


def test_celeba_takes_the_published_lists(celebrities, tmp_path, monkeypatch):
    folder = tmp_path / "lists"
    folder.mkdir()
    texts = {
        "trainset": "000003.png 0\n000007.png 0\n000002.png 1\n000006.png 1\n",
        "testset": "000011.png 0\n000010.png 1\n",
        "ganset": "000019.png\n000001.png\n",
    }
    published = {
        "trainset": "000003.jpg 0\n000007.jpg 0\n000002.jpg 1\n000006.jpg 1\n",
        "testset": "000011.jpg 0\r\n000010.jpg 1\r\n",
        "ganset": "000019.jpg\n000001.jpg",
    }
    for name, text in texts.items():
        (folder / f"celeba_{name}.txt").write_text(text)
    dataset = few(celebrities, lists=str(folder))
    refused(
        dataset.load, "celeba_trainset.txt: expected the published list, with SHA-256 fd758026", "dataset.lists=null"
    )
    digests = {name: celeba_files.hashlib.sha256(text.encode()).hexdigest()[:8] for name, text in published.items()}
    monkeypatch.setattr(celeba_files, "PUBLISHED_LISTS", digests)
    splits = dataset.load()
    assert splits.class_names == ["3", "8"] and splits.public.names == ["2001", "2002"]
    assert splits.private_train.ids.tolist() == [3, 7, 2, 6] and splits.private_train.labels.tolist() == [0, 0, 1, 1]
    assert splits.private_test.ids.tolist() == [11, 10]
    assert splits.public.ids.tolist() == [19, 1] and splits.public.labels.tolist() == [1, 0]
    table = celebrities / "identity_CelebA.txt"
    whole = table.read_text()
    table.write_text(whole.replace("000007.jpg 3", "000007.jpg 8"))
    refused(dataset.load, "expected one identity per label of trainset.txt")
    table.write_text(whole.replace("000019.jpg 2002\n", ""))
    refused(dataset.load, "expected all pictures of ganset.txt, got no 000019.jpg")
    (folder / "celeba_testset.txt").rename(folder / "test.txt")
    refused(dataset.load, "expected testset.txt or celeba_testset.txt", "got neither")
    refused(few(celebrities, lists=str(tmp_path / "no")).load, "dataset.lists=DIR")
    refused(lambda: few(celebrities, lists=str(folder), partial=True), "expected dataset.partial=false")


def test_celeba_attributes(celebrities):
    dataset = few(celebrities)
    assert len(ATTRIBUTES) == 40 and ATTRIBUTES[0] == "5_o_Clock_Shadow" and ATTRIBUTES[20] == "Male"
    found = dataset.attributes(torch.tensor([12, 7]))
    assert found.dtype == torch.uint8 and found.shape == (2, 40)
    assert (found[0].nonzero()[:, 0] + 1).tolist() == [1, 2, 3, 4, 6, 12], "the divisors of 12, see celeba_tree"
    assert (found[1].nonzero()[:, 0] + 1).tolist() == [1, 7]
    assert dataset.attributes(torch.arange(0)).shape == (0, 40)
    refused(lambda: dataset.attributes(torch.tensor([21])), "for picture 000021, got no line")
    table = celebrities / "list_attr_celeba.txt"
    text = table.read_text()
    table.write_text(text.replace("000012.jpg 1 ", "000012.jpg "))
    refused(lambda: dataset.attributes(torch.tensor([12])), "for picture 000012, got 39 values")
    table.write_text(text.replace("Male", "Female"))
    refused(lambda: dataset.attributes(torch.tensor([12])), "first difference: expected Male, got Female")
    table.unlink()
    refused(lambda: dataset.attributes(torch.tensor([12])), "expected list_attr_celeba.txt")


# ---------------------------------------------------------------------------------------------------------- LFW


@pytest.fixture
def people(tmp_path):
    return lfw_tree(tmp_path / "lfw", {"Ann_Lee": 5, "Bob": 6, "Cat": 3, "Dan": 1})


def test_lfw_takes_people_with_many_pictures(people):
    splits = Lfw(root=str(people), min_images=5, crop=None, size=25).load()
    assert splits.class_names == ["Ann_Lee", "Bob"] and splits.public.names == ["Cat", "Dan"]
    assert counts(splits) == (9, 2, 4)
    second = np.asarray(Image.open(people / "lfw-deepfunneled" / "Cat" / "Cat_0002.jpg"))
    assert np.array_equal(splits.public.pixels[1].numpy(), second.transpose(2, 0, 1))
    capped = Lfw(root=str(people), min_images=5, cap=2, crop=None, size=25, test_share=0.1)
    refused(capped.load, "private class 'Ann_Lee' has 2 images")
    capped = Lfw(root=str(people), min_images=5, cap=3, crop=None, size=25).load()
    assert counts(capped) == (4, 2, 4), "an identity's count is taken before the cap"
    assert set(capped.private_train.ids.tolist()) < {0, 1, 2, 5, 6, 7}
    everyone = Lfw(root=str(people), min_images=3, crop=None, size=8).load()
    assert everyone.public.names == ["Dan"]
    alone = Lfw(root=str(lfw_tree(people.parent / "many", {"Eve": 3, "Fay": 3})), min_images=3, crop=None, size=8)
    assert len(alone.load().public) == 0
    images = PublicFrom(dataset=alone, part="all").public(everyone, channels=3, size=8)
    assert len(images) == 6 and images.names == ["Eve", "Fay"], "everyone of LFW, nobody being public"
    (people / "lfw-deepfunneled").rename(people / "lfw")
    assert Lfw(root=str(people), min_images=5, crop=None, size=25).load().hash == splits.hash


def test_lfw_names_what_is_wrong(people):
    folder = people / "lfw-deepfunneled"
    refused(Lfw(root=str(folder)).load, "<Name>_0001.jpg", "expected lfw-deepfunneled", f"dataset.root={people}")
    refused(Lfw(root=str(people)).load, "at least 2 people with dataset.min_images=10", "got 0 of 4 people")
    load = Lfw(root=str(people), min_images=5).load
    (folder / "Bob" / "Bob_0003.jpg").rename(folder / "Bob" / "Bob_0009.jpg")
    refused(load, f"first difference in {folder / 'Bob'}: expected Bob_0003.jpg, got Bob_0004.jpg")
    (folder / "Bob" / "Bob_0009.jpg").rename(folder / "Bob" / "Bob_3.jpg")
    refused(load, "expected Bob_0003.jpg, got Bob_3.jpg")
    (folder / "Abe").mkdir()
    refused(load, "expected Abe_0001.jpg, got nothing more")
    kaggle = folder.rename(people.parent / "inner")
    (people / "lfw-deepfunneled").mkdir()
    kaggle.rename(people / "lfw-deepfunneled" / "lfw-deepfunneled")
    refused(load, "as in Kaggle's archive", f"Try dataset.root={people / 'lfw-deepfunneled'}.")


def test_lfw_faces_are_aligned_by_landmarks(people, tmp_path):
    files = [f"Ann_Lee/Ann_Lee_{n:04d}.jpg" for n in range(1, 6)] + [f"Bob/Bob_{n:04d}.jpg" for n in range(1, 7)]
    face = np.array([[10, 10], [14, 10], [12, 12], [10.5, 14], [13.5, 14]])
    path = tmp_path / "landmarks.npz"

    def load(files, points):
        np.savez(path, files=np.array(files), lm=points)
        return Lfw(root=str(people), min_images=5, landmarks=str(path), size=8).load()

    points = np.repeat(face[None], 15, axis=0).astype(np.float16)
    others = [f"Cat/Cat_{n:04d}.jpg" for n in range(1, 4)] + ["Dan/Dan_0001.jpg"]
    at_rest = load(files + others, points)
    assert load([*others, *files], np.roll(points, 4, axis=0)).hash == at_rest.hash, "found by name"
    points[0] += 3
    moved = load(files + others, points)
    assert moved.hash != at_rest.hash and moved.public.known is not None
    box = face_boxes(torch.tensor(np.stack([face, face + 3, face * 2])))
    side = (4 * 108 / 39.3 + 4 * 108 / 41.0) / 2
    assert box[0].tolist() == pytest.approx([12 - side / 2, 12 - 0.72 * side, 12 + side / 2, 12 + 0.28 * side])
    assert torch.allclose(box[1] - box[0], torch.full((4,), 3.0).double())
    assert torch.allclose(box[2], 2 * box[0]), "the same part of a face of twice the size"
    refused(lambda: load(files, points[:11]), "got none of Cat/Cat_0001.jpg (4 are missing)")
    refused(lambda: load(files, points), "numbers `lm` [N, 5, 2], all finite, got [11] and [15, 5, 2]")
    np.savez(path, names=np.array(files))
    refused(Lfw(root=str(people), min_images=5, landmarks=str(path)).load, "`files` [N]", "dataset.landmarks=null")
    path.write_bytes(b"PK nothing")
    refused(Lfw(root=str(people), min_images=5, landmarks=str(path)).load, "expected an .npz file")


def test_mnist_on_the_real_pack(tmp_path):
    splits = Mnist(root=str(unpack("mnist_raw", tmp_path)), size=28).load()
    assert counts(splits) == (30596, 5139, 34265), "as counted in the published lists of KED-MI and DMI"
    assert splits.private_train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842]


@pytest.mark.slow
def test_mnist_enlarged_on_the_real_pack(tmp_path):
    splits = Mnist(root=str(unpack("mnist_raw", tmp_path))).load()
    assert splits.hash == "251524c05a34110ce68ea7dda7bef601d2bc432919cd43b71a6346d963cc3053"


def test_fashion_mnist_on_the_real_pack(tmp_path):
    splits = FashionMnist(root=str(unpack("fashion_raw_20k", tmp_path)), size=28).load()
    assert counts(splits) == (9920, 5000, 15080), "the first 20,000 training images, all test images"
    assert splits.class_names == ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]


@pytest.mark.slow
def test_cifar10_on_the_real_pack(tmp_path):
    splits = Cifar10(root=str(unpack("cifar10_jpg", tmp_path))).load()
    assert counts(splits) == (25000, 5000, 30000)
    assert splits.private_train.labels.bincount().tolist() == [5000] * 5


@pytest.mark.slow
def test_lfw_on_the_real_pack(tmp_path):
    root = unpack("lfw_ge10_cap30", tmp_path)
    dataset = Lfw(root=str(root), cap=30)
    splits = dataset.load()
    assert splits.classes == 158 and counts(splits) == (2381, 593, 0)
    path = root / "lfw_deepfunneled_landmarks.npz"
    aligned = Lfw(root=str(root), cap=30, landmarks=str(path)).load()
    assert aligned.private_train.ids.tolist() == splits.private_train.ids.tolist()
    points = torch.tensor(np.stack(list(read_landmarks(path).values())))
    boxes = face_boxes(points)
    places = (points - boxes[:, None, :2]) / (boxes[:, 2:] - boxes[:, :2])[:, None]
    fixed = (points - torch.tensor([67, 51])) / 118  # the crop without landmarks
    assert (places.mean(dim=0) - fixed.mean(dim=0)).abs().max() < 0.01, "both show as much of a face"
    assert (places.std(dim=0) < 0.8 * fixed.std(dim=0))[[0, 1, 3, 4], 1].all(), "eyes and mouth at one height"


@pytest.fixture(scope="module")
def celeba_table(tmp_path_factory):
    """A root with CelebA's published identity file and no pictures."""
    root = unpack("celeba_id_aligned", tmp_path_factory.mktemp("celeba"), lambda path: path.endswith(".txt")) / "celeba"
    (root / "img_align_celeba").mkdir(exist_ok=True)
    return root


def listed(dataset, monkeypatch):
    """The listing of a dataset as if all pictures were there."""
    pictures = dataset.pictures("root")
    pictures.names.update({stem: f"{stem}.jpg" for stem in pictures.stems.tolist()})
    monkeypatch.setattr(dataset, "pictures", lambda argument: pictures)
    return dataset.listing()


def test_celeba_has_the_published_counts(celeba_table, monkeypatch):
    dataset = Celeba(root=str(celeba_table))
    train, test, public = listed(dataset, monkeypatch)
    assert (len(train), len(test), len(public)) == (27018, 3009, 30000)
    assert len(train.names) == 1000 and (train.names[0], train.names[-1]) == ("14", "4566")
    assert np.unique(train.labels.bincount(), return_counts=True)[1].tolist() == [995, 2, 3]
    assert train.labels.bincount().unique().tolist() == [27, 30, 31]
    assert test.labels.bincount().bincount().tolist() == [0, 0, 0, 991, 9]
    everyone = listed(Celeba(root=str(celeba_table), public_images=None), monkeypatch)[2]
    assert len(everyone) == 114179 and len(everyone.names) == 6936
    assert public.ids.diff().min() > 0 and set(public.ids.tolist()) < set(everyone.ids.tolist())
    assert public.ids[:5].tolist() == [13, 27, 63, 64, 72], "the draw is pinned"
    assert test.ids[:5].tolist() == [231, 289, 348, 350, 402]


def test_celeba_ppa_has_the_published_counts(celeba_table, monkeypatch):
    train, test, public = listed(CelebaPpa(root=str(celeba_table), public_images=None), monkeypatch)
    assert (len(train), len(test), len(public)) == (27034, 3004, 172561)
    assert train.names[:3] == ["2820", "3782", "3227"], "35 pictures each, in the order in which they first appear"
    assert len(public.names) == 9177


@pytest.fixture(scope="module")
def celeba_pack(tmp_path_factory):
    return unpack("celeba_id_aligned", tmp_path_factory.mktemp("celeba")) / "celeba"


@pytest.mark.slow
def test_celeba_on_the_real_packs(celeba_pack, tmp_path):
    half = unpack("celeba_10k_half", tmp_path)
    (half / "img_align_celeba").symlink_to(half / "img_align_celeba_half")
    (half / "identity_CelebA.txt").symlink_to(celeba_pack / "identity_CelebA.txt")
    part = {"partial": True, "identities": 100, "min_images": 25, "test_share": 0.2}
    dataset = Celeba(root=str(celeba_pack), public_root=str(half), public_above=0, public_images=None, **part)
    splits = dataset.load()
    assert counts(splits) == (2000, 500, 9840), "the pack's 160 pictures of private people are left out"
    assert splits.private_test.labels.bincount().tolist() == [5] * 100
    with open(half / "index.csv", newline="") as file:
        flagged = {int(row["file"][:6]) for row in csv.DictReader(file) if row["identity_in_celeba_id"] == "1"}
    assert len(flagged) == 160 and not flagged & set(splits.public.ids.tolist())
    # Faces of both sizes are framed alike: their means are closer to each other than to a mean moved by 4 of 64 pixels.
    private, public = (images.floats().mean(dim=0) for images in (splits.private_train, splits.public))
    assert (private - public).abs().mean() < (private - public.roll(4, dims=1)).abs().mean() / 2


# -------------------------------------------------------------------------------------------------------- the YAMLs


@pytest.mark.parametrize("name", NAMES)
def test_dataset_yaml_writes_out_every_default(name):
    config = compose("train_target", [f"dataset={name}"])[0]["dataset"]
    made = binding.bind(config, "dataset").build()
    parameters = inspect.signature(type(made)).parameters.values()
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert {key: value for key, value in config.items() if key != "_target_"} == defaults
    assert set(made.places) <= set(defaults) and set(getattr(made, "unhashed", ())) <= set(defaults)
    assert "ROOT/" in made.tree()


@pytest.mark.parametrize("name", NAMES)
def test_public_yaml_holds_the_dataset(name):
    config = compose("attack", ["dataset=toy", f"public={name}", "attack=gmi"])[0]["public"]
    assert config["dataset"] == compose("train_target", [f"dataset={name}"])[0]["dataset"]
    assert isinstance(binding.bind(config, "public").build(), PublicFrom)


def test_what_changes_no_number_changes_no_recipe():
    def recipe(*overrides):
        config = compose("train_target", ["dataset=mnist", *overrides])[0]["dataset"]
        return binding.bind(config, "dataset").recipe()

    assert recipe("dataset.download=true", "dataset.root=elsewhere") == recipe() != recipe("dataset.size=28")


def test_lfw_attributes(people):
    """The file of the set's site: tabs, a header behind #, scores whose sign says whether an attribute is there."""
    others = [f"other {number}" for number in range(63)]
    names = [*others[:40], *Lfw.attribute_names, *others[40:]]
    file = people / "lfw_attributes.txt"

    def line(person, number, present):
        scores = [2.5 if name in present else -0.1 for name in names]
        return "\t".join([person, str(number), *map(str, scores)])

    header = ["# lfw_attributes.txt", "#\tperson\timagenum\t" + "\t".join(names)]
    lines = [line("Ann Lee", 2, ["Smiling", "other 1"]), line("Bob", 1, ["Male", "Curly Hair"])]
    file.write_text("\n".join([*header, *lines]) + "\n")
    dataset = Lfw(root=str(people), min_images=5, crop=None, size=8, label="attributes")
    found = dataset.attributes(torch.tensor([1, 5, 0]))  # Ann_Lee_0002, Bob_0001, Ann_Lee_0001
    shown = [[name for name, value in zip(dataset.attribute_names, row, strict=True) if value] for row in found[:2]]
    assert shown == [["Smiling"], ["Male", "Curly Hair"]]
    assert found[2].unique().tolist() == [UNKNOWN], "nobody noted it"
    refused(lambda: dataset.attributes(torch.tensor([99])), "expected ids of this dataset, got 99")
    file.write_text("\n".join([header[0], header[1].replace("Chubby", "Thin"), *lines]))
    refused(lambda: dataset.attributes(torch.tensor([1])), "got none with 'Chubby'")
    file.write_text("\n".join([*header, "Bob\t1\t0.5"]))
    refused(lambda: dataset.attributes(torch.tensor([1])), "expected 75 values with tabs, got 'Bob")
    file.unlink()
    refused(lambda: dataset.attributes(torch.tensor([1])), "expected lfw_attributes.txt")
