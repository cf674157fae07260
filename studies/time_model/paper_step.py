"""The logged run of arXiv 2607.02158: what its step takes without the readings of the power.

ViT-S with LoRA, batch 64, fp32, the paper's rule with 8 of 12 blocks recomputed, on an RTX 2060
SUPER. The log has two times, each from its own synchronised window: 782 steps of 547.7 ms, and 6,256
forwards of recomputed blocks of 15.2 ms. NVML is read before and after each such forward, before
each recomputation (which ends early, before its second reading), and around the step. With s the
real over the predicted seconds and r the seconds of a reading,

    s T + n r = 547.7 ms        n readings in the window of the step: 24, or 26 with its own two
    s f + a r = 15.2 ms         a readings in the window of the block: 1 or 2

Which readings a window holds is not published, so all four cases are solved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.api import predict

STEP_SECONDS, BLOCK_SECONDS = 428.3 / 782, 95.1 / 6256
"""Logged seconds of a step, and of the forward of a recomputed block."""

WATTS = (144.0, 156.0)
READINGS = [(in_step, in_block) for in_step in (24, 26) for in_block in (1, 2)]
THRESHOLDS = (0.55, 0.50)
"""Thresholds of the paper's rule that recompute 8 blocks, as in the log, and 9."""


def compare() -> dict[str, Any]:
    """Return predicted and logged seconds and watts, and s and r of each case of the readings."""
    eight, nine = (
        predict(
            "vit_s", "lora", device="rtx-2060-super", vram="2GiB", batch_size=64, num_classes=100,
            rank=8, precision="fp32", checkpoint="adaptive", threshold=threshold,
        )
        for threshold in THRESHOLDS
    )  # fmt: skip
    assert [len(each.candidate.placement.decisions) for each in (eight, nine)] == [8, 9]
    step, joules, more = eight.step_seconds, eight.energy_joules, nine.step_seconds
    assert step is not None and joules is not None and more is not None
    block = more - step
    cases = []
    for in_step, in_block in READINGS:
        share, reading = np.linalg.solve(
            [[step, in_step], [block, in_block]], [STEP_SECONDS, BLOCK_SECONDS]
        )
        cases.append({
            "readings_in_step": in_step, "readings_in_block": in_block,
            "reading_seconds": round(float(reading), 5),
            "step_seconds_without_readings": round(float(share) * step, 4),
            "relative_error": round(1 / float(share) - 1, 4),
        })  # fmt: skip
    return {
        "logged_step_seconds": round(STEP_SECONDS, 4),
        "logged_block_seconds": round(BLOCK_SECONDS, 5),
        "predicted_step_seconds": round(step, 4),
        "predicted_block_seconds": round(block, 5),
        "relative_error_with_readings": round(step / STEP_SECONDS - 1, 4),
        "cases": cases,
        "predicted_watts": round(joules / step, 1),
        "relative_error_of_watts": [round(joules / step / each - 1, 4) for each in WATTS],
    }
