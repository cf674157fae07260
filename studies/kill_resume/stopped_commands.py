"""Commands that a user or a batch system stops: Ctrl-C and SIGTERM at random moments.

Ctrl-C reaches all processes of a terminal's foreground group, SIGTERM the command alone. Every
command that may run for longer than a moment is in ``commands``.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import DATA, GPU_SPACE, SMALL_MODEL, Bench

LONGEST_WAIT_SECONDS = 20.0
"""Latest moment of a signal. Calibrations run for minutes, servers until they are stopped."""

SERVER_SECONDS = 2.0
"""Latest moment of a signal to a command that ends by a signal only."""

SERVERS = ("serve", "dashboard", "mcp", "worker")

CODES = {signal.SIGINT: (130, -2), signal.SIGTERM: (143, -15)}
"""Exit codes after a signal. A shell shows a process that died of a signal as 128 + its number."""

WORKLOAD = (*SMALL_MODEL, "--method", "lora", "--batch-size", "4")


def commands(bench: Bench) -> dict[str, tuple[str, ...]]:
    """Make the files that the commands read; return the arguments of each command by its name."""
    plan = bench.any_plan()
    bench.run("train", plan, *DATA, "--epochs", "1", "--device", "cpu", "--out", "made")
    shutil.rmtree(bench.folder / "studies", ignore_errors=True)  # that of another device
    bench.run(*GPU_SPACE, "--no-validate", "--out", "gpu-plans")
    gpu_plan = str(min((bench.folder / "gpu-plans").rglob("*.json")))
    _save_images(bench.folder / "images")
    _save_towers(bench.folder / "towers")
    image = str(bench.folder / "images" / "sea" / "0.png")
    storage = ("--storage", f"sqlite:///{bench.folder}/studies/s.db")
    return {
        "predict": ("predict", *WORKLOAD),
        "predict, cpu": ("predict", *WORKLOAD, "--device", "cpu"),
        "measure": ("measure", *WORKLOAD, "--device", "cpu"),
        "profile": ("profile", *WORKLOAD),
        "grid": ("grid", "--models", "test_vit", "--methods", "head,lora,full", "--image-size",
                 "32", "--devices", "rtx-2060-super"),
        "recommend": (*GPU_SPACE, "--out", "again"),
        "validate": ("validate", plan, *DATA, "--steps", "2", "--device", "cpu", "--out", "v.json"),
        "rehearse": ("rehearse", gpu_plan, "--out", "rehearsed.json"),
        "check": ("check", gpu_plan),
        "explain": ("explain", gpu_plan),
        "export": ("export", plan, "--to", "script", "--out", "exported"),
        "report": ("report", plan, gpu_plan, "--html", "report.html"),
        "score": ("score", "made"),
        "show": ("show", plan),
        "evaluate": ("evaluate", "made", "--data", "digits"),
        "classify": ("classify", "made", image),
        "features": ("features", *SMALL_MODEL, *DATA),
        "zero-shot": ("zero-shot", "--model", "clip", "--weights", "towers", "--data", "images"),
        "training-free": ("training-free", "--vram", "2GB", "--out", "frozen-plans"),
        "calibrate": ("calibrate", "--device", "cpu"),
        "doctor": ("doctor",),
        "worker": ("worker", *storage, "--study", "s", "--device", "cpu"),
        "serve": ("serve", "--port", "8399"),
        "dashboard": ("dashboard", *storage, "--port", "8398"),
        "mcp": ("mcp",),
    }  # fmt: skip


def stopped_part(_: str, bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Stop each command ``count`` times by each of the signals."""
    for name, arguments in commands(bench).items():
        with _tiny_models() if name == "zero-shot" else contextlib.nullcontext():
            seconds = _seconds_of(name, bench, arguments)
            for number in CODES:
                for _ in range(count):
                    yield {"part": "stopped", "command": name} | _stop(
                        bench, arguments, number, rng.uniform(0, seconds)
                    )


def _seconds_of(name: str, bench: Bench, arguments: tuple[str, ...]) -> float:
    """Return the seconds in which a command is to be stopped: those of a run to its end."""
    if name in SERVERS:
        return SERVER_SECONDS
    began, command = time.monotonic(), bench.start(*arguments)
    code = command.wait_at_most(LONGEST_WAIT_SECONDS)
    assert code in (None, 0), command.text()
    return time.monotonic() - began


def _stop(
    bench: Bench, arguments: tuple[str, ...], number: signal.Signals, after: float
) -> dict[str, Any]:
    temporary = bench.folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    command = bench.start(*arguments, TMPDIR=str(temporary))
    is_sent = command.stop_after(after, number, whole_group=number == signal.SIGINT)
    sent, code = time.monotonic(), command.wait()
    took = time.monotonic() - sent
    text = command.text()
    lines = [line for line in text.splitlines() if line.startswith("budgetplan: stopped")]
    # a command with exit code 0 had ended, or was about to
    is_right = len(lines) == (code > 0) if code in CODES[number] else code == 0
    row = {
        "signal": int(number), "after_seconds": round(after, 2), "sent": is_sent, "code": code,
        "end_seconds": round(took, 2), "alive": command.alive_after_two_seconds(),
        "same": is_right and "Traceback" not in text,
        "leftovers": [*bench.temporary_files(), *sorted(p.name for p in temporary.iterdir())],
    }  # fmt: skip
    return row | ({} if row["same"] else {"text": text[-3000:]})


def _save_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("sea", "tree"):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def _save_towers(folder: Path) -> None:
    """Write the weights of tiny towers."""
    from tests.profiler.models.frozen.checkpoints import towers_folder

    folder.mkdir()
    with _tiny_models():
        towers_folder("clip", folder)


@contextlib.contextmanager
def _tiny_models() -> Iterator[None]:
    """Put tiny models in the place of the published ones, for forks of this process."""
    from profiler.models.frozen import catalogue
    from tests.profiler.models.frozen.tiny import TINY

    published, catalogue.frozen_models = catalogue.frozen_models, lambda: TINY
    try:
        yield
    finally:
        catalogue.frozen_models = published
