"""What is learned: networks, the game they play, and how maps are drawn of them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.types import Count, Fraction, Frozen, NonNegative, Positive


class LossWeights(Frozen):
    """Weights of the terms of the generators' objective; a term of weight 0 is not computed."""

    adversarial: NonNegative
    """The counterpart (and, with the cycle, the diseased normal scan) must look real to a discriminator."""
    cycle: NonNegative
    """A backward generator must be able to put the disease back; also trains the abnormal discriminator."""
    identity: NonNegative
    """Where the disease is not, the difference is empty."""
    sparsity: NonNegative
    """The difference is no larger than needed."""
    classifier: NonNegative
    """The counterpart must look normal to a classifier of diseases."""
    restoration: NonNegative
    """Pseudo-lesions pasted into normal scans must be found exactly."""
    attention: NonNegative
    """The generator must also say where pseudo-lesions are, and that gates its difference."""


class Game(Frozen):
    """What every method has in common: how its game is trained, and how its differences become maps."""

    batch_size: Count
    """Scans of each kind (abnormal, normal, unlabelled) in one batch."""
    augment: bool
    """Turn, scale, stretch, shift every drawn scan and change its contrast a little, at random."""
    critic_steps: Count
    """Steps of the critics in one local step, each on a batch of its own; the generators then take one."""
    learning_rate: Positive
    """Of the generators, at the first round."""
    critic_learning_rate: Positive
    """Of the discriminators and the classifier, likewise."""
    last_rate: Annotated[float, Field(gt=0, le=1)]
    """Share of both learning rates at the last round; they fall linearly to it over the rounds."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Of Adam, for both players."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the old value that the generator's moving average keeps at each local step."""
    map_smoothing: NonNegative
    """Standard deviation, in pixels at 64 x 64, of the Gaussian that smooths the difference for the map."""
    map_flip: bool
    """Average the difference with that of the mirrored scan, mirrored back."""
    map_tissue: bool
    """No evidence where most of a pixel's neighbourhood is air."""


class PseudoLesions(Game):
    """What a site's radiologists know of the disease without a drawing: how pseudo-lesions look, and where they are."""

    brighter: Annotated[float, Field(ge=0, le=1)]
    """Share of the pasted pseudo-lesions that are brighter than what they cover."""
    dark: bool
    """Paste them into the darker half of the tissue only, as the lungs in a chest X-ray."""
    radius: tuple[Fraction, Fraction]
    """Their smallest and largest radius, as a share of the scan's width."""

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        if self.radius[0] > self.radius[1]:
            msg = f"radius: the smallest ({self.radius[0]:g}) is larger than the largest ({self.radius[1]:g})"
            raise ValueError(msg)
        return self


class TagGAN(PseudoLesions):
    """TagGAN; see ``fedgan.gan.taggan`` for what is the paper's and what is ours."""

    kind: Literal["taggan"]
    width: Count
    """Channels of the generators' first level; doubled at each of the three further levels."""
    patch: Literal[1, 2, 4]
    """Pixels, per side, that the generators take together; a larger patch is faster and coarser."""
    critic_width: Count
    """Channels of the discriminators' and the classifier's first level."""
    spectral_norm: bool
    """Bound the discriminators by spectral norms (Miyato et al. 2018, arXiv:1802.05957) in place of group norms."""
    adversarial: Literal["lsgan", "hinge", "wgan_gp"]
    """The adversarial game; see ``fedgan.gan.losses``."""
    weights: LossWeights
    transplants: Annotated[float, Field(ge=0, le=1)]
    """Share of the normal scans that get, as pseudo-lesion, what the averaged generator finds in an abnormal scan."""


class SAGANLossWeights(Frozen):
    """Weights of the terms of SAGAN's generator."""

    adversarial: NonNegative
    """The counterpart of a scan that may show disease must look normal to the critic."""
    identity: NonNegative
    """A normal scan stays as it is."""
    restoration: NonNegative
    """A normal scan with a pseudo-lesion becomes what it was."""


class SAGAN(PseudoLesions):
    """SAGAN; see ``fedgan.gan.sagan`` for how ``sagan_released`` and ``sagan`` differ and why."""

    kind: Literal["sagan"]
    width: Count
    """Channels of the generator's first level; doubled at each of the three further levels."""
    blocks: Annotated[int, Field(ge=0)]
    """Residual blocks at the generator's deepest level."""
    grid: Literal[1, 2, 4]
    """Tiles per side of a scan; each is drawn on its own."""
    context: Literal[0, 8, 16]
    """Pixels by which a tile is larger than its share of the scan. Where tiles overlap they are blended; with 0 (as
    released) their seams show."""
    position: Literal["inert", "tile", "coordinates", "none"]
    """What tells a tile where it is: its number before a norm that takes it out again (as released), its number or its
    pixels' coordinates after the norm, or nothing."""
    norm: Literal["instance", "group"]
    """What the generator normalises together: one channel of a tile, or an eighth of its channels."""
    output: Literal["tanh_of_sum", "sum"]
    """How the generator's change is added to the scan; with tanh_of_sum (as released) it cannot leave a scan alone."""
    masked: Literal["always", "training", "never"]
    """When 5 % of the pixels, at random, show the generator's change to nobody; always (as released) also in maps."""
    critic: Literal["global", "patch"]
    """What the critic scores: all of a 64 x 64 scan at once (as released), or each part of it."""
    critic_width: Count
    """Channels of the critic's first level."""
    adversarial: Literal["lsgan", "hinge", "wgan_gp"]
    """The adversarial game; see ``fedgan.gan.losses``."""
    weights: SAGANLossWeights
    pseudo_lesions: Literal["squares", "blobs"]
    """What is pasted into normal scans: squares of another scan (as released), or soft blobs in the tissue, which
    alone are ``brighter``, ``dark`` and of a ``radius``."""
    restoration: Literal["l1", "mse"]
    """How the distance of a restored scan from what it was is measured."""
