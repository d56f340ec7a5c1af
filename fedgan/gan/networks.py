"""The networks: a generator that draws a signed difference, a patch discriminator, a classifier of diseases.

Norms are group norms, so no network keeps statistics of a batch: every tensor is a weight and may be averaged,
a scan's result does not depend on its neighbours, and private training stays possible.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle
from torch.nn.utils.parametrizations import spectral_norm

LEVELS = 4


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, min(8, channels // 2)), channels)


def _convolution(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1), _norm(channels_out), nn.LeakyReLU(0.2)
    )


def _double(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels_in, channels_out), *_convolution(channels_out, channels_out, stride=stride)
    )


class DifferenceGenerator(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) from a scan and a set of diseases to a signed difference.

    It reads and draws squares of ``patch`` x ``patch`` pixels as channels (Shi et al. 2016, arXiv:1609.05158): with
    patch 2 the costly first level runs at half the resolution. With ``attention`` it says twice what it sees, where
    (a share of each pixel) and what, and the difference is their product.
    """

    def __init__(self, *, num_diseases: int, width: int, patch: int, attention: bool = False) -> None:
        """Build for ``num_diseases`` labels with ``width`` channels at the first of four levels."""
        super().__init__()
        self.patch = patch
        self.attention = attention
        widths = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList([_double(patch**2 + num_diseases, width)])
        self.down.extend(_double(above, below) for above, below in pairwise(widths))
        self.up = nn.ModuleList(_double(below + above, above) for above, below in reversed(list(pairwise(widths))))
        self.out = nn.Conv2d(width, (1 + attention) * patch**2, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)  # start near "no difference", which is right for most pixels
            if self.out.bias is not None:
                self.out.bias[patch**2 :] = -2.0  # and near "nowhere"

    def forward(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return the difference that the ``diseases`` make; see ``look``."""
        return self.look(images, diseases)[0]

    def look(self, images: Tensor, diseases: Tensor) -> tuple[Tensor, Tensor]:
        """Return the difference that the ``diseases`` make, and the logit of where they are.

        Shapes: ``images`` (N, 1, H, W) in [-1, 1], H and W multiples of 8 patches; ``diseases`` (N, K) in {0, 1};
        difference (N, 1, H, W) in [-1, 1]; logit (N, 1, H, W), or (N, 0, H, W) without attention.
        """
        patches = pixel_unshuffle(images, self.patch)
        planes = diseases[:, :, None, None].expand(-1, -1, *patches.shape[2:])
        features = self.down[0](torch.cat([patches, planes], dim=1))
        skips = []
        for block in self.down[1:]:
            skips.append(features)
            features = block(avg_pool2d(features, 2))
        for block in self.up:
            larger = interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = block(torch.cat([larger, skips.pop()], dim=1))
        drawn = pixel_shuffle(self.out(features).float(), self.patch)
        difference, where = torch.tanh(drawn[:, :1]), drawn[:, 1:]
        return (difference * torch.sigmoid(where) if self.attention else difference), where


class PatchDiscriminator(nn.Module):
    """Real or generated, judged patch by patch (Isola et al. 2017, arXiv:1611.07004).

    With ``spectral`` every convolution is divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957),
    and there are no group norms, which would undo the bound.
    """

    def __init__(self, *, width: int, spectral: bool = False) -> None:
        """Build with ``width`` channels at the first of four strided levels."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, LEVELS):
            channels = width << level
            norm = nn.Identity() if spectral else _norm(channels)
            layers += [nn.Conv2d(channels // 2, channels, 4, 2, padding=1), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width << (LEVELS - 1), 1, 3, padding=1))
        if spectral:
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return one unbounded score per patch.

        Shapes: ``images`` (N, 1, H, W); result (N, 1, H / 16, W / 16), larger is more real.
        """
        scores: Tensor = self.layers(images)
        return scores.float()


class DiseaseClassifier(nn.Module):
    """Which diseases a scan shows: one logit each, pooled so that one small place is enough evidence."""

    def __init__(self, *, num_diseases: int, width: int) -> None:
        """Build for ``num_diseases`` labels with ``width`` channels at the first of four strided levels."""
        super().__init__()
        widths = [1] + [width << level for level in range(LEVELS)]
        self.features = nn.Sequential(*(_double(before, after, stride=2) for before, after in pairwise(widths)))
        self.out = nn.Linear(widths[-1], num_diseases)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logit of each disease.

        Shapes: ``images`` (N, 1, H, W) in [-1, 1]; result (N, K).
        """
        features = self.features(images).float().flatten(2)
        return self.out(torch.logsumexp(2 * features, dim=2) / 2).float()  # type: ignore[no-any-return]
