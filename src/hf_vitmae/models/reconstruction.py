"""The masked autoencoder's losses, and what takes images to patches and back."""

from torch import Tensor

from .configuration_vitmae import VitMaeConfig
from .losses import masked_pixel_loss, pixel_targets
from .masking import PatchOrder, gather_tokens
from .patches import normalize_patches, patchify, unpatchify


class PixelReconstruction:
    """Losses over pixels of patches, and patches themselves, of a model with a `config`."""

    config: VitMaeConfig

    def forward_loss(self, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss on the hidden patches: (B, C, H, W), (B, N, P), bool (B, N) -> ()."""
        targets = pixel_targets(pixel_values, self.config.patch_pair, self.config.norm_pix_loss)
        return masked_pixel_loss(logits, targets, mask)

    def any_loss(
        self, pixel_values: Tensor, predicted: Tensor, logits: Tensor | None, order: PatchOrder
    ) -> Tensor:
        """The same loss from logits (B, N, P), or without them from `predicted` (B, N - K, P), the
        patches that come after the visible ones of an order.
        """
        if logits is not None:
            return self.forward_loss(pixel_values, logits, order.mask)
        targets = gather_tokens(self.patchify(pixel_values), order.after_visible).float()
        if self.config.norm_pix_loss:
            targets = normalize_patches(targets)[0]
        return masked_pixel_loss(predicted, targets, order.mask.gather(1, order.after_visible))

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, P), pixels in (p_h, p_w, C) order."""
        return patchify(pixel_values, self.config.patch_pair)

    def unpatchify(
        self, patches: Tensor, original_image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, N, P) -> (B, C, H, W) of `original_image_size` (height, width) or the model's."""
        height, width = original_image_size or self.config.image_pair
        patch_height, patch_width = self.config.patch_pair
        grid = (height // patch_height, width // patch_width)
        return unpatchify(patches, self.config.patch_pair, grid)
