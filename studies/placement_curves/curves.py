"""The judged and the measured rows, each against `none` of its own curve."""

from __future__ import annotations

import statistics
from typing import Any

import rows
from evaluate import MODELS
from peers import COMPILED, PLAIN_COMPILED

Row = dict[str, Any]
Curves = dict[str, list[Row]]
NAMES = {
    "vit_small_patch16_224": "ViT-S",
    "resnet18": "ResNet-18",
    "mobilenetv2_100": "MobileNetV2",
    "tiny_vit_21m_224": "TinyViT-21M",
    "swin_tiny_patch4_window7_224": "Swin-T",
    "convnext_tiny": "ConvNeXt-T",
    "vim_small_patch16_224": "Vim-S",
    "mambavision_t": "MambaVision-T",
}


def title(workload_name: str) -> str:
    """Name a curve for people: the model, LoRA if it is that, and the batch."""
    model, method, batch = workload_name.split(", ")
    return f"{NAMES[model]}{', LoRA' if method == 'lora' else ''}, {batch}"


def _place(model: str, method: str) -> tuple[bool, int]:
    """Full fine-tuning first, models as they are listed."""
    return method != "full", [*MODELS].index(model)


def evaluated() -> Curves:
    """Return the evaluator's rows with their peak and added time as shares of `none`'s."""
    found: Curves = {}
    groups = rows.curves(rows.read("evaluator"))
    for (model, method, _), group in sorted(groups, key=lambda item: _place(*item[0][:2])):
        base = next((r for r in group if r["policy"] == "none"), None)
        if base is None:
            continue
        found[title(f"{model}, {method}, batch {base['micro_batch']}")] = [
            row
            | {
                "peak_share": row["peak_bytes"] / base["peak_bytes"],
                "added_share": _added(row, base) / base["milliseconds"],
            }
            for row in group
            if "error" not in row and row["policy"] != "none"
        ]
    return found


def _added(row: Row, base: Row) -> float:
    added: float | None = row.get("added_milliseconds")
    return row["milliseconds"] - base["milliseconds"] if added is None else added


def measured() -> Curves:
    """Return the measured rows, with their time against `none` in the same round.

    torch.compile's is against its own budget of 1, which keeps everything: what Inductor's fusion
    gains is not the budget's.
    """
    groups: Curves = {}
    for row in rows.read("host"):
        groups.setdefault(row["workload_name"], []).append(row)
    found: Curves = {}
    for name in sorted(groups, key=lambda name: _place(*name.split(", ")[:2])):
        group = [row for row in groups[name] if "error" not in row]
        base = group[0]
        compiled = next((r for r in group if r["block"] == PLAIN_COMPILED), base)
        found[title(name)] = [
            row
            | _against(row["cpu_seconds"], (compiled if row["policy"] == COMPILED else base))
            | {"peak_share": row["peak_bytes"] / base["peak_bytes"]}
            for row in group
        ]
    return found


def _against(seconds: list[float], base: Row) -> Row:
    rounds = [a / b - 1 for a, b in zip(seconds, base["cpu_seconds"], strict=True)]
    return {"added_share": statistics.median(rounds), "added_shares": rounds}
