"""The settings a command receives: types, bounds and cross-field rules. Values live in ``configs/``."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,31}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


Size = Literal[32, 64, 128, 256]
Intensity = Literal["range", "tissue_median"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Cohorts(_Frozen):
    """What every kind of data has in common."""

    size: Size
    """Height and width in pixels to which scans are resampled."""
    hide_labels: Annotated[float, Field(ge=0, lt=1)]
    """Share of the training and validation scans that are made unlabelled, drawn from the seed, at each site."""
    hidden_abnormal: Annotated[float, Field(ge=0, le=1)] | None
    """Share of abnormal scans among those made unlabelled; null takes them as they come."""


class PhantomData(Cohorts):
    """Synthetic patients: the embedded default."""

    kind: Literal["phantoms"]
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    """Names of the sites; each has a scanner of its own, which follows from its name."""
    patients: Annotated[int, Field(ge=6)]
    """Patients per site, all splits together; half of them are abnormal."""
    images_per_patient: Count
    """Neighbouring slices of each patient."""
    diseases: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Diseases: even ones (the first is 0) are soft-edged, odd ones hollow and sharp; a patient has at most one."""


class ManifestData(Cohorts):
    """Scans listed in a manifest (CSV); see ``fedgan.cohort.manifest``."""

    kind: Literal["manifest"]
    root: Path
    """Folder of the manifest; the files in it are named relative to this folder."""
    manifest: str
    """Name of the manifest below ``root``."""
    where: str | None
    """Rows to take, as in ``matched == 1``; null takes all."""
    sites: tuple[SiteName, ...] | None
    """Sites to take; null takes every site of the manifest."""
    intensity: Intensity
    """How brightness becomes [-1, 1]: by the file's own range, or by the median of the tissue in the scan."""
    diseases: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Diseases the model is told apart by. With one name, abnormal scans of unnamed disease count as it."""
    cache: Path | None
    """Where prepared scans are kept; null is ``.fedgan-cache`` in the current folder."""


class LossWeights(_Frozen):
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


class Game(_Frozen):
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


class SAGANLossWeights(_Frozen):
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


class GanFedAvg(_Frozen):
    """Averages both networks, each by the scans that train it; see ``fedgan.federated.aggregation``."""

    kind: Literal["gan_fedavg"]
    rule: Literal["mean", "median", "trimmed", "krum"]
    """What several sites' numbers become: their mean, weighted by scans; or, each site counting alike, their median,
    their mean without the extremes, or the mean of the sites that Multi-Krum trusts."""
    suspects: Annotated[float, Field(ge=0, lt=0.5)]
    """Share of the sites that may be wrong. Only with rule trimmed or krum."""
    exponent: Annotated[float, Field(ge=0, le=1)]
    """Sites count by their number of scans to this power: 1 in proportion, 0 all alike."""
    cap: Annotated[float, Field(gt=0, le=1)]
    """Largest share of one site; with too few sites for it, all count alike."""
    floor: Annotated[float, Field(ge=0, lt=1)]
    """Smallest share of a site that can train a network at all."""
    norm_ratio: Annotated[float, Field(gt=1)]
    """How many times as far as the median site a site may move a player before its update is refused; needs 3 sites."""
    clip: Positive | None
    """Times the median norm to which longer updates are shortened; null shortens none."""
    average_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the old value that the generator's moving average, which draws the maps, keeps in every round, on top of
    ``model.ema_decay`` at the sites."""
    share: Literal["both", "generator"] | tuple[str, ...]
    """Which player's networks travel, or a list of networks by name, as [forward_generator,classifier]; others stay at
    their site."""
    generator_every: Count | None
    """Local steps from one averaging of the generators to the next, a multiple of ``local_steps``; null: each round."""
    discriminator_every: Count | None
    """The same of the discriminators and the classifier."""
    statistics: Literal["local", "pooled"]
    """Whose running statistics of norms a site goes on with: its own (FedBN), or those of all sites."""
    generator_prox: NonNegative
    """Pull of the weights that a site received on its generators (FedProx); 0 is none."""
    discriminator_prox: NonNegative
    """The same of the discriminators and the classifier, which drift first."""
    moments: Literal["reset", "second", "both"]
    """Which of Adam's moments a site keeps from round to round."""

    @model_validator(mode="after")
    def _floor_below_cap(self) -> Self:
        if self.floor > self.cap:
            msg = f"floor {self.floor:g} is larger than cap {self.cap:g}"
            raise ValueError(msg)
        return self


class FedAvg(_Frozen):
    """Averages every tensor by labelled scans (McMahan et al. 2017, arXiv:1602.05629), to compare with."""

    kind: Literal["fedavg"]


class NoServerOptimizer(_Frozen):
    """The coordinator takes the sites' mean step as it is."""

    kind: Literal["none"]


