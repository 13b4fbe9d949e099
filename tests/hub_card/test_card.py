"""A card says its facts and nothing more, its metadata parses back, and its code runs."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_vitmae import VitMaeImageProcessor
from hf_vitmae.hub import card_names
from hf_vitmae.hub.card import CardFacts, Picture, Result, metadata, render, shown
from hf_vitmae.hub.card_kinds import KINDS
from hf_vitmae.hub.card_model import architecture, read_class
from hf_vitmae.hub.card_names import hub_id, model_name, public_name
from hf_vitmae.hub.card_run import duration
from hf_vitmae.models import modeling_vitmae
from hf_vitmae.models.configuration_vitmae import VitMaeConfig

REPOSITORY = "someone/small-vit"
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": (16, 24),
    "patch_size": (4, 8),
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
RESULT = Result(
    task="image-classification",
    how="kNN",
    data="photos",
    metric="accuracy",
    value=0.123456,
    spread=0.0123456,
    draws=5,
    images=12345,
)


def facts(**more: Any) -> CardFacts:
    return CardFacts(repo_id=REPOSITORY, class_name="VitMaeForPreTraining", **more)


def data_of(card: str) -> Any:
    """What the Hub reads of a card."""
    return ModelCard(card).data


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each class and an image; `bands` takes eight channels."""
    root = tmp_path_factory.mktemp("saved")
    for name in KINDS:
        save(root / name, name, VitMaeConfig(**SMALL))
    save(root / "bands", "VitMaeModel", VitMaeConfig(**SMALL, num_channels=8))
    Image.new("RGB", (30, 20), "red").save(root / "image.png")
    np.save(root / "image.npy", np.zeros((8, 20, 30), dtype=np.uint8))
    return root


def save(folder: Path, name: str, config: VitMaeConfig) -> None:
    getattr(modeling_vitmae, name)(config).save_pretrained(folder)
    VitMaeImageProcessor.for_model(config).save_pretrained(folder)


@pytest.mark.parametrize("name", [*KINDS, "bands"])
def test_the_lines_with_the_package_run(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)
    names = run_code(code_for(saved, name)[0], name)
    processed = names["inputs"]["pixel_values"]
    assert tuple(processed.shape[2:]) == SMALL["image_size"]
    if "label" in names:
        assert names["label"] in names["model"].config.id2label.values()
    if "features" in names:
        assert names["features"].shape == (1, 13, SMALL["hidden_size"])  # a CLS token and 4 x 3
    if "classes" in names:
        assert tuple(names["classes"].shape) == SMALL["image_size"]


def code_for(saved: Path, name: str) -> list[str]:
    kind = "VitMaeModel" if name == "bands" else name
    channels = 8 if name == "bands" else 3
    card = render(CardFacts(repo_id=REPOSITORY, class_name=kind, num_channels=channels))
    return [block.replace(REPOSITORY, str(saved / name)) for block in code_blocks(card)]


