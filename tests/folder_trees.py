"""Miniature trees in the official layouts of FaceScrub, Stanford Dogs, FFHQ and AFHQ."""

import itertools

import numpy as np
import scipy.io
from PIL import Image

ACTORS = ("Aaron_Eckhart", "Adam_Brody", "Woody_Allen")
ACTRESSES = ("Adrianne_León", "Zooey_Deschanel")
BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02116738-African_hunting_dog")
COUNTS = {"actors": 3, "actresses": 2}


def picture(path, seed, size=(12, 10), mode="RGB"):
    """A picture of noise that no other seed gives, as a file."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")  # whatever its name: decoded alike by every JPEG library


def facescrub_tree(root, images=(4, 5)):
    """Three actors of 4 pictures and two actresses of 5, as in the card of the protocol."""
    seeds = itertools.count()
    for group, people, count in zip(COUNTS, (ACTORS, ACTRESSES), images, strict=True):
        for person, number in itertools.product(people, range(1, count + 1)):
            picture(root / group / "faces" / person / f"{person}_{number}.png", next(seeds), size=(10, 10))
    return root


def annotation(*boxes):
    edges = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        "<object><name>dog</name><bndbox>"
        + "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True))
        + "</bndbox></object>"
        for box in boxes
    ]
    return f"<annotation><folder>x</folder>{''.join(objects)}</annotation>"


def cells(texts):
    """Texts as MATLAB's cell array, N x 1."""
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = texts
    return array


def write_list(path, names, labels):
    columns = {"file_list": cells(names), "labels": np.array(labels, dtype=np.uint8)[:, None]}
    scipy.io.savemat(path, {**columns, "annotation_list": cells([name.removesuffix(".jpg") for name in names])})


def dogs_tree(root, trained=4, tested=2):
    """Three breeds; the first pictures of each are on the training list, the last on the test list."""
    parts = ([], [])
    for label, breed in enumerate(BREEDS, start=1):
        for number in range(trained + tested):
            name = f"{breed}/{breed.split('-')[0]}_{number}"
            picture(root / "Images" / f"{name}.jpg", 100 * label + number)
            file = root / "Annotation" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(annotation((2, 1, 10, 9), (0, 0, 3, 3)))
            parts[number >= trained].append((f"{name}.jpg", label))
    for name, part in zip(("train_list.mat", "test_list.mat"), parts, strict=True):
        write_list(root / name, *zip(*part, strict=True))
    return root


def ffhq_tree(root, count=7, thousand=3):
    """`thousand` pictures per folder, where the published set has a thousand."""
    for number in range(count):
        folder = root / "thumbnails128x128" / f"{number // thousand * thousand:05d}"
        picture(folder / f"{number:05d}.png", number, size=(16, 16))
    (root / "thumbnails128x128" / "LICENSE.txt").write_text("left alone")
    return root


def afhq_tree(root, second="val", suffix="jpg"):
    for number, part in enumerate(("train", "train", "train", second, second)):
        picture(root / part / "dog" / f"flickr_dog_{number:06d}.{suffix}", number)
        picture(root / part / "cat" / f"flickr_cat_{number:06d}.{suffix}", 100 + number)
    return root
