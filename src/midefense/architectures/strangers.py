"""Files that are often taken for weights and hold none: what they are, in words, and what to do.

Archives are listed and pickles are read as opcodes; nothing of a file is run.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from midefense.architectures.opcodes import TooMuch, look_through

STATE_ALONE = "saving the state dict alone, with safetensors or torch.save, where you trust the file"
# What files begin with that are often taken for weights: what they are, and what to do.
STRANGERS = (
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file", "git lfs pull where it lies"),
    (b"\x93NUMPY", "an array of numpy", STATE_ALONE),
    (b"\x89HDF", "an HDF5 file, as Keras saves them", STATE_ALONE),
    (b"\x1f\x8b", "a gzip archive", "unpacking it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpacking it"),
    (b"Rar!", "a RAR archive", "unpacking it"),
)
PICKLES_OF_OLD = 5  # of a file from before torch 1.6: magic number, version, sizes, objects, keys of storages
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
# Generators that are no StyleGAN2-ADA: what their pickles name, and what the names of their tensors match. EG3D and
# StyleGAN-XL build on classes of StyleGAN2 and 3, so they come first.
PICKLED = {
    "EG3D": (b"TriPlaneGenerator",),
    "StyleGAN-XL": (b"networks_stylegan3_resetting",),
    "StyleGAN3": (b"SynthesisInput", b"networks_stylegan3"),
}
NAMED = {
    "EG3D": r"backbone\.synthesis\.b\d+\.",
    "StyleGAN3": r"synthesis\.(input\.(freqs|affine|transform)|L\d+_\d+_\d+\.)",
    "StyleGAN2 as rosinality writes it": r"(g_ema\.)?(style\.\d+\.weight|convs\.\d+\.conv\.modulation|to_rgb1\.)",
    "StyleGAN": r"(generator\.)?(progression\.\d+\.|g_synthesis\.|synthesis\.blocks\.)",
}
A_STYLEGAN2 = "a StyleGAN2 of stylegan2-ada-pytorch"
SAVING_A_MODULE = (
    "torch.save(model.state_dict(), FILE) where its class is at hand (or torch.load(FILE, weights_only=False)"
    ".state_dict(), where you trust the file)"
)


def stranger_by_beginning(file: Path, beginning: bytes) -> tuple[str, str] | None:
    """What a file is that holds no weights, by its first bytes, and what to do; None where they do not tell."""
    text = beginning[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not beginning:
        return "nothing: it is empty", "downloading it again"
    if text.startswith(WEB_PAGES):
        return "a web page instead of the file", "downloading it again: the server may ask for a confirmation first"
    for start, what, advice in STRANGERS:
        if beginning.startswith(start):
            return what, advice
    if beginning[257:262] == b"ustar":
        return "a tar archive", "unpacking it"
    if beginning[:1] == b"\x80" and beginning[1:2] <= b"\x05":
        return _bare_pickle(file, beginning)
    return None


def _bare_pickle(file: Path, beginning: bytes) -> tuple[str, str]:
    """What a pickle is that torch did not write."""
    if b"torch_utils" not in beginning and b"dnnlib" not in beginning:
        return "a pickle that torch did not write", STATE_ALONE
    if family := pickled_family(file.read_bytes()):
        return f"a network pickle of {family}, which is not read here", f"{A_STYLEGAN2}, with --as stylegan2"
    return "a network pickle of StyleGAN2", f"midefense import {file} --as stylegan2"


def pickled_family(content: bytes) -> str | None:
    """Whose generator NVIDIA's persistent pickle holds, by the classes that it names; None for a StyleGAN2, and for
    what nothing tells."""
    return next((family for family, names in PICKLED.items() if any(name in content for name in names)), None)


def named_family(names: Iterable[str]) -> str | None:
    """Whose generator a state dict of these names is; None for a StyleGAN2-ADA, and for what nothing tells."""
    names = list(names)
    found = (family for family, pattern in NAMED.items() if any(re.match(pattern, name) for name in names))
    return next(found, None)


def other_archive(file: Path) -> tuple[str, str] | None:
    """What a zip archive is that is no torch file of tensors, and what to do; None for one that may be."""
    if not zipfile.is_zipfile(file):  # cut short, or from before torch 1.6
        return None
    with zipfile.ZipFile(file) as archive:
        paths = archive.namelist()
    names = {path.rpartition("/")[2] for path in paths}
    if "constants.pkl" in names:
        return "a TorchScript module", "torch.save(torch.jit.load(FILE).state_dict(), NEW) where you trust the file"
    if "serialized_exported_program.json" in names or "archive_format" in names:
        return "an exported program (torch.export)", SAVING_A_MODULE
    if "data.pkl" in names:
        return None
    if any(name.endswith(".npy") for name in names):
        return "arrays of numpy", STATE_ALONE
    inside = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
    return f"a zip archive of {inside or 'nothing'}", "unpacking it"


def too_much(file: Path) -> str:
    """What a torch file holds that would take all time or memory, or end the process; "" for nothing of the kind."""
    with file.open("rb") as stream:
        try:
            if zipfile.is_zipfile(stream):
                return _too_much_in_an_archive(stream)
            stream.seek(0)
            for _ in range(PICKLES_OF_OLD):
                for _ in look_through(stream):
                    pass
        except TooMuch as error:
            return str(error)
    return ""


def _too_much_in_an_archive(stream: BinaryIO) -> str:
    """As `too_much`, of a zip archive. torch packs nothing, so entries that are, or that lie in each other's place, are
    no weights."""
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return "a zip archive whose entries are packed, as torch packs none"
        if sum(entry.file_size for entry in entries) > stream.seek(0, 2):
            return "a zip archive with more in it than its size"
        for entry in entries:
            if entry.filename.rpartition("/")[2] == "data.pkl":
                for _ in look_through(io.BytesIO(archive.read(entry))):
                    pass
    return ""


def what_a_pickle_asks(file: Path, message: str) -> tuple[str, str]:
    """What a pickle needs that is more than tensors, by torch's message, and what to do."""
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    if asked is None:
        return "a pickle that asks for more than tensors", STATE_ALONE
    if asked[1] == _class_of_all(file):
        return f"a pickle that asks for {asked[1]}: a whole object, not its weights", SAVING_A_MODULE
    return f"a pickle that asks for {asked[1]} beside tensors", STATE_ALONE


def _class_of_all(file: Path) -> str | None:
    """The class of the object that a torch file is as a whole, as the pickle names it; None for a container. The
    pickle is read as opcodes and not run."""
    with file.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                (name,) = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
                opcodes = pickletools.genops(archive.read(name))
        else:
            stream.seek(0)
            for _ in range(3):  # a magic number, a version and the system's sizes stand in front
                list(pickletools.genops(stream))
            opcodes = pickletools.genops(stream)
        for opcode, argument, _ in opcodes:
            if opcode.name == "GLOBAL":
                return argument.replace(" ", ".")
            if opcode.name in ("EMPTY_DICT", "EMPTY_LIST", "STOP"):
                return None
    return None
