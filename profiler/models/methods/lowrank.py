"""Low-rank methods of peft: LoRA and its relatives, saved in peft's own format."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, cast

import peft
import torch
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from torch import nn

from profiler.errors import InputError, UsageError
from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.methods.base import Method
from profiler.models.methods.target_layers import (
    BatchNorm,
    freeze_statistics,
    grouped_convolutions,
    on_meta_if_fake,
    target_modules,
    where_weights_are,
)
from profiler.workload import Workload

ADALORA_WARM_UP_STEPS, ADALORA_FINAL_STEPS, STEPS_BETWEEN_CUTS = 200, 1000, 10
INITIAL_RANK_FACTOR = 1.5
PAPER_STEPS = 10 * 782
"""AdaLoRA in the code of arXiv 2607.02158: init 12 for target 8, 10 epochs of 782 steps."""

RANKS_ARE_FINAL = "ranks_are_final"
IMPORTANCE_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""What peft's rank allocator remembers of earlier steps."""


class PeftMethod(Method):
    """A method that peft implements; subclasses say which config."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return the peft config for this backbone."""
        raise NotImplementedError

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Wrap the model by peft; the classifier is peft's own trained copy."""
        return self.wrap(model, self.config(model, workload))

    def wrap(self, model: nn.Module, config: Any) -> nn.Module:
        """Put peft's adapters into the model, beside the weights they adapt.

        Raises:
            UsageError: peft refuses this backbone or these targets.
        """
        with on_meta_if_fake(model) as outermost:
            with where_weights_are(model), self.refusals_of_peft():
                wrapped: nn.Module = peft.get_peft_model(model, config)
            outermost.append(wrapped)
        freeze_statistics(wrapped)
        return wrapped

    @contextmanager
    def refusals_of_peft(self) -> Iterator[None]:
        """Turn what peft raises at bad input into one line for the user."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{self.name} is not possible here: peft says {reason}") from error

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Say which convolutions are left out, and what becomes of BatchNorm."""
        notes = []
        left_out = grouped_convolutions(model)
        if left_out:
            notes.append(
                f"{len(left_out)} grouped (depthwise) convolutions are left as they are: "
                "peft refuses ranks that the groups do not divide"
            )
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            notes.append("BatchNorm's running statistics stay those of the pretrained backbone")
        return notes

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


def exact_targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """Say to peft that these modules are meant and no other.

    Peft reads a list as suffixes, so that ``norm`` at the top takes ``patch_embed.norm`` with it;
    only a pattern is matched as a whole. The list is kept where it says the same.
    """
    chosen, suffixes = set(names), tuple(f".{name}" for name in names)
    if any(n.endswith(suffixes) and n not in chosen for n, _ in model.named_modules()):
        return "|".join(re.escape(name) for name in names)
    return names


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
            "target_modules": exact_targets(model, target_modules(model, workload.targets)),
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

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Say what peft's AdaLoRA leaves out on models that return no loss of their own."""
        return [
            *super().notes(model, workload),
            "AdaLoRA's orthogonality penalty is not in the loss: peft adds it only to models that "
            "return their loss, so neither the code of arXiv 2607.02158 has it",
        ]

    def wrap(self, model: nn.Module, config: Any) -> nn.Module:
        """Let peft put its adapters in, with an allocator that updates its averages in place."""
        wrapped = super().wrap(model, config)
        allocator = cast(Any, wrapped).base_model.rankallocator
        allocator.update_ipt = MethodType(_update_importance, allocator)
        return wrapped

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
        cast(Any, model).base_model.update_and_allocate(global_step)

    def training_state(self, model: nn.Module) -> dict[str, Any]:
        """Return the averaged importances and the ranks as they are cut now."""
        allocator = cast(Any, model).base_model.rankallocator
        averages = {name: dict(getattr(allocator, name)) for name in IMPORTANCE_AVERAGES}
        return averages | {"rank_pattern": _adapter_config(model).rank_pattern}

    def restore_training_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put importances and ranks back."""
        allocator = cast(Any, model).base_model.rankallocator
        device = next(model.parameters()).device
        for name in IMPORTANCE_AVERAGES:
            setattr(allocator, name, {key: v.to(device) for key, v in state[name].items()})
        _adapter_config(model).rank_pattern = state["rank_pattern"]

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


def _update_importance(self: Any, model: nn.Module) -> None:
    """Update the importance as peft's allocator does, in place (AdaLoRA, equations 8 to 10).

    Two averages are kept for each element p of an adapter, of its sensitivity |p * grad| and of
    that sensitivity's deviation from its average.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        if name not in self.exp_avg_ipt:
            self.exp_avg_ipt[name] = torch.zeros_like(parameter)
            self.exp_avg_unc[name] = torch.zeros_like(parameter)
        if parameter.grad is None:  # a layer that was not called
            continue
        average, deviation = self.exp_avg_ipt[name], self.exp_avg_unc[name]
        with torch.no_grad():
            sensitivity = (parameter * parameter.grad).abs_()
            # a step that the gradient scaler skips has infinite gradients
            sensitivity.nan_to_num_(0.0, 0.0, 0.0)
            average.mul_(self.beta1).add_(sensitivity, alpha=1 - self.beta1)
            deviation.mul_(self.beta2).add_(sensitivity.sub_(average).abs_(), alpha=1 - self.beta2)


def rank_schedule(total_steps: int) -> dict[str, int]:
    """Return AdaLoRA's tinit, tfinal and deltaT for a run of that many steps."""
    scale = min(1.0, total_steps / (2 * (ADALORA_WARM_UP_STEPS + ADALORA_FINAL_STEPS)))
    return {
        "tinit": int(ADALORA_WARM_UP_STEPS * scale),
        "tfinal": int(ADALORA_FINAL_STEPS * scale),
        "deltaT": max(1, round(STEPS_BETWEEN_CUTS * scale)),
    }


def _adapter_config(model: nn.Module) -> Any:
    return model.peft_config["default"]  # type: ignore[index]
