"""A sweep shows the same image under every mask, and what the model makes of it."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_vitmae import VitMaeConfig, VitMaeForPreTraining
from hf_vitmae.visualize import mask_sweep, reconstruct, sweep
from hf_vitmae.visualize.panel import PanelRow


def tiny(**overrides: Any) -> VitMaeForPreTraining:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    return VitMaeForPreTraining(
        VitMaeConfig(image_size=16, patch_size=4, **sizes, **decoder, **overrides)
    )


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[PanelRow]:
    """What the panel is made of, as soon as one is drawn."""
    seen: list[PanelRow] = []
    draw = sweep.picture_panel

    def watched(given: list[PanelRow], *rest: Any, **options: Any) -> Any:
        seen.extend(given)
        return draw(given, *rest, **options)

    monkeypatch.setattr(sweep, "picture_panel", watched)
    return seen


def gray(picture: Any) -> np.ndarray:
    """Where a picture is hidden."""
    return (np.asarray(picture) == 128).all(axis=2)


def images() -> torch.Tensor:
    return torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)


def test_a_higher_ratio_hides_the_same_patches_and_more(rows: list[PanelRow]) -> None:
    mask_sweep(tiny(), images(), ratios=(0.25, 0.5, 0.75))
    assert len(rows) == 4  # two for each image
    for masked, pasted in (rows[:2], rows[2:]):
        names = ["input", "random 25%", "random 50%", "random 75%"]
        assert list(masked.pictures) == list(pasted.pictures) == names
        first, second, third = (gray(masked.pictures[name]) for name in names[1:])
        assert [hidden.mean() for hidden in (first, second, third)] == [0.25, 0.5, 0.75]
        assert (second | ~first).all()
        assert (third | ~second).all()


def test_patterns_are_those_of_reconstruct(rows: list[PanelRow]) -> None:
    model, given = tiny(), images()
    mask_sweep(model, given, ratios=(0.75,), patterns=("block", "grid"), seed=3)
    for pattern in ("block", "grid"):
        found = reconstruct(model, given, mask_ratio=0.75, pattern=pattern, seed=3)
        shown = rows[3].pictures[f"{pattern} 75%"]
        assert shown.tobytes() == found[1].pasted.tobytes()
    hidden = reconstruct(model, given, mask_ratio=0.75, pattern="grid")[0].mask
    assert (hidden.reshape(2, 2, 2, 2).sum(axis=(1, 3)) == 3).all()  # one visible in every 2 x 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratios": ()}, "one ratio and one pattern"),
        ({"patterns": ("stars",)}, "random, block, grid, got 'stars'"),
        ({"ratios": (1.5,)}, "1.5"),
    ],
)
def test_a_wrong_sweep_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mask_sweep(tiny(), images(), **options)