def run_code(code: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    return names


@pytest.mark.slow
def test_the_lines_without_the_package_run(saved: Path, tmp_path: Path) -> None:
    blocked = "import sys\nsys.modules['hf_vitmae'] = None\n"
    local = [name for name in (*KINDS, "bands") if name != "VitMaeBackbone"]  # Auto opens no folder
    program = blocked + "\n".join(code_for(saved, name)[1] for name in local)
    done = subprocess.run(
        [sys.executable, "-c", program + "\nprint('all ran')"],
        cwd=saved,
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "all ran" in done.stdout, done.stderr


def test_the_recipe_that_is_named_fits_the_size() -> None:
    from hf_vitmae.recipes import FINETUNE

    named = {
        width: re.findall(r"finetune (\S+) --model", render(facts(architecture={"width": width})))
        for width in (96, 768)
    }
    assert named == {96: ["finetune-small-data"], 768: ["finetune-base"]}
    assert {"finetune-small-data", "finetune-base"} <= set(FINETUNE)


def test_metadata_parses_back() -> None:
    told = facts(
        results=(RESULT, dataclasses.replace(RESULT, subject="random", value=0.1)),
        datasets=("user/photos",),
        base_model="google/vit",
        license="apache-2.0",
    )
    data = data_of(render(told))
    assert data.to_dict() == metadata(told).to_dict()
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert (data.license, data.datasets, data.base_model) == (
        "apache-2.0",
        ["user/photos"],
        "google/vit",
    )
    assert data.get("base_model_relation") == "finetune"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.1235)
    assert result.metric_args == {"standard_deviation": 0.01235, "draws": 5}


def test_what_is_not_known_is_left_out() -> None:
    card = render(facts())
    data = data_of(card).to_dict()
    assert set(data) == {"library_name", "pipeline_tag", "tags"}
    assert "None" not in card and "nan" not in card
    for heading in ("Training data", "## Training", "Results", "Limits", "Base model", "Conver"):
        assert heading not in card


def test_each_class_has_its_task() -> None:
    tags = {name: kind.pipeline_tag for name, kind in KINDS.items()}
    assert tags.pop("VitMaeForImageClassification") == "image-classification"
    assert tags.pop("VitMaeForSemanticSegmentation") == "image-segmentation"
    assert set(tags.values()) == {"image-feature-extraction"}
    assert all(hasattr(modeling_vitmae, name) for name in KINDS)


def test_each_class_is_opened_by_its_auto_class() -> None:
    import transformers

    for name, kind in KINDS.items():
        opened = getattr(transformers, kind.auto_class)._model_mapping[VitMaeConfig].__name__
        # Next patch prediction has none of its own: what opens it there is its encoder.
        assert (opened == name) == (not kind.remote_usage)


def test_what_is_not_finite_is_told_and_kept_out_of_the_metadata() -> None:
    card = render(facts(results=(dataclasses.replace(RESULT, value=float("nan"), spread=None),)))
    assert "| nan |" in card
    assert "model-index" not in data_of(card).to_dict()


def test_everything_that_is_told_stands_in_the_card() -> None:
    card = render(
        facts(
            architecture={"width": 12345},
            data={"images": "photos"},
            recipe={"betas": (0.9, 0.95), "steps": 1000},
            machine={"device": "cpu", "sharded": True},
            results=(RESULT,),
            pictures=(Picture(path="samples/a.png", caption="What it sees"),),
            health="flat. Stop here.",
            conversion=("Outputs differ by 1e-6.",),
            limits=("Nothing was tried.",),
        )
    )
    for line in (
        "| width | 12,345 |",
        "| images | photos |",
        "| betas | 0.9, 0.95 |",
        "| steps | 1,000 |",
        "| sharded | yes |",
        "| kNN | this model | photos | accuracy | 0.1235 | 0.01235 | 5 | 12,345 |",
        "![What it sees](samples/a.png)",
        "How it went: flat. Stop here.",
        "- Outputs differ by 1e-6.",
        "- Nothing was tried.",
    ):
        assert line in card.splitlines(), line


def test_names_cannot_break_out_of_their_cell() -> None:
    card = render(facts(data={"images": "a | b\n\n# [x](y) <script> `z`"}))
    (line,) = (line for line in card.splitlines() if line.startswith("| images"))
    assert line == r"| images | a \| b \# \[x\](y) \<script\> \`z\` |"


def test_long_words_are_cut() -> None:
    assert len(shown("word " * 100)) == 200


@pytest.mark.parametrize(
    "private",
    [
        {"data": {"images": "/home/anna/photos"}},
        {"conversion": ("Read from C:\\Users\\anna.",)},
        {"results": (dataclasses.replace(RESULT, data="/mnt/disk/photos"),)},
        {"limits": ("Ask anna@lab.org.",)},
        {"recipe": {"start": "hf_" + "a1" * 16}},
    ],
)
def test_private_facts_are_refused_in_one_line(private: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"The card of {REPOSITORY} would give away a") as caught:
        render(facts(**private))
    assert "a1a1a1a1" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_user_may_be_in_the_name_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "someone")
    assert REPOSITORY in render(facts(base_model="someone/base"))
    with pytest.raises(ValueError, match=r"the user's name \(someone\)"):
        render(facts(data={"images": "photos of someone"}))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("emoji", "emoji (embedded in hf_vitmae)"),
        ("/data/x/photos", "photos"),
        ("/data/x/photos/", "photos"),
        ("../photos", "photos"),
        ("C:\\Users\\anna\\photos", "photos"),
        ("https://host.org/a/shard-{0..9}.tar?token=secret", "shard-{0..9}.tar"),
        ("/data/train-*.parquet", "train-*.parquet"),
        ("/home/annab", "a local folder"),
        ("~", "a local folder"),
        ("~annab", "a local folder"),
        ("/", "a local folder"),
        (".", "a local folder"),
        ("D:\\", "a local folder"),
    ],
)
def test_local_images_are_named_by_their_folder_only(
    name: str, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "annab")
    assert public_name(name) == public


