"""Everything ``fed-simulate`` is told, and which of it contradicts the rest."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.data import ManifestData, PhantomData
from fedgan.settings.federation import GanFedAvg
from fedgan.settings.privacy import PatientPrivacy
from fedgan.settings.run import Run
from fedgan.settings.types import Fraction

Data = Annotated[PhantomData | ManifestData, Field(discriminator="kind")]


class Simulation(Run):
    """Everything ``fed-simulate`` is told."""

    runs: Path
    """Folder of all runs."""
    engine: Literal["process", "flower"]
    """Where the sites run: in this process, or in Flower's simulation engine."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the networks run; auto takes the GPU when there is one."""
    threads: Annotated[int, Field(ge=0)]
    """Processor threads of one site; 0 leaves the choice to PyTorch."""
    threshold: Literal["masks", "normals"]
    """What chooses the maps' threshold on validation patients: the best Dice with their masks, or their normal scans
    alone."""
    false_positives: Fraction
    """Largest share of those normal scans' pixels that may be found. Only with threshold=normals."""
    bootstrap: Annotated[int, Field(ge=0)]
    """Resamplings of the test patients for each 95 % interval; 0 leaves the intervals out."""
    compare: bool
    """Also train the local-only and pooled arms, for the report."""
    attack: Literal["none", "membership", "inversion", "all"]
    """What to try on the federated model, for the report: to tell who was trained on, for which secret coins leave half
    of the training patients out (of at most 500 a site); to see scans in gradients; or both."""
    data: Data

    @model_validator(mode="after")
    def _private_arms_are_alone(self) -> Self:
        if self.compare and isinstance(self.privacy, PatientPrivacy):
            msg = "privacy=patient needs compare=false: the other arms would spend the same patients' budget again"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _attacked_where_patients_are_left_out(self) -> Self:
        if not self.tosses_coins:
            return self
        if self.engine != "process":
            msg = f"attack={self.attack} needs engine=process, which leads to the same weights"
            raise ValueError(msg)
        if isinstance(self.aggregation, GanFedAvg) and self.aggregation.share != "both":
            msg = f"attack={self.attack} needs aggregation.share=both: what stays at a site is not there to be attacked"
            raise ValueError(msg)
        return self

    @property
    def tosses_coins(self) -> bool:
        """Return whether patients are left out of the training, to see whether that can be told."""
        return self.attack in ("membership", "all")

    @model_validator(mode="after")
    def _quorum_within_sites(self) -> Self:
        if self.data.sites is not None and self.quorum > len(self.data.sites):
            msg = f"quorum {self.quorum} is larger than the number of sites ({len(self.data.sites)})"
            raise ValueError(msg)
        return self
