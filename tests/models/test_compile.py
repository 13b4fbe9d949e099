"""`torch.compile(fullgraph=True)` takes every class as it is, and changes no result."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForMaskedPatchPrediction,
    VitMaeForNextPatchPrediction,
    VitMaeForPreTraining,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from .family import CLASSES, TRAINABLE, family_config, family_inputs
from .tiny import stir

SHALLOW = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1}

every_stem = pytest.mark.parametrize(
    "stem", ["linear", pytest.param("hybrid", marks=pytest.mark.slow)]
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(
    kind: type[VitMaePreTrainedModel], stem: str, **fields: Any
) -> tuple[VitMaePreTrainedModel, dict[str, Any]]:
    """A stirred model in evaluation mode, and its inputs."""
    model = kind(family_config(stem, **(SHALLOW | fields))).eval()
    stir(model, scale=0.02)
    return model, family_inputs(kind, model.config)


def compiled(model: VitMaePreTrainedModel, backend: str = "aot_eager") -> Any:
    return torch.compile(model, fullgraph=True, backend=backend)


def assert_close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got.to_tuple(), expected.to_tuple(), rtol=1e-5, atol=1e-5)


@every_stem
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_evaluation(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem)
    assert_close(compiled(model)(**inputs), model(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["linear", "hybrid"])
@pytest.mark.parametrize("kind", TRAINABLE, ids=lambda kind: kind.__name__)
def test_training(kind: Any, stem: str) -> None:
    model, inputs = make(kind, stem, drop_path_rate=0.2, hidden_dropout_prob=0.1)
    model.train()
    steps = []
    for call in (model, compiled(model)):
        model.zero_grad()
        torch.manual_seed(0)
        loss = call(**inputs).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        steps.append((loss.detach(), gradients))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-5, atol=1e-5)
    assert steps[0][1]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_alone(precision: torch.dtype) -> None:
    model, inputs = make(VitMaeForPreTraining, "linear", recompute_activations=True)
    model.train()
    steps = []
    for call in (model, compiled(model)):
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            output = call(**inputs, predict_visible_patches=False)
        output.loss.backward()
        assert output.logits is None
        steps.append([output.loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    for got, expected in zip(*reversed(steps), strict=True):
        assert (got - expected).norm() <= tolerance * expected.norm().clamp(min=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_hidden_states_and_attentions(kind: Any) -> None:
    model, inputs = make(kind, "linear")
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    assert_close(compiled(model)(**inputs, **asked), model(**inputs, **asked))


@pytest.mark.slow
def test_a_batch_of_another_size_takes_one_more_graph_and_no_more() -> None:
    model, inputs = make(VitMaeForImageClassification, "linear")
    call, images = compiled(model), inputs["pixel_values"]
    graphs = []
    for batch in (3, 5, 2, 7):
        pixel_values = images[:1].expand(batch, -1, -1, -1).contiguous()
        assert_close(call(pixel_values), model(pixel_values))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0], graphs[0] + 1, graphs[0] + 1, graphs[0] + 1]


def some_padding(config: VitMaeConfig) -> Tensor:
    """No data in other patches of each image, in none of the last: bool (3, N)."""
    places = torch.arange(config.num_patches)
    return torch.stack([places >= 9, places % 4 == 1, places < 0])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_padding(kind: Any) -> None:
    model, inputs = make(kind, "linear")
    inputs["padding_mask"] = some_padding(model.config)
    assert_close(compiled(model)(**inputs), model(**inputs))


@pytest.mark.parametrize("counts", [(3, 7, 5), (4, 4, 4)], ids=["different", "equal"])
@pytest.mark.parametrize("padded", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize("kind", [VitMaeForPreTraining, VitMaeForMaskedPatchPrediction])
def test_a_mask_by_hand(kind: Any, padded: bool, counts: tuple[int, ...]) -> None:
    model, inputs = make(kind, "linear")
    places = torch.arange(model.config.num_patches).flip(0)
    inputs["mask"] = torch.stack([places < count for count in counts])
    if padded:
        inputs["padding_mask"] = some_padding(model.config)
    assert_close(compiled(model)(**inputs), model(**inputs))


def test_an_encoder_compiled_puts_what_a_mask_hides_behind_the_visible_tokens() -> None:
    model, inputs = make(VitMaeModel, "linear")
    mask = torch.zeros(3, model.config.num_patches, dtype=torch.bool)
    mask[:, 2:7] = True
    got, expected = compiled(model)(**inputs, mask=mask), model(**inputs, mask=mask)
    visible = expected.last_hidden_state.shape[1]
    assert visible == 1 + model.config.num_patches - 5
    torch.testing.assert_close(
        got.last_hidden_state[:, :visible], expected.last_hidden_state, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [5, torch.tensor([1, 0, 12])], ids=["number", "lengths"])
def test_next_patch_prediction_with_a_prefix(prefix: Any) -> None:
    model, inputs = make(VitMaeForNextPatchPrediction, "linear")
    inputs["num_prefix_patches"] = prefix
    assert_close(compiled(model)(**inputs), model(**inputs))


@pytest.mark.parametrize("prefix", [-1, 13])
def test_a_wrong_prefix_is_refused_as_without_a_compiler(prefix: int) -> None:
    model, inputs = make(VitMaeForNextPatchPrediction, "linear")
    for given in (prefix, torch.tensor([0, 0, prefix])):
        with pytest.raises(ValueError, match="`num_prefix_patches` must be 0 to 12"):
            model(**inputs, num_prefix_patches=given)
    with pytest.raises(Exception, match="num_prefix_patches"):
        compiled(model)(**inputs, num_prefix_patches=prefix)


with_inductor = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler"
)


@pytest.mark.slow
@with_inductor
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, to transformers and itself
@pytest.mark.parametrize("kind", [VitMaeModel, VitMaeForPreTraining])
def test_flex_attention_set_at_run_time(kind: Any) -> None:
    """transformers compiles it; on a CPU it has no backward."""
    model, inputs = make(kind, "linear")
    for padding_mask in (None, some_padding(model.config)):
        inputs["padding_mask"] = padding_mask
        model.set_attn_implementation("sdpa")
        expected = model(**inputs)
        model.set_attn_implementation("flex_attention")
        with torch.no_grad():
            assert_close(model(**inputs), expected)


@pytest.mark.slow
@with_inductor
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
def test_inductor() -> None:
    model, inputs = make(VitMaeForImageClassification, "linear")
    assert_close(compiled(model, "inductor")(**inputs), model(**inputs))
