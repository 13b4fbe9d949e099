"""The convolutional stem of the hybrids of arXiv:2010.11929: pixels to a feature map for patches.

A ResNet (bottlenecks as in arXiv:1512.03385, the stride on the 3x3 convolution) whose batch norm is
replaced as in arXiv:1912.11370: group norm after every convolution, weight standardisation in it.
Like the released weights it pads as TensorFlow's "SAME" does. Between two stages the map halves and
the channels double.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_vitmae import VitMaeConfig

EXPANSION = 4  # output channels of a bottleneck for each channel inside it
STANDARDIZATION_EPS = 1e-8  # added to a filter's variance; a trained filter's is far above it


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """How much to pad one axis, before and after, so that ceil(size / stride) values come out.

    An odd amount has its larger half after.
    """
    num_outputs = -(-size // stride)
    total = max((num_outputs - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def pad_same(feature_map: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Zeros around a map for a square window that moves by `stride`: (B, C, H, W) -> (B, C, H',
    W').
    """
    height, width = feature_map.shape[-2:]
    padding = same_padding(width, kernel_size, stride) + same_padding(height, kernel_size, stride)
    if not any(padding):  # a shortcut of one pixel: padding by nothing would copy the map
        return feature_map
    return nn.functional.pad(feature_map, padding)


class StandardizedConv2d(nn.Conv2d):
    """A convolution without bias that brings each filter to mean 0 and variance 1 before use
    (arXiv:1903.10520).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
    ) -> None:
        # At stride 1 the padding is even and the convolution does it itself, without a copy.
        padding = (kernel_size - 1) // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def standardized_weight(self) -> Tensor:
        """The filters as they are used, in the weight's type: (C', C, k, k).

        Computed in float32 at least, because half precision loses the difference to the mean.
        """
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (weight - mean) * (variance + STANDARDIZATION_EPS).rsqrt()
        return weight.to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        if self.stride != (1, 1):
            input = pad_same(input, self.kernel_size[0], self.stride[0])
        weight = self.standardized_weight()
        return nn.functional.conv2d(input, weight, stride=self.stride, padding=self.padding)


class Shortcut(nn.Module):
    """The way around the first bottleneck of a stage, where channels and often size change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.convolution = StandardizedConv2d(in_channels, out_channels, 1, stride)
        self.norm = nn.GroupNorm(num_groups, out_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.convolution(feature_map))


class Bottleneck(GradientCheckpointingLayer):
    """1x1 to few channels, 3x3 between them, 1x1 to many, added to the shortcut; a norm follows
    every convolution and an activation every norm, the last one after the sum.
    """

    def __init__(self, in_channels: int, width: int, stride: int, num_groups: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = StandardizedConv2d(in_channels, width, 1)
        self.norm1 = nn.GroupNorm(num_groups, width)
        self.conv2 = StandardizedConv2d(width, width, 3, stride)
        self.norm2 = nn.GroupNorm(num_groups, width)
        self.conv3 = StandardizedConv2d(width, out_channels, 1)
        self.norm3 = nn.GroupNorm(num_groups, out_channels)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = Shortcut(in_channels, out_channels, stride, num_groups)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * width, ceil(H / stride), ceil(W / stride))."""
        branch = self.norm1(self.conv1(feature_map)).relu()  # (B, width, H, W)
        branch = self.norm2(self.conv2(branch)).relu()  # (B, width, H / stride, W / stride)
        branch = self.norm3(self.conv3(branch))  # (B, 4 * width, H / stride, W / stride)
        return (branch + self.shortcut(feature_map)).relu()


class HybridStem(nn.Module):
    """Images to feature maps: a 7x7 convolution, a max pool, then one stage of bottlenecks for each
    entry of `config.stem_depths`.

    (3, 4, 9) is ResNet-50 with the blocks of its last stage moved to the one before, the stem of
    R50+ViT-B/16; (2, 2, 2, 2) is the stem of R26+ViT-S/32 (arXiv:2106.10270).

    Attributes:
        out_channels: C', channels of the feature maps.
        stride: pixels from one value of the feature maps to the next.

    Raises:
        ValueError: if the config has no stem.
    """

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__()
        if config.stem_depths is None:
            raise ValueError(
                "`stem_depths` is None; a stem needs the number of blocks in each of its stages, "
                "such as (3, 4, 9)."
            )
        channels, num_groups = config.stem_width, config.stem_num_groups
        self.convolution = StandardizedConv2d(config.num_channels, channels, 7, stride=2)
        self.norm = nn.GroupNorm(num_groups, channels)
        self.stages = nn.Sequential()
        for index, depth in enumerate(config.stem_depths):
            width, stride = config.stem_width * 2**index, 1 if index == 0 else 2
            self.stages.append(_stage(depth, channels, width, stride, num_groups))
            channels = EXPANSION * width
        self.out_channels, self.stride = channels, config.stem_stride

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

        Images are of the weights' type.
        """
        feature_map = self.norm(self.convolution(pixel_values)).relu()  # (B, width, H / 2, W / 2)
        # Padding is zero and never the maximum alone: nothing is below zero here.
        feature_map = pad_same(feature_map, kernel_size=3, stride=2)
        feature_map = nn.functional.max_pool2d(feature_map, 3, stride=2)  # (B, width, H/4, W/4)
        return self.stages(feature_map)


def _stage(depth: int, in_channels: int, width: int, stride: int, num_groups: int) -> nn.Sequential:
    """Bottlenecks of one width, the first of which changes channels and size."""
    first = Bottleneck(in_channels, width, stride, num_groups)
    others = (Bottleneck(EXPANSION * width, width, 1, num_groups) for _ in range(depth - 1))
    return nn.Sequential(first, *others)
