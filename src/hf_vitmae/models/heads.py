"""From tokens to what a task needs: pooled vectors, maps, class scores of pixels, feature pyramids.

Tokens are [CLS | patches].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_vitmae import PYRAMID_STRIDES, VitMaeConfig

NUM_SEGMENTATION_LAYERS = 4  # how many encoder layers the multi-layer head looks at


def pool_tokens(tokens: Tensor, pooling: str, is_data: Tensor | None = None) -> Tensor:
    """One vector an image: (B, 1 + K, D) -> (B, D).

    "cls" takes the CLS token (arXiv:2010.11929), "mean" the mean of the patch tokens, as MAE's
    fine-tuning does; where `is_data` (B, K) is False the token is padding and does not count.
    """
    cls, patches = tokens[:, 0], tokens[:, 1:]
    if pooling == "cls":
        return cls
    if is_data is None:
        return patches.mean(dim=1)
    total = (patches * is_data[..., None]).sum(dim=1)  # (B, D)
    return total / is_data.sum(dim=1, keepdim=True).clamp(min=1)


class Pooler(nn.Module):
    """A trained map of the pooled vector and an activation, named as in transformers' ViT."""

    def __init__(self, config: VitMaeConfig, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, size)
        self.activation = ACT2FN[config.pooler_act]

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, size)."""
        return self.activation(self.dense(pooled))


def make_pooler(config: VitMaeConfig) -> Pooler | None:
    """The pooler that `config.pooler_output_size` asks for; None without."""
    size = config.pooler_output_size
    return None if size is None else Pooler(config, size)


def token_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens as a map, without CLS: (B, 1 + N, D) -> (B, D, h, w)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


class LinearSegmentationHead(nn.Module):
    """Each patch's class scores from its last token."""

    scale = 1  # places of the map for a patch, along each side

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__()
        self.layers = (config.num_hidden_layers,)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels or 0, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map (B, D, h, w) -> (B, num_labels, h, w)."""
        return self.classifier(maps[-1])


class MultiLayerSegmentationHead(nn.Module):
    """Four encoder layers summed in a narrow width, at twice the patches' resolution."""

    scale = 2

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__()
        depth, width = config.num_hidden_layers, config.segmentation_hidden_size
        shares = range(1, NUM_SEGMENTATION_LAYERS + 1)
        layers = {max(1, depth * share // NUM_SEGMENTATION_LAYERS) for share in shares}
        self.layers = tuple(sorted(layers))
        self.projections = nn.ModuleList(
            nn.Conv2d(config.hidden_size, width, kernel_size=1) for _ in self.layers
        )
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.activation = nn.GELU()
        self.classifier = nn.Conv2d(width, config.num_labels or 0, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """A map (B, D, h, w) of each layer -> (B, num_labels, 2h, 2w)."""
        projected = zip(self.projections, maps, strict=True)
        hidden = torch.stack([projection(layer) for projection, layer in projected]).sum(dim=0)
        hidden = self.upsample(self.activation(hidden))  # (B, width, 2h, 2w)
        hidden = self.mix(self.activation(hidden))
        return self.classifier(self.activation(hidden))


def make_segmentation_head(
    config: VitMaeConfig,
) -> LinearSegmentationHead | MultiLayerSegmentationHead:
    """The head that `config.segmentation_head` names."""
    if config.segmentation_head == "linear":
        return LinearSegmentationHead(config)
    return MultiLayerSegmentationHead(config)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map: (B, C, h, w) -> (B, C, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PyramidLevel(nn.Module):
    """From the patches' stride to another by halves or doubles, then to the pyramid's width."""

    def __init__(self, config: VitMaeConfig, stride: int) -> None:
        super().__init__()
        patch, channels, eps = config.patch_pair[0], config.hidden_size, config.layer_norm_eps
        steps: list[nn.Module] = []
        while patch > stride:
            steps.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            patch, channels = patch // 2, channels // 2
            steps += [ChannelNorm(channels, eps=eps), nn.GELU()]
        while patch < stride:
            steps.append(nn.MaxPool2d(kernel_size=2, ceil_mode=True))
            patch *= 2
        width = config.pyramid_hidden_size
        self.resize = nn.Sequential(*steps)
        self.projection = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.projection_norm = ChannelNorm(width, eps=eps)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.mix_norm = ChannelNorm(width, eps=eps)

    def forward(self, last_map: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, width, H / stride, W / stride)."""
        hidden = self.projection_norm(self.projection(self.resize(last_map)))
        return self.mix_norm(self.mix(hidden))


class FeaturePyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32 from the last one alone (arXiv:2203.16527)."""

    def __init__(self, config: VitMaeConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(PyramidLevel(config, stride) for stride in PYRAMID_STRIDES)

    def forward(self, last_map: Tensor) -> list[Tensor]:
        """(B, D, h, w) -> four maps (B, width, H / stride, W / stride), finest first."""
        return [level(last_map) for level in self.levels]
