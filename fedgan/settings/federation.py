"""How sites learn together: what they send, and what the coordinator makes of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.types import Count, Frozen, NonNegative, Positive


class GanFedAvg(Frozen):
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
    """Largest share of one site, of each kind of scans and of a network; with too few sites for it, all count alike."""
    floor: Annotated[float, Field(ge=0, lt=1)]
    """Smallest share of a site with scans, of each kind and of a network; with too many sites, all count alike."""
    norm_ratio: Annotated[float, Field(gt=1)]
    """How many times as far as the median site a site may move a player before its update is refused; needs 3 sites."""
    refuse_apart: bool
    """Refuse sites whose steps, over the rounds, have agreed with no two others'; needs 4 sites."""
    clip: Positive | None
    """Times the median norm to which longer updates are shortened; null shortens none. Only with rule mean or krum."""
    average_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the old value that the generator's moving average, which draws the maps, keeps in every round, on top of
    ``model.ema_decay`` at the sites."""
    share: Literal["both", "generator", "discriminator", "none"] | tuple[str, ...]
    """Which player's networks travel, or a list of networks by name, as [forward_generator,forward_average]; others
    stay at their site. With discriminator or none, each site draws maps of its own."""
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

    @model_validator(mode="after")
    def _what_is_shortened_is_summed(self) -> Self:
        if self.clip is not None and self.rule in ("median", "trimmed"):
            msg = f"clip does nothing with rule {self.rule}, which bears long updates as they are; give clip=null"
            raise ValueError(msg)
        return self


class FedAvg(Frozen):
    """Averages every tensor by labelled scans (McMahan et al. 2017, arXiv:1602.05629), to compare with."""

    kind: Literal["fedavg"]


class NoServerOptimizer(Frozen):
    """The coordinator takes the sites' mean step as it is."""

    kind: Literal["none"]


class ServerMomentum(Frozen):
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335)."""

    kind: Literal["fedavgm"]
    rate: Positive
    """Of the steps."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Worth of each past step in the next."""


class ServerAdam(Frozen):
    """FedAdam (Reddi et al. 2021, arXiv:2003.00295)."""

    kind: Literal["fedadam"]
    rate: Positive
    """Of the steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Of the two moments over rounds."""
    epsilon: Annotated[float, Field(ge=1e-6)]
    """What a number's step is measured by at least."""


class Compression(Frozen):
    """In how many bits numbers travel; what a round loses by it, a later one brings (error feedback)."""

    generator: Literal["none", "fp16", "int8"]
    """Of the generators' updates: as they are, in half precision, or in eight bits with a scale per 1024 numbers."""
    discriminator: Literal["none", "fp16", "int8"]
    """Of the updates of the discriminators and the classifier."""
    model: Literal["none", "fp16", "int8"]
    """Of the global model's steps, for sites that have the model before; others are sent all of it."""
