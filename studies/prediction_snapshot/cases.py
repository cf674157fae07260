"""The cases of the snapshot: command lines drawn with a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path

SEED = 20261129
CASES = 300

BACKBONES = (
    "vit_tiny_patch16_224", "vit_s", "deit_tiny_patch16_224", "tiny_vit_5m", "resnet18",
    "mobilenetv2", "mobilenetv3", "efficientnet_lite0", "convnext_atto", "tiny_vit", "dinov2_s",
    "siglip_b", "vim_s", "mambavision_t", "swin_tiny_patch4_window7_224",
)  # fmt: skip
QUICK = 9
"""The first so many are drawn twice as often, and alone where a whole menu is profiled."""
DEVICES = (*("rtx-2060-super", "rtx-3090") * 4, "cpu")
"""A CPU's cases take longest: kernels are really run, and the rates of the machine are timed."""
ON_CPU = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "resnet18", "mobilenetv3")
METHODS = (
    "full", "head", "bitfit", "lora", "dora", "adalora", "qlora", "galore", "adaptformer",
    "vpt_shallow", "vpt_deep", "prefix", "side", "ssf", "ln_tune", "partial_k", "bn_head",
)  # fmt: skip
WITHOUT_BUDGET = (
    "none",
    "static",
    "cheap",
    "light",
    "lean",
    "chen",
    "every-3",
    "first-2",
    "last-2",
)
# On a CPU these depend on rates that are timed on the machine itself, so they are not drawn there.
WITH_BUDGET = ("optimal", "adaptive", "rotor")
PLAN = Path("plan.json")


def cases() -> list[list[str]]:
    """Return the arguments of every case, in order; ``PLAN`` is written before the first."""
    draw = random.Random(SEED)
    fixed = [
        ["methods"],
        ["methods", "--matrix"],
        ["devices"],
        ["models", "vit_small"],
        ["show", str(PLAN)],
        ["score", "--accuracy", "89.7", "--inference-seconds", "21.3", "--inference-watts", "144.2",
         "--inference-peak-mib", "1084"],
        ["score", "--accuracy", "75", "--parameters", "3e6", "--macs", "3e8", "--energy-joules",
         "900"],
    ]  # fmt: skip
    fixed += [["methods", method, "--model", draw.choice(BACKBONES)] for method in METHODS[:13]]
    fixed += [
        ["recommend", "--no-validate", "--vram", vram, "--model", model, "--trials", "24",
         "--device", "rtx-2060-super", "--methods", methods, "--seed", "3", "--study", f"s{n}",
         "--storage", f"sqlite:///s{n}.db", "--out", f"out{n}"]
        for n, (vram, model, methods) in enumerate((
            ("2GB", "resnet18", "full,head,lora"),
            ("1GB", "vit_tiny_patch16_224", "full,bitfit,lora,ssf"),
        ))
    ]  # fmt: skip
    commands = ["predict"] * 9 + ["profile"]
    while len(fixed) < CASES:
        fixed.append(_one_workload(draw, draw.choice(commands)))
    return fixed


def _one_workload(draw: random.Random, command: str) -> list[str]:
    device = draw.choice(DEVICES)
    policy = draw.choice(WITHOUT_BUDGET if device == "cpu" else WITHOUT_BUDGET + WITH_BUDGET)
    quick = BACKBONES[:QUICK]
    on_cpu = device == "cpu"
    backbones = quick if policy in WITH_BUDGET and draw.random() < 0.9 else quick + BACKBONES
    words = [
        command, "--model", draw.choice(ON_CPU if on_cpu else backbones), "--method",
        draw.choice(METHODS), "--batch-size",
        str(draw.choice((1, 2, 3) if on_cpu else (1, 2, 3, 4, 8, 16, 32))), "--device", device,
        "--accumulate", str(draw.choice((1, 1, 2, 4))), "--precision",
        draw.choice(("fp32",) if on_cpu else ("fp32", "fp32", "bf16", "fp16")), "--optimizer",
        draw.choice(("adamw", "adamw", "sgd", "adamw8bit")), "--num-classes",
        str(draw.choice((10, 100, 1000))), "--checkpoint", policy,
    ]  # fmt: skip
    if policy in WITH_BUDGET:
        words += ["--vram", draw.choice(("700MB", "1GB", "1.5GB", "2GB", "4GiB"))]
    if policy == "adaptive":
        words += ["--threshold", draw.choice(("0.3", "0.5", "0.8"))]
    if command == "predict" and not on_cpu and policy not in WITH_BUDGET and draw.random() < 0.4:
        words += ["--rung", "composed"]
    return words