def test_a_model_of_a_run_is_named_by_the_run() -> None:
    assert model_name("/data/runs/first/model") == "first"
    assert model_name("google/vit", "google/vit") == "google/vit"


def test_only_what_is_on_the_hub_counts_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    assert hub_id("user/photos:small", "runs/a") == "user/photos"
    assert hub_id("user/model@main", "runs/a") == "user/model"
    for local in ("mine/photos", "runs/b", "out/model", "a/x.parquet", "/a/b", "./a/b", "emoji"):
        assert hub_id(local, "runs/a") is None, local
    assert hub_id("user/photos", "runs/a", from_hub=[]) is None
    assert hub_id("runs/b", "runs/a", from_hub=["runs/b"]) == "runs/b"


def test_parameters_are_counted_in_the_files(saved: Path, tmp_path: Path) -> None:
    model = modeling_vitmae.VitMaeForPreTraining(VitMaeConfig(**SMALL))
    count = sum(value.numel() for value in model.state_dict().values())
    encoder = sum(value.numel() for value in model.vit.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = {"architectures": ["VitMaeForPreTraining"], "image_size": [16, 24]}
    for folder in (saved / "VitMaeForPreTraining", tmp_path):
        table = architecture(folder, config)
        assert (table["parameters"], table["parameters of the encoder"]) == (count, encoder)
        assert table["images (height x width)"] == "16 x 24"


def test_damaged_weights_have_no_number(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert "parameters" not in architecture(tmp_path, {"architectures": ["VitMaeModel"]})


def test_classes_that_look_like_paths_are_only_counted(tmp_path: Path) -> None:
    config = {"architectures": ["VitMaeForImageClassification"], "id2label": {"0": "a", "1": "b"}}
    assert architecture(tmp_path, config)["names of the classes"] == "a, b"
    table = architecture(tmp_path, config | {"id2label": {"0": "/m/01yrx", "1": "/m/0bt9lr"}})
    assert table["classes"] == 2 and "names of the classes" not in table


def test_models_of_others_are_refused() -> None:
    for config in ({}, {"architectures": []}, {"architectures": ["ViTModel"]}):
        with pytest.raises(ValueError, match=r"config.json names the class .*hf-vitmae convert"):
            read_class(config)


def test_durations_are_in_the_unit_that_fits() -> None:
    assert [duration(s) for s in (1.23456, 119.9, 120, 7199, 7200)] == [
        "1.235 s",
        "119.9 s",
        "2 min",
        "120 min",
        "2 h",
    ]


def test_the_embedded_sets_are_known() -> None:
    from hf_vitmae.data.splits import DRAWN

    assert set(card_names.EMBEDDED) == {"emoji", "shapes", *DRAWN}
