"""Results from known metadata, against those that PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.device_rules.cuda_dispatch import imitate_cuda
from profiler.devices.table import lookup
from profiler.placement import Decision, Placement
from profiler.replay import known_results, operation_counter
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.known_results import fake_empty, run_known
from profiler.replay.operation_counter import OperationCounter
from profiler.replay.step_replay import replay_step
from profiler.workload import Candidate, Workload

GPU = lookup("rtx-2060-super")
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(known_results, "_known", {})
    monkeypatch.setattr(known_results, "_sharing", set())
    monkeypatch.setattr(operation_counter, "_records_by_key", {})
    FakeTensorMode.cache_clear()
    yield


def known_count() -> int:
    return len(known_results._known)


def run_thrice(func: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Return PyTorch's first result, that from its cache, and that from known metadata if any."""
    return [run_known(func, args, kwargs) for _ in range(3)]


def assert_equal_metadata(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours is not theirs
    assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
    assert ours.storage_offset() == theirs.storage_offset()
    assert ours.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
    assert ours.device == theirs.device
    assert torch._C._dispatch_keys(ours) == torch._C._dispatch_keys(theirs)


def test_a_new_tensor_has_the_metadata_of_the_computed_one() -> None:
    with FakeTensorMode():
        a, b = torch.empty(3, 5), torch.empty(5, 7, dtype=torch.float32).t().contiguous().t()
        first, _, last = run_thrice(aten.mm.default, a, b)
        assert known_count() == 1
        assert_equal_metadata(last, first)
        assert last.untyped_storage()._cdata != first.untyped_storage()._cdata


def test_views_keep_the_storage_of_their_argument() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 6)
        for func, args in (
            (aten.transpose.int, (0, 1)),
            (aten.slice.Tensor, (1, 2, 5)),
            (aten._unsafe_view.default, ([24],)),
        ):
            first, _, last = run_thrice(func, x, *args)
            assert_equal_metadata(last, first)
            assert last.untyped_storage()._cdata == x.untyped_storage()._cdata
        first, _, last = run_thrice(aten.unbind.int, x, 1)
        assert isinstance(last, type(first))
        assert [each.storage_offset() for each in last] == [0, 1, 2, 3, 4, 5]
        assert {each.untyped_storage()._cdata for each in last} == {x.untyped_storage()._cdata}
        assert known_count() == 4


def test_an_operation_in_place_returns_its_argument() -> None:
    with FakeTensorMode():
        x, y = torch.empty(4), torch.empty(4)
        assert all(result is x for result in run_thrice(aten.add_.Tensor, x, 1.0))
        assert run_known(aten.add_.Tensor, (y, 1.0), {}) is y
        assert known_count() == 1


@pytest.mark.parametrize(
    ("func", "more", "shape"),
    [
        (aten.t_.default, (), (3, 2)),
        (aten.transpose_.default, (0, 1), (3, 2)),
        (aten.unsqueeze_.default, (0,), (1, 2, 3)),
        (aten.resize_.default, ([6, 1],), (6, 1)),
    ],
)
def test_an_operation_in_place_that_changes_the_shape_always_runs(
    func: Any, more: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    with FakeTensorMode():
        for _ in range(4):
            x = torch.empty(2, 3)
            assert run_known(func, (x, *more), {}) is x
            assert x.shape == shape
    assert known_count() == 0


def test_results_without_a_tensor_stay_without_one() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 8, 4)
        weight, mean = torch.empty(4), torch.empty(2, 8, 1)
        args = (x, x, [4], mean, mean, weight, weight, [True, False, True])
        first, _, last = run_thrice(aten.native_layer_norm_backward.default, *args)
        assert first[1] is None and last[1] is None
        assert_equal_metadata(last[0], first[0])


def test_equal_numbers_of_different_types_are_told_apart() -> None:
    with FakeTensorMode():
        x = torch.empty(4, dtype=torch.int64)
        for number, dtype in ((2, torch.int64), (2.0, torch.float32)):
            assert all(r.dtype == dtype for r in run_thrice(aten.mul.Scalar, x, number))
        for number, dtype in ((1, torch.int64), (True, torch.int64), (1.0, torch.float32)):
            assert all(r.dtype == dtype for r in run_thrice(aten.add.Scalar, x, number))


def test_strides_and_offsets_are_part_of_the_key() -> None:
    with FakeTensorMode():
        image = torch.empty(2, 3, 4, 4)
        for x in (image, image.to(memory_format=torch.channels_last)):
            assert all(r.stride() == x.stride() for r in run_thrice(aten.clone.default, x))


def test_results_that_depend_on_values_are_not_stored() -> None:
    real = torch.ones(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4)
        for args in ((x, real), (torch.empty(4, dtype=torch.complex64), x)):
            run_thrice(aten.mul.Tensor, *args)
        run_thrice(aten.zeros.default, [4])  # no fake tensor names the mode
        assert known_count() == 0


def test_a_result_belongs_to_the_mode_of_its_arguments() -> None:
    for _ in range(3):
        with FakeTensorMode() as mode:
            out = run_known(aten.neg.default, (torch.empty(3),), {})
            assert isinstance(out, FakeTensor) and out.fake_mode is mode
    assert known_count() == 1


