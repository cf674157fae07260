"""Real child processes: their results, their errors, their caps and their deaths."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import msgspec
import pytest
import sandbox_children as children
from sandbox_children import Blocks, Held, Lift, MappedBlocks, Nothing, Number, Seen

from profiler.errors import MeasurementError, OutOfMemoryError, UsageError
from profiler.placement import Decision, Placement
from profiler.running.messages import Message, decode, decode_answer, encode
from profiler.running.sandbox import run_in_process
from profiler.running.time_limit import START_SECONDS
from profiler.units import MIB
from profiler.workload import Candidate, Workload

run_here = partial(run_in_process, timeout_seconds=START_SECONDS)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[2])]))


@pytest.mark.parametrize("values", [1, 1 << 22])
def test_denormal_values_are_zero_on_each_thread_of_a_run(values: int) -> None:
    assert run_here(children.smallest_products, Number(number=values), Seen).number == 0


def test_result_and_progress_come_from_another_process() -> None:
    seen: list[tuple[str, float]] = []
    result = run_here(
        children.report,
        Number(number=41),
        Seen,
        on_progress=lambda text, done: seen.append((text, done)),
    )
    assert result.number == 42
    assert result.pid != os.getpid()
    assert seen == [("half way", 0.5), ("done", 1.0)]


def test_a_users_error_keeps_its_class_and_line() -> None:
    with pytest.raises(UsageError, match="unknown model 'vit_z'; did you mean vit_s") as caught:
        run_here(children.unknown, Nothing(), Nothing)
    assert caught.value.exit_code == 2


def test_any_other_error_is_a_failed_measurement_of_one_line() -> None:
    with pytest.raises(MeasurementError) as caught:
        run_here(children.fail, Nothing(), Nothing)
    assert str(caught.value) == "something broke"
    assert not isinstance(caught.value, OutOfMemoryError)


def test_a_killed_child_is_a_failed_measurement_with_its_last_words() -> None:
    with pytest.raises(MeasurementError, match="code -15: last words") as caught:
        run_here(children.die, Nothing(), Nothing)
    assert not isinstance(caught.value, OutOfMemoryError)


def test_a_malformed_message_is_a_failed_measurement_of_one_line() -> None:
    with pytest.raises(MeasurementError, match=r"Invalid value 'gossip'.*one version") as caught:
        run_here(children.garbled, Nothing(), Nothing)
    assert "\n" not in str(caught.value)
    with pytest.raises(MeasurementError, match=r"Expected `float` <= 1"):
        run_here(children.overdone, Nothing(), Nothing)
    # the child refuses a request, the parent a result
    with pytest.raises(MeasurementError, match=r"Expected `int`, got `str`"):
        run_here(children.not_a_number, Number(number="one"), Nothing)
    with pytest.raises(MeasurementError, match="Expected `float`, got `null`"):
        run_here(children.not_a_number, Number(number=1), list[float])


def test_a_message_says_the_same_after_its_way() -> None:
    class Request(Message, frozen=True, kw_only=True):
        candidate: Candidate
        seconds: float | None

    placement = Placement({"blocks.0": Decision.RECOMPUTE})
    workload = Workload(model="vit_s", method="lora", rank=4, targets=("qkv",), dropout=0.5)
    sent = Request(candidate=Candidate(workload=workload, placement=placement), seconds=0.1)
    assert msgspec.json.decode(encode(sent), type=Request) == sent
    wrong = encode(sent).replace(b"recompute", b"guess")
    with pytest.raises(MeasurementError, match="Invalid enum value 'guess'"):
        decode(wrong, Request)
    with pytest.raises(MeasurementError, match="unknown field"):
        decode(encode(sent).replace(b'"seconds"', b'"hours"'), Request)


@pytest.mark.parametrize("line", [b"", b"[]", b'{"type": "progress"}', b'{"type": "result"', b"{}"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(MeasurementError, match="message between two processes"):
        decode_answer(line)


def test_the_cap_is_enforced() -> None:
    cap = 128 * MIB
    blocks = Blocks(blocks=12, block_bytes=64 * MIB, cap_bytes=cap)
    shares: list[float] = []
    with pytest.raises(OutOfMemoryError) as caught:
        run_here(
            children.allocate,
            blocks,
            Held,
            cap_bytes=cap,
            on_progress=lambda _, share: shares.append(share),
        )
    assert caught.value.cap_bytes == cap
    # it could hold the cap, and stopped at the cap and the headroom (256 MiB) at the latest
    assert cap <= len(shares) * 64 * MIB <= cap + 256 * MIB


def test_memory_that_runs_out_without_a_cap_is_no_cap_of_zero() -> None:
    blocks = Blocks(blocks=1, block_bytes=1 << 50, cap_bytes=None)
    with pytest.raises(OutOfMemoryError, match="more memory than its device has") as caught:
        run_here(children.allocate, blocks, Held)
    assert caught.value.cap_bytes is None
    assert "0 B" not in str(caught.value)


def test_below_the_cap_all_is_well() -> None:
    cap = 192 * MIB
    blocks = Blocks(blocks=2, block_bytes=64 * MIB, cap_bytes=cap)
    held = run_here(children.allocate, blocks, Held, cap_bytes=cap)
    assert held.held_bytes == 128 * MIB


def test_a_lifted_cap_comes_back_above_what_was_taken_meanwhile() -> None:
    cap, beyond = 64 * MIB, 512 * MIB
    within = Lift(beyond_bytes=beyond, more_bytes=cap, cap_bytes=cap)
    held = run_here(children.lift, within, Held, cap_bytes=cap)
    assert held.held_bytes == beyond + cap
    too_much = msgspec.structs.replace(within, more_bytes=beyond)
    with pytest.raises(OutOfMemoryError):
        run_here(children.lift, too_much, Held, cap_bytes=cap)


def test_freed_blocks_go_back_to_the_kernel_under_a_cap_only() -> None:
    # The page faults of blocks that are taken anew make steps up to 2.6 times longer.
    request = Blocks(blocks=4, block_bytes=2 * MIB, cap_bytes=64 * MIB)
    found = run_here(children.count_mapped_blocks, request, MappedBlocks)
    assert (found.uncapped, found.capped, found.timed) == (0, 4, 0)
    assert found.kept_bytes >= request.blocks * request.block_bytes


def test_the_cap_holds_again_after_the_timed_steps() -> None:
    cap, beyond = 64 * MIB, 512 * MIB
    within = Lift(beyond_bytes=beyond, more_bytes=cap, cap_bytes=cap)
    assert run_here(children.time_then_hold, within, Held, cap_bytes=cap).held_bytes == cap
    too_much = msgspec.structs.replace(within, more_bytes=beyond)
    with pytest.raises(OutOfMemoryError):
        run_here(children.time_then_hold, too_much, Held, cap_bytes=cap)


def test_a_slow_child_is_stopped_and_that_is_no_lack_of_memory() -> None:
    with pytest.raises(MeasurementError, match=r"more than 0\.5 s") as caught:
        run_in_process(children.wait, Nothing(), Nothing, cap_bytes=MIB, timeout_seconds=0.5)
    assert not isinstance(caught.value, OutOfMemoryError)
