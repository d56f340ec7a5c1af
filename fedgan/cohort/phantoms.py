"""Phantoms: synthetic patients whose lesions are known exactly, scanned at sites that differ as hospitals do.

A scan is an axial section of a head, drawn analytically: anatomy that varies by patient, then the lesions, then the
scanner of the site. The scans of a patient are slices: every trait drifts a little from one to the next. No single
cue gives a lesion away, because scalp, nuclei, vessels and benign spots are as bright, ventricles and sulci as dark;
``tests/benchmarks/phantom_cues.py`` measures that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from fedgan.cohort.cohort import ABNORMAL, NORMAL, Cohort, Split
from fedgan.errors import SettingsError
from fedgan.streams import generator_for

MASK_FRACTION = 0.4
"""Fraction of a lesion's peak contribution, noiseless and not yet cut at ``BRAIN``, that its mask's pixels exceed."""

FEWEST_PATIENTS = 6
"""One patient of each class in each split."""

LESION_PROBABILITIES = (1.0, 0.45, 0.25)
"""How likely an abnormal patient has a first, a second and a third lesion."""

SPOTS = 6
"""Benign spots of every patient, normal or abnormal: half of them bright, half dark."""

DRIFT = 0.12
"""How far a trait may move from the patient's middle slice to the last, as a fraction of its range."""

SCALP, BRAIN, GREY, WHITE, FLUID = 0.97, 0.80, 0.56, 0.44, 0.14
"""Brightness in [0, 1], before the scanner; BRAIN is the ceiling inside the skull, for lesions and vessels alike."""


@dataclass(frozen=True, slots=True)
class _Draws:
    """Random traits of patients, which drift along each patient's slices.

    Shapes: a number per scan is (N, 1, 1), a field (N, H, W); N = patients * slices, a patient's slices side by side.
    """

    rng: torch.Generator
    patients: int
    slices: int
    size: int

    def _along(self, trait: Tensor, drift: Tensor) -> Tensor:
        place = torch.linspace(-1, 1, self.slices) if self.slices > 1 else torch.zeros(1)
        return (trait[:, None] + DRIFT * place[:, None, None] * drift[:, None]).flatten(0, 1)

    def chance(self, probability: float) -> Tensor:
        """Return a number per scan: 1 if something is so of its patient, else 0."""
        happened = torch.rand(self.patients, 1, 1, generator=self.rng) < probability
        return happened.float().repeat_interleave(self.slices, dim=0)

    def uniform(self, low: float, high: float) -> Tensor:
        """Return one number per scan, around one per patient between ``low`` and ``high``."""
        trait, drift = torch.rand(2, self.patients, 1, 1, generator=self.rng)
        return self._along(low + (high - low) * trait, (high - low) * (2 * drift - 1))

    def field(self, cells: int) -> Tensor:
        """Return smooth fields, about standard normal, that vary over ``size / cells`` pixels."""
        coarse, drift = torch.randn(2, self.patients, cells, cells, generator=self.rng)
        cells_of_scans = self._along(1.4 * coarse, 4 * drift)[:, None]
        return interpolate(cells_of_scans, size=(self.size, self.size), mode="bicubic", align_corners=False)[:, 0]


def _distance(x: Tensor, y: Tensor, radius: Tensor, turn: Tensor, stretch: Tensor) -> Tensor:
    """Return the distance from the origin, in radii of an ellipse."""
    along = (x * turn.cos() + y * turn.sin()) * (stretch / radius)
    across = (y * turn.cos() - x * turn.sin()) / (stretch * radius)
    return torch.hypot(along, across)


def _inside(distance: Tensor, softness: float | Tensor) -> Tensor:
    """Return about 1 where ``distance`` is below 1 and about 0 beyond, with an edge of ``softness``."""
    return torch.sigmoid((1 - distance) / softness)


