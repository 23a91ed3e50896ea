"""A small U-Net that looks at noisy images and says in which direction the clean ones lie.

The shape is that of Ronneberger et al. 2015 (arXiv:1505.04597), with the residual blocks and the
time embedding that Ho et al. 2020 (arXiv:2006.11239) gave it. Child only: torch at the top.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 4  # pixels: images are halved until they are no larger than this
WIDEST = 4  # times `channels`: each halving doubles the width, up to here
GROUPS = 8  # of GroupNorm; `channels` must be a multiple of it


def time_features(t: Tensor, count: int) -> Tensor:
    """Sines and cosines of times `t` (n,) in 0..1, at `count / 2` frequencies: (n, count).

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; the factor 1000 spreads 0..1 over the
    range that those frequencies were made for.
    """
    powers = torch.arange(count // 2, device=t.device) / (count // 2)
    angles = 1000 * t[:, None] * torch.exp(-math.log(10_000) * powers)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input; the time sets scale and shift between them."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # a new block passes its input through unchanged

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` (n, inputs, h, w) and `time` (n, time) to (n, outputs, h, w)."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(F.silu(h))
        total: Tensor = self.shortcut(x) + h
        return total


class UNet(nn.Module):
    """Velocity of noisy images: down to `SMALLEST` pixels and up again, with skips across.

    `image_size` pixels square, `colors` 1 (grey) or 3 (RGB), `channels` the width at full size.
    """

    def __init__(self, image_size: int, colors: int, channels: int) -> None:
        super().__init__()
        halvings = max(0, math.ceil(math.log2(image_size / SMALLEST)))
        widths = [channels * min(2**level, WIDEST) for level in range(halvings + 1)]
        time = 4 * channels
        self.features = channels
        self.time = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(colors, channels, 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.up = nn.ModuleList()
        for wide, deeper in pairwise(widths):
            self.down.append(ResidualBlock(wide, wide, time))
            self.shrink.append(nn.Conv2d(wide, deeper, 3, stride=2, padding=1))
            self.up.insert(0, ResidualBlock(deeper + wide, wide, time))
        self.middle1 = ResidualBlock(widths[-1], widths[-1], time)
        self.middle2 = ResidualBlock(widths[-1], widths[-1], time)
        self.leave = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, colors, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Images `x` (n, colors, size, size) at times `t` (n,) in 0..1: velocities like `x`."""
        time = F.silu(self.time(time_features(t, self.features)))
        h = self.enter(x)
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, time)
            skips.append(h)
            h = shrink(h)
        h = self.middle2(self.middle1(h, time), time)
        for block in self.up:
            skip = skips.pop()
            # to the skip's size and not simply twofold: an odd size was rounded up on the way down
            h = F.interpolate(h, size=skip.shape[-2:], mode="nearest")
            h = block(torch.cat([h, skip], dim=1), time)
        velocity: Tensor = self.leave(h)
        return velocity
