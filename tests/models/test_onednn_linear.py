"""Linear layers by oneDNN: the same results, and the same library from one start to the next."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitmae.models import onednn_linear
from hf_vitmae.models.modeling_vitmae import VitMaeForPreTraining, VitMaeModel

from .test_reference import reference_gradients, scale_of
from .tiny import RECTANGULAR, random_images, random_noise, stir, tiny_config


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """oneDNN switched on: the shapes that it multiplied."""
    monkeypatch.setenv(onednn_linear.SWITCH, "1")
    onednn_linear.is_faster.cache_clear()
    if not onednn_linear.is_faster(1):
        pytest.skip("torch has no usable oneDNN here")
    monkeypatch.setattr(onednn_linear, "FEWEST_PRODUCTS", 16 * 8 * 8)
    shapes: list[tuple[int, ...]] = []
    multiply = onednn_linear.multiply

    def counted(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*rows.shape, weight.shape[0]))
        return multiply(rows, weight, bias)

    monkeypatch.setattr(onednn_linear, "multiply", counted)
    yield shapes
    onednn_linear.is_faster.cache_clear()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[float]]:
    """No switch and an empty memory: what trials would say, taken from the end."""
    monkeypatch.delenv(onednn_linear.SWITCH, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(onednn_linear, "_works", lambda: True)
    outcomes: list[float] = []
    monkeypatch.setattr(onednn_linear, "speed_up", lambda: outcomes.pop())
    onednn_linear.is_faster.cache_clear()
    yield outcomes
    onednn_linear.is_faster.cache_clear()


def gradients(layer: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in layer.parameters() if p.grad is not None]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_product_and_gradients_are_those_of_the_layer(
    calls: list[Any], has_bias: bool, contiguous: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=has_bias)
    tokens = torch.randn(24, 9, 5) if not contiguous else torch.randn(5, 9, 24)
    results = []
    for apply in (layer, lambda tokens: onednn_linear.linear(layer, tokens)):
        layer.zero_grad()
        leaf = tokens.clone().requires_grad_()
        inputs = leaf if contiguous else leaf.permute(2, 1, 0)
        output = apply(inputs)
        output.square().sum().backward()
        results.append([output.detach(), leaf.grad, *gradients(layer)])
    assert calls == [(45, 24, 40), (45, 40, 24)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_pretraining_equals_the_plain_reference(calls: list[Any]) -> None:
    torch.manual_seed(0)
    model = VitMaeForPreTraining(
        tiny_config(
            **RECTANGULAR,
            position_embedding="learned",
            predict_visible_patches=False,
            recompute_activations=True,
        )
    )
    stir(model)
    pixel_values, noise = random_images(model.config, 16), random_noise(model.config, 16)
    loss, _, expected = reference_gradients(model, pixel_values, noise)
    output = model(pixel_values, noise=noise)
    output.loss.backward()
    assert len(calls) == 2 * 4 * 6  # forward and backward of six layers of every block
    assert abs(output.loss.item() - loss.item()) < 1e-6
    errors = {
        name: float((parameter.grad.double() - expected[name]).norm()) / scale_of(expected, name)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert max(errors.values()) < 1e-5, errors


def test_what_is_no_plain_product_is_the_layers_own(calls: list[Any]) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    tokens, layer = torch.randn(20, 8), nn.Linear(8, 8)
    torch.testing.assert_close(
        onednn_linear.linear(doubled := Doubled(8, 8), tokens), doubled(tokens), rtol=0, atol=0
    )
    onednn_linear.linear(layer.double(), tokens.double())
    onednn_linear.linear(layer.float(), tokens[:3])
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn_linear.linear(layer, tokens).dtype == torch.bfloat16
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    onednn_linear.linear(layer, tokens)
    handle.remove()
    assert seen == [1] and calls == []
    onednn_linear.linear(layer, tokens)
    assert len(calls) == 1


def test_evaluation_gives_what_training_gives(calls: list[Any]) -> None:
    torch.manual_seed(0)
    model = VitMaeModel(tiny_config())
    pixel_values = random_images(model.config, 8)
    trained = model(pixel_values).last_hidden_state
    with torch.no_grad():
        assert torch.equal(model(pixel_values).last_hidden_state, trained)
    assert calls


def test_the_trial_is_made_once_and_remembered(trials: list[float], tmp_path: Path) -> None:
    trials.append(1.5)
    assert onednn_linear.is_faster(1)
    for other in (0.5, 1.2, 0.9):  # a later process asks the file, whatever a trial would say
        onednn_linear.is_faster.cache_clear()
        trials.append(other)
        assert onednn_linear.is_faster(1)
    assert len(trials) == 3
    assert not onednn_linear.is_faster(2)  # other threads, another trial: 0.9
    (known,) = [json.loads(path.read_text()) for path in (tmp_path / "home").rglob("*.json")]
    assert sorted(known.values()) == [False, True] and len(trials) == 2


@pytest.mark.parametrize("damage", ["[]", "{", '{"a": 1}'])
def test_a_damaged_memory_is_made_anew(trials: list[float], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "home" / "hf_vitmae" / "onednn.json"
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    trials.append(2.0)
    assert onednn_linear.is_faster(1)
    assert True in json.loads(path.read_text()).values()


def test_processes_that_start_together_agree(
    trials: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slow_trial() -> float:
        monkeypatch.setattr(onednn_linear, "speed_up", lambda: 2.0)
        onednn_linear.is_faster.cache_clear()
        assert onednn_linear.is_faster(1)  # the other process, in the meantime
        return 0.5

    monkeypatch.setattr(onednn_linear, "speed_up", slow_trial)
    assert onednn_linear.is_faster(1)


def test_what_cannot_be_remembered_is_not_used(trials: list[float], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    trials.append(2.0)
    assert not onednn_linear.is_faster(1)


def test_a_wrong_operator_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = onednn_linear.multiply
    monkeypatch.setenv(onednn_linear.SWITCH, "1")
    for wrong in (
        lambda rows, weight, bias: multiply(rows, weight, None),
        lambda rows, weight, bias: multiply(rows, weight.contiguous() * 1.01, bias),
        lambda rows, weight, bias: torch.ops.mkldnn.no_such_operator(rows),
    ):
        monkeypatch.setattr(onednn_linear, "multiply", wrong)
        onednn_linear.is_faster.cache_clear()
        assert not onednn_linear.is_faster(1)
    onednn_linear.is_faster.cache_clear()


def test_a_switch_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(onednn_linear.SWITCH, "yes")
    onednn_linear.is_faster.cache_clear()
    with pytest.raises(ValueError, match="must be 0 or 1, got 'yes'"):
        onednn_linear.is_faster(1)
    onednn_linear.is_faster.cache_clear()


def test_the_trial_runs() -> None:
    if onednn_linear._works():
        assert 0.1 < onednn_linear.speed_up() < 10
