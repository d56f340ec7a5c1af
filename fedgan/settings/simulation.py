"""Everything ``fed-simulate`` is told, and which settings contradict each other."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.data import ManifestData, PhantomData
from fedgan.settings.federation import (
    Compression,
    FedAvg,
    GanFedAvg,
    NoServerOptimizer,
    ServerAdam,
    ServerMomentum,
)
from fedgan.settings.model import SAGAN, TagGAN
from fedgan.settings.privacy import NoPrivacy, PatientPrivacy
from fedgan.settings.types import Count, Fraction, Frozen, Name

Data = Annotated[PhantomData | ManifestData, Field(discriminator="kind")]
Model = Annotated[TagGAN | SAGAN, Field(discriminator="kind")]
Aggregation = Annotated[GanFedAvg | FedAvg, Field(discriminator="kind")]
Privacy = Annotated[NoPrivacy | PatientPrivacy, Field(discriminator="kind")]
ServerOptimizer = Annotated[NoServerOptimizer | ServerMomentum | ServerAdam, Field(discriminator="kind")]


class Simulation(Frozen):
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
    privacy: Privacy
    """What is promised to each patient."""

    @model_validator(mode="after")
    def _private_runs_tell_nothing_else(self) -> Self:
        if isinstance(self.privacy, NoPrivacy):
            return self
        told = self.aggregation
        contradictions = {
            "select=last: a choice by validation patients would tell of them": self.select != "last",
            "compare=false: the other arms would spend the same patients' budget again": self.compare,
            "aggregation.share=both: what stays at a site has learned of the same patients": isinstance(told, GanFedAvg)
            and told.share != "both",
        }
        if found := [needed for needed, contradicts in contradictions.items() if contradicts]:
            msg = "privacy=patient needs " + "; ".join(found)
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _own_generators_are_the_last(self) -> Self:
        own = isinstance(self.aggregation, GanFedAvg) and self.aggregation.share in ("discriminator", "none")
        if own and self.select != "last":
            msg = "with aggregation.share=discriminator or none each site keeps its last generator; give select=last"
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
