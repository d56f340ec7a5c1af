"""The card that lies with every model, a run's or a release's: all that drawing with it takes but the weights."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedgan.results.metrics import Share
from fedgan.settings import Intensity, Model, Size


def _ascending(table: tuple[float, ...]) -> tuple[float, ...]:
    if list(table) != sorted(table):
        raise ValueError("quantiles must not fall")
    return table


Quantiles = Annotated[tuple[Share, ...], Field(min_length=2), AfterValidator(_ascending)]


class ModelCard(BaseModel):
    """What ``model.json`` says of a model: how to build it, and how its scans are prepared."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: Model
    diseases: tuple[str, ...]
    size: Size
    intensity: Intensity
    round: int
    threshold: float | None = None
    """Where the map's evidence counts as found; chosen on validation patients, null where that could not be."""
    normal_scores: Quantiles | None = None
    """Quantiles of the scores of normal validation scans, lowest first; null where there were too few scans."""
    no_normal_scores: str | None = "the model came without any"
    """Why there are none, in words."""
