"""Which method works on which backbone, and is what it does what it says?

    python studies/method_matrix/run.py [--backbones vit_s,vim_s] [--write]

Every method of the registry on every backbone of the documents. A pair is *refused* (with the
method's own reason), *works*, or *fails* (with what was wrong). It works if in four real training
steps on one small batch

- the loss falls (learning rate 1e-3, or else 1e-4);
- the right parameters learn: `right_parameters`, written apart from the methods' own code;
- every other tensor is bit-identical afterwards, and nine in ten or more of those that learn moved;
- what was saved gives the same outputs on a fresh backbone, bit for bit (AdaLoRA, whose cut ranks
  are gone from the sums: to 1e-5);
- the replayed peak is within 0.5 % of the CPU allocator's own account of the second step.

Weights are random; BatchNorm statistics are those of the batch, and BatchNorm scales that start at
zero are set to one, as in a trained network (behind a zero a frozen branch has no gradient).

One process per backbone. Rows go to ``rows.jsonl``; pairs that are there already are skipped, so
a run can be stopped and continued. ``--write`` makes summary.json, the README.md here, the table in
docs/methods.md and the copy in the package from them; it runs nothing.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from profiler.models.methods.registry import method_names
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiler.models.methods import Method

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS, PAGE = Rows(HERE), HERE / "README.md"
PACKAGED = ROOT / "planner" / "methods" / "method_matrix.json"
FRONT_PAGE = ROOT / "docs" / "methods.md"

BACKBONES = {
    "vit_s": 64,
    "tiny_vit": 64,
    "tiny_vit_5m": 64,
    "resnet18": 64,
    "mobilenetv2": 64,
    "mobilenetv3": 64,
    "dinov2_s": 56,
    "siglip_b": 64,
    "vim_s": 64,
    "mambavision_t": 64,
}
"""Backbone and image size in pixels (DINOv2's patches are 14 px)."""
BATCH, CLASSES, STEPS = 4, 10, 4
RATES = (1e-3, 1e-4)
SMALLEST_SHARE_MOVED = 0.9
LARGEST_PEAK_ERROR = 0.005
LARGEST_ROUNDING = 1e-5


STATUSES = ("works", "refused", "fails")
START, END = "<!-- method matrix: written by studies/method_matrix -->", "<!-- end -->"

PAGE_TEXT = """# Which method works on which backbone?

{how}

{table}
{works} pairs work, {refused} are refused, {fails} fail. Of the {ran} that ran:

- the largest difference of a replayed peak from the allocator's is {error} %;
- {exact} give the very same logits after saving and loading;
- a learning rate of 1e-4 was needed for: {lowered};
- some tensor that learns stood still in: {still} (named in the rows).

{processor}, one thread; {versions}; {date}. Image size and what was seen of each pair are in
`rows.jsonl.gz`. `python studies/method_matrix/run.py` runs the pairs that are missing there,
`--write` writes this page, the table in docs/methods.md and the packaged copy.
"""


# -- small real runs -----------------------------------------------------------------------------


def workload_of(backbone: str, method: str) -> Workload:
    """Return what is run for a pair."""
    return Workload(
        model=backbone,
        method=method,
        micro_batch=BATCH,
        image_size=BACKBONES[backbone],
        num_classes=CLASSES,
    )


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Return the same images and labels every time, made afresh as a loader would."""
    import torch

    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, size, size, generator=generator)
    return images, torch.arange(BATCH) % CLASSES


def fresh_backbone(backbone: str) -> nn.Module:
    """Return the same backbone with random weights every time."""
    return copy.deepcopy(_pristine(backbone))


@cache
def _pristine(backbone: str) -> nn.Module:
    """Build a backbone once, before anything is recorded."""
    import torch

    from profiler.models import backbones
    from profiler.models.methods.target_layers import BatchNorm

    torch.manual_seed(0)
    size = BACKBONES[backbone]
    model = backbones.build(backbone, num_classes=CLASSES, image_size=size)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            if norm.weight is not None and not norm.weight.any():
                norm.weight.fill_(1.0)
        if norms:
            model(batch(size)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def apply(method: Method, workload: Workload) -> nn.Module:
    """Return a fresh backbone that the method made trainable."""
    import torch

    model = fresh_backbone(workload.model)
    torch.manual_seed(2)
    return method.apply(model, workload).train()


def outputs(model: nn.Module, size: int) -> Tensor:
    """Return the logits in evaluation mode."""
    import torch

    model.eval()
    with torch.no_grad():
        logits: Tensor = model(batch(size)[0])
    return logits


def digests(model: nn.Module) -> dict[str, str]:
    """Return a hash of the bytes of every parameter and buffer (keeps no copy alive)."""
    import torch

    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: hashlib.blake2b(
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy(), digest_size=16
        ).hexdigest()
        for name, tensor in tensors
    }


# -- which parameters should learn ---------------------------------------------------------------

ADDED = {
    "lora": (".lora_A.", ".lora_B."),
    "qlora": (".lora_A.", ".lora_B."),
    "dora": (".lora_A.", ".lora_B.", ".lora_magnitude_vector."),
    "adalora": (".lora_A.", ".lora_B.", ".lora_E."),
    "adaptformer": (".adaptformer.",),
    "vpt_shallow": (".prompts",),
    "vpt_deep": (".prompts",),
    "prefix": (".prefix",),
    "side": ("side.",),
    "ssf": (".ssf.",),
    "bitfit": ("bias",),
    "head": (),
}
"""Parts of the names of what learns beside the classifier."""
PEFT_METHODS = ("lora", "qlora", "dora", "adalora")


def right_parameters(model: nn.Module, workload: Workload) -> set[str]:
    """Return the names of the parameters that the method's paper trains, and the classifier's."""
    from profiler.models.backbones.timm_interface import classifier_names
    from profiler.models.methods import backbone_of
    from profiler.models.methods.target_layers import BatchNorm

    names = {name for name, _ in model.named_parameters()}
    if workload.method in {"full", "galore"}:
        return names
    if workload.method in PEFT_METHODS:  # peft trains a copy of the classifier
        parts = (*ADDED[workload.method], ".modules_to_save.")
        return {name for name in names if any(part in name for part in parts)}
    heads = tuple(f"{name}." for name in classifier_names(backbone_of(model)))
    right = {name for name in names if name.startswith(heads)}
    if workload.method in ADDED:
        parts = ADDED[workload.method]
        return right | {name for name in names if any(part in name for part in parts)}
    if workload.method == "bn_head":
        return right | _inside(model, lambda module: isinstance(module, BatchNorm))
    if workload.method == "ln_tune":
        return right | _inside(model, lambda module: "norm" in type(module).__name__.lower())
    if workload.method == "partial_k":
        return right | _from_last_unit_on(model, workload)
    raise KeyError(workload.method)  # a new method: say here what it trains


def _inside(model: nn.Module, chosen: Callable[[nn.Module], bool]) -> set[str]:
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if chosen(module)
        for key, _ in module.named_parameters(recurse=False)
    }


def _from_last_unit_on(model: nn.Module, workload: Workload) -> set[str]:
    """Return the parameters of all modules that run first when or after the last unit does."""
    from profiler.models.checkpointable_units import find_blocks

    last = model.get_submodule(find_blocks(model)[-1])
    entered: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: entered.append(module))
        for module in model.modules()
    ]
    outputs(model, workload.image_size)
    model.train()
    for handle in handles:
        handle.remove()
    start = next(index for index, module in enumerate(entered) if module is last)
    before = {id(module) for module in entered[:start]}
    late = {id(module) for module in entered[start:]} - before
    return _inside(model, lambda module: id(module) in late)


# -- one pair ------------------------------------------------------------------------------------


def run_pair(backbone: str, method_name: str) -> dict[str, Any]:
    """Refuse, or run a pair and return all that was seen."""
    from profiler.errors import UsageError
    from profiler.models.build import build_model

    row: dict[str, Any] = {"backbone": backbone, "method": method_name}
    workload = workload_of(backbone, method_name)
    start = time.perf_counter()
    try:
        build_model(workload, device="meta")
    except UsageError as error:
        reason = str(error).partition(": ")[2]
        return row | {"status": "refused", "reason": reason}
    for rate in RATES:
        seen = _train(workload, rate)
        if seen["losses"][-1] < seen["losses"][0]:
            break
    problems = _problems(seen, exactly=method_name != "adalora")
    return (
        row
        | {"status": "fails" if problems else "works", "reason": "; ".join(problems) or None}
        | seen
        | {"seconds": round(time.perf_counter() - start, 1)}
    )


def _train(workload: Workload, rate: float) -> dict[str, Any]:
    """Train four steps, the second under the allocator's recording, then save and load."""
    from profiler.device_rules.cpu_allocator import peak_during
    from profiler.devices.table import CPU
    from profiler.models.methods import get_method
    from profiler.replay.step_replay import replay_step
    from profiler.training_step import TrainingStep, make_optimizer

    method, size = get_method(workload.method), workload.image_size
    _pristine(workload.model)
    losses: list[float] = []
    made: list[Any] = []

    def one_step() -> None:
        losses.append(float(made[1].run([lambda: batch(size)])))

    def prepare() -> None:
        model = apply(method, workload)
        made.append(model)
        method.on_training_start(model, total_steps=STEPS)
        optimizer = make_optimizer(model, workload, method=method, learning_rate=rate)
        made.append(TrainingStep(model, optimizer, workload, method=method))
        made.append(digests(model))
        one_step()

    real = peak_during(prepare, one_step)
    for _ in range(STEPS - len(losses)):
        one_step()
    model, _, before = made
    made.clear()
    after = digests(model)
    replayed = replay_step(Candidate(workload=workload), device=CPU).peak_bytes
    return {
        "learning_rate": rate,
        "losses": losses,
        **_what_moved(model, workload, before, after),
        **_saved_and_loaded(method, model, workload),
        "replayed_bytes": replayed,
        "real_bytes": real,
        "relative": replayed / real - 1,
    }


def _what_moved(
    model: nn.Module, workload: Workload, before: dict[str, str], after: dict[str, str]
) -> dict[str, Any]:
    from profiler.models.methods.save_load import trained_tensors

    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    right = right_parameters(model, workload)
    moved = {name for name, digest in after.items() if digest != before[name]}
    may_move = learning | set(trained_tensors(model))
    return {
        "learning_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "learning_tensors": len(learning),
        "learns_wrongly": sorted(learning - right)[:5],
        "does_not_learn": sorted(right - learning)[:5],
        "moved_though_frozen": sorted(moved - may_move)[:5],
        "stood_still": sorted(learning - moved)[:8],
        "tensors_that_stood_still": len(learning - moved),
    }


def _saved_and_loaded(method: Method, model: nn.Module, workload: Workload) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        method.save(model, Path(name))
        fresh = apply(method, workload)
        method.load(fresh, Path(name))
        written = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
    expected, got = outputs(model, workload.image_size), outputs(fresh, workload.image_size)
    return {
        "saved_bytes": written,
        "loaded_differs_by": float((got - expected).abs().max() / expected.abs().max()),
    }


def _problems(seen: dict[str, Any], *, exactly: bool) -> list[str]:
    """Return what keeps a pair from working, a phrase each."""
    problems = []
    losses, still = seen["losses"], seen["tensors_that_stood_still"]
    if not (all(map(math.isfinite, losses)) and losses[-1] < losses[0]):
        problems.append(f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}")
    for key in ("learns_wrongly", "does_not_learn", "moved_though_frozen"):
        if seen[key]:
            problems.append(f"{key.replace('_', ' ')}: {seen[key][0]}")
    if still > (1 - SMALLEST_SHARE_MOVED) * seen["learning_tensors"]:
        problems.append(f"{still} of {seen['learning_tensors']} tensors stood still")
    if not seen["loaded_differs_by"] <= (0.0 if exactly else LARGEST_ROUNDING):
        problems.append(f"outputs after loading differ by {seen['loaded_differs_by']:.2g}")
    if abs(seen["relative"]) > LARGEST_PEAK_ERROR:
        problems.append(f"the replayed peak is off by {100 * seen['relative']:+.2f} %")
    return problems


# -- running -------------------------------------------------------------------------------------


def done_pairs() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last row of every pair."""
    return {(row["backbone"], row["method"]): row for row in ROWS.read()}


def run_backbone(backbone: str) -> None:
    """Run what is left of one backbone's pairs, in this process."""
    import torch

    torch.set_num_threads(1)
    done = done_pairs()
    for method in method_names():
        if done.get((backbone, method), {}).get("status") in {"works", "refused"}:
            continue
        try:
            row = run_pair(backbone, method)
        except Exception as error:
            import traceback

            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            row = {"backbone": backbone, "method": method, "status": "fails", "reason": reason}
        print(backbone, method, row["status"], row["reason"] or "", flush=True)
        ROWS.append(row)


# -- files ---------------------------------------------------------------------------------------


def write() -> None:
    """Write summary.json, both pages and the packaged copy from the finished pairs.

    Raises:
        SystemExit: pairs are missing.
    """
    from planner.methods.matrix import load_matrix, markdown

    rows = done_pairs()
    pairs = [(backbone, method) for backbone in BACKBONES for method in method_names()]
    missing = [pair for pair in pairs if pair not in rows]
    if missing:
        raise SystemExit(f"{len(missing)} pairs were not run yet, e.g. {missing[0]}")
    ROWS.pack()
    results = summary([rows[pair] for pair in pairs])
    write_summary(HERE, results["rows"], **{k: v for k, v in results.items() if k != "rows"})
    _write_json(PACKAGED, packaged(results))
    table = markdown(load_matrix())
    PAGE.write_text(page(results, table), encoding="utf-8")
    text = FRONT_PAGE.read_text(encoding="utf-8")
    FRONT_PAGE.write_text(between_markers(text, table), encoding="utf-8")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all rows with what they were run on and how many became what."""
    from profiler.environment import environment

    ran = [row for row in rows if "relative" in row]
    counts = {key: sum(row["status"] == key for row in rows) for key in STATUSES}
    return {
        "environment": environment().to_json()
        | _versions()
        | {"threads": 1, "date": max(str(row["date"]) for row in rows)},
        "batch": BATCH,
        "steps": STEPS,
        "image_sizes": BACKBONES,
        "counts": counts,
        "largest_peak_error": max((abs(row["relative"]) for row in ran), default=None),
        "exact_loads": sum(row["loaded_differs_by"] == 0 for row in ran),
        "rows": rows,
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("peft", "bitsandbytes")}


def packaged(results: dict[str, Any]) -> dict[str, Any]:
    """Return what ``budgetplan methods --matrix`` shows."""
    from planner.methods.matrix import MethodMatrix, Outcome
    from profiler.models import backbones

    classes = {
        name: type(
            backbones.build(name, num_classes=CLASSES, image_size=size, device="meta")
        ).__name__
        for name, size in BACKBONES.items()
    }
    outcomes: dict[str, dict[str, Outcome]] = {method: {} for method in method_names()}
    for row in results["rows"]:
        name = row["backbone"]
        # backbones of other classes share a reason
        reason = row["reason"] and row["reason"].replace(classes[name], "the backbone")
        outcomes[row["method"]][name] = Outcome(status=row["status"], reason=reason)
    matrix = MethodMatrix(
        backbones={name: backbones.resolve(name) for name in BACKBONES},
        methods=tuple(outcomes),
        outcomes=outcomes,
        environment=results["environment"],
    )
    return matrix.to_json()


def between_markers(text: str, table: str) -> str:
    """Return a page with the table between its markers."""
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{FRONT_PAGE} lacks the lines {START} and {END}")
    return f"{head}{START}\n{table}{END}{tail}"


def page(results: dict[str, Any], table: str) -> str:
    """Return the README.md of this folder."""
    counts, where = results["counts"], results["environment"]
    ran = [row for row in results["rows"] if "relative" in row]
    lowered = [row for row in ran if row["learning_rate"] != RATES[0]]
    still = [row for row in ran if row["tensors_that_stood_still"]]
    explanation = (__doc__ or "").partition("Every method of the registry")[2].partition("\n\nOne ")
    return PAGE_TEXT.format(
        how=f"Every method of the registry{explanation[0]}",
        table=table,
        works=counts["works"],
        refused=counts["refused"],
        fails=counts["fails"],
        error=f"{100 * results['largest_peak_error']:.3f}",
        exact=results["exact_loads"],
        ran=len(ran),
        lowered=_named(lowered),
        still=_named(still),
        processor=where["processor"],
        versions=", ".join(f"{k} {where[k]}" for k in ("torch", "timm", "peft", "bitsandbytes")),
        date=where["date"],
    )


def _named(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['method']} on {row['backbone']}" for row in rows) or "none"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is left, one process per backbone; or write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--here", action="store_true", help="run in this process")
    parser.add_argument("--write", action="store_true", help="only write the files")
    options = parser.parse_args()
    if options.write:
        write()
        return
    for backbone in options.backbones.split(","):
        if options.here:
            run_backbone(backbone)
        else:
            subprocess.run(
                [sys.executable, __file__, "--backbones", backbone, "--here"], check=False
            )


if __name__ == "__main__":
    main()
