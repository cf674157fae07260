"""A peer: PyTorch's ``sac_ilp`` (torch.distributed._tools), planned and then really applied.

Needs PuLP < 3 and pwlf on the path. Two workarounds: the estimators want an
accelerator, and a module that saves nothing divides by zero. The plan says what share of a module's
activations to discard; PyTorch's own per-operator MILP turns that into a policy, and selective
checkpointing follows it. Its runtimes are the evaluator's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import rows
import torch
from evaluator import (
    altered,
    live_peak_bytes,
    one_pass,
    pretended_accelerator,
    step_milliseconds,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from profiler.replay.fake_model import to_fake
from profiler.workload import Candidate, Workload

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
MODELS = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "mobilenetv2_100",
    "tiny_vit_21m_224",
)
GPU = "NVIDIA A100"
MODE = "operator-level-cost-model"


def estimated(workload: Workload):
    """Return the module graph and the per-operator statistics of each module."""
    from torch.distributed._tools.ilp_utils import aggregate_stats, parse_module_info
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.distributed._tools.runtime_estimator import RuntimeEstimator
    from torch.distributed._tools.sac_estimator import SACEstimator

    model = altered(Candidate(workload=workload)).model
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_accelerator():
        to_fake(model)
        memory = MemTracker()
        memory.track_external(model)
        with memory:
            one_pass(model, workload)
        model.zero_grad(set_to_none=True)
        time = RuntimeEstimator(gpu_type=GPU)
        with time(estimate_mode_type=MODE):
            one_pass(model, workload)
        model.zero_grad(set_to_none=True)
        selective = SACEstimator(gpu_type=GPU)
        with selective(estimate_mode_type=MODE):
            one_pass(model, workload)
        for name, stats in list(selective.sac_mod_stats.items()):
            if not sum(stats.memory):
                del selective.sac_mod_stats[name]
        info = aggregate_stats(model, memory, time, selective, torch.device("cpu"))
        return parse_module_info(info), selective.sac_mod_stats


def apply_plan(plan: dict[str, list[int]], backbone: nn.Module) -> None:
    """Wrap the planned modules in selective checkpointing."""
    root = type(backbone).__name__
    for name, saved in plan.items():
        module = backbone.get_submodule(name.removeprefix(root).removeprefix("."))
        module.forward = _selective(module.forward, saved)


def _selective(forward: Callable[..., object], saved: list[int]) -> Callable[..., object]:
    def contexts():
        left = iter(saved)

        def policy(_ctx, _op, *_args, **_kwargs):
            save = next(left, 0)
            return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return lambda *args, **kwargs: checkpoint(
        forward, *args, use_reentrant=False, context_fn=contexts, **kwargs
    )


def run(models: list[str]) -> None:
    """Plan and judge every budget."""
    known = rows.done("evaluator")
    for model in models or MODELS:
        workload = Workload(model=model, micro_batch=64)
        base = {
            "model": model,
            "method": "full",
            "rank": None,
            "micro_batch": 64,
            "accumulation": 1,
            "policy": "sac_ilp",
        }
        try:
            full = live_peak_bytes(Candidate(workload=workload))
            graph, stats = estimated(workload)
        except Exception as error:
            rows.append("evaluator", base | {"setting": "", "error": repr(error)[:300]})
            print(model, repr(error), flush=True)
            continue
        for share in BUDGETS if model.startswith("vit_small") else (0.8, 0.6, 0.4, 0.3):
            key = (model, "full", None, "sac_ilp", f"{share:.0%}")
            if key not in known:
                row = base | {"setting": f"{share:.0%}", "budget_bytes": int(share * full)}
                rows.append("evaluator", row | _judged(workload, graph, stats, share * full))
                print(*key, rows.read("evaluator")[-1].get("error", ""), flush=True)


def _judged(workload: Workload, graph, stats, budget: float) -> dict[str, object]:
    from torch.distributed._tools.sac_ilp import (
        get_optimal_checkpointing_policy_per_module,
        sac_milp,
    )

    try:
        decided, claimed_ms, claimed_peak = sac_milp(graph, memory_budget=budget / 2**30)
        if claimed_peak < 0:
            return {"error": "infeasible, says sac_milp"}
        plan = {
            name: get_optimal_checkpointing_policy_per_module(stats[name], 1 - discarded)
            for name, discarded in decided.items()
        }
        alter = partial(apply_plan, plan)
        candidate = Candidate(workload=workload)
        return {
            "claimed_bytes": claimed_peak,
            "claimed_added_milliseconds": claimed_ms,
            "peak_bytes": live_peak_bytes(candidate, alter),
            "milliseconds": step_milliseconds(candidate, alter),
            "decisions": {name: round(share, 4) for name, share in decided.items()},
        }
    except Exception as error:
        return {"error": repr(error)[:300]}
