"""StyleGAN2 as a prior: draws are styles, one row per layer; a search may vary one row for all layers, every row, or
the features at the entrance of any block (PPA, IF-GMI, MIRROR)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.compiling import Compiler
from midefense.precision import at_least_float32, require_precision
from midefense.priors.base import Prior
from midefense.priors.stylegan2.critic import Discriminator, minibatch_deviation
from midefense.priors.stylegan2.fit import Training, fit_styles
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.priors.stylegan2.importer import read_configuration, read_imported
from midefense.ranges import Betas, Count, Depth, NotNegative, Positive, Share, Whole, Width
from midefense.resampling import resized
from midefense.store.artefacts import file_sha256
from midefense.types import Images, Progress, Refused

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


@dataclass(frozen=True)
class Crop:
    """The centre of a picture: `side` pixels of one of `of` pixels, scaled for pictures of another size (PPA: 800 of
    1024 for faces)."""

    revision = 1
    side: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.side <= self.of:
            raise Refused(f"prior.crop: expected 0 < side <= of, got side={self.side}, of={self.of}; try null")

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, H] to [B, C, h, h]."""
        size = images.shape[-1]
        side = round(self.side * size / self.of)
        start = round((size - side) / 2)
        return images[..., start : start + side, start : start + side]


class StyleBased(Prior):
    """What trained and imported StyleGAN2 priors share. Latents are styles: [B, w_dim], one row for all layers, or
    [B, num_ws, w_dim]. `draw` makes pictures at the generator's own size, `frame` crops and resizes them to the images
    of the dataset; pictures and images are nominally in [0, 1] and not clamped.

    Attributes:
        psi, cutoff: the truncation within the generator: it draws the first `cutoff` rows (None: all) towards the mean
            style, whatever latents say; 1 draws none.
    """

    psi: float = 1.0
    cutoff: int | None = None
    slope = 0.2  # of the mapping's leaky ReLU, which styles come out of
    offers = frozenset({"sample", "realism", "normal", "styles", "blocks"})

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        config: StyleGan2Config,
        crop: Crop | None,
        checkpoint: bool,
        critic: bool,
        half_blocks: int,
    ):
        if half_blocks and config.conv_clamp is None:
            raise Refused(
                f"prior.half_blocks: expected 0 for a generator whose convolutions are not clamped, got {half_blocks}; "
                "try prior.conv_clamp=256, where it is trained here"
            )
        super().__init__(channels=channels, size=size)
        self.config, self.crop = config, crop
        self.generator = Generator(config)
        self.critic = Discriminator(config) if critic else None
        if not critic:
            self.offers = self.offers - {"realism"}
        # stands in for the spread within a batch, so that the realism of an image does not depend on the others
        self.register_buffer("deviation", torch.zeros(()))
        self.last = len(config.resolutions) - 1
        self.generator.synthesis.checkpoint = checkpoint
        self.generator.synthesis.half_blocks = half_blocks
        if critic:
            self.critic.half_blocks = half_blocks

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Styles [count, num_ws, w_dim] of normal latents, untruncated."""
        return self.styles(count, rng)

    @torch.no_grad()
    def styles(self, count: int, rng: torch.Generator, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Styles [count, num_ws, w_dim] on the CPU; the first `cutoff` rows (None: all) are drawn towards the mean
        style by the truncation `psi`."""
        latents = torch.randn(count, self.config.z_dim, generator=rng)
        labels = None
        if classes := self.config.label_size:
            labels = F.one_hot(torch.randint(classes, (count,), generator=rng), classes).to(self.device)
        return self.generator.styles(latents.to(self.device), labels, psi=psi, cutoff=cutoff).cpu()

    @property
    def normal_width(self) -> int:
        """That of z."""
        return self.config.z_dim

    @property
    def rows(self) -> int:
        """One per layer of the generator."""
        return self.config.num_ws

    def of_normal(self, noise: Tensor) -> Tensor:
        """Rows of styles [..., w_dim], untruncated."""
        if self.config.label_size:
            raise Refused("normal: expected a generator without labels, got one with; try another prior")
        return self.generator.mapping(noise.flatten(0, -2)).unflatten(0, noise.shape[:-1])

    def draw(self, latents: Tensor) -> Tensor:
        """Pictures [B, C, r, r] at the generator's own size, nominally in [0, 1]."""
        return self.at(0).draw(latents)

    def frame(self, drawn: Tensor, size: int | None = None) -> Tensor:
        """Pictures cropped and resized once (bilinear, antialiased) to images [B, channels, size, size]; `size` None is
        that of the dataset."""
        images = resized(drawn if self.crop is None else self.crop(drawn), self.size if size is None else size)
        if images.shape[1] == self.channels:
            return images
        if self.channels == 1:
            return (images * images.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return images.expand(-1, self.channels, -1, -1)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, channels, size, size]."""
        return self.frame(self.draw(latents))

    def realism(self, drawn: Tensor) -> Tensor:
        """The critic's score [B] of pictures as `draw` makes them."""
        if self.critic is None:
            raise Refused("realism: expected a generator with its critic, got one without; try a file that holds both")
        return self.critic(drawn * 2 - 1, deviation=self.deviation)

    def specimen(self) -> Tensor:
        """As `Prior.specimen`, of an empty picture: drawing one with a large generator takes seconds."""
        side = self.config.resolutions[self.last]
        return self.frame(self.deviation.new_zeros(1, self.config.image_channels, side, side))

    @property
    def blocks(self) -> int:
        """How many blocks pictures pass through."""
        return self.last + 1

    def at(self, block: int) -> FromBlock:
        """The generator from `block` on (0: the whole of it)."""
        if not 0 <= block < self.blocks:
            raise Refused(f"block: expected 0 to {self.blocks - 1}, got {block}; try fewer stages")
        return FromBlock(self, block)

    @torch.no_grad()
    def measure_deviation(self, rng: torch.Generator, groups: int) -> None:
        """Set `deviation` to its mean over groups of drawn pictures, as the critic would see them."""
        group = self.config.minibatch_group
        styles = self.styles(group * groups, rng).split(group)
        spreads = [minibatch_deviation(self._critic_features(rows), group).mean() for rows in styles]
        self.deviation.copy_(torch.stack(spreads).mean())

    def _critic_features(self, styles: Tensor) -> Tensor:
        return self.critic.features(self.draw(styles.to(self.device)) * 2 - 1)

    def _rows(self, latents: Tensor) -> Tensor:
        """Styles for every layer [B, num_ws, w_dim], the first `cutoff` of them drawn towards the mean style."""
        rows = latents[:, None].expand(-1, self.config.num_ws, -1) if latents.ndim == 2 else latents
        if self.psi == 1:
            return rows
        near = self.generator.mapping.w_avg.to(rows.dtype).lerp(rows[:, : self.cutoff], self.psi)
        return near if self.cutoff is None else torch.cat([near, rows[:, self.cutoff :]], 1)


