"""What every converter makes of a foreign checkpoint, the model it becomes, how alike they are."""

from dataclasses import dataclass, field

from torch import Tensor

from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaePreTrainedModel


@dataclass(frozen=True)
class Converted:
    """A foreign checkpoint in our terms.

    Args:
        config: the model's.
        weights: every tensor of `kind`, under our names.
        kind: the class of the model.
        processor: how its images are prepared.
        said: for the user, what kind of checkpoint it was, and what was left out and why.
    """

    config: VitMaeConfig
    weights: dict[str, Tensor]
    kind: type[VitMaePreTrainedModel]
    processor: VitMaeImageProcessor
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """What a comparison of outputs found: in words, and in figures if two libraries took part."""

    said: list[str]
    figures: dict[str, float]


def build(converted: Converted) -> VitMaePreTrainedModel:
    """The model, in evaluation mode.

    Raises:
        ValueError: naming a tensor that is missing, surplus, or of another shape.
    """
    model = converted.kind(converted.config)
    expected, name = model.state_dict(), converted.kind.__name__
    if missing := expected.keys() - converted.weights.keys():
        raise ValueError(
            f"The checkpoint lacks {len(missing)} tensors of {name}, `{min(missing)}` the first."
        )
    if surplus := converted.weights.keys() - expected.keys():
        raise ValueError(
            f"{name} has no place for {len(surplus)} tensors of the checkpoint, "
            f"`{min(surplus)}` the first."
        )
    for key, value in converted.weights.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"`{key}` of the checkpoint is {tuple(value.shape)}, and {name} of this "
                f"configuration takes {tuple(expected[key].shape)}."
            )
    model.load_state_dict(converted.weights)
    return model.eval()
