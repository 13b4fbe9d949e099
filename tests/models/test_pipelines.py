"""transformers' pipelines and `AutoImageProcessor` take a saved folder as it is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)

from ..small import write_images
from .tiny import RECTANGULAR, stir, tiny_config

CLASSES = {
    "image-classification": VitMaeForImageClassification,
    "image-feature-extraction": VitMaeForPreTraining,  # its encoder alone answers
    "image-segmentation": VitMaeForSemanticSegmentation,
}
NAMES = ("ash", "birch", "cedar", "dogwood")
NUM_PATCHES = 12


@pytest.fixture(scope="module", params=CLASSES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline's name and the folder of a model for it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / request.param
    config = tiny_config(
        **RECTANGULAR,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    model = CLASSES[request.param](config)
    stir(model)
    save(model, folder)
    return request.param, folder


def save(model: VitMaePreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    VitMaeImageProcessor.for_model(model.config).save_pretrained(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_images(tmp_path_factory.mktemp("photos"), 3, ".png").iterdir())


def open_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def by_hand(task: str, folder: Path, path: Path) -> Any:
    """What the pipeline should answer for one picture, from the model's own output."""
    processor = VitMaeImageProcessor.from_pretrained(folder)
    picture = open_picture(path)
    inputs = processor(picture, return_tensors="pt")
    kind = VitMaeModel if task == "image-feature-extraction" else CLASSES[task]
    with torch.no_grad():
        output = kind.from_pretrained(folder)(**inputs)
    if task == "image-feature-extraction":
        return output.last_hidden_state.tolist()
    if task == "image-classification":
        scores = output.logits[0].softmax(-1).tolist()
        best_first = np.argsort(scores)[::-1]
        return [{"label": NAMES[i], "score": scores[i]} for i in best_first]
    size = [(picture.height, picture.width)]
    (classes,) = processor.post_process_semantic_segmentation(output, size)
    return [(NAMES[i], (classes == i).numpy()) for i in classes.unique().tolist()]


def plain(task: str, answer: Any) -> Any:
    """An answer of the pipeline in the form of `by_hand`."""
    if task == "image-segmentation":
        return [(one["label"], np.asarray(one["mask"]) == 255) for one in answer]
    return answer


def assert_same(got: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Equal structure and text, and numbers within the tolerance."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        assert_same(list(got.values()), list(expected.values()), tolerance)
    elif isinstance(expected, (list, tuple)) and not isinstance(expected[0], float):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, str):
        assert got == expected
    else:
        np.testing.assert_allclose(
            np.asarray(got, float), np.asarray(expected, float), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize(
    "ask",
    [
        lambda ask, paths: [ask(open_picture(path)) for path in paths],
        lambda ask, paths: [ask(str(path)) for path in paths],
        lambda ask, paths: ask([open_picture(path) for path in paths]),
        lambda ask, paths: ask([str(path) for path in paths], batch_size=2),
        lambda ask, paths: list(ask(open_picture(path) for path in paths)),
        lambda ask, paths: list(ask((str(path) for path in paths), batch_size=2)),
    ],
    ids=["pictures", "paths", "list", "batch", "generator", "batched-generator"],
)
def test_however_pictures_come_the_answers_are_the_models(
    ask: Callable[..., list], saved: tuple[str, Path], photos: list[Path]
) -> None:
    task, folder = saved
    answer: Any = pipeline(task, model=str(folder))  # type: ignore[call-overload]
    expected = [by_hand(task, folder, path) for path in photos]
    first = [plain(task, one) for one in ask(answer, photos)]
    assert_same(first, expected, tolerance=1e-5)
    again = [plain(task, one) for one in ask(answer, photos)]
    assert_same(again, first)  # nothing is drawn
    with pytest.raises(AssertionError):  # the pictures differ, so an order can be told
        assert_same(first[::-1], expected, tolerance=1e-5)


def test_the_best_labels_come_by_name_best_first(tmp_path: Path, photos: list[Path]) -> None:
    config = tiny_config(id2label=dict(enumerate(NAMES)))
    model = VitMaeForImageClassification(config)
    with torch.no_grad():  # whatever the picture
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    save(model, tmp_path)
    classify: Any = pipeline("image-classification", model=str(tmp_path))
    answers = classify(str(photos[0]), top_k=3)
    assert [answer["label"] for answer in answers] == ["birch", "dogwood", "cedar"]
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0]).softmax(0)[:3].tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(scores)


