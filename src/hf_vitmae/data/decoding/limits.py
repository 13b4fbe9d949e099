"""What one image may cost: memory, by its header before any is taken, and time.

Files from anywhere hold decompression bombs, a few bytes that promise billions of pixels, and
damage that keeps a reader busy. Pixels of an image that is within the limits, and all that is made
of them on the way to the model, take at most about 1 GB.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from PIL import Image

from hf_vitmae.models.pictures import UnfitPicture

MAX_BYTES = 2**28  # of decoded values: 89 million pixels of 3 bytes, where Pillow begins to warn
LEAST_PIXEL_BYTES = 3  # gray may become RGB
SECONDS = 10.0
# Their decoders hold several whole pictures beside the result.
COSTLY_FORMATS = {"AVIF": 6, "BLP": 8, "JPEG2000": 6, "WEBP": 8}  # bytes that count for a pixel
# Pillow draws them by starting Ghostscript, or by what Windows has installed.
DRAWN_FORMATS = ("EPS", "WMF")


class TookTooLong(Exception):
    """Decoding an image reached the limit of time."""


def check_picture(picture: Image.Image, has_range: bool) -> None:
    """Refuse a picture by its header, before it is decoded.

    Args:
        has_range: whether its values become float32 (see `in_range`).

    Raises:
        UnfitPicture: if it needs too much memory, or another program.
    """
    if picture.format in DRAWN_FORMATS:
        raise UnfitPicture(
            f"is a drawing ({picture.format}) that only another program can read; save it as PNG."
        )
    value_bytes = 4 if picture.mode.startswith(("I;32", "F")) or picture.mode == "I" else 1
    value_bytes = 2 if ";16" in picture.mode else value_bytes
    pixel_bytes = len(picture.getbands()) * value_bytes
    pixel_bytes = max(pixel_bytes, COSTLY_FORMATS.get(picture.format or "", 0))
    check_size(picture.height, picture.width, pixel_bytes, has_range)


def check_size(height: int, width: int, pixel_bytes: int, has_range: bool = False) -> None:
    """Refuse an image that would take too much memory, or has no pixels.

    Args:
        pixel_bytes: what the values of a pixel take as they are stored.

    Raises:
        UnfitPicture: if it does.
    """
    if min(height, width) < 1:
        raise UnfitPicture(f"has {height}x{width} pixels (height x width); remove it.")
    least = 2 * LEAST_PIXEL_BYTES if has_range else LEAST_PIXEL_BYTES
    most = MAX_BYTES // max(pixel_bytes, least)
    if height * width > most:
        raise UnfitPicture(
            f"has {height}x{width} pixels (height x width), and of its kind {most:,} are the most "
            "that fit into the memory set aside for one image; cut it into smaller ones."
        )


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `TookTooLong` in a block that takes longer, as soon as Python code runs again.

    Only the main thread of a process can be interrupted, and only where the system has interval
    timers; elsewhere the block takes the time that it takes. A timer that was running goes on
    afterwards.
    """
    if not _can_interrupt():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _stop)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            remaining -= time.monotonic() - start
            signal.setitimer(signal.ITIMER_REAL, max(remaining, 1e-3), interval)


def _can_interrupt() -> bool:
    if not hasattr(signal, "setitimer"):  # Windows
        return False
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signal.SIGALRM) is not None  # None: not set from Python


def _stop(number: int, frame: FrameType | None) -> None:
    """Called each second once time is up, in case a reader swallows the first exception."""
    raise TookTooLong
