"""Pseudo-lesions: something foreign put into a normal scan, so that taking it out can be learned exactly.

After foreign patch interpolation (Tan et al. 2020, arXiv:2011.04197); ours are soft blobs inside the tissue, brighter,
darker, or of another scan's texture, because real lesions are no squares.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

BACKGROUND = -0.85
"""Pixels darker than this, in [-1, 1], are taken for air."""


@dataclass(frozen=True, slots=True)
class Lesions:
    """What pseudo-lesions look like, and where they are: all that is said of a disease besides the labels."""

    brighter: float
    """Share that are brighter than what they cover, in [0, 1]."""
    dark: bool = False
    """Whether they lie in the darker half of the tissue, as the lungs in an X-ray."""
    radius: tuple[float, float] = (0.04, 0.20)
    """Smallest and largest radius, as a share of the scan's width."""


def tissue_of(scans: Tensor) -> Tensor:
    """Return 1 where most of a pixel's neighbourhood (5 x 5) is brighter than air, else 0.

    Shapes: ``scans`` (N, 1, H, W) in [-1, 1]; result (N, 1, H, W) in {0, 1}.
    """
    return (avg_pool2d((scans > BACKGROUND).float(), 5, 1, 2) > 0.6).float()


def dark_tissue_of(scans: Tensor) -> Tensor:
    """Return 1 where tissue is darker, over 5 x 5 pixels of tissue, than half of the scan's; else, and in air, 0.

    Within an eighth of the border it is 0 too: what is dark there are shoulders and flanks.

    Shapes: as ``tissue_of``.
    """
    tissue = tissue_of(scans)
    even = avg_pool2d(scans * tissue, 5, 1, 2) / avg_pool2d(tissue, 5, 1, 2).clamp_min(0.01)
    usual = torch.where(tissue > 0, even, torch.nan).flatten(1).nanmedian(dim=1).values[:, None, None, None]
    rows, columns = scans.shape[2] // 8, scans.shape[3] // 8
    inner = torch.zeros_like(tissue)
    inner[:, :, rows:-rows, columns:-columns] = 1
    return inner * tissue * (even < usual)


def _smooth_noise(count: int, size: int, cells: int, rng: torch.Generator) -> Tensor:
    """Return fields of mean 0 and standard deviation about 1 that vary over ``size / cells`` pixels: (N, 1, H, W)."""
    coarse = torch.randn(count, 1, cells, cells, generator=rng)
    fine = interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return fine / fine.flatten(1).std(dim=1).clamp_min(1e-6)[:, None, None, None]


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)


def _blob(tissue: Tensor, radii: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Return one soft-edged, irregular region per scan, centred in ``tissue``: (N, 1, H, W) in [0, 1]."""
    count, _, size, _ = tissue.shape
    centre = torch.multinomial(tissue.flatten(1) + 1e-6, 1, generator=rng)[:, 0]
    axis = torch.arange(size) / size
    down = axis[None, None, :, None] - (centre // size / size)[:, None, None, None]
    right = axis[None, None, None, :] - (centre % size / size)[:, None, None, None]
    turn = _uniform(count, 0, math.pi, rng)
    stretch = torch.exp(0.4 * torch.randn(count, 1, 1, 1, generator=rng))
    along = (right * turn.cos() + down * turn.sin()) * stretch
    across = (down * turn.cos() - right * turn.sin()) / stretch
    radius = _uniform(count, *radii, rng)
    distance = (along.square() + across.square()).sqrt() / radius + 0.35 * _smooth_noise(count, size, 8, rng)
    return torch.sigmoid((1 - distance) / _uniform(count, 0.05, 0.35, rng))


def paste_pseudo_lesions(normal: Tensor, *, lesions: Lesions, rng: torch.Generator) -> Tensor:
    """Return ``normal`` with one or two pseudo-lesions in the tissue of each scan.

    Args:
        normal: scans to paste into; the texture of a lesion may come from the scan before it.
        lesions: how they look, and where they are.
        rng: the random stream, on the CPU.

    Shapes: ``normal`` and result (N, 1, H, W) in [-1, 1], H = W.
    """
    if not len(normal):
        return normal
    scans = normal.cpu()
    count, size = len(scans), scans.shape[-1]
    tissue = dark_tissue_of(scans) if lesions.dark else tissue_of(scans)
    pasted = scans
    for share_of_scans in (1.0, 0.3):
        sign = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < lesions.brighter, 1.0, -1.0)
        offset = sign * _uniform(count, 0.15, 0.75, rng) * (1 + 0.25 * _smooth_noise(count, size, 10, rng))
        foreign = 0.7 * (scans.roll(1, dims=0) - scans) + 0.5 * offset
        change = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.3, foreign, offset)
        used = (torch.rand(count, 1, 1, 1, generator=rng) < share_of_scans).float()
        pasted = pasted + used * tissue * _blob(tissue, lesions.radius, rng) * ((scans + change).clamp(-1, 1) - scans)
    return pasted.clamp(-1, 1).to(normal.device)


def transplant(normal: Tensor, differences: Tensor, *, rng: torch.Generator) -> Tensor:
    """Return ``normal`` with lesions that were found in other scans: each scan with those of one of them.

    What is faint beside the strongest part of a difference (under about a third of it, or 0.1) is taken for doubt and
    stays behind; the rest is mirrored at times and made weaker or stronger, by 0.6 to 1.4.

    Shapes: ``normal`` and result (N, 1, H, W) in [-1, 1]; ``differences`` (M, 1, H, W), signed; without any, nothing
    is put in.
    """
    if not (len(normal) and len(differences)):
        return normal
    scans, found = normal.cpu(), differences.cpu()
    strength = avg_pool2d(found.abs(), 3, 1, 1)
    faint = (0.35 * strength.amax(dim=(1, 2, 3), keepdim=True)).clamp_min(0.1)
    lesions = found * torch.sigmoid((strength - faint) / 0.05)
    lesions = lesions[torch.randint(len(lesions), (len(scans),), generator=rng)]
    mirrored = torch.rand(len(scans), 1, 1, 1, generator=rng) < 0.5
    change = torch.where(mirrored, lesions.flip(-1), lesions) * _uniform(len(scans), 0.6, 1.4, rng)
    return (scans + tissue_of(scans) * change).clamp(-1, 1).to(normal.device)