def _ridge(distance: Tensor, width: float | Tensor) -> Tensor:
    """Return 1 where ``distance`` is 0, falling off over ``width``."""
    return torch.exp(-(distance / width).square())


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """Healthy heads.

    Shapes: all (N, H, W). ``x`` (rightwards) and ``y`` (downwards) are each patient's own coordinates, in which the
    skull is about the circle of radius 1.
    """

    tissue: Tensor
    """Brightness in [0, SCALP]."""
    parenchyma: Tensor
    """Share of brain tissue in [0, 1]: where a lesion can be."""
    x: Tensor
    y: Tensor


def _coordinates(draw: _Draws, zoom: float) -> tuple[Tensor, Tensor]:
    """Return the patients' own coordinates of every pixel: shifted, turned, stretched and bent."""
    axis = (torch.arange(draw.size) + 0.5) / draw.size * 2 - 1
    right = (axis[None, None, :] - draw.uniform(-0.08, 0.08)) / zoom
    down = (axis[None, :, None] - draw.uniform(-0.08, 0.08)) / zoom
    turn = draw.uniform(-0.25, 0.25)
    x = (right * turn.cos() + down * turn.sin()) / draw.uniform(0.60, 0.74) + 0.03 * draw.field(4)
    y = (down * turn.cos() - right * turn.sin()) / draw.uniform(0.72, 0.86) + 0.03 * draw.field(4)
    return x, y


def _spots(draw: _Draws, x: Tensor, y: Tensor) -> Tensor:
    """Return what benign spots add to the tissue: small and soft."""
    added = torch.zeros_like(x)
    for number in range(SPOTS):
        angle, reach = draw.uniform(0, 2 * torch.pi), draw.uniform(0.15, 0.8)
        from_centre = torch.hypot(x - reach * angle.cos(), y - reach * angle.sin())
        contrast = draw.uniform(0.12, 0.30) * (1 if number % 2 else -1)
        added += contrast * _inside(from_centre / draw.uniform(0.04, 0.08), 0.3)
    return added


def _anatomy(draw: _Draws, zoom: float) -> _Anatomy:
    """Return one healthy head per scan."""
    x, y = _coordinates(draw, zoom)
    radius = torch.hypot(x, y)
    brain = _inside(radius / 0.94, 0.03)

    side, lean, level = x.abs(), draw.uniform(0.15, 0.5), y - draw.uniform(-0.12, 0.08)
    horn = _distance(side - draw.uniform(0.08, 0.16), level, draw.uniform(0.10, 0.22), lean, draw.uniform(1.3, 1.9))
    ventricle = _inside(horn, 0.12)
    nucleus = _distance(side - draw.uniform(0.34, 0.42), level, draw.uniform(0.12, 0.18), lean, lean + 0.9)
    folds = _ridge(draw.field(11), 0.22) * torch.sigmoid((radius - 0.68) / 0.06)
    fissure = _ridge(x - 0.02 * draw.field(6), 0.03) * torch.sigmoid((radius - 0.5) / 0.06)
    fluid = torch.maximum(ventricle, 0.8 * torch.maximum(folds, fissure))

    cortex = torch.sigmoid((radius - draw.uniform(0.62, 0.76) - 0.07 * draw.field(12)) / 0.05)
    grey = torch.maximum(cortex, draw.uniform(1.0, 2.6) * _inside(nucleus, 0.12))
    matter = WHITE + (GREY - WHITE) * grey + 0.02 * draw.field(16) + _spots(draw, x, y)
    section = matter + (FLUID - matter) * fluid
    vessel = 0.7 * _ridge(draw.field(5), 0.07) * torch.sigmoid(3 * draw.field(5) - 3)
    section = section + (BRAIN - section) * vessel

    scalp = SCALP * _ridge(radius - 1.18, draw.uniform(0.08, 0.13))
    tissue = torch.lerp(scalp, section.clamp(0, BRAIN), brain)
    return _Anatomy(tissue=tissue, parenchyma=brain * (1 - ventricle), x=x, y=y)


