"""What a page shows of one image, without the page."""

import copy
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_vitmae.data.decoding.decode import BadImage, decode
from hf_vitmae.models.image_processing_vitmae import VitMaeImageProcessor
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForSemanticSegmentation,
    VitMaePreTrainedModel,
)
from hf_vitmae.visualize import (
    anomaly_maps,
    attention_rollout,
    heat_over,
    image_features,
    reconstruct,
)
from hf_vitmae.visualize.answers import (
    class_names,
    class_shares,
    likeliest,
    pixel_classes,
    predicts_classes,
)
from hf_vitmae.visualize.neighbors import similarity
from hf_vitmae.visualize.pictures import to_pictures

SIDE = 384  # pixels that the longer side of a picture should get
NUM_NEAREST = 6


class GalleryImage(NamedTuple):
    """An image that may be among the nearest: its file, and its class if it has one."""

    encoded: bytes
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model made of one image.

    Args:
        picture: the image as the model gets it, enlarged.
        pictures: by what they show, in the order in which they are read.
        classes: probabilities of the likeliest classes by name; empty without a classifier.
        regions: where each class is that some pixels have, bool (h, w), and what is said of it,
            the largest first; empty for a model that is not for segmentation.
        nearest: the most alike images of the gallery and what is said of them, nearest first.
        said: how much was hidden, how far off the prediction was, how long all of it took.
    """

    picture: Image.Image
    pictures: Mapping[str, Image.Image]
    classes: Mapping[str, float] = field(default_factory=dict)
    regions: Sequence[tuple[np.ndarray, str]] = ()
    nearest: Sequence[tuple[Image.Image, str]] = ()
    said: str = ""


class Viewer:
    """A model that is shown one image after another, by any number of threads.

    Args:
        model: with a decoder it is shown to paint, with a classifier to classify, with a head for
            segmentation to find classes; what any encoder attends to is shown too.
        gallery: images to look for the nearest in; those that cannot be decoded are left out.

    Raises:
        ValueError: if no image of a gallery can be decoded.
    """

    def __init__(
        self,
        model: VitMaePreTrainedModel,
        processor: VitMaeImageProcessor,
        gallery: Sequence[GalleryImage] = (),
    ) -> None:
        self.model, self.config = model, model.config
        self._looking = threading.Lock()  # a look changes the model's mode for a while
        self.processor = processor
        self._sized = copy.deepcopy(processor)  # for images that have the model's size already
        self._sized.do_resize, self._sized.value_range = False, None
        self._gallery: list[tuple[Tensor, str | None]] = []
        for encoded, label in gallery:
            with suppress(BadImage):
                self._gallery.append((self.open(encoded, "an image of the gallery"), label))
        if gallery and not self._gallery:
            raise ValueError("No image of the gallery can be decoded; choose another one.")
        if self._gallery:
            pixels = self._pixels([image for image, _ in self._gallery])
            self._features = image_features(self.model, pixels)  # (n, D)

    @property
    def has_decoder(self) -> bool:
        return hasattr(self.model, "decoder")

    @property
    def has_classes(self) -> bool:
        return hasattr(self.model, "classifier") and predicts_classes(self.config)

    @property
    def has_regions(self) -> bool:
        return hasattr(self.model, "segmentation_head")

    @property
    def has_gallery(self) -> bool:
        return bool(self._gallery)

    def some_of_gallery(self, most: int) -> list[Tensor]:
        """Images of the model's size, spread over the gallery: at most so many, (C, H, W) each."""
        number = len(self._gallery)
        most = min(most, number)
        return [self._gallery[index * number // most][0] for index in range(most)]

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of what `picture` gives."""
        height, width = self.config.image_pair
        return enlarged(Image.new("L", (width, height))).size

    def open(self, encoded: bytes, name: str) -> Tensor:
        """A file's image at the model's size: -> uint8 (C, H, W), or float32 in 0..1 of a range.

        Raises:
            BadImage: if it cannot be decoded, is too large to be trusted or has other bands.
        """
        processor = self.processor
        image = decode(encoded, processor.num_channels, name, processor.value_range)
        image = processor.resize_and_crop(image)
        return image if processor.value_range is None else image / 255

    def picture(self, image: Tensor) -> Image.Image:
        """An image of the model's size, large enough to be looked at."""
        return enlarged(to_pictures(self._sized, self._pixels([image]))[0])

    def look(
        self,
        image: Tensor,
        *,
        mask_ratio: float = 0.75,
        pattern: str = "random",
        drawn: np.ndarray | None = None,
        seed: int = 0,
    ) -> Seen:
        """Everything that the model makes of an image of its size.

        Args:
            image: (C, H, W), as `open` gives it.
            mask_ratio, pattern, seed: what is hidden of it, unless something is drawn.
            drawn: bool, of any height and width: what is hidden.

        Raises:
            ValueError: if the ratio or pattern does not exist.
        """
        with self._looking:
            return self._look(image, mask_ratio, pattern, drawn, seed)

    def _look(
        self, image: Tensor, mask_ratio: float, pattern: str, drawn: np.ndarray | None, seed: int
    ) -> Seen:
        start = time.perf_counter()
        pixel_values = self._pixels([image])  # (1, C, H, W)
        pictures: dict[str, Image.Image] = {}
        said = []
        if self.has_decoder:
            mask = None if drawn is None else self._mask(drawn)
            ratio = None if drawn is not None else mask_ratio
            given = {"mask": mask, "mask_ratio": ratio, "pattern": pattern, "seed": seed}
            (found,) = reconstruct(self.model, [image], self._sized, **given)  # pyright: ignore[reportArgumentType]
            pictures["What the model sees"] = found.masked
            pictures["What it paints"] = found.pasted
            said.append(f"{found.mask.mean():.0%} hidden")
            if found.mask.any():
                said.append(f"mean squared error there {found.error:.3f}")
        picture = to_pictures(self._sized, pixel_values)[0]
        rolled = attention_rollout(self.model, pixel_values)[0].numpy()
        pictures["Where it looks"] = heat_over(picture, rolled, 0.7)
        if self.has_decoder:
            (expected,) = anomaly_maps(self.model, [image], self._sized)  # pyright: ignore[reportArgumentType]
            pictures["What it did not expect"] = expected.picture()
        classes = self._classes(pixel_values) if self.has_classes else {}
        regions = self._regions(pixel_values) if self.has_regions else ()
        nearest = self._nearest(pixel_values) if self.has_gallery else ()
        said.append(f"{time.perf_counter() - start:.2f} s on {self.model.device.type.upper()}")
        large = {name: enlarged(one) for name, one in pictures.items()}
        return Seen(enlarged(picture), large, classes, regions, nearest, ", ".join(said))

    def _pixels(self, images: Sequence[Tensor]) -> Tensor:
        """Images of the model's size, normalised: -> (B, C, H, W)."""
        return self._sized(list(images), return_tensors="pt")["pixel_values"]

    def _mask(self, drawn: np.ndarray) -> Tensor:
        """Over pixels of the model's size: bool (h', w') -> bool (1, H, W)."""
        pixels = torch.from_numpy(drawn)[None].float()  # (1, h', w')
        return nn.functional.adaptive_max_pool2d(pixels, self.config.image_pair) > 0

    def _classes(self, pixel_values: Tensor) -> dict[str, float]:
        model = cast(VitMaeForImageClassification, self.model)
        return likeliest(class_shares(model, pixel_values)[0], class_names(self.config))

    def _regions(self, pixel_values: Tensor) -> list[tuple[np.ndarray, str]]:
        model = cast(VitMaeForSemanticSegmentation, self.model)
        found = pixel_classes(model, pixel_values)[0]  # (H, W)
        large = nn.functional.interpolate(found[None, None].float(), self.picture_size[::-1])
        ids = large[0, 0].long().numpy()  # (h, w)
        values, counts = np.unique(ids, return_counts=True)
        names = class_names(self.config)
        return [(ids == values[i], names[values[i]]) for i in np.argsort(-counts, kind="stable")]

    def _nearest(self, pixel_values: Tensor) -> list[tuple[Image.Image, str]]:
        alike = similarity(image_features(self.model, pixel_values), self._features)[0]  # (n,)
        values, places = alike.topk(min(NUM_NEAREST, len(alike)))
        found = []
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            image, label = self._gallery[place]
            said = f"{value:.2f} {label or ''}".strip()
            found.append((self.picture(image), said))
        return found


def enlarged(picture: Image.Image) -> Image.Image:
    """Each pixel a square, so that the longer side has some `SIDE` pixels, or as it is."""
    scale = max(1, round(SIDE / max(picture.size)))
    size = (picture.width * scale, picture.height * scale)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
