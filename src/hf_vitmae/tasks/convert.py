"""Convert a checkpoint: recognise whose it is, read it, write it for another library, compare.

Both libraries see the same image before the folder appears under its name, so what is there has the
outputs that it had before.
"""

import dataclasses
import json
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from torch import Tensor

from hf_vitmae.convert import from_mae
from hf_vitmae.convert.converted import Compared, Converted, build
from hf_vitmae.convert.pickles import load_pickle
from hf_vitmae.hub.card_names import model_name
from hf_vitmae.hub.payload import CONVERSION
from hf_vitmae.models import modeling_vitmae
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import VitMaeModel, VitMaePreTrainedModel
from hf_vitmae.tasks.checkpoints import (
    ENCODER,
    first_line,
    load_config,
    load_model,
    load_processor,
    quiet_transformers,
    save_model,
)
from hf_vitmae.tasks.other_libraries import (
    BIG_VISION,
    MAE,
    OURS,
    TIMM,
    TRANSFORMERS,
    NotCompared,
    open_model,
    our_output,
    state_dict,
)
from hf_vitmae.whole_or_absent import whole_or_absent

TRANSFORMERS_TYPES = ("vit", "vit_mae", "deit", "vit-hybrid")
SPOKEN = {OURS: "this package", MAE: "the original MAE"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
FILE_SUFFIXES = (".bin", ".ckpt", ".npz", ".pt", ".pth", ".safetensors", ".tar")  # no Hub id
DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
TOLERANCE = 1e-3  # of the largest output; float32 leaves far less, a mistaken tensor far more


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Make a checkpoint of another library one of ours, or ours one of theirs.

    SRC is a folder or Hub id of transformers, timm or this package, or a file of timm, of the
    original MAE (.pth) or of big_vision (.npz); which it is shows in its content.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder, file, or Hub id (`user/name`, `user/name@revision`) to read."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write, new or empty."""
    to: Literal["hf_vitmae", "transformers", "timm"] = "hf_vitmae"
    """Whose checkpoint to write."""
    encoder_only: bool = False
    """Leave out classifier or decoder and write a `VitMaeModel`, or what the library calls it."""
    image: Path | None = None
    """Image to compare outputs on; random pixels by default."""


def run(request: ConvertRequest) -> Path:
    """Write the folder and return where it is; it is whole, or absent after an error.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that cannot be read or expressed, a folder
        that is in use, or outputs that differ.
    """
    folder = _free_folder(request.destination)
    source = local_source(request.source)
    origin = recognise(source)
    if origin == request.to and not request.encoder_only:
        raise ValueError(
            f"{request.source} is a checkpoint of {origin} already; name another --to."
        )
    converted = read(origin, source)
    if request.encoder_only:
        converted = encoder_of(converted)
    model = build(converted)
    print(f"{request.source} is a checkpoint of {SPOKEN.get(origin, origin)}.")
    for line in converted.said:
        print(line)
    pixel_values = _pixel_values(request.image, converted)
    with whole_or_absent(folder) as unfinished:
        said = write(request.to, model, converted.processor, unfinished)
        compared = _compare(origin, source, request.to, unfinished, model, pixel_values)
        said += compared.said
        for line in said:
            print(line)
        facts = {"tensors": len(converted.weights), **compared.figures}
        _note(request, origin, facts, [*converted.said, *said], unfinished)
    print(f"{type(model).__name__} is in {folder}, for {SPOKEN.get(request.to, request.to)}.")
    return folder


def _note(
    request: ConvertRequest, origin: str, facts: dict[str, Any], said: list[str], folder: Path
) -> None:
    """Leave beside the model where it is from and what became of it, for its card."""
    name = str(request.source)
    hub_id = None if Path(name).expanduser().exists() else name.partition("@")[0]
    noted = {
        "source": name if hub_id else model_name(name),  # no path of this machine
        "hub_id": hub_id,
        "origin": SPOKEN.get(origin, origin),
        "to": SPOKEN.get(request.to, request.to),
        **facts,
        "said": said,
    }
    (folder / CONVERSION).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def local_source(source: str) -> Path:
    """The folder or file of that name; where there is none, the folder of what the Hub has.

    Raises:
        FileNotFoundError: if it looks like a Hub id and there is no such model, or it is out of
        reach.
    """
    path = Path(source).expanduser()
    if path.exists() or path.suffix in FILE_SUFFIXES or not HUB_ID.fullmatch(source):
        return path
    name, _, revision = source.partition("@")
    try:
        with quiet_transformers(keep_bars=sys.stderr.isatty()):
            for weights in (SAFETENSORS, PICKLES):
                files = [*DESCRIPTIONS, *weights]
                found = snapshot_download(name, revision=revision or None, allow_patterns=files)
                if any(any(Path(found).glob(pattern)) for pattern in weights):
                    return Path(found)
    except Exception as error:  # the client of the Hub and what it is built on raise of every kind
        raise FileNotFoundError(
            f"There is no folder or file {source!r}, and the Hub does not give a model of that "
            f"name: {_why_not(error, revision)}."
        ) from error
    raise FileNotFoundError(
        f"{source} on the Hub has no {SAFETENSORS[0]} and no {PICKLES[0]}; for a file of another "
        f"name, run `hf download {name} FILE` and name what it fetched."
    )


def _why_not(error: Exception, revision: str) -> str:
    if isinstance(error, GatedRepoError):
        return "access is to be asked for on its page, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "check the name; for a private one run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    return first_line(error).rstrip(".")


def encoder_of(converted: Converted) -> Converted:
    """The encoder alone, and what was left out."""
    if converted.kind is VitMaeModel:
        return converted
    prefix = f"{ENCODER}."
    weights = {
        name.removeprefix(prefix): value
        for name, value in converted.weights.items()
        if name.startswith(prefix)
    }
    parts = {name.split(".")[0] for name in converted.weights if not name.startswith(prefix)}
    said = [*converted.said, f"Left out {', '.join(sorted(parts))}: the encoder alone is written."]
    config = converted.config.without_pooler()
    return dataclasses.replace(
        converted, config=config, weights=weights, kind=VitMaeModel, said=said
    )


def recognise(source: Path) -> str:
    """Whose checkpoint this is, by its content.

    Raises:
        FileNotFoundError: if there is none. ValueError: if it is of an unknown kind.
    """
    if source.is_dir():
        return _recognise_folder(source)
    if not source.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint {str(source)!r}; name a folder, a file, or a model on the Hub "
            "as user/name."
        )
    if source.suffix == ".npz" or _holds_arrays(source):
        return BIG_VISION
    checkpoint = load_pickle(source)
    if from_mae.recognises(checkpoint):
        return MAE
    weights = state_dict(checkpoint)
    if any(name.startswith("patch_embed.") for name in weights):
        return TIMM
    first = ", ".join(f"`{name}`" for name in list(weights)[:3]) or "nothing"
    raise ValueError(
        f"{source} is a checkpoint of an unknown kind: it begins with {first}. Files of timm, the "
        "original MAE and big_vision are known; of other models name the folder with config.json."
    )


