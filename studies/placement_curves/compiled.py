"""A peer: torch.compile's ``activation_memory_budget``, judged without compiling a kernel.

What torch.compile does with the budget is decided before any code is generated: AOTAutograd traces
the joint graph, the min-cut partitioner and its knapsack choose what forward saves. Here the backbone
goes through the same AOTAutograd and the same partitioner (``compiler="inductor"``), and its forward
and backward graphs are run by the ``boxed_nop`` of torch.compile's debugging backends, under the
evaluator that judges everybody. Two curves:

- ``torch.compile budget``: operators stay those that eager runs, so that time and peak can be set
  against eager's ``none`` (a budget of 1 gives exactly that).
- ``torch.compile budget, decomposed``: Inductor's decompositions first, which is the backend
  ``aot_eager_decomp_partition``. Inductor would fuse the many pointwise operators, nobody does here,
  so its time is set against its own graph at a budget of 1.

The knapsack is PyTorch's default (``dp``, on FLOPs).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import rows
import torch
from evaluate import MODELS
from evaluator import altered, live_peak_bytes, step_milliseconds
from torch import nn
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch import config
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.fx_passes.post_grad import decompose_auto_functionalized
from torch._inductor.fx_passes.reinplace import reinplace_inplaceable_ops
from torch._inductor.fx_utils import FakeTensorUpdater
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

from profiler.replay.fake_model import to_fake
from profiler.workload import Candidate, Workload

PLAIN = "torch.compile budget"
DECOMPOSED = f"{PLAIN}, decomposed"
SHARES = {
    PLAIN: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0),
    DECOMPOSED: (1.0, 0.8, 0.6, 0.4, 0.2, 0.0),
}


def traced(share: float, workload: Workload, policy: str) -> Callable[..., torch.Tensor]:
    """Return the two graphs that the partitioner leaves under a budget, as one function.

    It is traced here, outside the evaluator, whose modes would bill the tracing too.
    """
    decompositions = None
    if policy == DECOMPOSED:
        from torch._inductor.compile_fx import select_decomp_table

        decompositions = select_decomp_table()
    backbone = altered(Candidate(workload=workload)).backbone

    def forward(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        # A recomputed BatchNorm reads the running statistics. Autograd refuses to go back through
        # those that forward has updated, so copies are updated: a few kB.
        own = {name: tensors[name].clone() for name, _ in backbone.named_buffers()}
        return functional_call(backbone, tensors | own, (images,))

    compiled = aot_function(
        forward,
        fw_compiler=_as_it_is,
        bw_compiler=_as_it_is,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=decompositions,
    )
    size = workload.image_size
    with FakeTensorMode(allow_non_fake_inputs=True), config.patch(activation_memory_budget=share):
        to_fake(backbone)
        compiled(_tensors(backbone), torch.empty(workload.micro_batch, 3, size, size))
    return compiled


def _as_it_is(graph: torch.fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
    """Run a graph's operators one by one; custom ones in place again, as Inductor has them."""
    mode = next(each.fake_mode for each in inputs if isinstance(each, FakeTensor))
    with V.set_fake_mode(mode):
        reinplace_inplaceable_ops(FakeTensorUpdater(graph), graph.graph)
        decompose_auto_functionalized(graph.graph)
    graph.recompile()
    return boxed_nop(graph, inputs)


def budgeted(compiled: Callable[..., torch.Tensor], backbone: nn.Module) -> None:
    """Make the backbone run what was traced from one like it."""
    backbone.forward = lambda images: compiled(_tensors(backbone), images)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def run(models: list[str], method: str) -> None:
    """Judge every budget."""
    rank = 8 if method == "lora" else None
    for policy in SHARES:
        for model in models or MODELS:
            work = Workload(model=model, method=method, rank=rank, micro_batch=MODELS[model])
            _judge(work, policy)


def _judge(workload: Workload, policy: str) -> None:
    known = rows.done("evaluator")
    candidate = Candidate(workload=workload)
    for share in SHARES[policy]:
        row: dict[str, object] = {
            "model": workload.model,
            "method": workload.method,
            "rank": workload.rank,
            "micro_batch": workload.micro_batch,
            "accumulation": 1,
            "policy": policy,
            "setting": f"{share:.0%}",
        }
        if rows.key_of(row) in known:
            continue
        try:
            alter = partial(budgeted, traced(share, workload, policy))
            row["peak_bytes"] = live_peak_bytes(candidate, alter)
            row["milliseconds"] = step_milliseconds(candidate, alter)
        except Exception as error:
            row["error"] = repr(error)[:300]
        rows.append("evaluator", row)
        print(row, flush=True)
