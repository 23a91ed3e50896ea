"""From noise to images by a trained network. Child only; why it works says `diffusion_training`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jobs.diffusion.unet import UNet


def velocity(model: UNet, points: Tensor, times: Tensor) -> Tensor:
    """What `model` says; on a GPU it computes in bfloat16, where that is much faster."""
    with torch.autocast(points.device.type, torch.bfloat16, enabled=points.is_cuda):
        answer: Tensor = model(points.contiguous(memory_format=torch.channels_last), times)
    return answer.float()


@torch.no_grad()
def follow(
    model: UNet, noise: Tensor, steps: int, on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """Follow the velocities from `noise` (n, colors, size, size) to images, by Euler's method.

    `on_step` is called after each of the `steps`. Returns images like `noise`, about in -1..1.
    """
    x = noise
    for step in range(steps):
        times = torch.full((len(x),), step / steps, device=x.device)
        x = x + velocity(model, x, times) / steps
        on_step()
    return x


def to_pixels(images: Tensor) -> Tensor:
    """Images (n, colors, size, size) as (n, size, size, colors) uint8 on the CPU."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu()
