"""What a run promises to each patient."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedgan.settings.types import Count, Fraction, Frozen, Positive


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
