"""The image processor: any image -> pixel values or patches, and the exact way back to a picture.

Geometry is torch arithmetic on the image's own type (`resize_and_crop`), so that evaluation and
`pipeline` see the same pixels; torchvision is never needed. A segmentation map goes through the
same geometry, and a segmentation model's logits become maps again. Shape legend: see `patches.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .patches import as_pair, denormalize_patches, grid_size, patchify, unpatchify
from .patches import normalize_patches as normalize_each_patch
from .pictures import UnfitPicture, channel_axis, in_range, match_channels, picture_to_tensor
from .resizing import (
    FULL_RANGE,
    INTERPOLATION,
    NEAREST,
    center_crop,
    fit,
    height_width,
    size_dict,
    stack,
)
from .segmentation_maps import class_ids, class_maps, maps_of_images, reduce_class_ids

ImageLike = Image.Image | np.ndarray | Tensor
Images = ImageLike | Sequence[ImageLike]
Size = int | Sequence[int] | Mapping[str, int]
FLOAT_MARGIN = 0.5  # how far a resize may overshoot 0..1; 0..255 and -1..1 images reach beyond
AXES = {"channels_first": 0, "channels_last": 2}
MOST_ASPECT = 64  # how much longer than the result, in shape, an image may be before it is resized
SAVED_WITH = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


class VitMaeImageProcessorKwargs(TypedDict, total=False):
    """Options of `VitMaeImageProcessor`: of its constructor, of one call, of `from_pretrained`."""

    do_resize: bool
    size: Size
    resample: int
    crop_pct: float
    do_center_crop: bool
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | Sequence[float]
    image_std: float | Sequence[float]
    num_channels: int
    patch_size: int | Sequence[int]
    do_convert: bool
    do_reduce_labels: bool
    value_range: Sequence[float] | None


class VitMaeImageProcessor(BaseImageProcessor):
    """Images of any kind and size -> `pixel_values` float32 (B, C, H, W) for every `VitMae` model.

    Args:
        do_resize: bring every image to `size`; else only cut it to a whole number of patches.
        size: output: an int, (height, width) or {"height", "width"}; a whole number of patches.
        resample: 0 nearest, 2 bilinear, 3 bicubic, as in `PIL.Image.Resampling`; antialiased.
        crop_pct: share of `size` in what the resize covers: it covers `size / crop_pct`.
        do_center_crop: resize keeping the aspect, then crop the centre; else stretch to `size`.
        do_rescale: bring the full range of the image's type (uint8 0..255, uint16 0..65535, float
            0..1) to 0..255 * `rescale_factor`. Without it values are taken as they are.
        image_mean, image_std: per channel, after rescaling; one number or equal ones fit any count.
        num_channels, patch_size: those of the model; a patch is an int or (height, width).
        do_convert: with 1 or 3 channels, make luma or RGB of any picture: transparency becomes
            white, gray is repeated. Without it, or with another count, channels must match.
            (transformers' pipelines drop transparency before they call a processor.)
        do_reduce_labels: in segmentation maps, class 0 is ignored (255), 1 becomes 0, and so on.
        value_range: (low, high), the stored values of images of any type that count as 0 and 255;
            what lies beyond is clipped, and depth is kept. None is the full range of each type.
    """

    _auto_class = "AutoImageProcessor"  # so that its code travels with it
    valid_kwargs = VitMaeImageProcessorKwargs

    def __init__(
        self,
        *,
        do_resize: bool = True,
        size: Size = 224,
        resample: int = Image.Resampling.BICUBIC,
        crop_pct: float = 1.0,
        do_center_crop: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        num_channels: int = 3,
        patch_size: int | Sequence[int] = 16,
        do_convert: bool = True,
        do_reduce_labels: bool = False,
        value_range: Sequence[float] | None = None,
        **saved_with: Any,
    ):
        if unknown := sorted(saved_with.keys() - SAVED_WITH):
            options = ", ".join(VitMaeImageProcessorKwargs.__annotations__)
            raise TypeError(f"VitMaeImageProcessor has no option {unknown}; it has {options}.")
        super().__init__(**saved_with)
        self.do_resize = do_resize
        self.size = size_dict(size)
        self.resample = int(resample)
        self.crop_pct = crop_pct
        self.do_center_crop = do_center_crop
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = _per_channel("image_mean", image_mean, num_channels)
        self.image_std = _per_channel("image_std", image_std, num_channels)
        self.num_channels = num_channels
        self.patch_size = patch_size if isinstance(patch_size, int) else list(patch_size)
        self.do_convert = do_convert
        self.do_reduce_labels = do_reduce_labels
        self.value_range = None if value_range is None else [float(end) for end in value_range]
        self._validate()

    @classmethod
    def for_model(cls, config: Any) -> "VitMaeImageProcessor":
        """The processor of a model's geometry and of its pixels' `image_mean` and `image_std`."""
        names = ("patch_size", "num_channels", "image_mean", "image_std")
        return cls(size=config.image_size, **{name: getattr(config, name) for name in names})

    def _validate(self) -> None:
        """Raise `ValueError` for options that cannot be meant."""
        if self.resample not in INTERPOLATION:
            raise ValueError(f"resample={self.resample} must be one of {INTERPOLATION}.")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} must be above 0 and at most 1.")
        if self.crop_pct < 1 and not (self.do_resize and self.do_center_crop):
            raise ValueError(f"crop_pct={self.crop_pct} needs do_resize and do_center_crop.")
        ends = self.value_range
        if ends is not None and not (len(ends) == 2 and -np.inf < ends[0] < ends[1] < np.inf):
            raise ValueError(f"value_range={ends} must be two finite numbers, (low, high).")
        patch_size = as_pair(self.patch_size)
        positive = {"size": self._target, "patch_size": patch_size, "image_std": self.image_std}
        for name, values in positive.items():
            if min(values) <= 0:
                raise ValueError(f"{name}={values} must be positive.")
        if self.do_resize:
            grid_size(self._target, patch_size)

    def preprocess(
        self,
        images: Images,
        segmentation_maps: Images | None = None,
        *,
        return_tensors: str | None = None,
        return_patches: bool = False,
        normalize_patches: bool = False,
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Images -> `pixel_values` (B, C, H, W); when asked, `patches` (B, N, P), `grid` (h, w).

        With segmentation maps also `labels`, int64 (B, H, W), pixel by pixel those of the images.

        Args:
            images: PIL images, turned upright by their EXIF; uint8, uint16 or float arrays or
                tensors (H, W), (H, W, C), (C, H, W) or batches (B, ...); one or a list.
            segmentation_maps: class ids, one map of the same size for each image: PIL images of one
                band ("P" gives its indices), each turned by its own EXIF only; integer arrays or
                tensors (H, W) or batches (B, H, W); one or a list.
            return_tensors: "pt" or "np"; None gives lists of tensors (C, H, W) and (H, W).
            return_patches: cut the normalised images into patches too.
            normalize_patches: normalise each patch by its own `patch_mean`, `patch_std` (B, N, 1).
            input_data_format: "channels_first" or "channels_last", where the shape does not tell.
            overrides: options of the constructor, for this call.

        Raises:
            ValueError: for an image that does not fit, a map unlike its image, or several sizes
            where one is needed.
        """
        if normalize_patches and not return_patches:
            raise ValueError("normalize_patches=True needs return_patches=True.")
        options = {name: getattr(self, name) for name in VitMaeImageProcessorKwargs.__annotations__}
        settings = type(self)(**{**options, **overrides})
        tensors = [settings._to_tensor(image, input_data_format) for image in _flatten(images)]
        pixel_values = [settings.normalize(settings.resize_and_crop(image)) for image in tensors]
        features = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            maps = map(settings.reduce_labels, maps_of_images(segmentation_maps, tensors))
            features["labels"] = [settings.resize_and_crop_map(one) for one in maps]  # (H', W')
        if return_tensors is None and not return_patches:
            return BatchFeature(features)
        data: dict[str, Any] = {name: stack(values) for name, values in features.items()}
        if return_patches:
            batch = data["pixel_values"]  # (B, C, H, W)
            data["patches"] = patchify(batch, settings.patch_size)  # (B, N, P)
            data["grid"] = grid_size(height_width(batch), as_pair(settings.patch_size))
        if normalize_patches:
            patches, mean, std = normalize_each_patch(data["patches"])
            data |= {"patches": patches, "patch_mean": mean, "patch_std": std}
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["grid"])

    def __call__(
        self, images: Images, segmentation_maps: Images | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, segmentation_maps, **kwargs)

    def resize_and_crop(self, image: Tensor) -> Tensor:
        """The one geometric transform: (C, H, W) -> (C, H', W'), of the same type.

        H', W' are `size` exactly or, without `do_resize`, the largest whole numbers of patches.
        """
        image = self._fit(image, INTERPOLATION[self.resample])
        return image if self.value_range is None else image.clamp(0, 255)  # bicubic overshoots

    def resize_and_crop_map(self, class_map: Tensor) -> Tensor:
        """`resize_and_crop` for class ids, nearest and exact: (H, W), (1, H, W) -> int64 (H', W').

        Raises:
            ValueError: if it is not one map of integers.
        """
        return self._fit(class_ids(class_map)[None], NEAREST)[0]

    def reduce_labels(self, class_map: Tensor) -> Tensor:
        """Apply `do_reduce_labels` to class ids: (..., H, W) -> int64, same shape."""
        return reduce_class_ids(class_map) if self.do_reduce_labels else class_map.long()

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[Sequence[int]] | Tensor | None = None
    ) -> list[Tensor]:
        """`outputs.logits` (B, num_labels, H, W) -> for each image its classes, int64 (H', W').

        Args:
            target_sizes: (height, width) of each map, to which the logits are stretched. It should
                be the picture's size only with `do_center_crop=False`: otherwise the model saw a
                crop, whose map stretched over the whole picture is displaced.

        Raises:
            ValueError: if the sizes are not one for each image.
        """
        return class_maps(outputs.logits, target_sizes)

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """Rescale, normalise, on any device: (B, C, H, W) or (C, H, W) -> float32, same shape."""
        self._check_channels(pixel_values)
        values = pixel_values.to(torch.float32, copy=True)  # one copy, which what follows changes
        if self.do_rescale:
            white = 1 if self.value_range is None else 255  # of floats
            values *= self._white / FULL_RANGE.get(pixel_values.dtype, white)
        if self.do_normalize:
            values -= _column(self.image_mean, values)
            values /= _column(self.image_std, values)
        return values

    def denormalize(self, pixel_values: Tensor) -> Tensor:
        """Undo `normalize`: (B, C, H, W) or (C, H, W) -> float32, same shape, clipped to 0..1."""
        self._check_channels(pixel_values)
        values = pixel_values.float()
        if self.do_normalize:
            values = values * _column(self.image_std, values) + _column(self.image_mean, values)
        return (values / self._white).clamp(0, 1)

    def to_pil(self, pixel_values: Tensor, channels: Sequence[int] = ()) -> list[Image.Image]:
        """Pixel values (B, C, H, W) or (C, H, W) -> PIL images: "L" of 1 channel, "RGB" of 3.

        Args:
            channels: the ones to show, (red, green, blue) or (gray,); needed for other counts.
        """
        values = self.denormalize(pixel_values)
        if channels:
            values = values[..., list(channels), :, :]
        if (count := values.shape[-3]) not in (1, 3):
            raise ValueError(f"{count} channels make no picture; pass channels=(red, green, blue).")
        pictures = (values * 255).round().to(torch.uint8).cpu().reshape(-1, *values.shape[-3:])
        return [Image.fromarray(picture.movedim(0, -1).squeeze(-1).numpy()) for picture in pictures]

    def patches_to_images(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        patch_mean: Tensor | None = None,
        patch_std: Tensor | None = None,
    ) -> Tensor:
        """Patches, un-normalised with both statistics, to `pixel_values`: -> (B, C, H, W)."""
        if (patch_mean is None) != (patch_std is None):
            raise ValueError("Give both patch_mean and patch_std, or neither.")
        if patch_mean is not None and patch_std is not None:
            patches = denormalize_patches(patches, patch_mean, patch_std)
        return unpatchify(patches, self.patch_size, grid)

    @property
    def _target(self) -> tuple[int, int]:
        return self.size["height"], self.size["width"]

    @property
    def _white(self) -> float:
        """White of an 8-bit image after rescaling."""
        return 255 * self.rescale_factor if self.do_rescale else 255.0

    def _fit(self, image: Tensor, mode: str) -> Tensor:
        size = self._target if self.do_resize else None
        share = self.crop_pct if self.do_center_crop else None
        if size is not None and share is not None:
            image = _near_centre(image, size)
        return fit(image, size, as_pair(self.patch_size), mode, share)

    def _to_tensor(self, image: ImageLike, data_format: str | None) -> Tensor:
        """One image -> (C, H, W) with C = `num_channels`, of its own type if without a range."""
        try:
            return self._read(image, data_format)
        except UnfitPicture as error:
            raise ValueError(f"An image {error}") from error

    def _read(self, image: ImageLike, data_format: str | None) -> Tensor:
        convert = self.do_convert and self.num_channels in (1, 3)
        if isinstance(image, Image.Image):
            return picture_to_tensor(image, self.num_channels, convert, self.value_range)
        tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        counts = (self.num_channels, 1, 3) if convert else (self.num_channels,)
        tensor = _channels_first(tensor, counts, data_format)
        if self.value_range is None and tensor.is_floating_point():
            tensor = tensor.float()
        tensor = match_channels(tensor, self.num_channels) if convert else tensor
        self._check_channels(tensor)
        if self.value_range is not None:
            return in_range(tensor, self.value_range)
        _check_values(tensor, unit_range=self.do_rescale)
        return tensor

    def _check_channels(self, pixel_values: Tensor) -> None:
        count, expected = pixel_values.shape[-3], self.num_channels
        if count != expected:
            raise ValueError(f"{count} channels, but num_channels={expected}; convert the image.")


