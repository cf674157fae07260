"""A second implementation of the caching allocator's rules, written to be obvious and not fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from profiler.device_rules.caching_allocator import AllocatorSettings, round_size, segment_size
from profiler.units import MIB


@dataclass
class NaiveSegment:
    """One segment as a list of [size, state] in address order; every question is a full scan."""

    page: int | None  # None: fetched whole
    small: bool
    runs: list[list[Any]]  # [size, "free" | "live:<key>" | "unmapped", age base]


@dataclass
class NaiveAllocator:
    """The rules once more, written for being obvious."""

    settings: AllocatorSettings
    limit: int | None
    segments: list[NaiveSegment] = field(default_factory=list)
    searches: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    peak_allocated: int = 0
    peak_reserved: int = 0
    retries: int = 0

    def total(self, wanted: str) -> int:
        return sum(
            size
            for segment in self.segments
            for size, state, _ in segment.runs
            if str(state).startswith(wanted) or (wanted == "mapped" and state != "unmapped")
        )

    def note(self) -> None:
        self.peak_allocated = max(self.peak_allocated, self.total("live"))
        self.peak_reserved = max(self.peak_reserved, self.total("mapped"))

    def tidy(self, segment: NaiveSegment) -> None:
        """Merge equal neighbours; the age of a merged block is of now."""
        merged: list[list[Any]] = []
        for size, state, age in segment.runs:
            if merged and merged[-1][1] == state and state in ("free", "unmapped"):
                merged[-1] = [merged[-1][0] + size, state, max(merged[-1][2], age)]
            elif size:
                merged.append([size, state, age])
        segment.runs = merged

    def free_blocks(self, small: bool) -> list[tuple[int, int, int]]:
        found = [
            (run[0], number, index)
            for number, segment in enumerate(self.segments)
            for index, run in enumerate(segment.runs)
            if segment.small == small and run[1] == "free"
        ]
        return sorted(found)

    def growth(self, number: int, index: int) -> int:
        runs = self.segments[number].runs
        more = (
            runs[index + 1][0] if len(runs) > index + 1 and runs[index + 1][1] == "unmapped" else 0
        )
        return runs[index][0] + more

    def find(self, size: int, small: bool) -> tuple[int, int] | None:
        fitting = [block for block in self.free_blocks(small) if block[0] >= size]
        if not fitting:
            return None
        chosen = fitting[0]
        if self.settings.expandable_segments:
            for other in fitting[1:]:
                if self.growth(*other[1:]) >= self.growth(*chosen[1:]):
                    break
                chosen = other
        bound = self.settings.max_split_size_bytes
        if bound is not None:
            slack = (
                self.settings.max_non_split_rounding_bytes or self.settings.large_segment_size_bytes
            )
            if size < bound <= chosen[0] or (size >= bound and chosen[0] >= size + slack):
                return None
        return chosen[1:]

    def drop_unused(self, which: list[int]) -> None:
        self.segments = [s for number, s in enumerate(self.segments) if number not in which]

    def whole(self, number: int) -> bool:
        segment = self.segments[number]
        return segment.page is None and [run[1] for run in segment.runs] == ["free"]

    def empty_cache(self) -> None:
        self.drop_unused([n for n in range(len(self.segments)) if self.whole(n)])
        for segment in self.segments:
            if segment.page is not None:
                self.unmap(segment, segment.page)
        self.drop_unused(
            [n for n, s in enumerate(self.segments) if all(r[1] == "unmapped" for r in s.runs)]
        )

    def unmap(self, segment: NaiveSegment, page: int) -> None:
        cut: list[list[Any]] = []
        at = 0
        for size, state, age in segment.runs:
            end = at + size
            first, last = -(-at // page) * page, end // page * page
            if state == "free" and first < last:
                now = self.searches[segment.small]
                cut += [[first - at, "free", now], [last - first, "unmapped", now]]
                cut += [[end - last, "free", now]]
            else:
                cut.append([size, state, age])
            at = end
        segment.runs = [run for run in cut if run[0]]
        self.tidy(segment)

    def collect(self) -> None:
        if self.limit is None or not self.settings.garbage_collection_threshold:
            return
        target = self.total("mapped") - int(self.settings.garbage_collection_threshold * self.limit)
        while target > 0:
            ages = {
                n: self.searches[False] - s.runs[0][2]
                for n, s in enumerate(self.segments)
                if not s.small and self.whole(n)
            }
            if not ages:
                return
            old = [n for n, age in ages.items() if age >= sum(ages.values()) / len(ages)]
            target -= sum(self.segments[n].runs[0][0] for n in old)
            self.drop_unused(old)

    def release_oversize(self, size: int, small: bool) -> bool:
        bound = self.settings.max_split_size_bytes
        if bound is None or self.settings.expandable_segments:
            return False
        wanted = max(size, bound)
        enough = [b for b in self.free_blocks(small) if b[0] >= wanted]
        if enough:
            self.drop_unused([enough[0][1]])
            return True
        gone: list[int] = []
        released = 0
        for block, number, _ in reversed(self.free_blocks(small)):
            if released < wanted and block >= bound:
                gone.append(number)
                released += block
        self.drop_unused(gone)
        return released >= wanted

    def fits(self, size: int) -> bool:
        fetched = segment_size(size, self.settings)
        return self.limit is None or self.total("mapped") + fetched <= self.limit

    def fetch(self, size: int, small: bool) -> tuple[int, int] | None:
        self.collect()
        if not self.fits(size) and not (self.release_oversize(size, small) and self.fits(size)):
            self.empty_cache()
            self.retries += 1
            if not self.fits(size):
                return None
        now = self.searches[small]
        if not self.settings.expandable_segments:
            fetched = segment_size(size, self.settings)
            self.segments.append(NaiveSegment(None, small, [[fetched, "free", now]]))
            return len(self.segments) - 1, 0
        if not any(s.small == small for s in self.segments):
            page = 2 * MIB if small else self.settings.large_segment_size_bytes
            self.segments.append(NaiveSegment(page, small, [[1 << 42, "unmapped", now]]))
        number = next(n for n, s in enumerate(self.segments) if s.small == small)
        return number, self.grow(self.segments[number], size)

    def grow(self, segment: NaiveSegment, size: int) -> int:
        """Map the lowest run of free and unmapped bytes that contains an unmapped one."""
        runs, page = segment.runs, segment.page
        assert page is not None
        for index in range(len(runs)):
            stop = index
            while stop < len(runs) and runs[stop][1] in ("free", "unmapped"):
                stop += 1
            span = runs[index:stop]
            starts = [r[1] for r in span[:2]]
            if "unmapped" not in starts or sum(r[0] for r in span) < size:
                continue
            have = 0
            here = index
            while have < size:
                if runs[here][1] == "unmapped":
                    need = min(-(-(size - have) // page) * page, runs[here][0])
                    now = self.searches[segment.small]
                    rest = [[runs[here][0] - need, "unmapped", now]]
                    runs[here : here + 1] = [[need, "free", now], *(r for r in rest if r[0])]
                have += runs[here][0]
                here += 1
            self.tidy(segment)
            return index
        raise AssertionError("an expandable segment has no end")

    def malloc(self, key: int, nbytes: int) -> bool:
        size = round_size(nbytes, self.settings)
        small = size <= MIB
        self.searches[small] += 1
        place = self.find(size, small) or self.fetch(size, small)
        if place is None:
            return False
        number, index = place
        segment = self.segments[number]
        self.note()
        rest = segment.runs[index][0] - size
        bound = self.settings.max_split_size_bytes
        if small or self.settings.expandable_segments:
            cut = rest >= 512
        else:
            cut = rest > MIB and (bound is None or size < bound)
        if cut:
            segment.runs.insert(index + 1, [rest, "free", self.searches[small]])
            segment.runs[index][0] = size
        segment.runs[index][1] = f"live:{key}"
        self.note()
        return True

    def free(self, key: int) -> None:
        for segment in self.segments:
            for run in segment.runs:
                if run[1] == f"live:{key}":
                    run[1:] = ["free", self.searches[segment.small]]
                    self.tidy(segment)
                    return
