"""How training images vary, in a recipe: every field is a flag (`--augment.mixup`, ...).

A field's docstring is the flag's help. The defaults are MAE pretraining's: crop and flip, no more.
"""

from dataclasses import dataclass

MOST_MAGNITUDE = 10.0  # of RandAugment
MOST_HUE = 0.5  # half a turn reaches every hue


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images vary; the defaults are MAE pretraining's (arXiv:2111.06377, A).

    RandAugment, three-augment, colour jitter and blur work on 256 levels: images of more depth (16
    bits, floats) are rounded to 256 levels of the model's value range where one of these is on, and
    only then. Crops, flips, turns, erasing, mixup and cutmix keep their depth.

    Raises:
        ValueError: if a number is out of range, or RandAugment and three-augment are both on.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of an image's area that a random crop covers; 1.0 1.0 takes all."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop, as a multiple of the model's own."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip, for pictures without an up, such as aerial and microscopy."""
    rotate_quarters: bool = False
    """Turn by 0, 90, 180 or 270 degrees, for such pictures; by 0 or 180 where not square."""
    rand_augment: float | None = None
    """Magnitude 0..10 of RandAugment (arXiv:1909.13719), on 8 bits; fine-tuning recipes take 9."""
    rand_augment_ops: int = 2
    """Operations that RandAugment draws for an image."""
    rand_augment_std: float = 0.5
    """Standard deviation of RandAugment's magnitude from operation to operation."""
    rand_augment_probability: float = 0.5
    """Probability that a drawn operation is applied: 0.5 in MAE's recipe, 1.0 in the paper."""
    three_augment: bool = False
    """Gray, solarised or blurred (arXiv:2204.07118), on 8 bits; its recipe adds jitter 0.3."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Most change of brightness, contrast, saturation (0.4: 0.6 to 1.4 times) and hue (turns); on 8
    bits."""
    gaussian_blur: float = 0.0
    """Probability of a blur with a standard deviation of 0.1 to 2 pixels, on 8 bits."""
    erasing: float = 0.0
    """Probability that boxes of an image become noise (arXiv:1708.04896); recipes take 0.25."""
    erasing_count: int = 1
    """Most boxes that are erased in an image; they share the erased area."""
    mixup: float = 0.0
    """Alpha of mixup (arXiv:1710.09412), which blends two images of a batch; recipes take 0.8."""
    cutmix: float = 0.0
    """Alpha of cutmix (arXiv:1905.04899): a box of another image of the batch; recipes take 1.0."""
    mixing_probability: float = 1.0
    """Probability that a batch is mixed, where mixup or cutmix is on."""
    cutmix_share: float = 0.5
    """Share of the mixed batches that get cutmix, where both are on."""

    def __post_init__(self) -> None:
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "rand_augment_probability",
            "gaussian_blur",
            "erasing",
            "mixing_probability",
            "cutmix_share",
        ):
            _check_range(name, getattr(self, name), 1.0)
        for name in ("mixup", "cutmix", "rand_augment_std"):
            _check_range(name, getattr(self, name), float("inf"))
        for name in ("rand_augment_ops", "erasing_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"augment.{name} must be at least 1, not {getattr(self, name)}.")
        self._check_color_jitter()
        if self.rand_augment is not None:
            _check_range("rand_augment", self.rand_augment, MOST_MAGNITUDE)
            if self.three_augment:
                raise ValueError(
                    f"augment.rand_augment={self.rand_augment} and augment.three_augment are two "
                    "recipes for the same; set rand_augment to None or three_augment to False."
                )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, which makes their labels soft."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixing_probability > 0

    def _check_color_jitter(self) -> None:
        if len(self.color_jitter) != 4:
            raise ValueError(
                "augment.color_jitter takes brightness, contrast, saturation and hue, "
                f"not {self.color_jitter}."
            )
        for strength in self.color_jitter[:3]:
            _check_range("color_jitter", strength, float("inf"))
        _check_range("color_jitter's hue", self.color_jitter[3], MOST_HUE)


def _check_range(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most or value == float("inf"):
        limit = "be finite and at least 0" if most == float("inf") else f"lie in 0..{most:g}"
        raise ValueError(f"augment.{name} must {limit}, not {value}.")
