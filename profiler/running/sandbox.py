"""Run one function in a process of its own, under a hard memory cap.

The function is named ``package.module:function``; it gets one JSON object and returns another.
It may report progress. The parent turns every way of dying into one error of ``profiler.errors``.

The function sets the cap itself, when it has what is not to be counted. On CUDA it is the caching
allocator's (``set_per_process_memory_fraction``, :func:`cap_cuda_memory`), on a CPU the kernel's
``RLIMIT_DATA`` on what the process may allocate from then on (:func:`cap_host_memory`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from profiler.device_rules.caching_allocator import configure
from profiler.errors import DeviceError, InputError, MeasurementError, OutOfMemoryError, UsageError
from profiler.units import MIB

Progress = Callable[[str, float], None]

_SLACK_BYTES = 256 * MIB
"""Thread stacks, arenas and library scratch space that belong to no tensor."""

_ENVIRONMENT = {
    "KINETO_LOG_LEVEL": "99",
    # else glibc takes ever larger blocks (up to 32 MiB) from its heap, whose holes the cap counts:
    # ViT-S at batch 16 took 2.4 GiB for a peak of 1.0 GiB, with this 1.3 GiB
    "MALLOC_MMAP_THRESHOLD_": "131072",
}

_ERRORS: Mapping[str, type[Exception]] = {
    "UsageError": UsageError,
    "InputError": InputError,
    "DeviceError": DeviceError,
    "MeasurementError": MeasurementError,
}


def run_in_process(
    function: str,
    request: Mapping[str, Any],
    *,
    cap_bytes: int | None = None,
    timeout_seconds: float = 3600,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Call ``function(request, progress)`` in a fresh interpreter and return its result.

    Args:
        function: ``package.module:function``.
        request: JSON data.
        cap_bytes: the cap that the function sets, for the message; None for no limit.
        timeout_seconds: after which the process is killed.
        on_progress: called with (what it does, fraction done).

    Raises:
        OutOfMemoryError: the cap was exceeded.
        MeasurementError: it died in another way, or took too long.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "profiler.running.sandbox", function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=_environment(),
        )
        try:
            answer = _converse(process, request, on_progress, timeout_seconds)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if answer is None:
            complaints.seek(0)
            raise _death(process.returncode, complaints.read(), cap_bytes)
    if "error" in answer:
        raise _relayed(answer, cap_bytes)
    result: dict[str, Any] = answer["result"]
    return result


def _environment() -> dict[str, str]:
    environment = os.environ | _ENVIRONMENT
    configure(environment)
    return environment


def _converse(
    process: subprocess.Popen[str],
    request: Mapping[str, Any],
    on_progress: Progress | None,
    timeout_seconds: float,
) -> dict[str, Any] | None:
    """Send the request, pass progress on, return the last message (None when it died)."""
    import threading

    assert process.stdin is not None and process.stdout is not None
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        process.kill()

    watchdog = threading.Timer(timeout_seconds, stop)
    watchdog.daemon = True
    watchdog.start()
    try:
        json.dump(dict(request), process.stdin)
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                if on_progress is not None:
                    on_progress(message["progress"], float(message["fraction"]))
            else:
                process.wait()
                return dict(message)
    except (BrokenPipeError, json.JSONDecodeError):
        process.kill()
    finally:
        watchdog.cancel()
    process.wait()
    if timed_out.is_set():
        raise MeasurementError(f"the run was stopped: it took more than {timeout_seconds:g} s")
    return None


def _relayed(answer: Mapping[str, Any], cap_bytes: int | None) -> Exception:
    if answer["error"] == "OutOfMemoryError":
        return OutOfMemoryError(cap_bytes=cap_bytes or 0, detail=str(answer["message"]))
    kind = _ERRORS.get(str(answer["error"]), MeasurementError)
    return kind(str(answer["message"]))


def _death(code: int | None, complaints: str, cap_bytes: int | None) -> Exception:
    if cap_bytes and (code in (-9, -11, -6) or "bad_alloc" in complaints):
        return OutOfMemoryError(cap_bytes=cap_bytes, detail=f"the process died with code {code}")
    last = complaints.strip().splitlines()[-1] if complaints.strip() else "it said nothing"
    return MeasurementError(f"the run died with code {code}: {last}")


def cap_cuda_memory(cap_bytes: int) -> None:
    """Cap what PyTorch's CUDA allocator may reserve in this process."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total))


def cap_host_memory(cap_bytes: int) -> None:
    """Cap what this process may allocate from now on."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + cap_bytes + _SLACK_BYTES, hard))


def lift_host_cap() -> Callable[[], None]:
    """Lift the cap, if there is one, and return what puts it back.

    It is put back higher by what was allocated meanwhile and is still there.
    """
    if sys.platform != "linux":
        return lambda: None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return lambda: None
    before = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

    def put_back() -> None:
        grown = soft + max(0, _data_bytes() - before)
        resource.setrlimit(resource.RLIMIT_DATA, (grown, hard))

    return put_back


def _data_bytes() -> int:
    """Return what ``RLIMIT_DATA`` counts of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        kibibytes = next(line.split()[1] for line in status if line.startswith("VmData:"))
    return int(kibibytes) * 1024


_REFUSALS = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, when it finds no room for a kernel or its scratch
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception is an allocator's refusal."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(sign in text for sign in _REFUSALS)


def _kind_of(error: Exception) -> str:
    """Return the nearest class the parent knows."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((name for name in names if name in _ERRORS), names[0])


def _serve(function: str) -> None:
    """The child: read the request, run, answer in JSON lines on the original stdout."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # prints of libraries stay out of the channel

    def send(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(dict(message)) + "\n")
        channel.flush()

    request = json.load(sys.stdin)
    module, _, name = function.partition(":")
    try:
        run = getattr(import_module(module), name)
        result = run(request, lambda text, done: send({"progress": text, "fraction": done}))
    except Exception as error:
        kind = "OutOfMemoryError" if is_out_of_memory(error) else _kind_of(error)
        message = str(error).strip().splitlines()
        send({"error": kind, "message": message[0] if message else type(error).__name__})
    else:
        send({"result": result})


if __name__ == "__main__":
    _serve(sys.argv[1])
