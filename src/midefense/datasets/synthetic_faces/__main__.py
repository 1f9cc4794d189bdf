"""`python -m midefense.datasets.synthetic_faces --out FILE.png`: draw private identities as a contact sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from midefense.datasets.synthetic_faces.dataset import SyntheticFaces


def contact_sheet(pixels: Tensor, columns: int) -> Image.Image:
    """Pictures uint8 [N, 3, S, S] in rows of `columns`; what is left of the last row stays white."""
    count, _, size, _ = pixels.shape
    lines = -(-count // columns)
    cells = torch.full((lines * columns, 3, size, size), 255, dtype=torch.uint8)
    cells[:count] = pixels
    sheet = cells.view(lines, columns, 3, size, size).permute(0, 3, 1, 4, 2)
    return Image.fromarray(sheet.reshape(lines * size, columns * size, 3).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw private identities of synthetic_faces as a contact sheet.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--images", type=int, default=1, help="pictures of each identity")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="pixels per side of one picture")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faces = SyntheticFaces(
        identities=chosen.identities, images_per_identity=chosen.images, size=chosen.size, seed=chosen.seed
    )
    contact_sheet(faces.private_train().pixels, chosen.columns).save(chosen.out)


if __name__ == "__main__":
    main()
