"""The images that a person names to look at, and the picture that is made of them."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.data.sources import open_source
from hf_vitmae.hub.card_names import EMBEDDED
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.tasks.images import decode_for
from hf_vitmae.whole_or_absent import whole_or_absent

NUM_IMAGES = 6  # of a folder
WHITE = 128  # a pixel as bright as this is drawn


def shown_images(
    paths: Sequence[Path], processor: VitMaeImageProcessor, most: int = NUM_IMAGES
) -> list[Tensor]:
    """The images that can be decoded, (C, H, W) each; the others are named on the screen.

    Args:
        paths: files; a folder, or the name of an embedded set, gives some images spread over it.
        most: of each folder.

    Raises:
        ValueError: if none is named. FileNotFoundError: if a path is wrong.
        BadImage: if none can be decoded.
    """
    if not paths:
        raise ValueError("No images given; name image files or a folder of them after the model.")
    images, bad = [], []
    for name, encoded in _read(paths, most):
        try:
            images.append(decode_for(processor, encoded, name))
        except BadImage as error:
            bad.append(error)
    if not images:
        raise bad[0]
    for error in bad:
        print(f"Left out: {error}", file=sys.stderr)
    return images


def _read(paths: Sequence[Path], most: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image."""
    for path in paths:
        if path.is_dir() or (str(path) in EMBEDDED and not path.exists()):
            for record in open_source(str(path), use_labels=False).examples(most):
                yield record.name, record.encoded
        else:
            try:
                yield str(path), path.read_bytes()
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"There is no image {str(path)!r}; check the path."
                ) from None


def drawn_mask(path: Path, size: tuple[int, int], count: int) -> Tensor:
    """A picture in black and white as a mask over pixels, white = hidden: -> bool (count, H, W).

    Args:
        size: (H, W) of the images as the model gets them; the picture is stretched to it.

    Raises:
        FileNotFoundError, ValueError: if there is no such picture, or nothing is white in it.
    """
    try:
        with Image.open(path) as picture:
            drawn = picture.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no mask {str(path)!r}; check the path.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"The mask {path} is no picture that can be read: {error}.") from error
    hidden = torch.from_numpy(np.asarray(drawn) >= WHITE)  # (H, W)
    if not hidden.any():
        raise ValueError(f"Nothing is white in the mask {path}; paint what to hide in white.")
    return hidden.expand(count, -1, -1)


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a file's name asks for.

    Raises:
        ValueError: if there is none of that name.
    """
    Image.init()
    found = Image.registered_extensions().get(path.suffix.lower(), "")
    if found not in Image.SAVE:
        raise ValueError(f"{path} is no name for a picture; end it with .png.")
    return found


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all, and say where it is.

    Raises:
        ValueError: as `picture_format`.
    """
    with whole_or_absent(path) as unfinished:
        picture.save(unfinished, format=picture_format(path))
    print(f"The picture is {path}.")