def test_features_are_those_of_all_patches_in_raster_order(tmp_path: Path) -> None:
    config = tiny_config(**RECTANGULAR)
    save(VitMaeForPreTraining(config), tmp_path)
    extract: Any = pipeline("image-feature-extraction", model=str(tmp_path))
    pixels = np.full((16, 24, 3), 90, np.uint8)
    plain_features = extract(Image.fromarray(pixels), return_tensors=True)  # (1, 1 + N, D)
    assert plain_features.shape == (1, 1 + NUM_PATCHES, config.hidden_size)
    for patch in range(NUM_PATCHES):
        row, column = divmod(patch, 3)
        changed = pixels.copy()
        changed[row * 4 : row * 4 + 4, column * 8 : column * 8 + 8] = (250, 0, 120)
        features = extract(Image.fromarray(changed), return_tensors=True)
        distances = (features - plain_features)[0, 1:].norm(dim=1)
        assert distances.argmax() == patch


def test_pooled_features(tmp_path: Path, photos: list[Path]) -> None:
    model = VitMaeForPreTraining(tiny_config(pooling="mean")).eval()
    save(model, tmp_path)
    extract: Any = pipeline("image-feature-extraction", model=str(tmp_path))
    inputs = VitMaeImageProcessor.from_pretrained(tmp_path)(
        open_picture(photos[0]), return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.vit(**inputs).pooler_output
    assert_same(extract(str(photos[0]), pool=True), expected.tolist(), tolerance=1e-6)


# torchvision

STUBS = {
    "__init__.py": "__version__ = '0.27.0'\n",
    "io.py": "",
    "transforms/__init__.py": (
        "from enum import Enum\n"
        "NAMES = ('nearest', 'nearest-exact', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')\n"
        "InterpolationMode = Enum(\n"
        "    'InterpolationMode', {name.upper().replace('-', '_'): name for name in NAMES}\n"
        ")\n"
    ),
    "transforms/functional.py": (
        "def pil_to_tensor(*arguments):\n    raise AssertionError('torchvision was used')\n"
    ),
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": (
        "def __getattr__(name):\n    raise AttributeError(f'torchvision was used: {name}')\n"
    ),
}

# Run in a process of its own: transformers decides once what is installed.
PROGRAM = """
import sys

folder, picture, output, is_there = *sys.argv[1:4], sys.argv[4] == "True"
if not is_there:
    sys.modules["torchvision"] = None
import numpy as np
from PIL import Image
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils.import_utils import is_torchvision_available

assert is_torchvision_available() == is_there
image, values = Image.open(picture), []
for options in ({"trust_remote_code": True}, {}, {"backend": "pil"}, {"backend": "torchvision"}):
    if "trust_remote_code" not in options:
        import hf_vitmae
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    assert type(processor).__name__ == "VitMaeImageProcessor", type(processor)
    values.append(processor(image, return_tensors="np")["pixel_values"])
assert ("transformers_modules" in sys.modules) and len(values) == 4
answers = pipeline("image-classification", model=folder)(picture)
np.savez(output, values=np.stack(values), best=answers[0]["label"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [False, True])
def test_the_image_processor_opens_with_and_without_torchvision(
    is_there: bool, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in STUBS.items():
        file = tmp_path / "installed" / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if is_there:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = tiny_config(**RECTANGULAR, id2label=dict(enumerate(NAMES)))
    folder, output = tmp_path / "model", tmp_path / "out.npz"
    save(VitMaeForImageClassification(config), folder)
    arguments = [str(folder), str(photos[0]), str(output), str(is_there)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    processor = VitMaeImageProcessor.from_pretrained(folder)
    expected = processor(open_picture(photos[0]), return_tensors="np")["pixel_values"]
    with np.load(output) as found:
        assert np.array_equal(found["values"], np.stack([expected] * 4))
        best = by_hand("image-classification", folder, photos[0])[0]["label"]
        assert str(found["best"]) == best
