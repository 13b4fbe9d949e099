"""Label maps are found beside their images, in folders and in columns, and never taken for them."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from hf_vitmae.data.config import DataConfig
from hf_vitmae.data.decoding.decode import decode, decode_label_map
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import open_source, open_train_and_eval


def encoded(value: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("L", (2, 2), value).save(buffer, format)
    return buffer.getvalue()


def picture(value: int) -> dict:
    return {"bytes": encoded(value), "path": None}


def write(root: Path, **files: int) -> Path:
    """Files filled with a number each."""
    for file, value in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(encoded(value, "TIFF" if file.endswith("tif") else "PNG"))
    return root


def pairs(source: ImageSource) -> list[tuple[int, int | None]]:
    """What each image and its label map are filled with."""
    found = []
    for record in (source[i] for i in range(len(source))):
        label_map = None if record.label_map is None else decode_label_map(record.label_map)
        value = int(decode(record.encoded, 1)[0, 0, 0])
        found.append((value, None if label_map is None else int(label_map[0, 0])))
    return found


# Folders


@pytest.mark.parametrize(
    "maps", ["annotations", "annotation", "masks", "labels", "label_maps", "Masks"]
)
def test_maps_in_a_folder_beside_the_images_are_matched_by_stem(tmp_path, maps):
    files = {"images/b.jpg": 2, "images/a.x.png": 1, f"{maps}/a.x.tif": 11, f"{maps}/b.png": 12}
    write(tmp_path, **files)
    source = open_source(tmp_path, use_label_maps=True)
    assert pairs(source) == [(1, 11), (2, 12)]
    assert pairs(open_source(tmp_path)) == [(1, None), (2, None)]  # maps are no images
    assert source.class_names is None and source.map_class_names is None
    assert source[1].name == str(tmp_path / "images/b.jpg")


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize("arrays", [("images",), ("annotations",), ("images", "annotations")])
def test_images_and_maps_may_be_arrays_of_numpy(tmp_path, arrays):
    contents = {"images": [1, 2], "annotations": [11, 12]}
    for folder, found in contents.items():
        for name, value in zip("ab", found, strict=True):
            path = tmp_path / folder / f"{name}.{'npy' if folder in arrays else 'png'}"
            path.parent.mkdir(exist_ok=True)
            is_array = folder in arrays
            path.write_bytes(npy(np.full((2, 2), value, np.uint8)) if is_array else encoded(value))
    assert pairs(open_source(tmp_path, use_label_maps=True)) == [(1, 11), (2, 12)]
    assert pairs(open_source(tmp_path)) == [(1, None), (2, None)]


LAYOUTS = [
    ("images/{split}/{name}.jpg", "annotations/{split}/{name}.png"),  # as in ADE20k
    ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
]


@pytest.mark.parametrize(("image", "label_map"), LAYOUTS)
def test_splits_may_lie_below_or_above(tmp_path, image, label_map):
    files, places = {}, [("training", "a"), ("training", "b"), ("validation", "a")]
    for value, (split, name) in enumerate(places):
        files[image.format(split=split, name=name)] = value
        files[label_map.format(split=split, name=name)] = 10 + value
    config = DataConfig(source=str(write(tmp_path, **files)))
    train, evaluation = open_train_and_eval(config, 0, use_label_maps=True)
    assert evaluation is not None
    assert pairs(train) == [(0, 10), (1, 11)] and pairs(evaluation) == [(2, 12)]
    train, evaluation = open_train_and_eval(config, 0)
    assert isinstance(train, ImageSource) and isinstance(evaluation, ImageSource)
    assert pairs(train) == [(0, None), (1, None)] and pairs(evaluation) == [(2, None)]


def test_class_folders_below_the_images_stay_classes(tmp_path):
    write(tmp_path / "images", **{"cat/1.png": 1, "dog/1.png": 2})
    write(tmp_path / "masks", **{"cat/1.png": 3, "dog/1.png": 4})
    source = open_source(tmp_path)
    assert source.class_names == ("cat", "dog") and [source[i].label for i in (0, 1)] == [0, 1]
    mapped = open_source(tmp_path, use_label_maps=True)
    assert pairs(mapped) == [(1, 3), (2, 4)] and mapped.class_names is None


def test_a_split_without_maps_gives_its_images_and_says_that_it_has_none(tmp_path):
    files = {"train/images/a.png": 1, "train/masks/a.png": 2, "test/images/b.png": 3}
    write(tmp_path, **files)
    assert pairs(open_source(tmp_path, use_label_maps=True)) == [(1, 2)]
    test = open_source(tmp_path, "test")
    assert pairs(test) == [(3, None)] and test.class_names is None
    with pytest.raises(ValueError, match="test .* has no label maps; put them into a folder"):
        open_source(tmp_path, "test", use_label_maps=True)


def test_without_images_beside_it_a_folder_called_labels_is_a_class(tmp_path):
    source = open_source(write(tmp_path, **{"labels/a.png": 1, "logos/a.png": 2, "masks/a.png": 3}))
    assert source.class_names == ("labels", "logos", "masks") and len(source) == 3
    with pytest.raises(ValueError, match=r"\(columns: image, label\) has no label maps; put them"):
        open_source(tmp_path, use_label_maps=True)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"images/a.png": 0, "images/b.png": 0, "images/c.png": 0, "masks/b.png": 0},
            "no label map for 2 of its 3 images, the first is 'images/a.png'; add the maps",
        ),
        (
            {"images/b.png": 0, "masks/a.png": 0, "masks/b.png": 0},
            "no image for 1 of its 2 label maps, the first is 'masks/a.png'; add the images",
        ),
        (
            {"images/a.png": 0, "masks/a.png": 0, "loose.png": 0},
            "no label map for 1 of its 2 images, the first is 'loose.png'",
        ),
        (
            {"images/a.png": 0, "masks/a.png": 0, "labels/a.png": 0},
            "holds 'labels/a.png' and 'masks/a.png', so that .* rename or remove one",
        ),
        (
            {"images/a.png": 0, "images/a.jpg": 0, "masks/a.png": 0},
            "holds 'images/a.jpg' and 'images/a.png', so that",
        ),
        (
            {"images/train/a.png": 0, "masks/train/a.png": 0, "masks/b.png": 0},
            "has the splits train and also 'masks/b.png'",
        ),
    ],
)
def test_what_cannot_be_matched_is_named_in_one_line(tmp_path, files, line):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=line) as caught:
        open_source(tmp_path, use_label_maps=True)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert len(open_source(tmp_path)) == sum(not f.startswith(("masks", "labels")) for f in files)


def test_a_map_that_went_away_is_named(tmp_path):
    write(tmp_path, **{"images/a.png": 1, "masks/a.png": 2})
    source = open_source(tmp_path, use_label_maps=True)
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(FileNotFoundError, match="The label map .*masks/a.png' is not there; put"):
        source[0]


# Columns


def table(**columns: object) -> Dataset:
    """One row; images are filled with the number of their column, the first being 0."""
    row = {
        name: [picture(i) if isinstance(feature, Image) else "text"]
        for i, (name, feature) in enumerate(columns.items())
    }
    return Dataset.from_dict(row, features=Features(columns))


@pytest.mark.parametrize(
    "name",
    ["annotation", "label_map", "segmentation_map", "segmentation", "mask", "masks", "label"],
)
@pytest.mark.parametrize("image", ["image", "pixel_values"])
def test_a_column_with_a_usual_name_is_the_map_and_the_other_the_image(name, image):
    for dataset, expected in (
        (table(**{image: Image(), name: Image()}), (0, 1)),
        (table(**{name: Image(), "caption": Value("string"), image: Image()}), (2, 0)),
    ):
        source = open_source(dataset, use_label_maps=True)
        assert pairs(source) == [expected]
        assert (source.image_column, source.label_map_column) == (image, name)
        assert source.dataset.column_names == [image, name]  # nothing else is read for a batch
        plain = open_source(dataset)
        assert pairs(plain) == [(expected[0], None)] and plain.dataset.column_names == [image]


def test_a_map_column_is_typed_before_it_is_named():
    dataset = table(image=Image(), annotation=Value("string"), mask=Image())
    assert open_source(dataset, use_label_maps=True).label_map_column == "mask"
    untyped = Dataset.from_dict({"image": [encoded(1)], "mask": [encoded(2)]})
    assert pairs(open_source(untyped, use_label_maps=True)) == [(1, 2)]


def test_a_column_can_be_named():
    dataset = table(left=Image(), right=Image(), mask=Image())
    source = open_source(dataset, image_column="mask", label_map_column="left", use_label_maps=True)
    assert pairs(source) == [(2, 0)]
    two = table(left=Image(), right=Image())
    config = DataConfig(label_map_column="left")
    source, _ = open_train_and_eval(config, 0, source=two, use_label_maps=True)
    assert pairs(source) == [(1, 0)]  # so that the image is the other one
    assert pairs(open_source(two, label_map_column="left")) == [(1, None)]


def test_the_only_picture_is_the_image_whatever_it_is_called():
    dataset = table(mask=Image(), label=Value("string"))
    assert open_source(dataset).image_column == "mask"
    with pytest.raises(ValueError, match=r"\(columns: mask, label\) has no label maps"):
        open_source(dataset, use_label_maps=True)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"^The Dataset/train \(columns: image, label, depth\) has no label maps; put .* name"),
        ({"label_map_column": "map"}, "no column 'map'; its columns are: image, label, depth"),
        ({"label_map_column": "label"}, "Column 'label' .* does not fit"),
        ({"label_map_column": "image", "image_column": "image"}, "'image' .* cannot hold both"),
    ],
)
def test_a_missing_map_column_is_answered_with_the_columns_in_one_line(options, line):
    dataset = table(image=Image(), label=Value("string"), depth=Image())
    dataset = dataset.class_encode_column("label")
    with pytest.raises(ValueError, match=line) as caught:
        open_source(dataset, use_label_maps=True, **options)
    assert "\n" not in str(caught.value)


def test_a_row_without_a_map_is_named():
    features = Features(image=Image(), mask=Image())
    rows = {"image": [picture(0), picture(1)], "mask": [picture(0), None]}
    source = open_source(Dataset.from_dict(rows, features=features), use_label_maps=True)
    assert pairs(source.select(np.array([0]))) == [(0, 0)]
    with pytest.raises(ValueError, match=r"The Dataset/train\[1\] holds no label map; leave"):
        source[1]


def test_a_task_that_needs_label_maps_can_ask_for_them():
    dataset = table(image=Image(), mask=Image())
    open_source(dataset, use_label_maps=True).require_label_maps()
    with pytest.raises(ValueError, match="^The Dataset/train has no label maps; put .* or name"):
        open_source(dataset).require_label_maps()


# Training and evaluation


def mapped(count: int, **columns: list) -> Dataset:
    """Image i is filled with i, its map with 100 + i."""
    images = {"image": [picture(i) for i in range(count)]}
    maps = {"mask": [picture(100 + i) for i in range(count)]}
    features: dict = {"image": Image(), "mask": Image()}
    if columns:
        features["kind"] = ClassLabel(names=["a", "b"])
    return Dataset.from_dict(images | maps | columns, features=Features(features))


def test_a_hold_out_keeps_each_map_with_its_image():
    config = DataConfig(eval_share=0.3)
    train, evaluation = open_train_and_eval(config, 0, source=mapped(10), use_label_maps=True)
    assert evaluation is not None and (len(train), len(evaluation)) == (7, 3)
    found = pairs(train) + pairs(evaluation)
    assert sorted(found) == [(i, 100 + i) for i in range(10)]
    again = open_train_and_eval(config, 0, source=mapped(10), use_label_maps=True)[0]
    other = open_train_and_eval(config, 1, source=mapped(10), use_label_maps=True)[0]
    assert pairs(train) == pairs(again) != pairs(other)


def test_labels_of_whole_images_are_left_alone():
    """Whatever state they are in: classes of evaluation only, and gaps."""
    splits = DatasetDict({"train": mapped(3, kind=[0, 0, -1]), "test": mapped(2, kind=[1, 1])})
    train, evaluation = open_train_and_eval(DataConfig(), 0, source=splits, use_label_maps=True)
    assert evaluation is not None and train.labels is None and evaluation.labels is None
    assert pairs(evaluation) == [(0, 100), (1, 101)]
    assert open_source(splits["test"], use_label_maps=True).labels is None


def test_few_images_of_each_class_keep_their_maps():
    config = DataConfig(samples_per_class=1)
    dataset = mapped(6, kind=[0, 0, 0, 1, 1, 1])
    train, _ = open_train_and_eval(config, 0, source=dataset, use_label_maps=True)
    assert len(train) == 2 and all(there == 100 + value for value, there in pairs(train))
