"""Pictures as files that a page serves, each written once."""

import hashlib
import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from gradio.utils import get_upload_folder
from PIL import Image

NAME = "picture.png"


def served(picture: Image.Image) -> str:
    """The path of a picture in the folder that Gradio serves, in which it is whole at any time.

    Given a picture and not a path, Gradio 6.31 writes it into a file that is named for its content,
    over what is there, and a visitor who is reading that file gets half of it.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    content = buffer.getvalue()
    path = Path(get_upload_folder()).resolve() / hashlib.sha256(content).hexdigest() / NAME
    if path.exists():
        os.utime(path)  # Gradio removes those that were not shown for long
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `whole_or_absent`, whose unfinished files have one name for all threads.
        with TemporaryDirectory(dir=path.parent) as folder:
            (Path(folder) / NAME).write_bytes(content)
            (Path(folder) / NAME).replace(path)
    return str(path)
