"""What models of each class are for, and the lines that use one, as cards say it."""

from dataclasses import dataclass

FEATURES, CLASSIFY, SEGMENT = (
    "image-feature-extraction",
    "image-classification",
    "image-segmentation",
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the models of one class are.

    Args:
        pipeline_tag: the Hub's name of the task.
        what: the end of the sentence "A Vision Transformer ...".
        auto_class: what opens it without this package.
        usage: lines of Python, with `model`, `processor` and `inputs` there.
        remote_usage: the same for what `auto_class` opens, where that is another class.
        is_pretrained: whether fine-tuning it for a task is what it is for.
        tags: beside those of every card.
    """

    pipeline_tag: str
    what: str
    auto_class: str
    usage: tuple[str, ...]
    remote_usage: tuple[str, ...] = ()
    is_pretrained: bool = False
    tags: tuple[str, ...] = ()


_TOKENS = ("features = model(**inputs).last_hidden_state  # (1, tokens, width)",)

KINDS: dict[str, Kind] = {
    "VitMaeModel": Kind(
        pipeline_tag=FEATURES,
        what="encoder: features of an image and of each of its patches",
        auto_class="AutoModel",
        usage=_TOKENS,
        is_pretrained=True,
    ),
    "VitMaeForPreTraining": Kind(
        pipeline_tag=FEATURES,
        what="pretrained without labels as a masked autoencoder (arXiv:2111.06377): it predicts "
        "the pixels of hidden patches",
        auto_class="AutoModelForPreTraining",
        usage=(
            "outputs = model(**inputs)",
            "outputs.logits  # (1, patches, values of a patch)",
            "outputs.mask  # (1, patches), 1 where a patch was hidden",
            "features = model.vit(**inputs).last_hidden_state  # of the whole image",
        ),
        is_pretrained=True,
        tags=("mae", "masked-autoencoder"),
    ),
    "VitMaeForMaskedPatchPrediction": Kind(
        pipeline_tag=FEATURES,
        what="pretrained without labels by masked patch prediction (arXiv:2010.11929, B.1.2): it "
        "predicts the colours of corrupted patches",
        auto_class="AutoModelForMaskedImageModeling",
        usage=(
            "logits = model(**inputs).logits  # (1, patches, answers)",
            "features = model.vit(**inputs).last_hidden_state  # of the whole image",
        ),
        is_pretrained=True,
        tags=("masked-patch-prediction",),
    ),
    "VitMaeForNextPatchPrediction": Kind(
        pipeline_tag=FEATURES,
        what="pretrained without labels by next patch prediction: it predicts each patch from "
        "those before it",
        auto_class="AutoModel",
        usage=("logits = model(**inputs).logits  # (1, patches, values of a patch)",),
        remote_usage=_TOKENS,
        is_pretrained=True,
        tags=("next-patch-prediction",),
    ),
    "VitMaeForImageClassification": Kind(
        pipeline_tag=CLASSIFY,
        what="that says of which class an image is",
        auto_class="AutoModelForImageClassification",
        usage=(
            "logits = model(**inputs).logits  # (1, classes)",
            "label = model.config.id2label[logits.argmax(-1).item()]",
        ),
    ),
    "VitMaeForSemanticSegmentation": Kind(
        pipeline_tag=SEGMENT,
        what="that says of which class each pixel is",
        auto_class="AutoModelForSemanticSegmentation",
        usage=(
            "outputs = model(**inputs)",
            "(classes,) = processor.post_process_semantic_segmentation(outputs)  # (H, W)",
        ),
    ),
    "VitMaeBackbone": Kind(
        pipeline_tag=FEATURES,
        what="backbone: feature maps for detection and segmentation",
        auto_class="AutoBackbone",
        usage=("maps = model(**inputs).feature_maps",),
    ),
}
