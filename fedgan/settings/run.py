"""How a run trains, whoever starts it, and which of its settings contradict each other."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.data import AgreedScans, Scans
from fedgan.settings.federation import (
    Compression,
    FedAvg,
    GanFedAvg,
    NoServerOptimizer,
    ServerAdam,
    ServerMomentum,
)
from fedgan.settings.model import SAGAN, TagGAN
from fedgan.settings.privacy import NoPrivacy, PatientPrivacy, SitePrivacy
from fedgan.settings.types import Count, Frozen, Name

Model = Annotated[TagGAN | SAGAN, Field(discriminator="kind")]
Aggregation = Annotated[GanFedAvg | FedAvg, Field(discriminator="kind")]
Privacy = Annotated[NoPrivacy | PatientPrivacy | SitePrivacy, Field(discriminator="kind")]
ServerOptimizer = Annotated[NoServerOptimizer | ServerMomentum | ServerAdam, Field(discriminator="kind")]


class Training(Frozen):
    """What all who train one model must agree on."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Of every draw: phantoms, initial weights, batches, examples, resamplings."""
    rounds: Count
    """Rounds of the run."""
    local_steps: Count
    """Local steps a site takes in one round: one discriminator step and one generator step each."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Arithmetic of convolutions; auto takes bfloat16 where the processor or GPU has it built in, and nothing but
    float32 for privacy=patient."""
    model: Model
    data: Scans
    aggregation: Aggregation
    compress: Compression
    privacy: Privacy
    """What is promised to each patient, or to each site."""

    @property
    def own_generators(self) -> bool:
        """Whether each site draws maps with generators of its own."""
        return isinstance(self.aggregation, GanFedAvg) and self.aggregation.share in ("discriminator", "none")

    @model_validator(mode="after")
    def _nothing_is_learned_beside_a_promise(self) -> Self:
        shares = self.aggregation.share if isinstance(self.aggregation, GanFedAvg) else "both"
        if isinstance(self.privacy, PatientPrivacy) and shares != "both":
            msg = "privacy=patient needs aggregation.share=both: what stays at a site has learned of the same patients"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _promises_are_computed_in_full(self) -> Self:
        if isinstance(self.privacy, PatientPrivacy) and self.precision == "bfloat16":
            msg = "privacy=patient needs precision=float32 or auto: bfloat16 lets one patient move another's gradient"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _each_site_counts_by_itself(self) -> Self:
        told = self.aggregation
        if isinstance(self.privacy, SitePrivacy):
            plain = isinstance(told, GanFedAvg) and told.rule == "mean" and told.clip is None and told.share != "none"
            if not plain:
                msg = (
                    "privacy=site needs aggregation=gan_fedavg with rule=mean, clip=null, and share other than none: "
                    "otherwise one site could move more than the noise hides"
                )
                raise ValueError(msg)
        return self

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
    def _compression_has_an_aggregation(self) -> Self:
        if self.aggregation.kind == "fedavg" and set(self.compress.model_dump().values()) != {"none"}:
            msg = "compress needs aggregation=gan_fedavg, which knows what may lose bits and what may not"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _scans_are_large_enough(self) -> Self:
        if isinstance(self.model, SAGAN) and self.model.critic == "global" and self.data.size < 64:
            msg = "model.critic=global needs scans of 64 x 64 or more; give data.size=64 or model.critic=patch"
            raise ValueError(msg)
        return self


class Terms(Training):
    """What a site is told of a run; where its scans are, and what computes, is the site's own."""

    name: Name
    """Name of the run."""
    data: AgreedScans


class Run(Training):
    """What the coordinator decides besides: no site needs to know."""

    name: Name | None
    """Name of the run's folder; null is the data's and the model's name with date and time."""
    start: Path | None
    """Folder of a model (a run's ``model``, a release) whose weights training starts from; null: untrained ones."""
    quorum: Count
    """Updates a round needs."""
    select: Literal["best", "aucp", "last"]
    """Which round is the result: the best by labels and masks of the sites' validation patients; the best by AUCp,
    which sets their known normals against all others and looks at no abnormal label or mask; or the last."""
    patience: Count | None
    """Rounds in a row without a better validation score after which an arm ends; null trains every round. A round is
    scored when the next one has been trained. The learning rates fall over ``rounds`` all the same."""
    server_optimizer: ServerOptimizer
    """What the coordinator makes of the sites' mean step, on trained tensors alone."""

    @model_validator(mode="after")
    def _private_runs_end_with_the_last(self) -> Self:
        if not isinstance(self.privacy, NoPrivacy) and self.select != "last":
            msg = f"privacy={self.privacy.kind} needs select=last: a choice by validation patients would tell of them"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _own_generators_are_the_last(self) -> Self:
        if self.own_generators and self.select != "last":
            msg = "with aggregation.share=discriminator or none each site keeps its last generator; give select=last"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _scores_are_of_what_is_released(self) -> Self:
        every = self.aggregation.generator_every if isinstance(self.aggregation, GanFedAvg) else None
        if every not in (None, self.local_steps) and self.select != "last":
            msg = (
                f"with aggregation.generator_every {every} sites score generators that have gone on by themselves, "
                f"not the round's; give select=last or generator_every={self.local_steps}"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _optimizer_has_an_aggregation(self) -> Self:
        if self.aggregation.kind == "fedavg" and self.server_optimizer.kind != "none":
            msg = "server_optimizer needs aggregation=gan_fedavg: over buffers, it makes variances negative"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _patience_has_a_score(self) -> Self:
        if self.patience is not None and self.select == "last":
            msg = "patience goes by the score of select, and select=last has none; give select=best or patience=null"
            raise ValueError(msg)
        return self
