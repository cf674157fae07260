"""Low-rank methods of peft (LoRA, DoRA, AdaLoRA), saved in peft's own format.

LoRA (arXiv 2106.09685, section 4.1) adds (alpha / r) B A x to a frozen layer, with A [r, in] and
B [out, r]. DoRA (arXiv 2402.09353, equation 5) trains the norm of each output's weights apart from
their direction and applies LoRA to the direction. AdaLoRA (arXiv 2303.10512) writes the update as
P diag(lambda) Q and removes the entries of lambda with the least importance.
"""

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
from profiler.models.methods.save_load import check_weight
from profiler.models.methods.target_layers import (
    BatchNorm,
    dilated_convolutions,
    freeze_statistics,
    grouped_convolutions,
    on_meta_if_fake,
    pads_in_forward,
    target_modules,
    where_weights_are,
)
from profiler.workload import Workload

ADALORA_WARM_UP_STEPS, ADALORA_FINAL_STEPS, STEPS_BETWEEN_CUTS = 200, 1000, 10
INITIAL_RANK_FACTOR = 1.5
PAPER_STEPS = 10 * 782
"""AdaLoRA in the code of arXiv 2607.02158: tinit 200, tfinal 1000, deltaT 10; initial rank 12 for
target rank 8; 10 epochs of 782 steps."""

RANKS_ARE_FINAL = "ranks_are_final"
IMPORTANCE_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""Attributes of peft's rank allocator that carry state between steps."""


class PeftMethod(Method):
    """A method that peft implements; a subclass gives the config."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return the peft config for this backbone."""
        raise NotImplementedError

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Wrap the model by peft; peft trains a copy of the classifier."""
        return self.wrap(model, self.config(model, workload))

    def wrap(self, model: nn.Module, config: Any) -> nn.Module:
        """Insert peft's adapters into the model, on the device of the weights.

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
        """Convert peft's exceptions for bad input to one line for the user."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{self.name} is not possible here: peft refuses it ({reason})"
            ) from error

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Return remarks on convolutions without adapters and on BatchNorm."""
        notes = []
        left_out = grouped_convolutions(model)
        if left_out:
            notes.append(
                f"{len(left_out)} grouped (depthwise) convolutions get no adapter: "
                "peft requires ranks that their groups divide"
            )
        dilated = dilated_convolutions(model)
        if dilated:
            notes.append(
                f"{len(dilated)} dilated convolutions get no adapter: peft makes adapters without "
                "dilation"
            )
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            notes.append("BatchNorm keeps the running statistics of the pretrained backbone")
        return notes

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the adapter in the format of ``PeftModel.from_pretrained``."""
        model.save_pretrained(str(directory))  # type: ignore[operator]

    def load(self, model: nn.Module, directory: Path) -> None:
        """Load an adapter into a model that the same method prepared."""
        file = directory / "adapter_model.safetensors"
        if not file.is_file():
            raise InputError(f"{directory} holds no peft adapter ({file.name})")
        try:
            state = load_peft_weights(str(directory), device="cpu")
            for name, tensor in state.items():
                check_weight(name, tensor, file)
            outcome = peft.set_peft_model_state_dict(model, state)
        except KeyError as error:
            raise InputError(
                f"the adapter in {directory} does not fit: it lacks {error}"
            ) from error
        except (SafetensorError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the adapter in {directory} does not fit: {reason}") from error
        if outcome.unexpected_keys:
            raise InputError(
                f"the adapter in {directory} does not fit: unknown {outcome.unexpected_keys[0]!r}"
            )
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        for name in sorted(trained & {*outcome.missing_keys}):
            raise InputError(f"the adapter in {directory} does not fit: it lacks {name!r}")


def exact_targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return ``target_modules`` for peft that select exactly these modules.

    peft matches a list as suffixes, so that ``norm`` also selects ``patch_embed.norm``, but it
    matches a string as a regular expression against the full name. The list is returned if its
    suffixes select no other module, because saved configs are then readable.
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
        """Return the arguments of a LoraConfig that LoRA and its variants share."""
        workload = self.resolve(workload)
        return {
            "r": workload.rank,
            "lora_alpha": workload.scaling,
            "lora_dropout": workload.dropout,
            "target_modules": exact_targets(model, target_modules(model, workload.targets)),
            "modules_to_save": classifier_names(model),
        }


class Dora(Lora):
    """DoRA: LoRA on the direction of the weight, and a trained magnitude for each output."""

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return a LoraConfig with DoRA on."""
        return peft.LoraConfig(**self.lora_arguments(model, workload), use_dora=True)


