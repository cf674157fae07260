"""Run one function in a process of its own.

The function takes a request and a progress callback and returns a result; request and result are
records (profiler/running/messages.py). Every way in which the process can fail becomes one error of
``profiler.errors`` in the parent. A function that shall run under a memory cap sets the cap itself
(profiler/running/memory_caps.py), after the allocations that shall not count.

The process has a process group of its own, which is killed as a whole at the end of the call. It
ends with its parent however that ends (profiler/running/process_end.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from profiler.device_rules.caching_allocator import configure
from profiler.errors import DeviceError, InputError, MeasurementError, OutOfMemoryError, UsageError
from profiler.running.denormals import flush_denormals
from profiler.running.emulated.gpu import is_emulated
from profiler.running.memory_caps import is_out_of_memory, keep_freed_memory
from profiler.running.messages import (
    Call,
    ErrorClass,
    Failure,
    Message,
    ProgressReport,
    ReturnValue,
    address_of,
    decode,
    decode_answer,
    encode,
    import_address,
)
from profiler.running.process_end import end_with_parent
from profiler.running.rare_collection import collect_rarely

Progress = Callable[[str, float], None]
"""A progress callback: (activity, fraction done)."""

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")

SECONDS_BETWEEN_CHECKS = 0.1
"""Seconds between two looks at the event that cancels a call."""

_ERRORS: Mapping[ErrorClass, type[Exception]] = {
    "UsageError": UsageError,
    "InputError": InputError,
    "DeviceError": DeviceError,
    "MeasurementError": MeasurementError,
}


def run_in_process(
    function: Callable[[RequestT, Progress], ResultT],
    request: RequestT,
    result: type[ResultT],
    *,
    timeout_seconds: float,
    cap_bytes: int | None = None,
    on_progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
    cancelled: threading.Event | None = None,
) -> ResultT:
    """Call ``function(request, progress)`` in a fresh interpreter and return its result.

    Args:
        function: function at the top level of a module that the child can import.
        request: its request.
        result: type of its result.
        timeout_seconds: time after which the process is killed (``profiler.running.time_limit``).
        cap_bytes: memory cap that the function sets, for the error message; None for no cap.
        on_progress: progress callback in this process.
        environment: variables of the child beside this process's own, such as those of an emulated
            GPU; None for none.
        cancelled: event by which another thread ends the process; None for none.

    Raises:
        OutOfMemoryError: the cap was exceeded.
        MeasurementError: the process failed in another way, took too long, or was cancelled.
        UsageError, InputError, DeviceError: the function raised one of these.
    """
    call = Call(
        address=address_of(function),
        request_type=address_of(type(request)),
        request=msgspec.Raw(encode(request)),
    )
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "profiler.running.sandbox", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_child_environment() | dict(environment or {}),
            process_group=0,
        )
        try:
            answer = _exchange(process, call, on_progress, timeout_seconds, cancelled)
        finally:
            _kill_group(process)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if answer is None:
            errors.seek(0)
            stderr = errors.read().decode(errors="replace")
            raise _error_of_death(process.returncode, stderr, cap_bytes)
    if isinstance(answer, Failure):
        if answer.error == "OutOfMemoryError":
            raise OutOfMemoryError(cap_bytes=cap_bytes, detail=answer.message)
        raise _ERRORS[answer.error](answer.message)
    return decode(answer.result, result)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and all processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _child_environment() -> dict[str, str]:
    environment = os.environ | {"KINETO_LOG_LEVEL": "99"}
    configure(environment)
    return environment


def _exchange(
    process: subprocess.Popen[bytes],
    call: Call,
    on_progress: Progress | None,
    timeout_seconds: float,
    cancelled: threading.Event | None,
) -> ReturnValue | Failure | None:
    """Send the call, pass progress on, and return the last message; None if the process died."""
    assert process.stdin is not None and process.stdout is not None
    timed_out, is_over = threading.Event(), threading.Event()

    def stop() -> None:
        timed_out.set()
        _kill_group(process)

    def stop_if_cancelled(event: threading.Event) -> None:
        while not is_over.wait(SECONDS_BETWEEN_CHECKS):
            if event.is_set():
                _kill_group(process)
                return

    watchdog = threading.Timer(timeout_seconds, stop)
    watchdog.daemon = True
    watchdog.start()
    if cancelled is not None:
        threading.Thread(target=stop_if_cancelled, args=(cancelled,), daemon=True).start()
    try:
        process.stdin.write(encode(call))
        process.stdin.close()
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # the process died while it wrote
            answer = decode_answer(line)
            if not isinstance(answer, ProgressReport):
                process.wait()
                return answer
            if on_progress is not None:
                on_progress(answer.activity, answer.fraction)
    except BrokenPipeError:
        _kill_group(process)
    finally:
        watchdog.cancel()
        is_over.set()
    process.wait()
    if cancelled is not None and cancelled.is_set():
        raise MeasurementError("the run was cancelled")
    if timed_out.is_set():
        raise MeasurementError(f"the run was stopped: it took more than {timeout_seconds:g} s")
    return None


def _error_of_death(code: int | None, stderr: str, cap_bytes: int | None) -> Exception:
    if cap_bytes and (code in (-9, -11, -6) or "bad_alloc" in stderr):
        return OutOfMemoryError(cap_bytes=cap_bytes, detail=f"the process died with code {code}")
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "no message on stderr"
    return MeasurementError(f"the run died with code {code}: {last}")


# --- the child ------------------------------------------------------------------------------------


def _serve() -> None:
    """Read the call from stdin, run it, and write messages to the original stdout."""
    end_with_parent(int(sys.argv[1]))
    collect_rarely()
    keep_freed_memory()
    flush_denormals()
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Libraries print to stdout, which would break the stream of messages.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: Message) -> None:
        channel.write(encode(message) + b"\n")
        channel.flush()

    def progress(activity: str, fraction: float) -> None:
        send(ProgressReport(activity=activity, fraction=fraction))

    try:
        call = decode(sys.stdin.buffer.read(), Call)
        request = decode(call.request, import_address(call.request_type))
        result = import_address(call.address)(request, progress)
        answer: ReturnValue | Failure = ReturnValue(result=msgspec.Raw(encode(result)))
    except Exception as error:
        lines = str(error).strip().splitlines()
        answer = Failure(
            error=_nearest_class(error), message=lines[0] if lines else type(error).__name__
        )
    send(answer)
    if is_emulated():
        os._exit(0)  # cuDNN's frontend crashes at the end of a process without the real cuDNN


def _nearest_class(error: Exception) -> ErrorClass:
    """Return the error class by which the parent reports an exception."""
    if is_out_of_memory(error):
        return "OutOfMemoryError"
    names = [base.__name__ for base in type(error).__mro__]
    return next((known for known in _ERRORS if known in names), "MeasurementError")


if __name__ == "__main__":
    _serve()
