"""Try a model in the browser: drop an image, hide parts of it, see what the model makes of it."""

import os
import threading
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from PIL import Image
from torch import Tensor

from hf_vitmae.app.viewer import GalleryImage, Viewer
from hf_vitmae.data.image_source import ImageSource
from hf_vitmae.data.sources import open_source
from hf_vitmae.hub.card_names import model_name
from hf_vitmae.models.configuration_vitmae import VitMaeConfig
from hf_vitmae.models.modeling_vitmae import (
    VitMaeForImageClassification,
    VitMaeForPreTraining,
    VitMaeForSemanticSegmentation,
    VitMaeModel,
    VitMaePreTrainedModel,
)
from hf_vitmae.tasks.checkpoints import load_config, load_model, load_processor, on_device
from hf_vitmae.training import interrupts

LOOPBACK = "127.0.0.1"
NUM_EXAMPLES = 6
EXAMPLES = {1: "emoji", 3: "emoji", 8: "bands"}  # embedded sets by the channels of a model
MAX_PIXELS = 2**24  # of what a browser sends back after drawing
KINDS: dict[str, tuple[type[VitMaePreTrainedModel], str]] = {
    "VitMaeForPreTraining": (VitMaeForPreTraining, "Masked autoencoder"),
    "VitMaeForImageClassification": (VitMaeForImageClassification, "Image classifier"),
    "VitMaeForSemanticSegmentation": (VitMaeForSemanticSegmentation, "Segmentation model"),
}


@dataclass(frozen=True, kw_only=True)
class AppRequest:
    """Open a page to try a model on; it ends with Ctrl+C.

    Raises:
        ValueError: for a port or number that is none.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder or Hub id of a model."""
    port: int = 7860
    """Where the page is: http://127.0.0.1:PORT."""
    host: str = LOOPBACK
    """Address to listen on; 0.0.0.0 lets other machines in."""
    gallery: str | None = None
    """Images, a folder or another source, to show the most alike of; a visitor begins with some."""
    gallery_images: int = 1000
    """So many of them at most, spread over the gallery."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"`port` must be from 1 to 65535, got {self.port}.")
        if self.gallery_images < 1:
            raise ValueError(f"`gallery_images` must be at least 1, got {self.gallery_images}.")


def run(request: AppRequest) -> None:
    """Listen until the process is asked to stop.

    Raises:
        ImportError: without Gradio. OSError: if the port is taken. ValueError, FileNotFoundError:
            for a model or gallery that cannot be opened.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError('The page needs Gradio: pip install "hf-vitmae[app]"') from error
    blocks = make_page(request)
    launch(blocks, request)


def make_page(request: AppRequest) -> Any:
    """The page, not listening yet; the model has seen an image, so that the first look is quick."""
    from hf_vitmae.app.page import Page, build

    config = load_config(request.model)
    processor = load_processor(request.model, config)
    kind, what = KINDS.get((config.architectures or [""])[0], (VitMaeModel, "Vision Transformer"))
    model = on_device(load_model(kind, request.model, config)[0])
    viewer = Viewer(model, processor, _gallery(request) if request.gallery else ())
    examples = viewer.some_of_gallery(NUM_EXAMPLES) or _embedded_examples(viewer, config)
    if examples:
        viewer.look(examples[0])
    return build(viewer, Page(model_name(request.model), _about(config, model, what), examples))


def launch(blocks: Any, request: AppRequest) -> None:
    """Serve the page until the process is asked to stop.

    Raises:
        OSError: if the port is taken.
    """
    from hf_vitmae.app.page import CSS, MAX_UPLOAD, theme

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    blocks.queue(default_concurrency_limit=1, max_size=32, api_open=False)
    blocks.launch(
        server_name=request.host,
        server_port=request.port,
        share=False,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        theme=theme(),
        css=CSS,
        quiet=True,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        footer_links=[],
    )
    shown = LOOPBACK if request.host in ("0.0.0.0", "::") else request.host
    print(f"The page is at http://{shown}:{request.port} (Ctrl+C ends it).", flush=True)
    try:
        threading.Event().wait()
    except (KeyboardInterrupt, interrupts.Interrupted):
        print("The page is closed.")
    finally:
        blocks.close(verbose=False)


def _embedded_examples(viewer: Viewer, config: VitMaeConfig) -> list[Tensor]:
    """Some embedded images, where the model takes such."""
    source = EXAMPLES.get(config.num_channels)
    if source is None or viewer.processor.value_range is not None:
        return []
    records = open_source(source, "test", use_labels=False).examples(NUM_EXAMPLES)
    return [viewer.open(record.encoded, record.name) for record in records]


def _gallery(request: AppRequest) -> list[GalleryImage]:
    """Images and their classes."""
    source = open_source(str(request.gallery))
    return [
        GalleryImage(record.encoded, _class_name(source, record.label))
        for record in source.examples(request.gallery_images)
    ]


def _class_name(source: ImageSource, label: int | None) -> str | None:
    return None if label is None or source.class_names is None else source.class_names[label]


def _about(config: VitMaeConfig, model: VitMaePreTrainedModel, what: str) -> str:
    (height, width), (rows, columns) = config.image_pair, config.grid
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    channels = "" if config.num_channels == 3 else f" of {config.num_channels} channels"
    return (
        f"{what} with {millions:.1f} million parameters. It sees {height} x {width} pixels"
        f"{channels} as {rows} x {columns} patches."
    )
