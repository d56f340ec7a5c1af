"""SAGAN's networks: a generator that draws a scan tile by tile, and a critic of whole scans (arXiv:2405.12872).

The layers are those of the authors' code (github.com/zzr728/SAGAN, 2fa5bd7), reproduced to the last parameter. An
instance norm is a group norm of one channel a group; it never keeps running statistics: the authors' code keeps them
and never calls ``eval()``, so it never uses them. Thus every tensor is a weight and may be averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from fedgan.gan.tiles import cut, join, side_of

NORMS: dict[str, Callable[[int], int]] = {
    "instance": lambda channels: channels,
    "group": lambda channels: max(1, min(8, channels // 2)),
}
"""Groups in which so many channels are normalised, by the setting's name."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What the generator's layers are made of."""

    groups: Callable[[int], int]
    """One of ``NORMS``."""

    def norm(self, channels: int, *, affine: bool = True) -> nn.GroupNorm:
        """Return a norm of ``channels`` channels."""
        return nn.GroupNorm(self.groups(channels), channels, affine=affine)

    def convolution(self, channels_in: int, channels_out: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
        """Return a convolution that keeps the size, or halves it with stride 2 and an even kernel, norm and ReLU."""
        convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        return nn.Sequential(convolution, self.norm(channels_out), nn.ReLU(inplace=True))

    def doubling(self, channels_in: int, channels_out: int) -> nn.Sequential:
        """Return a transposed convolution that doubles the size, norm and ReLU."""
        convolution = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, padding=1, bias=False)
        return nn.Sequential(convolution, self.norm(channels_out), nn.ReLU(inplace=True))

    def residual(self, channels: int) -> nn.Module:
        """Return a residual block of two convolutions."""
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return Residual(*self.convolution(channels, channels, kernel=3), last, self.norm(channels))

    def merge(self, channels_in: int, channels: int) -> nn.Sequential:
        """Return a convolution to ``channels`` channels and a residual block of one."""
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(*self.convolution(channels_in, channels, kernel=3), Residual(last, self.norm(channels)))


class Residual(nn.Module):
    """Its input plus what ``body`` makes of it (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, *body: nn.Module) -> None:
        """Wrap ``body``, which keeps the shape."""
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, features: Tensor) -> Tensor:
        """Return the sum."""
        result: Tensor = features + self.body(features)
        return result