def read(origin: str, source: Path) -> Converted:
    """A checkpoint of a known kind in our terms.

    Raises:
        FileNotFoundError, ValueError: for one that is damaged or cannot be expressed.
    """
    try:
        with quiet_transformers():
            return READERS[origin](source)
    except (ValueError, OSError):
        raise
    except Exception as error:  # safetensors and transformers raise of every kind on damaged files
        raise ValueError(f"{source} cannot be read: {first_line(error)}") from error


def write(
    to: str, model: VitMaePreTrainedModel, processor: VitMaeImageProcessor, folder: Path
) -> list[str]:
    """Fill a folder that the library `to` opens: -> what could not be written, in words."""
    with quiet_transformers():
        if to == TRANSFORMERS:
            from hf_vitmae.convert import from_transformers

            lost = from_transformers.write(model, processor, folder)
            return [f"transformers has no place for {line}." for line in lost]
        if to == TIMM:
            from hf_vitmae.convert import from_timm

            from_timm.write_folder(model, processor, folder)
        else:
            save_model(folder, model, processor)
    return []


def _recognise_folder(folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        found = (folder / "model" / "config.json").is_file()
        mend = f"did you mean {folder / 'model'}?" if found else "name the folder of a saved model."
        raise FileNotFoundError(f"{folder} holds no model (no config.json); {mend}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch it anew.") from error
    config = config if isinstance(config, dict) else {}
    model_type = config.get("model_type")
    if model_type == VitMaeConfig.model_type:
        return OURS
    if model_type in TRANSFORMERS_TYPES:
        return TRANSFORMERS
    if "architecture" in config:
        return TIMM
    known = ", ".join((VitMaeConfig.model_type, *TRANSFORMERS_TYPES))
    raise ValueError(
        f"{folder} is a checkpoint of an unknown kind: its `model_type` is {model_type!r}. Known "
        f"are {known}, and timm's `architecture`."
    )


def _holds_arrays(source: Path) -> bool:
    """Whether this is an archive of NumPy arrays."""
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _read_ours(source: Path) -> Converted:
    config = load_config(str(source))
    name = (config.architectures or ["VitMaeModel"])[0]
    kind = getattr(modeling_vitmae, name, None)
    if not (isinstance(kind, type) and issubclass(kind, VitMaePreTrainedModel)):
        raise ValueError(f"{source} is a {name}, which is no class of this package.")
    model, new, _ = load_model(kind, str(source), config)
    if new:
        raise ValueError(f"{source} is a {name} without weights for its {', '.join(sorted(new))}.")
    processor = load_processor(str(source), config)
    return Converted(config, model.state_dict(), kind, processor, [f"A {name}."])


def _read_transformers(source: Path) -> Converted:
    from hf_vitmae.convert import from_transformers

    return from_transformers.read(str(source))


def _read_timm(source: Path) -> Converted:
    from hf_vitmae.convert import from_timm

    if source.is_dir():
        return from_timm.read(source)
    is_named = source.stem.startswith("vit")  # the file is called as timm calls the model
    weights = state_dict(load_pickle(source))
    return from_timm.read(weights, model_name=source.stem if is_named else None)


def _read_big_vision(source: Path) -> Converted:
    from hf_vitmae.convert import from_big_vision

    return from_big_vision.read(source)


READERS: dict[str, Callable[[Path], Converted]] = {
    OURS: _read_ours,
    TRANSFORMERS: _read_transformers,
    TIMM: _read_timm,
    MAE: from_mae.read,
    BIG_VISION: _read_big_vision,
}


def _compare(
    origin: str,
    source: Path,
    to: str,
    written: Path,
    model: VitMaePreTrainedModel,
    pixel_values: Tensor,
) -> Compared:
    """How far outputs before and after are apart.

    Raises:
        ValueError: if they are of different models.
    """
    noise = torch.rand(1, model.config.num_patches, generator=torch.Generator().manual_seed(1))
    noted, before, after = [], our_output(model), our_output(model)
    names = [SPOKEN[OURS], SPOKEN[OURS]]
    try:
        before, names[0] = open_model(origin, source, model), SPOKEN.get(origin, origin)
    except NotCompared as error:
        noted.append(f"Not compared with {SPOKEN.get(origin, origin)}: {error}.")
    try:
        after, names[1] = open_model(to, written, model), SPOKEN.get(to, to)
    except NotCompared as error:
        noted.append(f"Not opened with {SPOKEN.get(to, to)}: {error}.")
    with torch.no_grad():
        expected, got = before(pixel_values, noise), after(pixel_values, noise)
    difference, scale = (got - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * max(1.0, scale):
        raise ValueError(
            f"The outputs of {names[0]} and of {names[1]} differ by {difference:.2g} (they reach "
            f"{scale:.2g}), so nothing was written; the checkpoint is not what it seems."
        )
    if names[0] == names[1]:  # one library saw both: that says nothing of the conversion
        return Compared(noted, {})
    noted.append(
        f"Largest difference between the outputs of {names[0]} and of {names[1]}: "
        f"{difference:.2g} (they reach {scale:.2g})."
    )
    return Compared(noted, {"largest_difference": difference, "largest_output": scale})


def _pixel_values(image: Path | None, converted: Converted) -> Tensor:
    """What outputs are compared on: (1, C, H, W)."""
    config = converted.config
    if image is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, config.num_channels, *config.image_pair, generator=generator)
    try:
        with Image.open(image) as picture:
            return converted.processor(picture, return_tensors="pt")["pixel_values"]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {str(image)!r}; check the path.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as an image: {first_line(error)}") from error


def _free_folder(destination: Path) -> Path:
    folder = destination.expanduser().resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{destination} is there already; name a new or empty folder.")
    return folder
