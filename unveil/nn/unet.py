"""The UNet of DDPM (Ho et al. 2020) with what DDPM++ (Song et al. 2021) and ADM (Dhariwal and Nichol 2021) made of it.

It knows nothing of noise: an image, the number c_noise and conditions in, an image out. ``interop.diffusers`` renames the weights of
a ``UNet2DModel`` to these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from unveil.config import UNetConfig
from unveil.nn.affine import Affine
from unveil.nn.convolution import Conv, DoublingConv
from unveil.nn.timestep import Condition
from unveil.nn.unet_blocks import Attention, GroupNorm, Level, ResBlock, activate


class UNet(nn.Module):
    """Down through the levels, a middle, and up again, each block on the way up reading one that the way down left.

    Args:
        config: all of it, ``in_channels`` included. Raises ValueError for settings that contradict each other.

    ``compute_dtype`` is the dtype of the activations, the weights' own if None; weights are cast to it where they are used.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if not config.in_channels or not config.channels or len(config.attention) != len(config.channels):
            raise ValueError(f"in_channels {config.in_channels}, channels {config.channels}, attention {config.attention}: no network")
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        first, width = config.channels[0], config.condition_width or 4 * config.channels[0]
        self.condition = Condition(config, first, width, config.frequency_shift, config.cosine_first)
        self.enter = Conv(config.in_channels, first)
        self.down = nn.ModuleList(_down(config))
        self.middle = _middle(config)
        self.up = nn.ModuleList(_up(config))
        self.norm = GroupNorm(first, config)
        self.leave = Conv(first, config.out_channels or config.in_channels)
        # the condition's way into every block, in the order in which they run: one matrix product for all of them
        self.rows = [module.rows for module in self.modules() if isinstance(module, ResBlock)]
        self.tell = Affine(width, sum(self.rows), slices=self.rows)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform by fan-in and fan-out (Glorot and Bengio 2010); what writes into a residual and the output begin at zero."""
        for name, p in self.named_parameters():
            if p.dim() == 4:
                fan = p[0].numel() + p[:, 0, 0, 0].numel() * p.shape[1] * p.shape[2]
                p.uniform_(-1, 1).mul_((6 / fan) ** 0.5)
            elif p.dim() == 2 and not name.endswith("classes.weight"):
                nn.init.xavier_uniform_(p)
            elif name.endswith("bias"):
                p.zero_()
        for module in self.modules():
            back = module.conv2 if isinstance(module, ResBlock) else module.out if isinstance(module, Attention) else None
            if back is not None:
                back.weight.zero_()
        self.leave.weight.zero_()

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        classes: Tensor | None = None,
        embedding: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            x: ``[B, C, H, W]``, any H and W that the levels can halve.
            c_noise: the noise level as the preconditioning hands it over, ``[B]``.
            classes: int64 ``[B]``; ``config.classes`` is the null class, which None stands for.
            embedding: ``[B, E]``; None means zeros.
            augmentation: ``[B, A]``; None means zeros, an image as it is.

        Returns:
            ``[B, out_channels, H, W]`` in the dtype of ``x``.

        Raises:
            ValueError: a condition that the network does not know, or lacks.
        """
        dtype = self.compute_dtype or self.enter.weight.dtype
        told = iter(self.tell(activate(self.condition(c_noise, dtype, classes, embedding, augmentation))).split(self.rows, dim=1))
        h = self.enter(x.to(dtype, memory_format=torch.channels_last))
        left = [h]
        for level in cast(list[Level], self.down):
            for block, attend in level.pairs():
                h = attend(block(h, next(told)))
                left.append(h)
            if level.resample is not None:
                h = level.leave(h, told)
                left.append(h)
        for block, attend in self.middle.pairs():
            h = attend(block(h, next(told)))
        for level in cast(list[Level], self.up):
            for block, attend in level.pairs():
                h = attend(block(torch.cat((h, left.pop()), dim=1), next(told)))
            if level.resample is not None:
                rows, columns = left[-1].shape[2:]
                h = level.leave(h, told)[..., :rows, :columns]  # an odd size had been rounded up
        return self.leave(activate(self.norm(h))).to(x.dtype, memory_format=torch.contiguous_format)


def _level(config: UNetConfig, widths: list[tuple[int, int]], attends: bool, resample: nn.Module | None) -> Level:
    blocks = [ResBlock(config, fan_in, fan_out) for fan_in, fan_out in widths]
    return Level(blocks, [Attention(config, fan_out) if attends else nn.Identity() for _, fan_out in widths], resample)


def _down(config: UNetConfig) -> Iterator[Level]:
    last, before = len(config.channels) - 1, config.channels[0]
    for i, (width, attends) in enumerate(zip(config.channels, config.attention, strict=True)):
        corner = config.downsample == "corner-conv"
        halve = ResBlock(config, width, width, "down") if config.downsample == "resnet" else Conv(width, width, stride=2, corner=corner)
        widths = [(before, width)] + [(width, width)] * (config.layers - 1)
        yield _level(config, widths, attends in ("down", "both"), halve if i < last else None)
        before = width


def _middle(config: UNetConfig) -> Level:
    if config.middle == "none":
        return Level([], [])
    width = config.channels[-1]
    between = nn.Identity() if config.middle == "plain" else Attention(config, width, normed=config.middle == "attention")
    return Level([ResBlock(config, width, width) for _ in range(2)], [between, nn.Identity()])


def _up(config: UNetConfig) -> Iterator[Level]:
    above = config.channels[-1]
    for i in reversed(range(len(config.channels))):
        width, below = config.channels[i], config.channels[max(i - 1, 0)]
        double = ResBlock(config, width, width, "up") if config.upsample == "resnet" else DoublingConv(width, width)
        left = [width] * config.layers + [below]  # what the way down left for each block, last first
        widths = [(h + skip, width) for h, skip in zip([above] + [width] * config.layers, left, strict=True)]
        yield _level(config, widths, config.attention[i] in ("up", "both"), double if i else None)
        above = width