def _lesions(draw: _Draws, x: Tensor, y: Tensor, parenchyma: Tensor, disease: Tensor) -> tuple[Tensor, Tensor]:
    """Return what one to three lesions of each patient add to the tissue, and their masks.

    Diseases of even number are diffuse, of odd number nodular, with a hollow centre; 0 and 1 brighten the tissue,
    2 and 3 darken it, and so on, smaller with every four.

    Shapes: ``disease`` (N,), the disease's number; all others and both results (N, H, W); abnormal patients only.
    """
    disease = disease[:, None, None]
    nodular, brightens, shrink = disease % 2 == 1, disease // 2 % 2 == 0, 0.85 ** (disease // 4)
    largest, softness = torch.where(nodular, 0.25, 0.30) * shrink, torch.where(nodular, 0.08, 0.20)
    hollow, wobble = torch.where(nodular, 0.5, 0.0), torch.where(nodular, 0.10, 0.25)
    size, masks = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    for probability in LESION_PROBABILITIES:
        angle, reach = draw.uniform(0, 2 * torch.pi), draw.uniform(0.35, 0.72)
        radius = largest * draw.uniform(0.5, 1.0)
        turn, stretch = draw.uniform(0, 3), draw.uniform(0.75, 1.35)
        distance = _distance(x - reach * angle.cos(), y - reach * angle.sin(), radius, turn, stretch)
        distance = distance + wobble * draw.field(9)
        shape = _inside(distance, softness) * (1 - hollow * _ridge(distance, 0.45))
        contribution = draw.chance(probability) * draw.uniform(0.24, 0.38) * shape * parenchyma
        masks |= contribution > MASK_FRACTION * contribution.amax(dim=(1, 2), keepdim=True)
        size = torch.maximum(size, contribution)
    return torch.where(brightens, size, -size), masks


def _zoom(site: str) -> float:
    """Return the magnification of a site's scanner."""
    return 0.92 + 0.16 * torch.rand(1, generator=generator_for(0, "field of view", site)).item()