@dataclass(frozen=True)
class FromBlock:
    """A generator entered at `block`. Features [B, C, r, r] are what that block takes; block 0 takes none. `images` is
    the picture of the blocks below, in the generator's own range; None leaves out what they would have added."""

    prior: StyleBased
    block: int

    def draw(self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Pictures [B, C, r, r] of the prior."""
        drawn = self._run(latents, features, images, self.prior.last)[1]
        return drawn.add(1).div(2)

    def lift(
        self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features and picture behind this block alone: what the next one takes."""
        features, images = self._run(latents, features, images, self.block)
        return at_least_float32(features), images

    def _run(self, latents: Tensor, features: Tensor | None, images: Tensor | None, last: int) -> tuple[Tensor, Tensor]:
        rows = self.prior._rows(latents)
        return self.prior.generator.synthesis(rows, first=self.block, last=last, features=features, images=images)


class StyleGan2(StyleBased):
    """A published generator, imported by `midefense import FILE --as stylegan2`; nothing is learned here.

    Args:
        weights: the imported file; its content, not its path, decides ids.
        sha256: the hash the file must have; None takes any and puts what it has into the recipe.
        crop: the part of its pictures that the dataset's images show; None is all.
        max_resolution: stop synthesis at pictures of this size, an approximation that saves most of the time; None
            runs all blocks.
        checkpoint: keep no activations of a block for the backward pass, compute them again: less memory, more time.
        half_blocks: how many of the highest blocks take half precision (float16), wherever a picture is drawn or
            judged. NVIDIA's files run so on a GPU, with 4; the clamp of their convolutions is made for it.
        psi, cutoff: truncate within the generator: the first `cutoff` rows (None: all) of whatever latents it is given
            are drawn towards the mean style by `psi`; 1 is none. Latents stay as they are (MIRROR: .7 and 8).
    """

    later = {"half_blocks": 0, "psi": 1.0, "cutoff": None}
    places = ("weights",)
    unhashed = ("checkpoint",)

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        weights: str,
        sha256: str | None = None,
        crop: Crop | None = None,
        max_resolution: Count | None = None,
        checkpoint: bool = False,
        half_blocks: Whole = 0,
        psi: Share = 1.0,
        cutoff: Whole | None = None,
    ):
        if sha256 is not None:
            pinned_hash(weights, sha256)
        config, generator, critic, _ = read_imported(weights)
        critic = critic if judges(config) else None
        super().__init__(
            channels=channels,
            size=size,
            config=config,
            crop=crop,
            checkpoint=checkpoint,
            critic=critic is not None,
            half_blocks=half_blocks,
        )
        self.generator.load_state_dict(generator)
        if critic is not None:
            self.critic.load_state_dict(critic)
        self.last = _last_block(config, max_resolution)
        self.psi, self.cutoff, self.measured = psi, cutoff, False

    @classmethod
    def shaped(
        cls,
        *,
        channels: int,
        size: int,
        weights: str,
        sha256: str | None = None,
        crop: Crop | None = None,
        max_resolution: int | None = None,
        checkpoint: bool = False,
        half_blocks: int = 0,
        psi: float = 1.0,
        cutoff: int | None = None,
    ) -> StyleBased:
        """The generator in the file, by what its header says."""
        config = read_configuration(weights)
        options = {"crop": crop, "checkpoint": checkpoint, "half_blocks": half_blocks}
        prior = StyleBased(channels=channels, size=size, config=config, critic=False, **options)
        prior.last = _last_block(config, max_resolution)
        prior.psi, prior.cutoff = psi, cutoff
        return prior

    @classmethod
    def require_files(cls, arguments: Mapping[str, object], needs: Iterable[str]) -> None:
        """Refuse a missing or foreign file, and one without a critic where an attack asks for realism."""
        config, _, critic, _ = read_imported(str(arguments["weights"]))
        if "realism" in needs and (critic is None or not judges(config)):
            raise Refused(
                "prior.weights: expected an unconditional generator with its critic, which this attack asks, got "
                f"{arguments['weights']}; try NVIDIA's .pkl, or attack/objective=poincare"
            )

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments with the hash of the file."""
        return {**arguments, "sha256": pinned_hash(str(arguments["weights"]), arguments["sha256"])}

    def realism(self, drawn: Tensor) -> Tensor:
        """The critic's score [B] of whole pictures as `draw` makes them."""
        if self.critic is not None and not self.measured:
            self.measure_deviation(seeds.generator("stylegan2", "deviation"), groups=4)
            self.measured = True
        return super().realism(drawn)