class ServerMomentum(_Frozen):
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335)."""

    kind: Literal["fedavgm"]
    rate: Positive
    """Of the steps."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Worth of each past step in the next."""


class ServerAdam(_Frozen):
    """FedAdam (Reddi et al. 2021, arXiv:2003.00295)."""

    kind: Literal["fedadam"]
    rate: Positive
    """Of the steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Of the two moments over rounds."""
    epsilon: Annotated[float, Field(ge=1e-6)]
    """What a number's step is measured by at least."""


class Compression(_Frozen):
    """In how many bits numbers travel; what a round loses by it, a later one brings (error feedback)."""

    generator: Literal["none", "fp16", "int8"]
    """Of the generators' updates: as they are, in half precision, or in eight bits with a scale per 1024 numbers."""
    discriminator: Literal["none", "fp16", "int8"]
    """Of the updates of the discriminators and the classifier."""
    model: Literal["none", "fp16", "int8"]
    """Of the global model's steps, for sites that have the model before; others are sent all of it."""


Data = Annotated[PhantomData | ManifestData, Field(discriminator="kind")]
Model = Annotated[TagGAN | SAGAN, Field(discriminator="kind")]
Aggregation = Annotated[GanFedAvg | FedAvg, Field(discriminator="kind")]
ServerOptimizer = Annotated[NoServerOptimizer | ServerMomentum | ServerAdam, Field(discriminator="kind")]


class Simulation(_Frozen):
    """Everything ``fed-simulate`` is told."""

    name: Name | None
    """Name of the run's folder; null is the data's and the model's name with date and time."""
    runs: Path
    """Folder of all runs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Of every draw: phantoms, initial weights, batches, examples, resamplings."""
    rounds: Count
    """Rounds of the run."""
    local_steps: Count
    """Local steps a site takes in one round: one discriminator step and one generator step each."""
    quorum: Count
    """Updates a round needs."""
    engine: Literal["process", "flower"]
    """Where the sites run: in this process, or in Flower's simulation engine."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the networks run; auto takes the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Arithmetic of convolutions; auto takes bfloat16 where the processor or GPU has it built in."""
    threads: Annotated[int, Field(ge=0)]
    """Processor threads of one site; 0 leaves the choice to PyTorch."""
    select: Literal["best", "aucp", "last"]
    """Which round is the result: the best by labels and masks of the sites' validation patients; the best by AUCp,
    which sets their known normals against all others and looks at no abnormal label or mask; or the last."""
    patience: Count | None
    """Rounds in a row without a better validation score after which an arm ends; null trains every round. A round is
    scored when the next one has been trained. The learning rates fall over ``rounds`` all the same."""
    threshold: Literal["masks", "normals"]
    """What chooses the maps' threshold on validation patients: the best Dice with their masks, or their normal scans
    alone."""
    false_positives: Fraction
    """Largest share of those normal scans' pixels that may be found. Only with threshold=normals."""
    bootstrap: Annotated[int, Field(ge=0)]
    """Resamplings of the test patients for each 95 % interval; 0 leaves the intervals out."""
    compare: bool
    """Also train the local-only and pooled arms, for the report."""
    model: Model
    data: Data
    aggregation: Aggregation
    server_optimizer: ServerOptimizer
    """What the coordinator makes of the sites' mean step, on trained tensors alone."""
    compress: Compression

    @model_validator(mode="after")
    def _intervals_are_whole_rounds(self) -> Self:
        if isinstance(self.aggregation, GanFedAvg):
            for name in ("generator_every", "discriminator_every"):
                every = getattr(self.aggregation, name)
                if every is not None and every % self.local_steps:
                    msg = f"aggregation.{name} {every} is no multiple of local_steps ({self.local_steps})"
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _optimizer_has_an_aggregation(self) -> Self:
        if self.aggregation.kind == "fedavg" and self.server_optimizer.kind != "none":
            msg = "server_optimizer needs aggregation=gan_fedavg: over buffers, it makes variances negative"
            raise ValueError(msg)
        if self.aggregation.kind == "fedavg" and set(self.compress.model_dump().values()) != {"none"}:
            msg = "compress needs aggregation=gan_fedavg, which knows what may lose bits and what may not"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _quorum_within_sites(self) -> Self:
        if self.data.sites is not None and self.quorum > len(self.data.sites):
            msg = f"quorum {self.quorum} is larger than the number of sites ({len(self.data.sites)})"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _scans_are_large_enough(self) -> Self:
        if isinstance(self.model, SAGAN) and self.model.critic == "global" and self.data.size < 64:
            msg = "model.critic=global needs scans of 64 x 64 or more; give data.size=64 or model.critic=patch"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _patience_has_a_score(self) -> Self:
        if self.patience is not None and self.select == "last":
            msg = "patience goes by the score of select, and select=last has none; give select=best or patience=null"
            raise ValueError(msg)
        return self
