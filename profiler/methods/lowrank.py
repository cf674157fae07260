"""Low-rank methods of peft: LoRA and its relatives, saved in peft's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from profiler.errors import InputError
from profiler.methods.anatomy import (
    classifier_names,
    freeze_statistics,
    grouped_convolutions,
    target_modules,
    where_weights_are,
)
from profiler.methods.base import Method
from profiler.workload import Workload


class PeftMethod(Method):
    """A method that peft implements; subclasses say which config."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return the peft config for this backbone."""
        raise NotImplementedError

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Wrap the model by peft; the classifier is peft's own trained copy."""
        import peft

        config = self.config(model, workload)
        with where_weights_are(model):
            wrapped: nn.Module = peft.get_peft_model(model, config)
        freeze_statistics(wrapped)
        return wrapped

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Say which convolutions are left out."""
        left_out = grouped_convolutions(model)
        if not left_out:
            return []
        return [
            f"{len(left_out)} grouped (depthwise) convolutions are left as they are: "
            "peft refuses ranks that the groups do not divide"
        ]

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the adapter as ``PeftModel.from_pretrained`` reads it."""
        model.save_pretrained(str(directory))  # type: ignore[operator]

    def load(self, model: nn.Module, directory: Path) -> None:
        """Read an adapter into a model of the same method."""
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights
        from safetensors import SafetensorError

        if not (directory / "adapter_model.safetensors").is_file():
            raise InputError(f"{directory} holds no peft adapter (adapter_model.safetensors)")
        try:
            state = load_peft_weights(str(directory), device="cpu")
            outcome = set_peft_model_state_dict(model, state)
        except (SafetensorError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the adapter in {directory} does not fit: {reason}") from error
        if outcome.unexpected_keys:
            raise InputError(
                f"the adapter in {directory} does not fit: unknown {outcome.unexpected_keys[0]!r}"
            )


class Lora(PeftMethod):
    """LoRA; ``workload.dropout`` is its dropout and ``workload.scaling`` its alpha."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return a LoraConfig."""
        import peft

        return peft.LoraConfig(**self.lora_arguments(model, workload))

    def lora_arguments(self, model: nn.Module, workload: Workload) -> dict[str, Any]:
        """Return what LoRA and its variants share."""
        workload = self.resolve(workload)
        return {
            "r": workload.rank,
            "lora_alpha": workload.scaling,
            "lora_dropout": workload.dropout,
            "target_modules": target_modules(model, workload.targets),
            "modules_to_save": classifier_names(model),
        }
