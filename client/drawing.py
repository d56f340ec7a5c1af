"""Disease maps of single pictures, with the installed model or another: drawn here, and kept here."""

from collections.abc import Iterator
from pathlib import Path

from client.home import Home
from client.models import open_models
from fedgan.cohort.images import PICTURES, VOLUMES, file_and_slice
from fedgan.errors import ModelError
from fedgan.gan.build import choose_device
from fedgan.mapping import Finding, Mapper
from fedgan.results.pictures import Example, panel


class Artist:
    """Draws maps with one model."""

    def __init__(self, home: Home, *, model: Path | None, device: str) -> None:
        """Load the model in the folder ``model``, or the one that is installed, checked once more.

        Raises:
            ModelError: there is none, or it is damaged or not what was signed.
        """
        self._site = home.site
        self._mapper = Mapper(model or _installed(home), device=choose_device(device))

    def draw(self, image: Path, folder: Path, *, disease: str | None) -> str:
        """Draw the map of a picture as ``<name>-map.png`` into ``folder``, and return in one line what it shows.

        Raises:
            ValueError: the picture cannot be read, or the model knows no such disease, or the map would lie over a file
                that is there.
        """
        drawn = folder / f"{_stem(image)}-map.png"
        if drawn.exists():
            raise ValueError(f"{drawn} is there already; move it or give another --out")
        finding = self._mapper.read(image, disease=disease)
        panel(_example(self._site, finding), threshold=self._mapper.card.threshold).save(drawn)
        area = "" if finding.area_mm2 is None else f", {finding.area_mm2:.0f} mm2 above the threshold"
        return (
            f"{drawn}: evidence {finding.score:.3f} on average{_place(finding)}, "
            f"{float(finding.evidence.max()):.3f} at most{area}"
        )

    def remarks(self) -> Iterator[str]:
        """Yield what must be said of all maps."""
        if self._mapper.card.normal_scores is None:
            yield f"No place among normal scans: {self._mapper.card.no_normal_scores}."
        yield "For research. Not for diagnosis."


def _installed(home: Home) -> Path:
    models = open_models(home)
    current = models.current()
    if current is None:
        raise ModelError("no model is installed yet; join the federation, or give --model FOLDER")
    return models.verify(current).folder


def _place(finding: Finding) -> str:
    """Return where the score lies among those of normal scans, in words, if that is known."""
    if finding.place is None:
        return ""
    share = {0.0: "none", 1.0: "all"}.get(finding.place, f"about {100 * finding.place:.0f} %")
    return f" (higher than {share} of the normal validation scans)"


def _stem(image: Path) -> str:
    """Return the picture's name without its format: ``brain.nii.gz#42`` is ``brain-42``."""
    file, number = file_and_slice(image)
    stem = next((file.name[: -len(end)] for end in (*VOLUMES, *PICTURES) if file.name.lower().endswith(end)), file.name)
    return stem if number is None else f"{stem}-{number}"


def _example(site: str, finding: Finding) -> Example:
    return Example(
        site=site,
        title="map",
        scan=finding.scan,
        counterpart=finding.normal,
        disease_map=finding.evidence,
        mask=None,
        abnormal=False,
        score=finding.score,
    )
