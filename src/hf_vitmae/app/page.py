"""The page of a viewer, made of Gradio's parts; nothing in it is fetched from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from gradio.themes import Soft
from torch import Tensor

from hf_vitmae.app.files import served
from hf_vitmae.app.viewer import SIDE, Seen, Viewer
from hf_vitmae.data.decoding.decode import BadImage
from hf_vitmae.visualize import class_palette
from hf_vitmae.visualize.answers import class_names

MAX_UPLOAD = "20mb"
DRAW = "what I draw"
HIDE = {"random patches": "random", "blocks": "block", "a grid": "grid"}
BRUSH = "#ff2fbf"
RATIO = 0.75
EDITOR_HEIGHT = 480  # pixels
CLEAN_EVERY, KEEP = 3600, 86_400  # seconds between removals of files, and that they stay
CSS = """
.gradio-container {
  width: 100% !important; max-width: 1180px !important; margin: 0 auto !important;
}
#title h1 { margin-bottom: 0; }
#examples .grid-wrap { overflow: hidden; }
#examples .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)); }
footer { display: none !important; }
"""


@dataclass(frozen=True)
class Page:
    """What a page says, beside what its viewer shows.

    Args:
        title: of the page, the model's name.
        about: what kind of model it is, in a line.
        examples: images of the model's size to begin with, (C, H, W) each.
    """

    title: str
    about: str
    examples: Sequence[Tensor] = ()


def theme() -> Any:
    """Fonts of the visitor's system, so that none is fetched."""
    return Soft(
        primary_hue="purple",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def build(viewer: Viewer, page: Page) -> gradio.Blocks:
    """The page: an image comes in on the left, and on the right is what the model makes of it."""
    opened = page.examples
    with gradio.Blocks(
        title=page.title, analytics_enabled=False, delete_cache=(CLEAN_EVERY, KEEP)
    ) as blocks:
        gradio.Markdown(f"# {page.title}\n{page.about}", elem_id="title")
        image = gradio.State(opened[0] if opened else None)
        with gradio.Row():
            with gradio.Column(scale=5):
                parts = _Inputs(viewer, opened)
            with gradio.Column(scale=6):
                shown = _Outputs(viewer)
        _connect(viewer, blocks, image, parts, shown, opened)
    return blocks


class _Inputs:
    """The left side."""

    def __init__(self, viewer: Viewer, opened: Sequence[Tensor]) -> None:
        self.file = gradio.File(
            label="Drop an image", type="filepath", height=130, elem_id="upload"
        )
        if opened:
            gradio.Markdown("or take one of these")
        self.examples = gradio.Gallery(
            [served(viewer.picture(image)) for image in opened],
            show_label=False,
            columns=6,
            height=118,
            object_fit="contain",
            buttons=[],
            allow_preview=False,
            interactive=False,
            visible=bool(opened),
            elem_id="examples",
        )
        if viewer.has_decoder:
            self.editor = self._editor(viewer)
        else:
            self.editor = gradio.Image(
                label="The image", interactive=False, buttons=["fullscreen"], elem_id="editor"
            )
        self.hide = gradio.Radio(
            [*HIDE, DRAW],
            value=next(iter(HIDE)),
            label="Hide",
            visible=viewer.has_decoder,
            elem_id="hide",
        )
        self.ratio = gradio.Slider(
            0,
            0.95,
            RATIO,
            step=0.05,
            label="Share that is hidden",
            visible=viewer.has_decoder,
            elem_id="ratio",
        )
        self.button = gradio.Button(
            "Hide other patches", visible=viewer.has_decoder, variant="primary", elem_id="again"
        )

    @staticmethod
    def _editor(viewer: Viewer) -> gradio.ImageEditor:
        return gradio.ImageEditor(
            label="Draw over what is to be hidden",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            brush=gradio.Brush(default_size=SIDE // 10, colors=[BRUSH], color_mode="fixed"),
            canvas_size=viewer.picture_size,
            fixed_canvas=True,
            height=EDITOR_HEIGHT,
            elem_id="editor",
        )


class _Outputs:
    """The right side."""

    def __init__(self, viewer: Viewer) -> None:
        names = ["Where it looks"]
        if viewer.has_decoder:
            names = ["What the model sees", "What it paints", *names, "What it did not expect"]
        self.names = names
        self.pictures = []
        for start in range(0, len(names), 2):
            with gradio.Row():
                for name in names[start : start + 2]:
                    self.pictures.append(
                        gradio.Image(
                            label=name,
                            format="png",
                            interactive=False,
                            buttons=["fullscreen"],
                            min_width=200,
                            elem_id=name.lower().replace(" ", "-"),
                        )
                    )
        self.regions = self._regions(viewer)
        self.said = gradio.Markdown(elem_id="said")
        self.classes = gradio.Label(
            label="What it takes it for", visible=viewer.has_classes, elem_id="classes"
        )
        self.nearest = gradio.Gallery(
            label="The most alike",
            columns=3,
            buttons=[],
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            visible=viewer.has_gallery,
            elem_id="nearest",
        )

    @staticmethod
    def _regions(viewer: Viewer) -> gradio.AnnotatedImage:
        names = class_names(viewer.config) if viewer.has_regions else []
        colors = class_palette(max(1, len(names))).tolist()
        return gradio.AnnotatedImage(
            label="What it finds",
            color_map={
                name: "#{:02x}{:02x}{:02x}".format(*color)
                for name, color in zip(names, colors, strict=False)
            },
            buttons=[],
            visible=viewer.has_regions,
            elem_id="regions",
        )

    @property
    def parts(self) -> list[Any]:
        return [*self.pictures, self.regions, self.said, self.classes, self.nearest]

    def values(self, seen: Seen) -> list[Any]:
        pictures = [served(seen.pictures[name]) for name in self.names]
        regions = (served(seen.picture), list(seen.regions)) if seen.regions else None
        nearest = [(served(picture), said) for picture, said in seen.nearest]
        return [*pictures, regions, seen.said, dict(seen.classes) or None, nearest]


class _Reactions:
    """What happens when a visitor does something; `shown` decides what comes back."""

    def __init__(self, viewer: Viewer, shown: _Outputs, opened: Sequence[Tensor]) -> None:
        self.viewer, self.shown, self.opened = viewer, shown, opened

    def look(
        self, image: Tensor | None, edited: Any, hide: str, ratio: float, seed: int
    ) -> list[Any]:
        """Show what the model makes of the image."""
        if image is None:
            raise gradio.Error("Drop an image first.", print_exception=False)
        drawn = _drawn(edited) if hide == DRAW else None
        if hide == DRAW and drawn is None:
            raise gradio.Error("Draw over a part of the image first.", print_exception=False)
        pattern = HIDE.get(hide, "random")
        seen = self.viewer.look(image, mask_ratio=ratio, pattern=pattern, drawn=drawn, seed=seed)
        return self.shown.values(seen)

    def draw(self, image: Tensor | None, edited: Any, hide: str, ratio: float, seed: int) -> Any:
        """Hide what was drawn; does nothing when an image came in, or all is erased."""
        if image is None or _drawn(edited) is None:
            return gradio.skip()
        return [DRAW, *self.look(image, edited, DRAW, ratio, seed)]

    def upload(self, path: str) -> tuple[Tensor, Any]:
        """Take a file; one that is no image of this kind is told, and the page stays as it is."""
        try:
            found = self.viewer.open(Path(path).read_bytes(), Path(path).name)
        except BadImage as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return found, _editable(self.viewer, found)

    def choose(self, event: gradio.SelectData) -> tuple[Tensor, Any]:
        """Take an example."""
        found = self.opened[int(event.index)]
        return found, _editable(self.viewer, found)

    def begin(self) -> Any:
        """Show the first example."""
        return _editable(self.viewer, self.opened[0])


def _connect(
    viewer: Viewer,
    blocks: gradio.Blocks,
    image: gradio.State,
    inputs: _Inputs,
    shown: _Outputs,
    opened: Sequence[Tensor],
) -> None:
    """Tell the parts of the page whom to ask."""
    reactions = _Reactions(viewer, shown, opened)
    seed = gradio.State(0)
    given, came = [image, inputs.editor, inputs.hide, inputs.ratio, seed], [image, inputs.editor]
    calm: Any = {"show_progress": "minimal", "trigger_mode": "always_last"}
    look: Any = {"fn": reactions.look, "inputs": given, "outputs": shown.parts, **calm}
    for taken in (
        inputs.file.upload(reactions.upload, inputs.file, came, **calm),
        inputs.examples.select(reactions.choose, None, came, **calm),
    ):
        taken.success(_undrawn, inputs.hide, inputs.hide).success(**look)
    inputs.hide.input(**look)
    inputs.ratio.release(**look)
    inputs.button.click(lambda seed: seed + 1, seed, seed).success(**look)
    if viewer.has_decoder:
        inputs.editor.input(reactions.draw, given, [inputs.hide, *shown.parts], **calm)
    if opened:
        blocks.load(reactions.begin, None, inputs.editor).success(**look)


def _undrawn(hide: str) -> str:
    """What is hidden of a new image, which nothing is drawn on."""
    return next(iter(HIDE)) if hide == DRAW else hide


def _editable(viewer: Viewer, image: Tensor) -> Any:
    """An image as the left side shows it."""
    picture = served(viewer.picture(image))
    if not viewer.has_decoder:
        return picture
    return {"background": picture, "layers": [], "composite": None}


def _drawn(edited: Any) -> np.ndarray | None:
    """Where something is drawn: -> bool (h, w); None if nothing is."""
    layers = (edited or {}).get("layers") or []
    strokes = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in layers]
    found = np.logical_or.reduce(strokes) if strokes else np.zeros(())
    return found if found.any() else None
