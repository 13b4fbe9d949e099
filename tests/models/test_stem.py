"""The convolutional stem: equal to timm's hybrids, its padding, its filters, its gradients."""

import importlib.util
import sys
from functools import partial
from importlib.machinery import PathFinder
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.import_utils import is_torchvision_available

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.stem import (
    Bottleneck,
    HybridStem,
    StandardizedConv2d,
    pad_same,
    same_padding,
)

from .timm_models import HYBRIDS, PlaceholderModule, import_timm, stem_weights, timm_model
from .tiny import stir, tiny_config


def stem_config(depths: tuple[int, ...], **overrides: Any) -> VitMaeConfig:
    """A narrow stem in a model whose patches are one value of the feature map."""
    stride = 4 * 2 ** (len(depths) - 1)
    values = {"stem_depths": depths, "stem_width": 8, "stem_num_groups": 4}
    values |= {"patch_size": stride, "image_size": 2 * stride}
    return tiny_config(**(values | overrides))


def stirred_stem(depths: tuple[int, ...] = (1, 2), **overrides: Any) -> HybridStem:
    stem = HybridStem(stem_config(depths, **overrides))
    stir(stem)
    return stem


def stirred_convolution(stride: int = 1) -> StandardizedConv2d:
    convolution = StandardizedConv2d(4, 6, kernel_size=3, stride=stride)
    stir(convolution)
    return convolution


def stem_and_timm(name: str) -> tuple[HybridStem, nn.Module]:
    """The same random weights in a stem and in the backbone of timm's hybrid.

    The transformer above the backbone is as small as it can be.
    """
    backbone = timm_model(name, img_size=64, depth=1, embed_dim=8, num_heads=1).patch_embed.backbone
    stem = HybridStem(stem_config(HYBRIDS[name], stem_width=64, stem_num_groups=32)).eval()
    stem.load_state_dict(stem_weights(backbone.state_dict()), strict=True)
    return stem, backbone


def random_pixels(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale


# A faint image, whose deviation is near the epsilon of the norms, shows that epsilon.
@pytest.mark.parametrize(
    ("size", "scale"), [((224, 224), 1.0), ((51, 34), 1e-3), ((16, 16), 1.0)], ids=str
)
@pytest.mark.parametrize("name", HYBRIDS)
def test_stem_equals_timm(name: str, size: tuple[int, int], scale: float) -> None:
    stem, backbone = stem_and_timm(name)
    pixel_values = random_pixels(2, 3, *size, scale=scale)
    with torch.no_grad():
        got, expected = stem(pixel_values), backbone(pixel_values)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HYBRIDS)
def test_norms_have_the_groups_and_the_epsilon_of_timm(name: str) -> None:
    ours, theirs = (
        sorted(
            (norm.num_channels, norm.num_groups, norm.eps)
            for norm in model.modules()
            if isinstance(norm, nn.GroupNorm)
        )
        for model in stem_and_timm(name)
    )
    assert ours == theirs


def test_gradients_equal_timm() -> None:
    stem, backbone = (model.double() for model in stem_and_timm("vit_small_r26_s32_224"))
    pixel_values = random_pixels(2, 3, 40, 64).double()
    for model in (stem, backbone):
        model(pixel_values).square().mean().backward()
    gradients = {name: value.grad for name, value in backbone.named_parameters()}
    expected = stem_weights({name: value for name, value in gradients.items() if value is not None})
    assert expected.keys() == dict(stem.named_parameters()).keys()
    for name, parameter in stem.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], msg=lambda m, n=name: f"{n}: {m}"
        )


def test_torchvision_is_not_there_after_timm_was_imported() -> None:
    import_timm()
    assert not any(type(module) is PlaceholderModule for module in sys.modules.values())
    assert importlib.util.find_spec("torchvision") == PathFinder.find_spec("torchvision")
    assert is_torchvision_available() == (PathFinder.find_spec("torchvision") is not None)


@pytest.mark.parametrize(
    ("depths", "size", "stride", "channels", "grid"),
    [
        ((1,), (16, 24), 4, 32, (4, 6)),
        ((1, 1), (16, 24), 8, 64, (2, 3)),
        ((2, 1), (17, 23), 8, 64, (3, 3)),
        ((1, 2, 1), (32, 64), 16, 128, (2, 4)),
        ((1, 1, 1, 1), (96, 33), 32, 256, (3, 2)),
        ((1, 1, 1, 1, 1), (64, 1), 64, 512, (1, 1)),
    ],
)
def test_stride_channels_and_map(
    depths: tuple[int, ...],
    size: tuple[int, int],
    stride: int,
    channels: int,
    grid: tuple[int, int],
) -> None:
    stem = stirred_stem(depths)
    assert (stem.stride, stem.out_channels) == (stride, channels)
    assert [len(list(stage.children())) for stage in stem.stages] == list(depths)
    assert stem(random_pixels(2, 3, *size)).shape == (2, channels, *grid)


@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_images_have_any_number_of_channels(num_channels: int) -> None:
    stem = stirred_stem(num_channels=num_channels)
    pixel_values = random_pixels(2, num_channels, 16, 16)
    changed = pixel_values.clone()
    changed[:, -1] += random_pixels(16, 16)
    assert not torch.allclose(stem(pixel_values), stem(changed))


