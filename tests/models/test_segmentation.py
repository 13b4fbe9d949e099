"""Segmentation: a map of class scores the right way round, its loss, the layers of its heads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_vitmae.models.losses import segmentation_loss
from hf_vitmae.models.modeling_vitmae import VitMaeForSemanticSegmentation

from .tiny import RECTANGULAR, random_images, stir, tiny_config

NUM_LABELS = 5
HEADS = ("linear", "multi_layer")
ODD: dict[str, Any] = {"image_size": (15, 14), "patch_size": (5, 7)}  # a grid of 3 x 2


def segmenter(head: str, **overrides: Any) -> VitMaeForSemanticSegmentation:
    """A stirred model in evaluation mode, of a grid of 4 x 3 patches unless told otherwise."""
    values = {"num_labels": NUM_LABELS, "segmentation_head": head, "segmentation_hidden_size": 8}
    model = VitMaeForSemanticSegmentation(tiny_config(**(RECTANGULAR | values | overrides))).eval()
    stir(model)
    return model


def random_labels(*size: int, seed: int = 0) -> Tensor:
    """A class for each pixel: (3, *size)."""
    return torch.randint(NUM_LABELS, (3, *size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read_channels(model: VitMaeForSemanticSegmentation) -> None:
    """Let a patch's class be the brightest of its channels, and nothing else.

    Blocks pass their input on, the position table is empty, and the middle pixel of each channel
    becomes the score of the class of that number.
    """
    blocks: Any = model.vit.layers
    for block in blocks:
        for layer in (block.attention.o_proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    model.vit.embeddings.position_embeddings.zero_()
    copied = [model.vit.embeddings.patch_embeddings.projection]
    copied += [layer for layer in model.segmentation_head.modules() if isinstance(layer, nn.Conv2d)]
    for layer in copied:
        kernel = torch.zeros_like(layer.weight)
        height, width = kernel.shape[2:]
        for channel in range(NUM_LABELS):
            kernel[channel, channel, height // 2, width // 2] = 1.0
        layer.weight.copy_(kernel)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for layer in model.segmentation_head.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.copy_(
                torch.eye(len(layer.weight))[..., None, None].expand_as(layer.weight)
            )
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("geometry", [RECTANGULAR, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("head", HEADS)
def test_every_pixel_has_a_score_of_every_class(head: str, geometry: dict[str, Any]) -> None:
    model = segmenter(head, **geometry)
    (height, width), (patch_height, patch_width) = model.config.image_pair, model.config.patch_pair
    logits = model(random_images(model.config)).logits
    assert logits.shape == (3, NUM_LABELS, height, width)
    size = (height - patch_height, width + 3 * patch_width)
    larger = torch.randn(2, 3, *size)
    assert model(larger, interpolate_pos_encoding=True).logits.shape == (2, NUM_LABELS, *size)
    with pytest.raises(ValueError, match=f"Images of {size[0]}x{size[1]} .*do not fit"):
        model(larger)


@pytest.mark.parametrize("geometry", [RECTANGULAR, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("head", HEADS)
def test_the_map_is_the_right_way_round(head: str, geometry: dict[str, Any]) -> None:
    values = {"num_channels": NUM_LABELS, "num_hidden_layers": 4, "position_embedding": "learned"}
    values["segmentation_hidden_size"] = NUM_LABELS
    model = VitMaeForSemanticSegmentation(
        tiny_config(**(geometry | values), num_labels=NUM_LABELS, segmentation_head=head)
    ).eval()
    read_channels(model)
    rows, columns = model.config.grid
    classes = random_labels(rows, columns)  # (3, h, w)
    height, width = model.config.patch_pair
    pixels = functional.one_hot(classes, NUM_LABELS).permute(0, 3, 1, 2).float()
    pixels = pixels.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    found = model(pixels).logits.argmax(dim=1)  # (3, H, W)
    assert torch.equal(found[:, height // 2 :: height, width // 2 :: width], classes)


def test_scores_change_evenly_from_the_centre_of_a_patch_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = segmenter("linear")
    patch_scores = torch.zeros(1, NUM_LABELS, 4, 3)
    patch_scores[:, 0] = torch.arange(4.0)[:, None]
    patch_scores[:, 1] = torch.arange(3.0)
    monkeypatch.setattr(model.segmentation_head, "forward", lambda _: patch_scores)
    logits = model(torch.zeros(1, 3, 16, 24)).logits[0]
    rows, columns = (torch.arange(16) + 0.5) / 4 - 0.5, (torch.arange(24) + 0.5) / 8 - 0.5
    torch.testing.assert_close(logits[0], rows.clamp(0, 3)[:, None].expand(16, 24))
    torch.testing.assert_close(logits[1], columns.clamp(0, 2).expand(16, 24))


def test_the_linear_head_reads_the_last_normalised_tokens() -> None:
    model = segmenter("linear")
    pixel_values = random_images(model.config)
    tokens = model.vit(pixel_values).last_hidden_state[:, 1:]  # (3, 12, D)
    classifier = model.segmentation_head.classifier
    scores = functional.linear(tokens, classifier.weight[:, :, 0, 0], classifier.bias)  # (3, 12, 5)
    scores = scores.reshape(3, 4, 3, NUM_LABELS).permute(0, 3, 1, 2)
    expected = functional.interpolate(scores, size=(16, 24), mode="bilinear")
    torch.testing.assert_close(model(pixel_values).logits, expected)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 3, 4)), (8, (2, 4, 6, 8))],
)
def test_the_multi_layer_head_reads_the_layers_that_it_names(
    depth: int, layers: tuple[int, ...]
) -> None:
    model = segmenter("multi_layer", num_hidden_layers=depth)
    head: Any = model.segmentation_head
    assert head.layers == layers
    for place, layer in enumerate(layers):
        for other, projection in enumerate(head.projections):
            nn.init.constant_(projection.weight, 0.0)
            if other == place:
                nn.init.normal_(projection.weight)
        model.zero_grad()
        model(random_images(model.config)).logits.square().sum().backward()
        read = [_has_gradient(block) for block in model.vit.layers]
        assert read == [index < layer for index in range(depth)]


def _has_gradient(module: nn.Module) -> bool:
    gradients = [parameter.grad for parameter in module.parameters()]
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_every_layer_of_the_multi_layer_head_goes_through_the_norm() -> None:
    model = segmenter("multi_layer", num_hidden_layers=4)
    pixel_values = random_images(model.config)
    states = model.vit(pixel_values, output_hidden_states=True).hidden_states
    head: Any = model.segmentation_head
    projected = [
        functional.linear(model.vit.layernorm(state)[:, 1:], layer.weight[:, :, 0, 0], layer.bias)
        for layer, state in zip(head.projections, states[1:], strict=True)
    ]
    hidden = torch.stack(projected).sum(dim=0).reshape(3, 4, 3, 8).permute(0, 3, 1, 2)
    finer = head.mix(functional.gelu(head.upsample(functional.gelu(hidden))))  # (3, 8, 8, 6)
    scores = head.classifier(functional.gelu(finer))
    expected = functional.interpolate(scores, size=(16, 24), mode="bilinear")
    torch.testing.assert_close(model(pixel_values).logits, expected)


@pytest.mark.parametrize("ignore_index", [255, -100, 2])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_the_mean_over_labelled_pixels(head: str, ignore_index: int) -> None:
    model = segmenter(head, semantic_loss_ignore_index=ignore_index)
    pixel_values, labels = random_images(model.config), random_labels(16, 24)
    labels[:, 5:9] = ignore_index
    output = model(pixel_values, labels=labels)
    logits = output.logits.detach().double()
    losses = []
    for image, row, column in (labels != ignore_index).nonzero().tolist():
        scores = logits[image, :, row, column]
        losses.append(scores.exp().sum().log() - scores[labels[image, row, column]])
    assert len(losses) < labels.numel()
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_pixel_that_is_ignored_changes_nothing() -> None:
    model = segmenter("linear")
    logits, labels = torch.randn(3, NUM_LABELS, 16, 24), random_labels(16, 24)
    labels[1, 2:5, 3:9] = 255
    changed = logits.clone()
    changed[1, :, 2:5, 3:9] += 7.0
    expected = model.forward_loss(logits, labels, None, (4, 3))
    assert torch.equal(model.forward_loss(changed, labels, None, (4, 3)), expected)


@pytest.mark.parametrize("head", HEADS)
def test_with_every_pixel_ignored_the_loss_is_0(head: str) -> None:
    model = segmenter(head).train()
    output = model(random_images(model.config), labels=torch.full((3, 16, 24), 255))
    assert output.loss.item() == 0.0
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_the_loss_is_computed_in_float32() -> None:
    logits, labels = torch.randn(3, NUM_LABELS, 4, 6).bfloat16(), random_labels(4, 6)
    loss = segmentation_loss(logits, labels, 255)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, segmentation_loss(logits.float(), labels, 255))


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_every_parameter(head: str) -> None:
    model = segmenter(head, position_embedding="learned").train()
    model(random_images(model.config), labels=random_labels(16, 24)).loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("shape", [(3, 24, 16), (3, 4, 3), (2, 16, 24), (3, NUM_LABELS, 16, 24)])
def test_labels_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    model = segmenter("linear")
    labels = torch.zeros(shape, dtype=torch.long)
    got = rf"\({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=rf"`labels` must be \(3, 16, 24\).* got {got}"):
        model(random_images(model.config), labels=labels)


@pytest.mark.parametrize("head", HEADS)
def test_hidden_states_and_attentions_come_only_when_asked_for(head: str) -> None:
    model = segmenter(head)
    pixel_values = random_images(model.config)
    output = model(pixel_values)
    assert output.loss is None and output.hidden_states is None and output.attentions is None
    attentions = model(pixel_values, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == 2 * [(3, 4, 13, 13)]
    asked = model(pixel_values, output_hidden_states=True)
    model.config.output_hidden_states = True
    for states in (asked.hidden_states, model(pixel_values).hidden_states):
        assert [state.shape for state in states] == 3 * [(3, 13, 32)]
    assert torch.equal(asked.logits, output.logits)
    assert model(pixel_values, output_hidden_states=False).hidden_states is None
