"""Imported StyleGAN2 files with random weights, as the importer writes them."""

from dataclasses import asdict
from pathlib import Path

import safetensors.torch

from midefense import seeds
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.priors.stylegan2.importer import FORMAT, NOTES
from midefense.store.artefacts import canonical, savable

SMALL = {"resolution": 32, "z_dim": 16, "w_dim": 16, "channel_base": 128, "channel_max": 16}


def write_imported(path: Path, *, seed: int = 0, critic: bool = True, **shape) -> Path:
    """A file of a small generator (and its critic) of this shape."""
    config = StyleGan2Config(**{**SMALL, **shape})
    with seeds.isolated("imported", seed):
        networks = {"generator": Generator(config), **({"critic": Discriminator(config)} if critic else {})}
    notes = {"config": canonical(asdict(config)), "source": path.name, "source_sha256": "0" * 64, "format": FORMAT}
    flat = {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(savable(flat), {NOTES: canonical(notes)}))
    return path
