"""Any stream of requests gives the bytes of the naive allocator."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from naive_allocator import NaiveAllocator

from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemory,
)
from profiler.units import KIB, MIB

SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(4 * KIB, 2 * MIB),
    st.integers(2 * MIB, 60 * MIB),
    st.sampled_from([512, MIB - 1, MIB, MIB + 1, 10 * MIB, 20 * MIB]),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("malloc"), SIZES),
        st.tuples(st.just("free"), st.integers(0, 10_000)),
        st.tuples(st.just("empty_cache"), st.just(0)),
    ),
    max_size=120,
)
SETTINGS = st.builds(
    AllocatorSettings,
    expandable_segments=st.booleans(),
    max_split_size_bytes=st.sampled_from([None, 32 * MIB, 128 * MIB]),
)


@given(events=EVENTS, settings=SETTINGS, limit_mib=st.one_of(st.none(), st.integers(20, 300)))
def test_every_stream_gives_the_bytes_of_the_naive_allocator(
    events: list[tuple[str, int]], settings: AllocatorSettings, limit_mib: int | None
) -> None:
    limit = None if limit_mib is None else limit_mib * MIB
    model, naive = CachingAllocator(settings, limit_bytes=limit), NaiveAllocator(settings, limit)
    live: list[int] = []
    for key, (kind, value) in enumerate(events):
        if kind == "malloc":
            served = naive.malloc(key, value)
            try:
                granted = model.malloc(key, value)
            except SimulatedOutOfMemory:
                assert not served
                continue
            assert served
            assert granted >= value
            assert granted % 512 == 0
            live.append(key)
        elif kind == "free" and live:
            gone = live.pop(value % len(live))
            model.free(gone)
            naive.free(gone)
        elif kind == "empty_cache":
            model.empty_cache()
            naive.empty_cache()
        assert model.allocated_bytes == naive.total("live")
        assert model.reserved_bytes == naive.total("mapped")
        assert model.allocated_bytes <= model.reserved_bytes <= model.peak_reserved_bytes
    assert model.reserved_bytes == sum(segment.total_bytes for segment in model.segments)
    for key in live:
        model.free(key)
    model.empty_cache()
    assert (model.allocated_bytes, model.reserved_bytes, model.segments) == (0, 0, ())
