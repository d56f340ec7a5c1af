"""One picture to its disease map, with a model that a run left behind; nothing leaves the machine."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from fedgan.checkpoint import load_model
from fedgan.cohort.images import prepare, read_scan
from fedgan.errors import ModelError
from fedgan.federated.site import load_weights
from fedgan.gan.build import build_networks, drawing_of
from fedgan.gan.disease_map import DiseaseMaps, draw_maps
from fedgan.gan.method import Method
from fedgan.results.calibration import place_among
from fedgan.results.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class Finding:
    """What a model makes of one picture.

    Shapes: ``scan`` (H, W) in [-1, 1] as the model saw it; ``normal`` (H, W); ``evidence`` (H, W) in [0, 1].
    """

    scan: Tensor
    normal: Tensor
    evidence: Tensor
    score: float
    """Mean evidence, in [0, 1]."""
    place: float | None
    """Share of normal validation scans that score lower, in [0, 1]; null where the model knows too few of them, or
    where the map is not of all its diseases, as theirs were."""
    area_mm2: float | None
    """Area above the model's threshold; null without a threshold, or where the file gives no pixel spacing."""


class Mapper:
    """A model, loaded once, that draws disease maps."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        """Load the model in ``folder``.

        Raises:
            ModelError: the folder holds no model, or one of another kind.
        """
        weights, card = load_model(folder)
        try:
            self.card = ModelCard.model_validate(card)
            self._networks: Method = build_networks(
                self.card.model, num_diseases=len(self.card.diseases), seed=0, device=device
            )
            load_weights(self._networks, weights)
        except ValidationError as error:
            raise ModelError(f"the model in {folder} is not of this version's kind; fetch a newer model") from error

    def read(self, picture: Path, *, disease: str | None = None) -> Finding:
        """Draw the map of one picture for all diseases of the model, or for one.

        Raises:
            ModelError: the model does not know ``disease``.
            ValueError: the picture cannot be read.
        """
        asked = self._asked(disease)
        scan = read_scan(picture)
        pixels = torch.from_numpy(prepare(scan.pixels, size=self.card.size, intensity=self.card.intensity))
        maps = draw_maps(self._networks, pixels[None, None], asked, drawing=drawing_of(self.card.model))
        return Finding(
            scan=pixels,
            normal=maps.normal[0],
            evidence=maps.evidence[0],
            score=float(maps.scores[0]),
            place=self._place(float(maps.scores[0]), asked),
            area_mm2=self._area(maps, scan.pixels.shape, scan.spacing_mm),
        )

    def _asked(self, disease: str | None) -> Tensor:
        names = self.card.diseases
        if disease is not None and disease not in names:
            raise ModelError(f"the model knows {', '.join(names)}, not {disease}; ask for one of these")
        return torch.tensor([[float(disease in (None, name)) for name in names]])

    def _place(self, score: float, asked: Tensor) -> float | None:
        if self.card.normal_scores is None or not bool(asked.all()):
            return None
        return place_among(score, self.card.normal_scores)

    def _area(self, maps: DiseaseMaps, stored: tuple[int, ...], spacing_mm: tuple[float, float] | None) -> float | None:
        if self.card.threshold is None or spacing_mm is None:
            return None
        pixel_mm2 = spacing_mm[0] * spacing_mm[1] * (max(stored) / self.card.size) ** 2
        return float((maps.evidence[0] >= self.card.threshold).sum()) * pixel_mm2
