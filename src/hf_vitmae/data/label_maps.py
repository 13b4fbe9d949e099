"""Folders of images with label maps: which files are maps, and which map belongs to which image.

Images lie below a folder `images` and maps below one beside it, `annotations` for example, above or
below folders for splits; a map has its image's name up to the suffix.
"""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .files import ImageFile, is_array

IMAGE_FOLDER = "images"
LABEL_MAP_FOLDERS = ("annotations", "annotation", "label_maps", "labels", "masks")


def tell_label_maps(files: list[str]) -> list[ImageFile]:
    """Tell label maps from images by their folders, at any depth; the order is kept.

    A folder of maps beside one of images says how the whole tree is laid out. Where there is no
    such pair all files are images, whatever their folders are called.
    """
    found = [_find_kind(file) for file in files]
    sides = {(kind.parent, kind.is_label_map) for kind in found if kind is not None}
    if not any((parent, not is_label_map) in sides for parent, is_label_map in sides):
        return [ImageFile(file, file) for file in files]
    return [
        ImageFile(file, file)
        if kind is None
        else ImageFile(file, kind.parent + kind.rest, kind.is_label_map)
        for file, kind in zip(files, found, strict=True)
    ]


def tell_images(paths: list[str]) -> list[ImageFile]:
    """The images among some files, and their label maps; the order is kept.

    Arrays are images where there are no others: beside pictures they are somebody's features.
    """
    files = tell_label_maps(paths)
    if all(is_array(file.path) for file in files if not file.is_label_map):
        return files
    return [file for file in files if file.is_label_map or not is_array(file.path)]


def match_label_maps(folder: Path, images: list[ImageFile], maps: list[ImageFile]) -> list[str]:
    """The path of each image's label map.

    Raises:
        ValueError: if an image has no map, a map no image, or two files have one name.
    """
    image_of, map_of = _by_stem(folder, images), _by_stem(folder, maps)
    without_map = [image_of[stem] for stem in image_of if stem not in map_of]
    without_image = [map_of[stem] for stem in map_of if stem not in image_of]
    if without_map:
        raise ValueError(
            f"{folder} has no label map for {len(without_map)} of its {len(images)} images, the "
            f"first is {without_map[0]!r}; add the maps under the images' names, or leave these "
            "images out."
        )
    if without_image:
        raise ValueError(
            f"{folder} has no image for {len(without_image)} of its {len(maps)} label maps, the "
            f"first is {without_image[0]!r}; add the images under the maps' names, or leave these "
            "maps out."
        )
    return [map_of[stem] for stem in image_of]


class _Kind(NamedTuple):
    """A path around the first folder in it that tells images from label maps."""

    parent: str
    is_label_map: bool
    rest: str


def _find_kind(file: str) -> _Kind | None:
    *folders, name = PurePosixPath(file).parts
    for depth, folder in enumerate(folders):
        if folder.lower() in (IMAGE_FOLDER, *LABEL_MAP_FOLDERS):
            parent = "".join(f"{above}/" for above in folders[:depth])
            rest = "/".join([*folders[depth + 1 :], name])
            return _Kind(parent, folder.lower() != IMAGE_FOLDER, rest)
    return None


def _by_stem(folder: Path, files: list[ImageFile]) -> dict[str, str]:
    """Paths by place without the suffix."""
    paths: dict[str, str] = {}
    for file in files:
        stem = PurePosixPath(file.place).with_suffix("").as_posix()
        if stem in paths:
            raise ValueError(
                f"{folder} holds {paths[stem]!r} and {file.path!r}, so that label maps and images "
                "cannot be matched by name; rename or remove one."
            )
        paths[stem] = file.path
    return paths