def test_an_empty_tensor_has_the_metadata_of_another() -> None:
    like = torch.empty(3, 4, dtype=torch.float16, device="meta").t()
    with FakeTensorMode() as mode:
        expected = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        assert_equal_metadata(fake_empty(like, mode), expected)


def logs_equal(ours: EventLog, theirs: EventLog) -> None:
    for each in fields(EventLog):
        mine, other = getattr(ours, each.name), getattr(theirs, each.name)
        if each.name == "death":  # autocast frees its casts of weights in an order of its own
            mine, other = np.sort(mine), np.sort(other)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, other, err_msg=each.name)
        else:
            assert mine == other, each.name
    assert ours.peak_bytes == theirs.peak_bytes


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("test_vit", {"method": "full", "precision": "fp16"}),
        ("test_vit", {"method": "lora", "rank": 4, "accumulation": 2, "optimizer": "sgd"}),
        ("test_vit", {"method": "galore", "rank": 4}),
        ("test_efficientnet", {"method": "full", "levers": ("channels_last",)}),
        ("test_resnet", {"method": "side", "rank": 8, "levers": ("fused",)}),
        ("test_convnext", {"method": "bitfit", "precision": "fp16"}),
        ("vim_t", {"method": "bitfit"}),  # its scans are operations of our own
    ],
)
def test_a_replay_with_known_results_is_that_without(
    model: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Workload(model=model, image_size=64, micro_batch=4, num_classes=10, **changes)
    plain = Candidate(workload=load, placement=Placement())
    found = [replay_step(plain, device=GPU) for _ in range(3)]
    assert known_count() > 50
    monkeypatch.setattr(
        "profiler.replay.recorder.run_with_key",
        lambda func, args, kwargs: (func(*args, **kwargs), None),
    )
    monkeypatch.setattr(
        "profiler.replay.in_place.run_known", lambda func, args, kwargs: func(*args, **kwargs)
    )
    expected = replay_step(plain, device=GPU)
    for log in found:
        logs_equal(log, expected)


def test_recomputation_with_known_results_is_that_without(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Workload(model="test_vit", image_size=64, micro_batch=4, precision="fp16")
    decisions = {"blocks.0": Decision.RECOMPUTE, "blocks.1": Decision.DROP_CHEAP}
    placed = Candidate(workload=load, placement=Placement(decisions))
    found = [replay_step(placed, device=GPU) for _ in range(3)]
    monkeypatch.setattr(
        "profiler.replay.recorder.run_with_key",
        lambda func, args, kwargs: (func(*args, **kwargs), None),
    )
    expected = replay_step(placed, device=GPU)
    for log in found:
        logs_equal(log, expected)


def test_a_record_is_shared_by_counters_of_equal_options_only() -> None:
    left, right, out = torch.empty(4, 5), torch.empty(5, 7), torch.empty(4, 7)

    def counted(result: torch.Tensor, **options: Any) -> Any:
        counter = OperationCounter(**options)
        given = {"phase": Phase.FORWARD, "unit": 0, "key": ("one", "key")}
        counter.count(aten.add.Tensor, (out, out), {}, result, **given)
        counter.count(aten.mm.default, (left, right), {}, out, **given | {"key": ("another",)})
        return counter.records

    (_, first), (_, again) = counted(out, batch=4), counted(out, batch=4)
    assert first == again
    assert (first.flops, first.batched_bytes) == (2 * 4 * 5 * 7, 4 * (4 * 5 + 4 * 7))
    assert counted(out, batch=5)[1].batched_bytes == 4 * (4 * 5 + 5 * 7)
    assert counted(out, batch=4, published_flops=True)[1].flops == 2 * 4 * 5 * 7 - 4 * 7
    # another device gives a result other strides, and so another kernel
    strided = torch.empty(7, 4).t()
    assert not counted(strided, batch=4)[0].kernel.endswith("strided")
    with imitate_cuda((7, 5)):
        assert counted(strided, batch=4)[0].kernel.endswith("strided")


class Known(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_known(func, args, kwargs or {})


def test_results_that_share_a_storage_share_it_each_time() -> None:
    """PyTorch's cache gives the gradients of an LSTM's two biases storages of their own."""

    def different_gradients(mode: Any = Known) -> int:
        with FakeTensorMode(), mode():
            lstm = torch.nn.LSTM(8, 8, batch_first=True)
            out, _ = lstm(torch.empty(2, 3, 8))
            given = list(lstm.parameters())
            gradients = torch.autograd.grad(out, given, torch.ones_like(out))
        return len({each.untyped_storage()._cdata for each in gradients})

    assert [different_gradients() for _ in range(3)] == [3, 3, 3]
    # the same if other code filled PyTorch's cache before
    known_results._sharing.clear()
    known_results._known.clear()
    assert different_gradients(nullcontext) in (3, 4)
    assert different_gradients(nullcontext) in (3, 4)
    assert [different_gradients() for _ in range(2)] == [3, 3]
