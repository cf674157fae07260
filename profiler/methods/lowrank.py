"""Low-rank methods of peft: LoRA and its relatives, saved in peft's own format."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import load_peft_weights
from safetensors import SafetensorError
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

WARM_UP_STEPS, FINAL_STEPS, STEPS_BETWEEN_CUTS = 200, 1000, 10
INITIAL_RANK_FACTOR = 1.5
PAPER_STEPS = 10 * 782
"""AdaLoRA in the code of arXiv 2607.02158: init 12 for target 8, 10 epochs of 782 steps."""

RANKS_ARE_FINAL = "ranks_are_final"


class PeftMethod(Method):
    """A method that peft implements; subclasses say which config."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return the peft config for this backbone."""
        raise NotImplementedError

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Wrap the model by peft; the classifier is peft's own trained copy."""
        return self.wrap(model, self.config(model, workload))

    def wrap(self, model: nn.Module, config: Any) -> nn.Module:
        """Put peft's adapters into the model, beside the weights they adapt."""
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
        if not (directory / "adapter_model.safetensors").is_file():
            raise InputError(f"{directory} holds no peft adapter (adapter_model.safetensors)")
        try:
            state = load_peft_weights(str(directory), device="cpu")
            outcome = peft.set_peft_model_state_dict(model, state)
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


class Dora(Lora):
    """DoRA: LoRA on the direction of the weight, and a learned magnitude for each output."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return a LoraConfig with DoRA on."""
        return peft.LoraConfig(**self.lora_arguments(model, workload), use_dora=True)


class AdaLora(Lora):
    """AdaLoRA: ranks start at 1.5 times the target and are cut where they matter least.

    ``workload.rank`` is the target rank. The paper's schedule (200 steps of warm-up, the last 1,000
    at fixed ranks, a cut every 10) is scaled down for runs shorter than twice its fixed parts.
    """

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return an AdaLoraConfig for a run of the paper's length."""
        arguments = self.lora_arguments(model, workload)
        target = arguments.pop("r")
        return peft.AdaLoraConfig(
            **arguments,
            target_r=target,
            init_r=math.ceil(INITIAL_RANK_FACTOR * target),
            total_step=PAPER_STEPS,
            **rank_schedule(PAPER_STEPS),
        )

    def on_training_start(self, model: nn.Module, *, total_steps: int) -> None:
        """Fit the schedule to the length of the run."""
        config = _adapter_config(model)
        config.total_step = max(total_steps, 2)
        for name, value in rank_schedule(config.total_step).items():
            setattr(config, name, value)

    def before_zero_grad(self, model: nn.Module, *, global_step: int) -> None:
        """Update the importance of every rank and cut when it is time."""
        if getattr(model, RANKS_ARE_FINAL, False):
            return
        for name, parameter in model.named_parameters():
            if ".lora_" in name and parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                # a step skipped by the gradient scaler leaves infinities; peft would average them
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        model.base_model.update_and_allocate(global_step)  # type: ignore[union-attr, operator]

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the adapter with its ranks; a layer may have lost them all."""
        with warnings.catch_warnings():
            # peft suspects an unfinished gather of shards behind a layer of rank zero
            warnings.filterwarnings("ignore", message=".* LoRA tensor.* have invalid shape")
            super().save(model, directory)

    def load(self, model: nn.Module, directory: Path) -> None:
        """Read an adapter, cutting the ranks as they were cut when it was saved."""
        path = directory / "adapter_config.json"
        try:
            pattern = json.loads(path.read_text())["rank_pattern"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the config of an AdaLoRA adapter") from error
        if pattern:
            _adapter_config(model).rank_pattern = pattern
            setattr(model, RANKS_ARE_FINAL, True)
        super().load(model, directory)


def rank_schedule(total_steps: int) -> dict[str, int]:
    """Return AdaLoRA's tinit, tfinal and deltaT for a run of that many steps."""
    scale = min(1.0, total_steps / (2 * (WARM_UP_STEPS + FINAL_STEPS)))
    return {
        "tinit": int(WARM_UP_STEPS * scale),
        "tfinal": int(FINAL_STEPS * scale),
        "deltaT": max(1, round(STEPS_BETWEEN_CUTS * scale)),
    }


def _adapter_config(model: nn.Module) -> Any:
    return model.peft_config["default"]  # type: ignore[index]
