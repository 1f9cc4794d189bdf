"""A small StyleGAN2-ADA generator: styles under truncation, images, and a gradient (`stylegan2_*_32.npz`)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.types import Refused

from .recording import Entry, Recording
from .registry import replays


@replays("stylegan2")
def generator(recording: Recording) -> Iterator[Entry]:
    """Everything under `io/`, from the latents on; images and gradients by both formulations of the synthesis."""
    network = generator_of(recording)
    latents = recording["io/z"]
    labels = recording["io/c"] if recording.config["c_dim"] else None
    for key in recording.keys("io/w_psi*"):
        yield recording.compare(key, network.styles(latents, labels, **truncation(key)))
    for key in recording.keys("io/img_*") + recording.keys("io/grad_w_*"):
        noise = re.sub(r"io/(img|grad_w)_", "", key).split("_")[0]
        for fused in (False, True):
            ws = network.styles(latents, labels, **truncation(key)).detach().requires_grad_()
            images = network.synthesis(ws, noise=noise, fused=fused)[1]
            got = images if key.startswith("io/img") else torch.autograd.grad(images.square().mean(), ws)[0]
            yield recording.compare(key, got, note="fused" if fused else "")


def generator_of(recording: Recording) -> Generator:
    """The recorded generator, with its weights."""
    published = recording.config
    synthesis = published["synthesis_kwargs"]
    config = StyleGan2Config(
        resolution=published["img_resolution"],
        image_channels=published["img_channels"],
        z_dim=published["z_dim"],
        w_dim=published["w_dim"],
        label_size=published["c_dim"],
        channel_base=synthesis["channel_base"],
        channel_max=synthesis["channel_max"],
        mapping_layers=published["mapping_kwargs"]["num_layers"],
        conv_clamp=synthesis["conv_clamp"],
    )
    state: dict[str, Tensor] = {key.removeprefix("state/"): recording[key] for key in recording.keys("state/*")}
    network = Generator(config).eval().requires_grad_(False)
    network.load_state_dict(state, strict=True)
    return network


def truncation(key: str) -> dict[str, float | int | None]:
    """`psi` and `cutoff` as a key spells them: `psi07_cut4` is .7 for the first four layers."""
    found = re.search(r"_psi(\d)(\d*)(?:_cut(\d+))?$", key)
    if found is None:
        raise Refused(f"expected a key that ends in _psi<digits> or _psi<digits>_cut<layers>, got {key!r}")
    return {"psi": float(f"{found[1]}.{found[2] or 0}"), "cutoff": None if found[3] is None else int(found[3])}