def _last_block(config: StyleGan2Config, max_resolution: int | None) -> int:
    """The block that makes pictures of this size (None: of the generator's own)."""
    if max_resolution is None:
        return len(config.resolutions) - 1
    if max_resolution not in config.resolutions:
        choices = ", ".join(map(str, config.resolutions))
        raise Refused(f"prior.max_resolution: expected one of {choices}, got {max_resolution}; try null")
    return config.resolutions.index(max_resolution)


def judges(config: StyleGan2Config) -> bool:
    """Whether a critic can say how real an image is: one that also asks for its label cannot."""
    return not config.label_size


def pinned_hash(path: str, sha256: object) -> str:
    """SHA-256 of an imported file; refused if it is not the one a recipe names."""
    read_imported(path)  # says in words what is wrong with it
    got = file_sha256(Path(path))
    if sha256 not in (None, got):
        raise Refused(f"prior.weights: expected a file with SHA-256 {sha256}, got {got}: {path}; try prior.sha256=null")
    return got


class StyleGan2Trained(StyleBased):
    """A small StyleGAN2 that learns from public images (non-saturating loss, lazy R1, moving average of the weights).

    Args:
        resolution: side of its pictures, a power of two; None is the smallest that is not below the images'. Other
            sizes are resized.
        latent_size: of z and w.
        channel_base, channel_max: channels at resolution r are min(channel_base / r, channel_max).
        steps, batch_size: updates of each network, and images per update.
        learning_rate, betas: of Adam, for both.
        r1: weight of the gradient penalty on real images (the paper's gamma), applied every `r1_every` steps.
        average_images: half-life of the moving average, in images; shorter in the beginning.
        mixing: probability that a picture mixes the styles of two latents.
        mirror: show real images and their mirror images alike.
        minibatch_group: images that the critic compares.
        unit: steps between two saved states.
        precision: of the convolutions while it learns: see `midefense.precision`.
        compile: the synthesis goes through torch.compile while it learns.
        half_blocks: how many of the highest blocks take half precision (float16), while it learns and afterwards;
            wants a `conv_clamp` (NVIDIA's code: 4, and 256).
    """

    later = {"precision": "32-true", "compile": False, "half_blocks": 0}
    learns = True
    unhashed = ("unit", "checkpoint")

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        resolution: Count | None = None,
        latent_size: Width = 512,
        channel_base: Count = 16384,
        channel_max: Width = 512,
        mapping_layers: Depth = 2,
        conv_clamp: Positive | None = None,
        minibatch_group: Count = 4,
        steps: Count = 100_000,
        batch_size: Count = 32,
        learning_rate: Positive = 2.5e-3,
        betas: Betas = (0.0, 0.99),
        r1: NotNegative = 1.0,
        r1_every: Count = 16,
        average_images: Positive = 10_000,
        mixing: Share = 0.9,
        mirror: bool = True,
        unit: Count = 100,
        checkpoint: bool = False,
        precision: str = "32-true",
        compile: bool = False,
        half_blocks: Whole = 0,
    ):
        config = StyleGan2Config(
            resolution=resolution or max(8, 1 << (size - 1).bit_length()),
            image_channels=channels,
            z_dim=latent_size,
            w_dim=latent_size,
            channel_base=channel_base,
            channel_max=channel_max,
            mapping_layers=mapping_layers,
            conv_clamp=conv_clamp,
            minibatch_group=minibatch_group,
        )
        options = {"crop": None, "checkpoint": checkpoint, "half_blocks": half_blocks}
        super().__init__(channels=channels, size=size, config=config, critic=True, **options)
        self.precision = require_precision("prior.precision", precision)
        self.compiler = Compiler("prior.compile", batch_size) if compile else None
        self.generator.requires_grad_(False)
        self.training_options = Training(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            betas=tuple(betas),
            r1=r1,
            r1_every=r1_every,
            average_images=average_images,
            mixing=mixing,
            mirror=mirror,
            unit=unit,
        )

    def fit_steps(self, public: Images) -> int:
        """Steps of a whole `fit`."""
        return self.training_options.steps

    def fit(
        self, public: Images, *, seed: int, oracle: object = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Train on public images; one unit of progress is `unit` steps. `generator` holds the moving average."""
        self.require(public)
        how = {"seed": seed, "state": state, "precision": self.precision, "compiler": self.compiler}
        yield from fit_styles(self.generator, self.critic, public, self.training_options, **how)
        self.eval()
        self.measure_deviation(seeds.generator(seed, "prior", "deviation"), groups=32)
