"""Open saved models as a user would, in a process of its own: Auto classes and pipelines, shapes
and labels printed.

    python -m hf_vitmae.tasks.load_again PRETRAINED CLASSIFIER IMAGE

Being part of the package, it has the classes registered; elsewhere `import hf_vitmae` comes first.
"""

import sys
from typing import Any

from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging


def main(pretrained: str, classifier: str, picture: str) -> None:
    """Load all there is to load, use it on one image, and say what came out."""
    logging.disable_progress_bar()
    image = Image.open(picture)
    processor = AutoImageProcessor.from_pretrained(pretrained)
    features = AutoModel.from_pretrained(pretrained)(**processor(image, return_tensors="pt"))
    print(f"AutoModel: features {tuple(features.last_hidden_state.shape)}")
    model = AutoModelForImageClassification.from_pretrained(classifier)
    logits = model(**processor(image, return_tensors="pt")).logits
    label = model.config.id2label[logits.argmax().item()]
    print(f"AutoModelForImageClassification: {label}")
    # Without it transformers 5.23 looks for a video processor by the image processor's name, and
    # asks on the terminal whether it may run its code.
    options: dict[str, Any] = {"trust_remote_code": False}
    best = pipeline("image-classification", model=classifier, **options)(image)[0]
    print(f"pipeline: {best['label']}, score {best['score']:.3f}")
    if best["label"] != label:
        raise SystemExit(f"The pipeline says {best['label']} and the model says {label}.")
    again = pipeline("image-feature-extraction", model=pretrained, **options)(image)
    print(f"pipeline: {len(again[0])} tokens of {len(again[0][0])} features")


if __name__ == "__main__":
    main(*sys.argv[1:])