class AdaLora(Lora):
    """AdaLoRA: ranks start at 1.5 times the target; the least important ones are removed.

    ``workload.rank`` is the target rank, averaged over layers. The schedule is 200 steps of
    warm-up, then a cut every 10 steps, and 1,000 last steps at fixed ranks. In runs shorter than
    2,400 steps all three numbers shrink in proportion.
    """

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse convolutions that pad in their forward: peft's update has another size there."""
        for name in target_modules(model, workload.targets):
            if pads_in_forward(model.get_submodule(name)):
                return (
                    f"peft computes AdaLoRA's update of the convolution {name} without the "
                    '"same" padding of TensorFlow that this layer adds'
                )
        return super().refusal(model, workload)

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
        """Return the remarks of LoRA and one on the missing orthogonality penalty."""
        return [
            *super().notes(model, workload),
            "AdaLoRA's orthogonality penalty is not in the loss: peft adds it only to models that "
            "return their loss; the code of arXiv 2607.02158 does not have it either",
        ]

    def wrap(self, model: nn.Module, config: Any) -> nn.Module:
        """Insert adapters; the rank allocator updates its averages in place (fewer temporaries)."""
        wrapped = super().wrap(model, config)
        allocator = cast(Any, wrapped).base_model.rankallocator
        allocator.update_ipt = MethodType(_update_importance, allocator)
        return wrapped

    def on_training_start(self, model: nn.Module, *, total_steps: int) -> None:
        """Fit the rank schedule to the length of the training."""
        config = _adapter_config(model)
        config.total_step = max(total_steps, 2)
        for name, value in rank_schedule(config.total_step).items():
            setattr(config, name, value)

    def before_zero_grad(self, model: nn.Module, *, global_step: int) -> None:
        """Update the importance of every rank; remove ranks at the steps of the schedule."""
        if getattr(model, RANKS_ARE_FINAL, False):
            return
        base, config = cast(Any, model).base_model, _adapter_config(model)
        last_cut = config.total_step - config.tfinal
        has_averages = bool(base.rankallocator.exp_avg_ipt)
        if global_step < last_cut or (global_step == last_cut and has_averages):
            base.update_and_allocate(global_step)
        elif _is_cut_to_target(base.rankallocator, config):
            base.rankallocator.mask_using_rank_pattern(base.model, config.rank_pattern)
        else:
            _cut_to_target(base, config)

    def training_state(self, model: nn.Module) -> dict[str, Any]:
        """Return the averaged importances and the current ranks."""
        allocator = cast(Any, model).base_model.rankallocator
        averages = {name: dict(getattr(allocator, name)) for name in IMPORTANCE_AVERAGES}
        return averages | {"rank_pattern": _adapter_config(model).rank_pattern}

    def restore_training_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Restore importances and ranks."""
        allocator = cast(Any, model).base_model.rankallocator
        device = next(model.parameters()).device
        for name in IMPORTANCE_AVERAGES:
            setattr(allocator, name, {key: v.to(device) for key, v in state[name].items()})
        _adapter_config(model).rank_pattern = state["rank_pattern"]

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the adapter with its ranks; a layer may have rank zero."""
        with warnings.catch_warnings():
            # peft warns of a failed gather of shards if a layer has rank zero
            warnings.filterwarnings("ignore", message=".* LoRA tensor.* have invalid shape")
            super().save(model, directory)

    def load(self, model: nn.Module, directory: Path) -> None:
        """Load an adapter and reduce the ranks to those of the saved one."""
        path = directory / "adapter_config.json"
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path} is missing")
        try:
            pattern = json.loads(path.read_text())["rank_pattern"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the config of an AdaLoRA adapter") from error
        if pattern:
            _adapter_config(model).rank_pattern = pattern
            setattr(model, RANKS_ARE_FINAL, True)
        super().load(model, directory)


def _is_cut_to_target(allocator: Any, config: Any) -> bool:
    """Return whether a cut has left at most the target ranks."""
    pattern = config.rank_pattern
    return bool(pattern) and sum(map(sum, pattern.values())) <= allocator.target_bgt


def _cut_to_target(base: Any, config: Any) -> None:
    """Make the last cut late: a resumed training is shorter than before, and the cut lies behind.

    peft makes the last cut only at its own step. In a training that was resumed behind it, peft
    would mask by a pattern that does not exist, or keep more ranks than the target.
    """
    allocator = base.rankallocator
    if not allocator.exp_avg_ipt:
        allocator.update_ipt(base.model)
    config.rank_pattern = allocator.mask_to_budget(base.model, allocator.target_bgt)
    allocator.reset_ipt()


def _update_importance(self: Any, model: nn.Module) -> None:
    """Update the importances in place, as peft's allocator does out of place.

    For each element p of an adapter (arXiv 2303.10512, equations 8 to 10): the sensitivity is
    |p grad|; ``exp_avg_ipt`` is its moving average; ``exp_avg_unc`` is the moving average of
    |sensitivity - exp_avg_ipt|.
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
            # In a step that the gradient scaler skips, gradients are infinite.
            sensitivity.nan_to_num_(0.0, 0.0, 0.0)
            average.mul_(self.beta1).add_(sensitivity, alpha=1 - self.beta1)
            deviation.mul_(self.beta2).add_(sensitivity.sub_(average).abs_(), alpha=1 - self.beta2)


def rank_schedule(total_steps: int) -> dict[str, int]:
    """Return peft's ``tinit``, ``tfinal`` and ``deltaT`` for a number of training steps."""
    scale = min(1.0, total_steps / (2 * (ADALORA_WARM_UP_STEPS + ADALORA_FINAL_STEPS)))
    return {
        "tinit": int(ADALORA_WARM_UP_STEPS * scale),
        "tfinal": int(ADALORA_FINAL_STEPS * scale),
        "deltaT": max(1, round(STEPS_BETWEEN_CUTS * scale)),
    }


def _adapter_config(model: nn.Module) -> Any:
    return model.peft_config["default"]  # type: ignore[index]
