"""Tiny models of every family of frozen models, with the classes of the published ones."""

from __future__ import annotations

from typing import Any

from profiler.models.frozen.catalogue import FrozenModel

_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "vocab_size": 128}  # fmt: skip
_VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 64, "image_size": 64, "patch_size": 16}  # fmt: skip


_IMAGE_TOKENS = {"paligemma": 16, "smolvlm": 4, "mobilevlm": 4}


def _model(name: str, kind: Any, package: Any, model: str, size: int, config: Any) -> FrozenModel:
    return FrozenModel(
        name=name, kind=kind, package=package, model=model, checkpoint="none", image_size=size,
        parameters_millions=0.0, parameters_source="none", image_tokens=_IMAGE_TOKENS.get(name),
        accuracies={}, config=config,
    )  # fmt: skip


TINY = {
    each.name: each
    for each in (
        _model("features", "features", "timm", "test_vit", 160, None),
        _model(
            "clip", "zero_shot", "open_clip", "", 64,
            {
                "embed_dim": 32,
                "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16,
                               "head_width": 32},
                "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2,
                             "layers": 2},
            },
        ),
        _model(
            "siglip", "zero_shot", "open_clip", "", 160,
            {
                "embed_dim": 64,
                "init_logit_bias": -10,
                "custom_text": True,
                "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit",
                               "timm_model_pretrained": False, "timm_pool": "token",
                               "timm_proj": "none"},
                "text_cfg": {"context_length": 16, "vocab_size": 128, "hf_tokenizer_name": "tiny",
                             "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 64, "heads": 2,
                             "layers": 2, "no_causal_mask": True, "proj_bias": True,
                             "pool_type": "last"},
            },
        ),
        _model(
            "paligemma", "prompted", "transformers", "paligemma", 64,
            {
                "vision_config": _VISION | {"model_type": "siglip_vision_model",
                                            "vision_use_head": False, "projection_dim": 32},
                "text_config": _TEXT | {"model_type": "gemma", "num_key_value_heads": 1,
                                        "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2,
                                        "pad_token_id": 0},
                "projection_dim": 32, "hidden_size": 32, "image_token_id": 127,
            },
        ),
        _model(
            "smolvlm", "prompted", "transformers", "smolvlm", 64,
            {
                "vision_config": _VISION,
                "text_config": _TEXT | {"model_type": "llama", "num_key_value_heads": 1,
                                        "pad_token_id": 0},
                "scale_factor": 2, "pad_token_id": 0, "image_token_id": 127,
            },
        ),
        _model(
            "mobilevlm", "prompted", "own", "mobilevlm_v2", 64,
            {"vision_config": _VISION, "text_config": _TEXT, "side": 2},
        ),
    )
}  # fmt: skip