def test_a_config_without_a_stem_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`stem_depths` is None; .* such as \(3, 4, 9\)"):
        HybridStem(tiny_config())


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),
        (15, 7, 2, (3, 3)),
        (1, 7, 2, (3, 3)),
        (6, 3, 2, (0, 1)),
        (5, 3, 2, (1, 1)),
        (9, 3, 1, (1, 1)),
        (8, 1, 2, (0, 0)),
    ],
)
def test_same_padding(size: int, kernel_size: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel_size, stride) == expected


def test_height_and_width_are_padded_each_by_its_own_size() -> None:
    padded = pad_same(torch.ones(1, 1, 6, 5), kernel_size=3, stride=2)
    assert padded.shape == (1, 1, 7, 7)
    expected = torch.zeros(7, 7)
    expected[:6, 1:6] = 1.0
    assert torch.equal(padded[0, 0], expected)


def test_filters_have_mean_0_and_variance_1_each() -> None:
    weight = stirred_convolution().standardized_weight().flatten(1)
    torch.testing.assert_close(weight.mean(dim=1), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(weight.square().mean(dim=1), torch.ones(6))


@pytest.mark.parametrize("stride", [1, 2])
def test_scale_and_shift_of_a_filter_change_nothing(stride: int) -> None:
    convolution, pixel_values = stirred_convolution(stride), random_pixels(2, 4, 7, 8)
    before = convolution(pixel_values)
    with torch.no_grad():
        scales = torch.tensor([0.5, 1.0, 2.0, 3.0, 7.0, 20.0])
        convolution.weight.mul_(scales.view(6, 1, 1, 1))
        convolution.weight.add_(scales.flip(0).view(6, 1, 1, 1))
    torch.testing.assert_close(convolution(pixel_values), before, rtol=1e-4, atol=1e-4)


def test_a_filter_near_zero_stays_finite() -> None:
    convolution = StandardizedConv2d(2, 2, kernel_size=1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[0.0, 0.0], [1e-4, -1e-4]]).view(2, 2, 1, 1))
    weight = convolution.standardized_weight().flatten(1)
    weight.square().sum().backward()
    half = 0.5**0.5  # the second filter's variance is 1e-8, as much as is added to it
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.0, 0.0], [half, -half]]))
    assert convolution.weight.grad is not None and convolution.weight.grad.isfinite().all()


def test_bfloat16_standardises_in_float32() -> None:
    convolution = stirred_convolution()
    with torch.no_grad():
        convolution.weight.add_(1.0)  # a mean far from 0 is where rounding would be seen
    half = StandardizedConv2d(4, 6, kernel_size=3).bfloat16()
    half.load_state_dict(convolution.state_dict())
    convolution.load_state_dict(half.state_dict())
    expected = convolution.standardized_weight()
    assert expected.std() > 0.9
    assert torch.equal(half.standardized_weight(), expected.bfloat16())


def test_bfloat16_is_near_float32() -> None:
    stem, pixel_values = stirred_stem((2, 2)), random_pixels(2, 3, 24, 32)
    with torch.no_grad():
        expected = stem(pixel_values)
        got = stem.bfloat16()(pixel_values.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).square().mean() < 1e-2 * expected.square().mean()


def test_gradients_reach_every_parameter_and_the_image() -> None:
    stem = stirred_stem((2, 2, 1))
    pixel_values = random_pixels(2, 3, 48, 32).requires_grad_()
    stem(pixel_values).square().mean().backward()
    for name, value in [("image", pixel_values), *stem.named_parameters()]:
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.any(), name


def test_checkpointed_blocks_are_run_twice_and_give_the_same_gradients() -> None:
    stem, pixel_values = stirred_stem((2, 1)), random_pixels(2, 3, 16, 24)
    blocks: list[Any] = [module for module in stem.modules() if isinstance(module, Bottleneck)]
    gradients, runs = [], []
    for block in blocks:
        block.conv1.register_forward_hook(lambda *_: runs.append(1))
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    for is_checkpointed in (False, True):
        for block in blocks:
            block.gradient_checkpointing = is_checkpointed
        stem.zero_grad()
        stem(pixel_values).square().mean().backward()
        gradients.append([parameter.grad for parameter in stem.parameters()])
    assert len(runs) == 3 + 2 * 3
    for once, again in zip(*gradients, strict=True):
        assert torch.equal(once, again)


def test_images_of_a_batch_do_not_mix() -> None:
    stem, pixel_values = stirred_stem().train(), random_pixels(3, 3, 16, 24)
    alone = torch.cat([stem(image[None]) for image in pixel_values])
    torch.testing.assert_close(stem(pixel_values), alone)


def test_meta_device() -> None:
    with torch.device("meta"):
        stem = HybridStem(stem_config((3, 4, 9), stem_width=64, stem_num_groups=32))
        feature_map = stem(torch.empty(2, 3, 32, 48))
    assert feature_map.device.type == "meta" and feature_map.shape == (2, 1024, 2, 3)


def test_initialisation_of_convolutions_and_norms_covers_the_stem() -> None:
    stem = stirred_stem()
    covered = [m for m in stem.modules() if isinstance(m, (nn.Conv2d, nn.GroupNorm))]
    parameters = {id(parameter) for module in covered for parameter in module.parameters()}
    assert parameters == {id(parameter) for parameter in stem.parameters()}
