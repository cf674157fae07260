"""Workspaces that cuDNN's convolutions may take, as a range of device bytes.

cuDNN chooses an algorithm for each convolution at run time, and its workspace comes from PyTorch's
caching allocator. If the workspace cannot be had, PyTorch tries the next plan (``try_plans`` and
``try_configs``, aten/src/ATen/native/cudnn/Conv_v8.cpp), down to algorithms without a workspace. So
a run needs no workspace, and is slower without one:

    needed_bytes       device bytes without any workspace
    comfortable_bytes  the same plus factor * (input + output bytes of the largest convolution)

Only convolutions with more than one kernel element and more than one input channel in a group
count: pointwise convolutions are matrix products, and PyTorch has depthwise kernels of its own.

The factor is fitted in fp32 on other people's measurements (studies/conv_workspaces). For 16-bit
convolutions no measurement is known, and ``comfortable_bytes`` is None.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from profiler.replay.event_log import EventLog

_FITTED = Path(__file__).with_suffix(".json")

_FP32_BYTES = 4


@cache
def workspace_factor() -> float:
    """Return the bytes of workspace per byte of the largest convolution's input and output."""
    return float(json.loads(_FITTED.read_text(encoding="utf-8"))["factor"])


def largest_convolution_bytes(log: EventLog) -> int | None:
    """Return input plus output bytes of the largest convolution that may take a workspace.

    Returns:
        0 without such a convolution; None if one computes in 16 bits.
    """
    largest = 0
    for operation in log.operations:
        kind, *flags = operation.kernel.split()
        if not kind.startswith("convolution") or not {"dense", "grouped"} & {*flags}:
            continue
        groups, out_positions, out_channels, in_channels, elements, in_positions = operation.dims
        if elements == 1:
            continue
        if "half" in flags:
            return None
        values = groups * (in_channels * in_positions + out_channels * out_positions)
        largest = max(largest, _FP32_BYTES * values)
    return largest


def comfortable_workspace_bytes(log: EventLog) -> int | None:
    """Return the bytes that convolutions may take beside a step's; None if unknown."""
    largest = largest_convolution_bytes(log)
    return None if largest is None else round(workspace_factor() * largest)