def _per_channel(name: str, value: float | Sequence[float], num_channels: int) -> list[float]:
    """One number per channel; a single number, or equal ones, fit any count."""
    values = [float(number) for number in np.atleast_1d(value)]
    if len(set(values)) == 1:
        return values[:1] * num_channels
    if len(values) != num_channels:
        raise ValueError(f"{name}={values} does not fit num_channels={num_channels}.")
    return values


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None, None]  # (C, 1, 1)


def _flatten(images: Any) -> list[ImageLike]:
    """Images, batches and lists of these as one flat list of single images."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in _flatten(item)]
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, np.ndarray | Tensor):
        raise ValueError(f"{images!r:.80} is not a PIL image, an array or a tensor.")
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise ValueError(f"Shape {tuple(images.shape)} is neither an image nor a batch of images.")
    return list(images) if images.ndim == 4 else [images]


def _near_centre(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a thin strip, which would be billions of pixels long: (C, H, W) -> (C, H', W')."""
    height, width = height_width(image)
    most_height = max(1, MOST_ASPECT * width * size[0] // size[1])
    most_width = max(1, MOST_ASPECT * height * size[1] // size[0])
    return center_crop(image, (min(height, most_height), min(width, most_width)))


def _channels_first(image: Tensor, counts: Sequence[int], data_format: str | None) -> Tensor:
    """An array image -> (C, H, W); unless told, C is the first of `counts` at just one end."""
    if image.ndim == 2:
        return image[None]
    counted = channel_axis(image.shape, counts)
    axis = counted if data_format is None else AXES.get(data_format)
    if axis is None:
        raise ValueError(
            f"Cannot tell the {counts[0]} channels in shape {tuple(image.shape)}; pass input_data_"
            f"format as one of {list(AXES)}, or a PIL image if it has transparency."
        )
    return image.movedim(axis, 0)


def _check_values(image: Tensor, unit_range: bool) -> None:
    """Raise `ValueError` for a type without a known range, or a float image not in 0..1."""
    if image.dtype in FULL_RANGE:
        return
    if not image.is_floating_point():
        raise ValueError(f"An image of type {image.dtype} must become uint8, uint16 or float 0..1.")
    low, high = image.min().item(), image.max().item()
    if unit_range and not (low > -FLOAT_MARGIN and high < 1 + FLOAT_MARGIN):  # finds NaN too
        raise ValueError(
            f"A float image must be in 0..1, but has values {low:g}..{high:g}; scale it, or pass "
            "do_rescale=False to take the values as they are."
        )
