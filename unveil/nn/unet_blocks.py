"""What a UNet is made of. Images are ``[B, C, H, W]`` laid out channels-last from end to end, so that a pixel's channels are a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import UNetConfig
from unveil.nn.affine import Affine
from unveil.nn.convolution import Conv, DoublingConv


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018), statistics in float32 or wider, the masters cast at use."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        if channels % config.groups:
            raise ValueError(f"{channels} channels do not fall into {config.groups} groups")
        self.groups, self.eps = config.groups, config.norm_eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def activate(h: Tensor) -> Tensor:
    """SiLU of what nobody else holds: in place where no gradient will ask for it again."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``, told the condition at its second norm.

    Args:
        config: norms, dropout and how the condition is taken.
        fan_in, fan_out: channels.
        resample: ``down`` averages 2 x 2 pixels behind the first norm and in the shortcut, ``up`` repeats each pixel 2 x 2.
    """

    def __init__(self, config: UNetConfig, fan_in: int, fan_out: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.rows = fan_out if config.condition == "shift" else 2 * fan_out
        self.norm1 = GroupNorm(fan_in, config)
        self.conv1 = (DoublingConv if resample == "up" else Conv)(fan_in, fan_out)
        self.norm2 = GroupNorm(fan_out, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Conv(fan_out, fan_out)
        self.shortcut = Affine(fan_in, fan_out) if fan_in != fan_out else None

    def forward(self, x: Tensor, condition_BR: Tensor) -> Tensor:
        """``condition_BR``: a shift ``[B, fan_out]``, or a scale and a shift ``[B, 2 fan_out]``."""
        h = activate(self.norm1(x))
        if self.resample == "down":
            h, x = (F.avg_pool2d(image, 2, ceil_mode=True) for image in (h, x))
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        h = self.conv1(h)
        told = condition_BR[:, :, None, None]
        if self.rows == h.shape[1]:
            h = self.norm2(h + told)  # a convolution does not need its output again
        else:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.conv2(self.dropout(activate(h)))
        return h + (x if self.shortcut is None else self.shortcut(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Attention(nn.Module):
    """``x + out(attention(norm(x)))``, every pixel with every pixel of its image.

    Args:
        config: width of a head, norm.
        channels: C; raises ValueError if heads do not divide it.
        normed: without it the attention reads ``x`` itself.
    """

    def __init__(self, config: UNetConfig, channels: int, normed: bool = True) -> None:
        super().__init__()
        self.head_width = config.head_width or channels
        if channels % self.head_width:
            raise ValueError(f"{channels} channels are no multiple of heads of {self.head_width}")
        self.norm = GroupNorm(channels, config) if normed else None
        self.qkv = Affine(channels, 3 * channels, slices=(channels,) * 3)
        self.out = Affine(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.norm is None else self.norm(x)
        parts = self.qkv(h.permute(0, 2, 3, 1).flatten(1, 2)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).unflatten(-1, x.shape[2:])


class Level(nn.Module):
    """The blocks of one resolution and the way to the next.

    Args:
        blocks: in the order in which they run.
        attention: behind each of them, the identity where there is none.
        resample: behind the last, None where the resolution stays.
    """

    def __init__(self, blocks: Sequence[nn.Module], attention: Sequence[nn.Module], resample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks, self.attention, self.resample = nn.ModuleList(blocks), nn.ModuleList(attention), resample

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        return zip(self.blocks, self.attention, strict=True)

    def leave(self, h: Tensor, told: Iterator[Tensor]) -> Tensor:
        """Through ``resample``; a residual block takes the next of ``told``."""
        if self.resample is None:
            return h
        return self.resample(h, next(told)) if isinstance(self.resample, ResBlock) else self.resample(h)
