"""`torch.compile(fullgraph=True)` takes every class as it is, and changes no result."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForNextPatchPrediction,
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
def test_inductor() -> None:
    model, inputs = make(VitMaeForImageClassification, "linear")
    assert_close(compiled(model, "inductor")(**inputs), model(**inputs))
