"""FaceScrub, Stanford Dogs and pictures without identities: miniature trees in the official layouts, broken ones named,
and the command that checks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from conftest import ROOT
from folder_trees import (
    ACTORS,
    ACTRESSES,
    BREEDS,
    COUNTS,
    afhq_tree,
    annotation,
    cells,
    dogs_tree,
    facescrub_tree,
    ffhq_tree,
    picture,
    write_list,
)
from PIL import Image

from midefense.commands.datasets import run as command
from midefense.commands.main import main
from midefense.datasets.base import PublicFrom
from midefense.datasets.bounding_boxes import LARGEST, first_box
from midefense.datasets.decoding import Decoding, decode, survey
from midefense.datasets.facescrub import FaceScrub
from midefense.datasets.files import Files
from midefense.datasets.matlab import read_variables
from midefense.datasets.public_folder import PublicFolder
from midefense.datasets.splits import Splits, legacy_shuffle_split
from midefense.datasets.stanford_dogs import StanfordDogs
from midefense.datasets.toy import Toy
from midefense.types import Refused


def refused(call, *texts):
    with pytest.raises(Refused) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


def small_facescrub(root, **changes):
    return FaceScrub(**{"root": str(root), **COUNTS, "size": 8, **changes})


def small_dogs(root, **changes):
    return StanfordDogs(**{"root": str(root), "breeds": 3, "size": 8, **changes})


def small_ffhq(root, **changes):
    options = {"folders": ["thumbnails128x128"], "count": 7, "numbered": True, "size": 8}
    return PublicFolder(**{"root": str(root), **options, **changes})


def small_afhq(root, **changes):
    return PublicFolder(**{"root": str(root), "folders": ["train/dog", "val/dog|test/dog"], "count": 5, **changes})


# --------------------------------------------------------------------------------------- the published shuffled split


def test_the_published_split_by_known_answers():
    """Of the protocol's card, recorded from numpy's global generator as the original code draws it."""
    train, test = legacy_shuffle_split(10, 0.9, seed=42)
    assert torch.cat([train, test]).tolist() == [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]
    train, test = legacy_shuffle_split(20580, 0.9, seed=42)
    assert train[:5].tolist() == [16226, 3388, 20011, 1427, 19697] and len(train) == 18522
    assert test[:5].tolist() == [14828, 5542, 7993, 10900, 7758]
    assert torch.cat([train, test]).sort().values.equal(torch.arange(20580))
    assert [len(part) for part in legacy_shuffle_split(37878, 0.9, seed=42)] == [34090, 3788]


def test_a_shuffled_split_may_test_no_image_of_a_class_where_a_stratified_one_may_not():
    toy = Toy(size=8).load()
    test = toy.private_test.take(toy.private_test.labels != 2)
    Splits(toy.private_train, test, toy.public, stratified=False).check()
    refused(Splits(toy.private_train, test, toy.public).check, "0 to test on")
    train = toy.private_train.take(toy.private_train.labels != 2)
    refused(Splits(train, test, toy.public, stratified=False).check, "at least 2 to train on and 0 to test on")


# ---------------------------------------------------------------------------------------------------------- FaceScrub


def test_facescrub_labels_and_splits_as_published(tmp_path):
    dataset = small_facescrub(facescrub_tree(tmp_path))
    splits = dataset.load()
    assert splits.class_names == [*ACTORS, *ACTRESSES] and len(splits.public) == 0
    assert (len(splits.private_train), len(splits.private_test)) == (19, 3)  # int(0.9 x 22)
    train, test = legacy_shuffle_split(22, 0.9, seed=42)
    assert splits.private_train.ids.equal(train) and splits.private_test.ids.equal(test)
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3] * 5 + [4] * 5)
    assert splits.private_train.labels.equal(labels[train]) and splits.private_test.labels.equal(labels[test])
    first = dataset.listing()[0]
    assert first.paths[0].name == [f"{n}_{k + 1}.png" for n in ACTORS for k in range(4)][int(train[0])]


def test_facescrub_orders_by_plain_name_and_not_by_number(tmp_path):
    root = facescrub_tree(tmp_path, images=(11, 5))
    train, test, _ = small_facescrub(root).listing()
    by_id = dict(zip(torch.cat([train.ids, test.ids]).tolist(), [*train.paths, *test.paths], strict=True))
    endings = [by_id[number].stem.rpartition("_")[2] for number in range(11)]
    assert endings == ["1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_facescrub_groups_and_private_people(tmp_path):
    root = facescrub_tree(tmp_path)
    assert small_facescrub(root, group="actresses").load().class_names == list(ACTRESSES)
    splits = small_facescrub(root, private=3).load()
    assert splits.class_names == list(ACTORS) and splits.public.names == list(ACTRESSES)
    assert (len(splits.private_train), len(splits.private_test), len(splits.public)) == (10, 2, 10)
    assert splits.hash != small_facescrub(root, private=3, split_seed=1).load().hash
    refused(lambda: small_facescrub(root, group="actors", private=4), "dataset.private: expected 1 to 3", "got 4")
    refused(lambda: FaceScrub(variant="face"), "dataset.variant", "choices: faces, images")
    refused(lambda: FaceScrub(group="men"), "dataset.group", "choices: all, actors, actresses")


def test_facescrub_passes_over_what_is_no_picture_and_converts_what_is_grey(tmp_path):
    root = facescrub_tree(tmp_path)
    expected = small_facescrub(root).load().hash
    (root / "actors" / "faces" / "Adam_Brody" / "Adam_Brody_9.gif").write_bytes(b"<html>")
    (root / "actors" / "faces" / "README").write_text("left alone")
    assert small_facescrub(root).load().hash == expected
    picture(root / "actors" / "faces" / "Adam_Brody" / "Adam_Brody_9.png", 999, mode="L")
    splits = small_facescrub(root).load()
    images = torch.cat([splits.private_train.pixels, splits.private_test.pixels])
    grey = (images == images[:, :1]).flatten(1).all(dim=1)
    assert len(images) == 23 and int(grey.sum()) == 1


def test_facescrub_crops_the_centre(tmp_path):
    root = facescrub_tree(tmp_path)
    path = root / "actors" / "faces" / "Adam_Brody" / "Adam_Brody_1.png"
    picture(path, 7, size=(14, 10))
    splits = small_facescrub(root, size=10).load()
    whole = torch.cat([splits.private_train.pixels, splits.private_test.pixels])
    ids = torch.cat([splits.private_train.ids, splits.private_test.ids])
    assert np.array_equal(whole[ids == 4][0].permute(1, 2, 0).numpy(), np.asarray(Image.open(path))[:, 2:12])


def facescrub_without_variant(root):
    for group in COUNTS:
        for person in list((root / group / "faces").iterdir()):
            person.rename(root / group / person.name)
        (root / group / "faces").rmdir()
    return "actors: expected faces, got Aaron_Eckhart, Adam_Brody, Woody_Allen"


def facescrub_without_actresses(root):
    (root / "actresses").rename(root / "women")
    return f"first difference in {root}: expected actresses, got actors, women"


def facescrub_without_a_person(root):
    shutil.rmtree(root / "actresses" / "faces" / ACTRESSES[1])
    return "expected 2 people, got 1 (Adrianne_León ... Adrianne_León). Try completing the set, or dataset.actresses=1"


def facescrub_with_an_empty_person(root):
    for path in (root / "actors" / "faces" / "Adam_Brody").iterdir():
        path.unlink()
    return "Adam_Brody: expected a picture, got nothing"


def facescrub_with_a_deeper_person(root):
    person = root / "actors" / "faces" / "Adam_Brody"
    person.rename(root / "aside")
    (root / "aside").rename(root / "actors" / "faces" / "wait")
    person.mkdir()
    (root / "actors" / "faces" / "wait").rename(person / "cropped")
    return "Adam_Brody: expected a picture, got cropped"


FACESCRUB_BREAKS = [
    facescrub_without_variant,
    facescrub_without_actresses,
    facescrub_without_a_person,
    facescrub_with_an_empty_person,
    facescrub_with_a_deeper_person,
]


@pytest.mark.parametrize("damage", FACESCRUB_BREAKS)
def test_facescrub_names_the_first_difference(damage, tmp_path):
    text = damage(facescrub_tree(tmp_path))
    refused(small_facescrub(tmp_path).load, text, "ROOT/actors/faces/<Name_With_Underscores>/<picture>    3 people")


def test_the_folder_one_level_off_is_suggested(tmp_path):
    root = facescrub_tree(tmp_path / "facescrub")
    refused(small_facescrub(tmp_path).load, f"Try dataset.root={root}.")
    refused(small_facescrub(root / "actors").load, "expected actors, got faces", f"Try dataset.root={root}.")
    refused(small_facescrub(root / "actors" / "faces").load, "Try dataset.root=DIR.")


# ------------------------------------------------------------------------------------------------------ Stanford Dogs


def test_dogs_merge_both_lists_and_split_anew(tmp_path):
    splits = small_dogs(dogs_tree(tmp_path)).load()
    assert splits.class_names == ["Chihuahua", "Japanese_spaniel", "African_hunting_dog"] and len(splits.public) == 0
    train, test = legacy_shuffle_split(18, 0.9, seed=42)
    assert splits.private_train.ids.equal(train) and splits.private_test.ids.equal(test)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1, 2, 2])  # training list, then test list
    assert splits.private_train.labels.equal(labels[train])


def test_dogs_private_breeds_leave_the_others_public(tmp_path):
    splits = small_dogs(dogs_tree(tmp_path), private=2).load()
    assert splits.classes == 2 and splits.public.names == ["African_hunting_dog"] and len(splits.public) == 6
    refused(lambda: StanfordDogs(private=121), "dataset.private: expected 1 to 120")


def test_dogs_are_cropped_to_their_first_box(tmp_path):
    root = dogs_tree(tmp_path)
    whole, cropped = (small_dogs(root, cropped=cropped).load() for cropped in (False, True))
    assert whole.hash != cropped.hash and whole.private_train.labels.equal(cropped.private_train.labels)
    row = int(cropped.private_train.ids.argmin())
    assert int(cropped.private_train.ids[row]) == 0
    source = Image.open(root / "Images" / BREEDS[0] / "n02085620_0.jpg")
    assert np.array_equal(
        cropped.private_train.pixels[row].permute(1, 2, 0).numpy(), np.asarray(source.crop((2, 1, 10, 9)))
    )


def test_dogs_squash_as_the_published_target(tmp_path):
    root = dogs_tree(tmp_path)
    splits = small_dogs(root).load()
    source = Image.open(root / "Images" / BREEDS[0] / "n02085620_0.jpg").resize((8, 8), Image.Resampling.BILINEAR)
    row = int(splits.private_train.ids.argmin())
    assert np.array_equal(splits.private_train.pixels[row].permute(1, 2, 0).numpy(), np.asarray(source))


def dogs_without_a_list(root):
    (root / "train_list.mat").rename(root / "train_data.mat")  # the file of features that lies beside it
    return "expected train_list.mat, got Annotation, Images, test_list.mat, train_data.mat"


def dogs_without_a_picture(root):
    (root / "Images" / BREEDS[1] / "n02085782_3.jpg").unlink()
    return f"expected the 18 pictures of the lists, got 1 fewer, no {BREEDS[1]}/n02085782_3.jpg"


def dogs_without_a_breed(root):
    shutil.rmtree(root / "Images" / BREEDS[2])
    return "expected 3 folders of breeds, got 2"


def dogs_with_a_broken_list(root):
    path = root / "test_list.mat"
    path.write_bytes(path.read_bytes()[:200])
    return f"{path} cannot be read as a MATLAB 5 file"


def dogs_with_other_variables(root):
    scipy.io.savemat(root / "test_list.mat", {"labels": np.ones((2, 1))})
    return "expected the variables file_list, labels, got no file_list"


def dogs_with_other_labels(root):
    write_list(root / "test_list.mat", [f"{BREEDS[1]}/n02085782_4.jpg"], [1])
    return f"got label 1 for {BREEDS[1]}/n02085782_4.jpg"


def dogs_with_uneven_lists(root):
    columns = {"file_list": cells([f"{BREEDS[0]}/n02085620_4.jpg"]), "labels": np.array([[1], [1]])}
    scipy.io.savemat(root / "test_list.mat", columns)
    return "expected one label per picture, 1, got 2"


def dogs_with_texts_as_labels(root):
    columns = {"file_list": cells([f"{BREEDS[0]}/n02085620_4.jpg"]), "labels": cells(["Chihuahua"])}
    scipy.io.savemat(root / "test_list.mat", columns)
    return "expected labels that are numbers, got labels of type"


def dogs_with_one_list_twice(root):
    shutil.copy(root / "train_list.mat", root / "test_list.mat")
    return "expected each picture in one list, once, got 12 repeated"


def dogs_outside_their_folder(root):
    write_list(root / "test_list.mat", [f"{BREEDS[0]}/../../secret.jpg"], [1])
    return f"no {BREEDS[0]}/../../secret.jpg"


DOG_BREAKS = [
    dogs_without_a_list,
    dogs_without_a_picture,
    dogs_without_a_breed,
    dogs_with_a_broken_list,
    dogs_with_other_variables,
    dogs_with_other_labels,
    dogs_with_uneven_lists,
    dogs_with_texts_as_labels,
    dogs_with_one_list_twice,
    dogs_outside_their_folder,
]


@pytest.mark.parametrize("damage", DOG_BREAKS)
def test_dogs_name_the_first_difference(damage, tmp_path):
    text = damage(dogs_tree(tmp_path))
    refused(small_dogs(tmp_path).load, text)


def test_dogs_need_annotations_only_to_crop(tmp_path):
    root = dogs_tree(tmp_path)
    shutil.rmtree(root / "Annotation" / BREEDS[1])
    small_dogs(root).load()
    refused(small_dogs(root, cropped=True).load, f"no file at {root / 'Annotation' / BREEDS[1]}")
    shutil.rmtree(root / "Annotation")
    refused(small_dogs(root, cropped=True).load, "expected Annotation", "ROOT/Annotation/<nXXXXXXXX-Breed>/<picture>")


@pytest.mark.parametrize("length", [0, 20, 130, 200, 300])
def test_a_matlab_file_cut_anywhere_is_named(length, tmp_path):
    path = tmp_path / "list.mat"
    write_list(path, ["a/1.jpg", "a/2.jpg"], [1, 1])
    assert read_variables(path, ["labels"])["labels"].tolist() == [1, 1]
    path.write_bytes(path.read_bytes()[:length])
    refused(lambda: read_variables(path, ["file_list", "labels"]), str(path))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
BAD_ANNOTATIONS = {
    BOMB: "declares a document type, a",
    BOMB.replace("<!DOCTYPE a", '<!DOCTYPE a SYSTEM "file:///etc/passwd"'): "declares a document type, a",
    "<annotation><object>": "cannot be read as an annotation",
    "": "cannot be read as an annotation",
    '<?xml version="1.0" encoding="no-such"?><annotation/>': "cannot be read as an annotation",
    "<annotation/>": "got xmin nothing, ymin nothing, xmax nothing, ymax nothing",
    annotation((2, 1, 9, 8)).replace("<ymax>8</ymax>", ""): "got xmin 2, ymin 1, xmax 9, ymax nothing",
    annotation((5, 5, 5, 9)): "got xmin 5, ymin 5, xmax 5, ymax 9",
    annotation((-5, 5, 6, 9)): "got xmin -5",
    annotation(("1e3", 5, 6, 9)): "got xmin 1e3",
    " " * (LARGEST + 1): f"at most {LARGEST} bytes, got {LARGEST + 1}",
}


@pytest.mark.parametrize("content", BAD_ANNOTATIONS, ids=range(len(BAD_ANNOTATIONS)))
def test_an_annotation_is_read_plainly_or_not_at_all(content, tmp_path):
    path = tmp_path / "n1_1"
    path.write_text(content)
    refused(lambda: first_box(path), str(path), BAD_ANNOTATIONS[content])
    path.write_bytes(content.encode("utf-16"))
    refused(lambda: first_box(path), str(path))


# ----------------------------------------------------------------------------------------- pictures without identities


def test_ffhq_is_the_same_flat_and_in_thousands(tmp_path):
    nested = ffhq_tree(tmp_path / "nested")
    flat = tmp_path / "flat"
    for path in (nested / "thumbnails128x128").rglob("*.png"):
        (flat / "thumbnails128x128").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, flat / "thumbnails128x128" / path.name)
    one, other = (small_ffhq(root).load_public() for root in (nested, flat))
    assert torch.equal(one.pixels, other.pixels) and one.names == ["without identity"]
    assert one.ids.tolist() == list(range(7)) and one.labels.tolist() == [0] * 7


def test_ffhq_is_cropped_as_the_low_resolution_benchmark(tmp_path):
    ramp = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (128, 1, 3))
    (tmp_path / "thumbnails128x128").mkdir()
    Image.fromarray(ramp).save(tmp_path / "thumbnails128x128" / "00000.png")
    images = small_ffhq(tmp_path, count=1, size=88, crop=[20, 20, 108, 108, 128, 128]).load_public()
    assert images.pixels[0, 0, 0].tolist() == list(range(20, 108))


def test_afhq_takes_the_dogs_of_both_parts_in_either_version(tmp_path):
    first = small_afhq(afhq_tree(tmp_path / "first", "val", "png")).load_public()
    second = small_afhq(afhq_tree(tmp_path / "second", "test", "png")).load_public()
    assert len(first) == 5 and torch.equal(first.pixels, second.pixels)


def test_large_sets_are_listed_without_asking_the_disk_about_each_file(tmp_path, monkeypatch):
    root = ffhq_tree(tmp_path, count=9)
    asked = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
    assert len(small_ffhq(root, count=9).public_listing()) == 9
    assert not [path for path in asked if path.suffix == ".png"]


def test_pictures_without_identities_can_only_be_public(tmp_path):
    dataset = small_ffhq(ffhq_tree(tmp_path))
    refused(dataset.load, "they can only be public", "public=ffhq")
    private = small_facescrub(facescrub_tree(tmp_path / "faces")).load()
    images = PublicFrom(dataset=dataset).public(private, channels=3, size=16)
    assert images.pixels.shape == (7, 3, 16, 16)
    refused(lambda: PublicFrom(dataset=dataset, part="all").public(private, 3, 16), "public.part=public")


def test_a_private_picture_among_the_public_ones_is_found(tmp_path):
    faces = facescrub_tree(tmp_path / "faces")
    root = ffhq_tree(tmp_path / "ffhq")
    shutil.copy(faces / "actors/faces/Adam_Brody/Adam_Brody_2.png", root / "thumbnails128x128/00003/00004.png")
    private = small_facescrub(faces).load()
    refused(lambda: PublicFrom(dataset=small_ffhq(root)).public(private, 3, 8), "class 'Adam_Brody', id 5", "id 4)")


def ffhq_without_its_folder(root):
    (root / "thumbnails128x128").rename(root / "thumbs")
    return f"first difference in {root}: expected thumbnails128x128, got thumbs. Try public.dataset.root=DIR"


def ffhq_without_a_picture(root):
    (root / "thumbnails128x128" / "00003" / "00004.png").unlink()
    return "00003: expected picture 00004, got 00005.png"


def ffhq_without_its_last_picture(root):
    (root / "thumbnails128x128" / "00006" / "00006.png").unlink()
    return "expected 7 pictures, got 6. Try public.dataset.count=6"


def ffhq_unpacked_in_part(root):
    picture(root / "thumbnails128x128" / "00000.png", 77)
    return "expected pictures, or folders of pictures, got 00000 beside 00000.png"


def ffhq_too_deep(root):
    (root / "thumbnails128x128" / "00003" / "more").mkdir()
    for path in (root / "thumbnails128x128" / "00003").glob("*.png"):
        path.rename(path.parent / "more" / path.name)
    return "00003: expected pictures, or folders of pictures, got folder more"


FFHQ_BREAKS = [
    ffhq_without_its_folder,
    ffhq_without_a_picture,
    ffhq_without_its_last_picture,
    ffhq_unpacked_in_part,
    ffhq_too_deep,
]


@pytest.mark.parametrize("damage", FFHQ_BREAKS)
def test_ffhq_names_the_first_difference(damage, tmp_path):
    text = damage(ffhq_tree(tmp_path))
    refused(small_ffhq(tmp_path).load_public, text, "ROOT/thumbnails128x128/00000.png ...", "7 pictures")


def test_afhq_names_the_first_difference(tmp_path):
    root = afhq_tree(tmp_path)
    refused(small_afhq(root, count=6).load_public, "expected 6 pictures, got 5", "public.dataset.count=5")
    shutil.copytree(root / "val", root / "test")
    refused(small_afhq(root).load_public, "expected one of val/dog, test/dog, got several")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "val" / "dog")
    refused(small_afhq(root).load_public, "expected dog, got cat", "ROOT/val/dog|test/dog")
    refused(lambda: small_afhq(root, folders=[]), "public.dataset.folders", "got none")


def test_metfaces_names_the_first_difference(tmp_path):
    dataset = PublicFolder(root=str(tmp_path), folders=["images"], count=None, size=8)
    refused(dataset.load_public, "expected images, got nothing")
    (tmp_path / "images").mkdir()
    refused(dataset.load_public, "expected pictures, got 0")
    picture(tmp_path / "images" / "00001-00.png", 1, mode="L")
    refused(dataset.load_public, "is grey; expected RGB")
    picture(tmp_path / "images" / "00001-00.png", 1)
    assert len(dataset.load_public()) == 1


# -------------------------------------------------------------------------------------------------- the check command


def test_a_survey_hashes_as_decoding_does_and_names_all_that_is_broken(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        picture(path, number)
    parts = [Files.grouped([paths[:3]], ["a"]), Files.grouped([paths[3:]], ["b"], first_id=3)]
    decoding = Decoding(channels=3, size=7)
    found = survey(parts, decoding)
    images, refusals = found.images, found.refused
    decoded = decode(parts, decoding)
    assert refusals == [] and all(
        torch.equal(one.hashes, other.hashes) for one, other in zip(images, decoded, strict=True)
    )
    assert [part.pixels.shape for part in images] == [part.pixels.shape for part in decoded]
    paths[1].write_bytes(b"no picture")
    picture(paths[4], 4, mode="L")
    refusals = survey(parts, decoding).refused
    assert [str(paths[1]) in refusals[0], str(paths[4]) in refusals[1]] == [True, True] and len(refusals) == 2


def changes(counts):
    return [f"{name}={count}" for name, count in counts.items()]


def checked(capsys, *words):
    """The exit code, and what the command prints to both streams, in this process."""
    code = command(["check", *map(str, words)])
    said = capsys.readouterr()
    assert (code == 0) == (said.err == "") and (code == 0) == ("\nok\n" in said.out)
    return code, said.out, said.err


def test_check_a_good_tree(tmp_path, capsys):
    root = facescrub_tree(tmp_path)
    code, out, _ = checked(capsys, "facescrub", "--no-decode", "--root", root, *changes(COUNTS), "size=8")
    assert code == 0 and "facescrub expects\n  ROOT/actors/faces" in out
    assert "private_train  images 19, classes 5" in out and "public         images 0, classes 0" in out
    assert "8x8 RGB" in out and "split" not in out and "--decode reads them all" in out
    code, decoded, _ = checked(capsys, "facescrub", "--decode", "--root", root, *changes(COUNTS), "dataset.size=8")
    assert f"split    {small_facescrub(root).load().hash}" in decoded
    listing = next(line for line in out.splitlines() if "listing" in line)
    assert listing in decoded
    moved = shutil.move(root, tmp_path.with_name(f"{tmp_path.name} moved"))
    assert listing in checked(capsys, "facescrub", "--root", moved, *changes(COUNTS))[1]


@pytest.mark.parametrize("damage", FACESCRUB_BREAKS)
def test_check_a_broken_facescrub(damage, tmp_path, capsys):
    text = damage(facescrub_tree(tmp_path))
    code, out, err = checked(capsys, "facescrub", "--root", tmp_path, *changes(COUNTS))
    assert code == 1 and text in err and "3 people" in out


@pytest.mark.parametrize("damage", DOG_BREAKS)
def test_check_broken_dogs(damage, tmp_path, capsys):
    text = damage(dogs_tree(tmp_path))
    code, _, err = checked(capsys, "stanford_dogs", "--root", tmp_path, "breeds=3")
    assert code == 1 and text in err


@pytest.mark.parametrize("damage", FFHQ_BREAKS)
def test_check_a_broken_ffhq(damage, tmp_path, capsys):
    text = damage(ffhq_tree(tmp_path))
    code, _, err = checked(capsys, "ffhq", "--root", tmp_path, "count=7")
    assert code == 1 and text in err


def test_check_names_every_broken_picture_only_when_it_opens_them(tmp_path, capsys):
    root = ffhq_tree(tmp_path)
    broken = [root / "thumbnails128x128" / "00000" / "00001.png", root / "thumbnails128x128" / "00006" / "00006.png"]
    for path in broken:
        path.write_bytes(b"<html>404</html>")
    words = ["ffhq", "--root", root, "count=7"]
    assert checked(capsys, *words, "--no-decode")[0] == 0
    code, _, err = checked(capsys, *words)
    assert code == 1 and "2 pictures cannot be used" in err and all(str(path) in err for path in broken)


def test_check_public_sets(tmp_path, capsys):
    afhq = afhq_tree(tmp_path / "afhq")
    _, out, _ = checked(capsys, "afhq_dog", "--root", afhq, "public.dataset.count=5", "--decode")
    assert "public         images 5, classes 1" in out and "224x224 RGB" in out and "private" not in out
    picture(tmp_path / "metfaces" / "images" / "1.png", 1)
    assert checked(capsys, "metfaces", "--root", tmp_path / "metfaces", "count=1")[0] == 0


def test_check_finds_what_private_and_public_share(tmp_path, capsys):
    root = facescrub_tree(tmp_path)
    shutil.copy(
        root / "actors/faces/Adam_Brody/Adam_Brody_2.png",
        root / "actresses/faces/Zooey_Deschanel/Zooey_Deschanel_2.png",
    )
    words = ["facescrub", "--root", root, *changes(COUNTS), "private=3"]
    assert checked(capsys, *words, "--no-decode")[0] == 0
    assert "the same picture is private (class 'Adam_Brody'" in checked(capsys, *words, "--decode")[2]


def test_check_sets_without_files_and_with_several_folders(tmp_path, capsys):
    assert f"split    {Toy().load().hash}" in checked(capsys, "toy")[1]
    assert "reads no files" in checked(capsys, "toy", "--root", tmp_path)[2]
    assert "private_root=DIR, public_root=DIR" in checked(capsys, "image_folder", "--root", tmp_path)[2]
    for number in range(5):
        picture(tmp_path / "private" / "ann" / f"{number}.png", number)
        picture(tmp_path / "private" / "eve" / f"{number}.png", 20 + number)
        picture(tmp_path / "public" / "bob" / f"{number}.png", 10 + number)
    roots = [f"private_root={tmp_path / 'private'}", f"public_root={tmp_path / 'public'}"]
    assert "private_test   images 2," in checked(capsys, "image_folder", *roots)[1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["facescrubs"], "Did you mean 'facescrub'?"),
        (["own"], "choices: "),
        (["ffhq", "side=3"], "PublicFolder has no such option"),
        (["ffhq", "size=big"], "public.dataset.size: expected a whole number"),
        (["ffhq", "crop=[1"], "expected KEY=VALUE with a YAML value"),
        (["mnist", "download=true"], "expected no download"),
        (["facescrub", "root=null"], "dataset.root is not set"),
        (["facescrub", "root=5"], "no folder at"),
        (["facescrub", "group=men"], "choices: all, actors, actresses"),
    ],
)
def test_check_refuses_in_words(words, text, capsys):
    code, _, err = checked(capsys, *words)
    assert code == 1 and text in err


@pytest.mark.parametrize("words", [["check", "toy", "size"], ["check", "toy", "--sise=3"], ["list", "a=b"]])
def test_check_shows_its_usage(words, capsys):
    with pytest.raises(SystemExit) as exit:
        command(words)
    assert exit.value.code == 2 and "expected KEY=VALUE" in capsys.readouterr().err


def test_list_names_every_dataset_once(capsys):
    assert command(["list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"facescrub", "stanford_dogs", "ffhq", "afhq_dog", "metfaces", "toy"} <= set(names)
    assert len(set(names)) == len(names) and "own" not in names


def test_check_as_a_command(tmp_path, capsys):
    assert main(["datasets", "check", "ffhq", "--root", str(ffhq_tree(tmp_path))]) == 1
    shown, said = capsys.readouterr()
    assert shown.startswith("ffhq expects\n  ROOT/thumbnails128x128/00000.png")
    assert said.startswith("refused: ") and "expected 70,000 pictures, got 7" in said


def test_importing_a_dataset_brings_no_hydra():
    line = "import sys, midefense.datasets.files, midefense.datasets.public_folder; sys.exit('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT).returncode == 0
