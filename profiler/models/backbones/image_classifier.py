"""The base class of Vim and MambaVision: an image classifier with timm's interface.

The rest of the program reads these of any backbone: ``num_classes``, ``num_features``,
``pretrained_cfg``, ``get_classifier``, ``reset_classifier``, ``no_weight_decay``,
``forward_features`` and ``forward_head``.
"""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import Tensor, nn

from profiler.models.backbones.mamba_parameters import SCAN_PARAMETER_SUFFIXES
from profiler.models.backbones.timm_interface import IMAGENET_MEAN, IMAGENET_STD

LINEAR_STD = 0.02
"""Standard deviation of initial linear weights, as in timm's vision transformers."""


class ImageClassifier(nn.Module):
    """A backbone and a linear ``head``, which the subclass sets last.

    Args:
        num_classes: outputs; 0 for features only.
        num_features: width of the head's input.
        img_size: edge of the images in pixels.
        in_chans: channels of the images.
        crop_pct: edge of the evaluation crop over the edge of the resized image.
        first_conv: name of the first convolution.
    """

    head: nn.Module

    def __init__(
        self,
        *,
        num_classes: int,
        num_features: int,
        img_size: int,
        in_chans: int,
        crop_pct: float,
        first_conv: str,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.pretrained_cfg: dict[str, object] = {
            "num_classes": num_classes,
            "input_size": (in_chans, img_size, img_size),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "classifier": "head",
            "first_conv": first_conv,
        }
        self.default_cfg = self.pretrained_cfg

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay in the published recipes."""
        return {
            name for name, _ in self.named_parameters() if name.endswith(SCAN_PARAMETER_SUFFIXES)
        }

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a random one; ``global_pool`` is in timm's signature and ignored."""
        self.num_classes = num_classes
        reference = next(self.parameters())
        self.head = linear_head(self.num_features, num_classes).to(reference.device)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images -> features before pooling."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits, or the pooled features before the head."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> logits [batch, classes]."""
        return self.forward_head(self.forward_features(images))


def linear_head(features: int, num_classes: int) -> nn.Module:
    """Return the last linear layer; an identity if there are no classes."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(features, num_classes)
    trunc_normal_(head.weight, std=LINEAR_STD)
    nn.init.zeros_(head.bias)
    return head