class Gate(nn.Module):
    """What of a skip connection passes, told by deeper features (Oktay et al. 2018, arXiv:1804.03999)."""

    def __init__(self, channels: int, layers: Layers) -> None:
        """Build for features and a skip connection of ``channels`` channels each."""
        super().__init__()
        inner = channels // 2
        self.of_features = nn.Sequential(nn.Conv2d(channels, inner, 1), layers.norm(inner, affine=False))
        self.of_skip = nn.Sequential(nn.Conv2d(channels, inner, 1), layers.norm(inner, affine=False))
        self.share = nn.Sequential(nn.Conv2d(inner, 1, 1), layers.norm(1, affine=False), nn.Sigmoid())

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Return ``skip`` times a share in (0, 1) of each pixel; all (N, C, H, W)."""
        result: Tensor = skip * self.share(relu(self.of_features(features) + self.of_skip(skip)))
        return result


class InertPosition(nn.Module):
    """The released way to tell a tile its position: as constant planes *before* a norm, which takes them out again.

    A 1 x 1 convolution turns constant planes into a constant per channel, and an instance norm subtracts each
    channel's mean: the code changes the result by rounding errors alone.
    """

    def __init__(self, channels: int, code_channels: int, layers: Layers) -> None:
        """Build for so many channels of features and of the code."""
        super().__init__()
        self.mix = nn.Conv2d(channels + code_channels, channels, 1)
        self.norm = layers.norm(channels, affine=False)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return features of the same shape; ``code`` is (tiles, C', H, W), the same for every scan."""
        planes = code.repeat(len(features) // len(code), 1, 1, 1)
        return relu(self.norm(self.mix(torch.cat([features, planes], dim=1))))


class Position(nn.Module):
    """The repaired way: the code scales and shifts what comes out of the norm (Perez et al. 2017, arXiv:1709.07871)."""

    def __init__(self, channels: int, code_channels: int, layers: Layers) -> None:
        """Build for so many channels of features and of the code."""
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = layers.norm(channels, affine=False)
        self.film = nn.Conv2d(code_channels, 2 * channels, 1)
        nn.init.normal_(self.film.weight, std=0.1)  # a place matters a little at first, not as much as what is there

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return features of the same shape; ``code`` is (tiles, C', H, W), the same for every scan."""
        scale, shift = self.film(code).chunk(2, dim=1)
        by_scan = self.norm(self.mix(features)).unflatten(0, (-1, len(code)))
        return relu(by_scan * (1 + scale) + shift).flatten(0, 1)


def _constant(planes: Tensor, side: int) -> Tensor:
    return planes.float()[:, :, None, None].expand(-1, -1, side, side)


def _bits(size: int, grid: int, side: int) -> Tensor:
    """Return each tile's number in binary, with one bit more than needed, as released."""
    number = torch.arange(grid * grid)[:, None]
    powers = torch.arange(int(grid * grid).bit_length() - 1, -1, -1)
    return _constant((number >> powers) & 1, side)


def _tile_number(size: int, grid: int, side: int) -> Tensor:
    """Return one plane for each tile, 1 in its own."""
    return _constant(one_hot(torch.arange(grid * grid), grid * grid), side)


def _coordinates(size: int, grid: int, side: int) -> Tensor:
    """Return each pixel's row and column in the whole scan, in [-1, 1]."""
    axis = torch.linspace(-1, 1, size)
    return cut(torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None], grid=grid, side=side)


def _nothing(size: int, grid: int, side: int) -> Tensor:
    return torch.zeros(grid * grid, 0, side, side)


@dataclass(frozen=True, slots=True)
class PositionCode:
    """A way to tell the generator which part of the scan a tile is."""

    planes: Callable[[int, int, int], Tensor]
    """From size, grid and side to the code's planes, (grid * grid, C, side, side)."""
    entry: type[InertPosition] | type[Position]


POSITIONS = {
    "inert": PositionCode(_bits, InertPosition),
    "tile": PositionCode(_tile_number, Position),
    "coordinates": PositionCode(_coordinates, Position),
    "none": PositionCode(_nothing, InertPosition),
}
"""By the setting's name."""


class TileGenerator(nn.Module):
    """A U-Net with attention gates that draws tiles, each on its own, and fuses its three decoder levels."""

    def __init__(self, *, width: int, blocks: int, layers: Layers, position: str, grid: int, context: int) -> None:
        """Build with ``width`` channels at the first of four levels and ``blocks`` residual blocks at the last.

        Args:
            width: channels of the first level.
            blocks: residual blocks at the last level.
            layers: what its layers are like.
            position: one of ``POSITIONS``.
            grid: tiles per side of a scan.
            context: pixels by which a tile is larger than its share of the scan, a multiple of 8.
        """
        super().__init__()
        self.grid, self.context, self.position = grid, context, POSITIONS[position]
        one, two, four, eight = (width << level for level in range(4))
        code_channels = self.position.planes(8 * grid, grid, 8).shape[1]
        self.first = layers.convolution(1, one, kernel=7)
        self.down = nn.ModuleList(
            layers.convolution(above, below, kernel=4, stride=2)
            for above, below in ((one, two), (two, four), (four, eight))
        )
        self.place = nn.ModuleList(
            self.position.entry(channels, code_channels, layers) for channels in (two, four, eight)
        )
        self.deep = nn.Sequential(*(layers.residual(eight) for _ in range(blocks)))
        self.gates = nn.ModuleList(Gate(channels, layers) for channels in (eight, four, two))
        self.up = nn.ModuleList(
            nn.Sequential(layers.merge(2 * below, below), layers.doubling(below, above))
            for below, above in ((eight, four), (four, two), (two, one))
        )
        to_two, to_one = layers.doubling(four, two), layers.doubling(two, one)
        self.lift = nn.ModuleList([nn.Sequential(to_two, to_one), layers.doubling(two, one), nn.Identity()])
        self.fuse = layers.merge(3 * one, one)
        self.out = nn.Conv2d(one, 1, 7, padding=3, bias=False)

    def code(self, size: int) -> Tensor:
        """Return the position code of a scan's tiles: (grid * grid, C, side, side)."""
        return self.position.planes(size, self.grid, side_of(size, grid=self.grid, context=self.context))

    def forward(self, images: Tensor, code: Tensor | None = None) -> Tensor:
        """Return what is to be added to each scan, unbounded.

        Args:
            images: the scans.
            code: another position code than the scans' own, to see what the code does.

        Shapes: ``images`` and result (N, 1, H, W), H = W, a multiple of 8 tiles; ``code`` as ``self.code`` returns it.
        """
        size = images.shape[-1]
        code = (self.code(size) if code is None else code).to(images.device)
        features = self.first(cut(images, grid=self.grid, side=code.shape[-1]))
        skips = []
        for down, place in zip(self.down, self.place, strict=True):
            code = code[..., ::2, ::2]
            features = place(down(features), code)
            skips.append(features)
        features = skips[-1] = self.deep(features)
        levels = []
        for gate, up, skip in zip(self.gates, self.up, reversed(skips), strict=True):
            features = up(torch.cat([features, gate(features, skip)], dim=1))
            levels.append(features)
        lifted = [lift(level) for lift, level in zip(self.lift, levels, strict=True)]
        return join(self.out(self.fuse(torch.cat(lifted, dim=1))).float(), size=size, grid=self.grid)


class ScanCritic(nn.Module):
    """How real a whole scan is: six strided levels without norms; at 64 x 64 one score for all of it."""

    def __init__(self, *, width: int) -> None:
        """Build with ``width`` channels at the first level."""
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 1
        for level in range(6):
            layers += [nn.Conv2d(channels_in, width << level, 4, 2, padding=1), nn.LeakyReLU(0.01, inplace=True)]
            channels_in = width << level
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels_in, 1, 3, padding=1, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        """Return unbounded scores, larger is more real.

        Shapes: ``images`` (N, 1, H, W), H and W at least 64; result (N, 1, H / 64, W / 64).
        """
        scores: Tensor = self.layers(images)
        return scores.float()