def _scan(tissue: Tensor, site: str, rng: torch.Generator) -> Tensor:
    """Return what the scanner of ``site`` makes of the tissue: blur, bias field, contrast, noise.

    Shapes: ``tissue`` (N, H, W) in [0, 1], H = W; result (N, 1, H, W) in [-1, 1].
    """
    gamma, right, down, corners, blur, noise = torch.rand(6, generator=generator_for(0, "scanner", site)).tolist()
    size = tissue.shape[-1]
    reach = max(1, 3 * size // 64)
    sigma = (0.35 + 0.4 * blur) * size / 64
    kernel = _ridge(torch.arange(-reach, reach + 1).float(), 2**0.5 * sigma)
    kernel = kernel / kernel.sum()
    blurred = conv2d(pad(tissue[:, None], (reach,) * 4, mode="replicate"), kernel.view(1, 1, 1, -1))
    blurred = conv2d(blurred, kernel.view(1, 1, -1, 1)).clamp_min(0)

    x = torch.linspace(-1, 1, size)
    y = x[:, None]
    bias = 1 + 0.24 * (right - 0.5) * x + 0.24 * (down - 0.5) * y - 0.1 * corners * (x.square() + y.square())
    gain = 0.78 + 0.27 * torch.rand(len(tissue), 1, 1, 1, generator=rng)
    signal = gain * bias * blurred ** (0.75 + 0.6 * gamma)
    # Noise of a magnitude image is Rician (Gudbjartsson and Patz 1995), so air is not quite black.
    real, imaginary = (0.010 + 0.012 * noise) * torch.randn(2, *signal.shape, generator=rng)
    return (2 * torch.hypot(signal + real, imaginary) - 1).clamp(-1, 1)


def _splits(patients: int) -> list[Split]:
    """Return the splits of the patients of one class: about 60 % train, 15 % val, 25 % test, none empty."""
    val, test = max(1, round(0.15 * patients)), max(1, round(0.25 * patients))
    shares: dict[Split, int] = {"train": patients - val - test, "val": val, "test": test}
    return [split for split, share in shares.items() for _ in range(share)]


def _roster(patients: int, num_diseases: int, rng: torch.Generator) -> list[tuple[int, Split]]:
    """Return each patient's disease (its place among the diseases, -1 if normal) and split.

    Every disease is in every split that has patients enough.
    """
    abnormal = patients // 2
    diseases = [*(place % num_diseases for place in range(abnormal)), *[-1] * (patients - abnormal)]
    members = list(zip(diseases, _splits(abnormal) + _splits(patients - abnormal), strict=True))
    return [members[place] for place in torch.randperm(patients, generator=rng).tolist()]


def _sections(site: str, disease: Sequence[int], *, slices: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tissue of a site's patients without and with their lesions, and the masks: (N, H, W) each.

    ``disease`` has one number per patient, -1 if normal.
    """
    draw = _Draws(generator_for(seed, "phantoms", site, "anatomy"), len(disease), slices, size)
    anatomy = _anatomy(draw, _zoom(site))
    numbers = torch.tensor(disease).repeat_interleave(slices)
    rows = numbers >= 0
    ill = _Draws(generator_for(seed, "phantoms", site, "lesions"), sum(number >= 0 for number in disease), slices, size)
    added, masks = torch.zeros_like(anatomy.tissue), torch.zeros_like(anatomy.tissue, dtype=torch.bool)
    added[rows], masks[rows] = _lesions(ill, anatomy.x[rows], anatomy.y[rows], anatomy.parenchyma[rows], numbers[rows])
    return anatomy.tissue, torch.minimum(anatomy.tissue + added, anatomy.tissue.clamp_min(BRAIN)).clamp_min(0), masks


def phantom_cohort(
    site: str, *, patients: int, images_per_patient: int, size: int, diseases: tuple[str, ...], seed: int
) -> Cohort:
    """Return the phantoms of one site, half of the patients abnormal, each with one of ``diseases``.

    The same arguments give the same cohort. A site's scanner follows from its name, whatever the seed.

    Raises:
        SettingsError: there are fewer than ``FEWEST_PATIENTS`` patients.

    >>> cohort = phantom_cohort("A", patients=8, images_per_patient=2, size=64, diseases=("diffuse",), seed=0)
    >>> len(cohort), cohort.patients[:3], sorted(set(cohort.splits))
    (16, ('A-0000', 'A-0000', 'A-0001'), ['test', 'train', 'val'])
    """
    return phantom_twins(
        site, patients=patients, images_per_patient=images_per_patient, size=size, diseases=diseases, seed=seed
    )[0]


def phantom_twins(
    site: str, *, patients: int, images_per_patient: int, size: int, diseases: tuple[str, ...], seed: int
) -> tuple[Cohort, Cohort]:
    """Return a ``phantom_cohort``, and the same patients in the same scanner without their lesions.

    Raises:
        SettingsError: there are fewer than ``FEWEST_PATIENTS`` patients.
    """
    if patients < FEWEST_PATIENTS:
        raise SettingsError(f"site {site}: {patients} phantom patients are too few; ask for {FEWEST_PATIENTS} or more")
    roster = _roster(patients, len(diseases), generator_for(seed, "phantoms", site, "roster"))
    numbers = [number for number, _ in roster]
    healthy_tissue, tissue, masks = _sections(site, numbers, slices=images_per_patient, size=size, seed=seed)
    healthy_images, images = (
        _scan(scanned, site, generator_for(seed, "phantoms", site, "noise")) for scanned in (healthy_tissue, tissue)
    )
    disease = torch.tensor(numbers).repeat_interleave(images_per_patient)

    healthy = Cohort(
        disease_names=diseases,
        images=healthy_images,
        status=torch.full_like(disease, NORMAL),
        diseases=torch.zeros(len(disease), len(diseases)),
        masks=torch.zeros_like(masks),
        has_mask=torch.ones_like(disease, dtype=torch.bool),
        boxes=((),) * len(disease),
        patients=tuple(f"{site}-{row // images_per_patient:04d}" for row in range(len(disease))),
        splits=tuple(split for _, split in roster for _ in range(images_per_patient)),
        sites=(site,) * len(disease),
    )
    cohort = replace(
        healthy,
        images=images,
        status=torch.where(disease >= 0, ABNORMAL, NORMAL),
        diseases=(disease[:, None] == torch.arange(len(diseases))).float(),
        masks=masks,
    )
    return cohort, healthy
