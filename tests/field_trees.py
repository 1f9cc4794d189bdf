"""Miniature data sets in their official layouts, of noise, written for tests. Pictures hold PNG data, whose decoding is
exact, under whatever name the layout wants."""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from midefense import seeds
from midefense.datasets.celeba_files import ATTRIBUTES
from midefense.datasets.cifar10 import Cifar10


def noise(key, *shape):
    """Pixels uint8 that no other key gives."""
    return np.random.RandomState(seeds.derive("picture", key) % 2**32).randint(0, 256, shape).astype(np.uint8)


def picture(path, size=(25, 25), grey=False):
    """A picture of noise, keyed by the last two parts of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    Image.fromarray(noise("/".join(path.parts[-2:]), *shape)).save(path, format="PNG")


def idx_bytes(array):
    """An array uint8 in the IDX format."""
    header = [0x800 + array.ndim, *array.shape]
    return np.array(header, dtype=">u4").tobytes() + array.astype(np.uint8).tobytes()


def balanced(of_each):
    """Labels 0 to 9, `of_each` of each, in turns."""
    return np.arange(10 * of_each, dtype=np.uint8) % 10


def mnist_tree(root, folder="MNIST", train=3, test=1):
    """The four files of MNIST, `train` and `test` images per class."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, of_each in (("train", train), ("t10k", test)):
        labels = balanced(of_each)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(noise((folder, part), len(labels), 28, 28)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return root


def cifar_folders(root, train=3, test=1):
    """CIFAR-10 as class folders."""
    for part, of_each in (("train", train), ("test", test)):
        for name in Cifar10.class_names:
            for number in range(of_each):
                picture(root / part / name / f"{part}{number}.png", size=(32, 32))
    return root


def cifar_binary(root, of_each=1):
    """CIFAR-10's binary version, `of_each` images per class and batch."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]:
        labels = balanced(of_each)
        records = np.concatenate([labels[:, None], noise(name, len(labels), 3072)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return root


def svhn_tree(root, train=3, test=1):
    """SVHN's two Matlab files, whose label 10 is the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    for part, of_each in (("train", train), ("test", test)):
        labels = balanced(of_each) + 1
        table = {"X": noise(("svhn", part), 32, 32, 3, len(labels)), "y": labels[:, None]}
        scipy.io.savemat(root / f"{part}_32x32.mat", table)
    return root


def lfw_tree(root, people, folder="lfw-deepfunneled"):
    """LFW with {name: number of pictures}."""
    for name, count in people.items():
        for number in range(1, count + 1):
            picture(root / folder / name / f"{name}_{number:04d}.jpg")
    return root


def celeba_tree(root, identities, suffix="jpg", size=(18, 22)):
    """CelebA with one picture per entry of `identities`, in order, and attribute k of picture n set where k divides
    n."""
    for number in range(1, len(identities) + 1):
        picture(root / "img_align_celeba" / f"{number:06d}.{suffix}", size=size)
    lines = [f"{number:06d}.jpg {identity}" for number, identity in enumerate(identities, start=1)]
    (root / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    rows = [
        f"{number:06d}.jpg " + " ".join("1" if number % k == 0 else "-1" for k in range(1, 41))
        for number in range(1, len(identities) + 1)
    ]
    header = [str(len(identities)), " ".join(ATTRIBUTES) + " "]
    (root / "list_attr_celeba.txt").write_text("\n".join([*header, *rows]) + "\n")
    return root


def pack(name):
    """Where a pack of real pictures lies on machines that have it."""
    return Path(__file__).resolve().parents[2] / "shared" / "data" / f"{name}.tar.xz"
