"""What a run promises to each patient, or to each site."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.types import Count, Fraction, Frozen, Positive, SiteName


class NoPrivacy(Frozen):
    """Scans stay at their site; what is learned of them may tell of single patients."""

    kind: Literal["none"]


class PatientPrivacy(Frozen):
    """Differential privacy of each training patient, by noise added at the site; see ``fedgan.privacy.dp_sgd``."""

    kind: Literal["patient"]
    epsilon: Annotated[float, Field(gt=0, le=100)]
    """Promised by a site for the whole run; the noise follows from it."""
    delta: Fraction
    """Chance that more is told than epsilon says, at most a tenth of one over ``cohort``."""
    ceiling: Positive | None
    """Epsilon that a simulated site's ledger allows, null: ``epsilon``. A hospital sets its own, for all its runs."""
    cohort: Count
    """Training patients of a site, as all may know; a site with more or fewer draws from them at the same rate."""
    patients: Count
    """Of ``cohort``, how many a draw has on average; each step of a player is a draw of its own."""
    clip: Positive
    """Euclidean norm to which a patient's gradient, of all parameters of a player, is shortened."""
    select: Literal["last"]
    """Which round is released; a choice by validation patients would tell of them."""

    @model_validator(mode="after")
    def _draws_from_the_cohort(self) -> Self:
        if self.patients > self.cohort:
            msg = f"patients {self.patients} is larger than cohort {self.cohort}"
            raise ValueError(msg)
        if self.delta * 10 * self.cohort > 1 + 1e-9:
            msg = f"delta {self.delta:g} is no promise to each of {self.cohort} patients; give {0.1 / self.cohort:g}"
            raise ValueError(msg)
        return self


class SitePrivacy(Frozen):
    """Differential privacy of each site's part in the run, by noise that the coordinator adds; no promise to a patient.

    It takes the place of the aggregation's counts and screening: ``exponent``, ``cap``, ``floor``, ``norm_ratio`` and
    ``refuse_apart`` have no say, for each lets what one site sends bear on what another counts. See
    ``fedgan.federated.central``.
    """

    kind: Literal["site"]
    epsilon: Annotated[float, Field(gt=0, le=100)]
    """Promised to each site for the whole run, of all who see its models but not the coordinator; the noise follows."""
    delta: Fraction
    """Chance that more is told than epsilon says, at most a tenth of one over ``sites``."""
    ceiling: Positive | None
    """Epsilon beyond which the coordinator trains no further round, all runs on its account together; null: none."""
    sites: Count
    """Sites that are expected; what is divided by, however many answer."""
    weights: dict[SiteName, Annotated[float, Field(ge=1)]] | None
    """How many times a site counts, by name, as all may know; the noise goes by the largest. One without a weight
    counts once; null: all do."""
    generator_clip: Positive
    """Euclidean norm to which a site's step of the generators in a round is shortened."""
    discriminator_clip: Positive
    """The same of the discriminators and the classifier."""
    select: Literal["last"]
    """Which round is released; a choice by validation patients would tell of their sites."""

    @model_validator(mode="after")
    def _delta_is_a_promise(self) -> Self:
        if self.delta * 10 * self.sites > 1 + 1e-9:
            msg = f"delta {self.delta:g} is no promise to each of {self.sites} sites; give {0.1 / self.sites:g}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _weights_are_of_expected_sites(self) -> Self:
        named = len(self.weights or {})
        if named > self.sites:
            msg = f"weights name {named} sites, and {self.sites} are expected; give sites={named}"
            raise ValueError(msg)
        return self
