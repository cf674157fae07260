"""The kind of a backbone, by which errors are grouped."""

from __future__ import annotations

import pytest

from planner.cost.backbone_kinds import backbone_kind


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("resnet18", "convolution"),
        ("convnext_t", "convolution"),
        ("vit_t", "attention"),
        ("swin_t", "attention"),
        ("vim_t", "scan"),
        ("mambavision_t", "scan"),
    ],
)
def test_kinds(model: str, kind: str):
    assert backbone_kind(model) == kind
