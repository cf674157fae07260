"""Peak bytes and recompute seconds of a placement on a chain.

A training step runs the units 1..n forward and then backward. While it is at unit i, live bytes are

    forward   static + sum of stored_j, j < i                          + forward_bytes_i
    backward  static + sum of stored_j, j < i + gradients of units > i + backward_bytes_i

and the peak is the largest of these 2n numbers and of ``floor_bytes``.

Segments. Let a..b be the units of a segment, ``keep_j`` and ``recompute_j`` the options of unit j
without parts, boundary_j the bytes of its output, and B = static + bytes stored by all units before
a. Only the output of b is stored. The live bytes assumed are

    forward of j     B + (boundary_{j-1} if j > a) + recompute_j.forward_bytes
    stored by a..b   boundary_b
    recompute of j   B + sum_{a<=l<j} keep_l.stored + gradients of units > b
                       + boundary_b (the incoming gradient) + keep_j.forward_bytes
    backward of j    B + sum_{a<=l<j} keep_l.stored + gradients of units > j + keep_j.backward_bytes

The recomputation of the segment is counted in the backward of b. It takes the complete forward of
a..b-1 (``forward_seconds``; if unknown, the recompute option's seconds) plus
``recompute_b.recompute_seconds``. The last term may be less than a forward, because PyTorch stops a
recomputation at the last tensor that backward needs (``torch.utils.checkpoint``, early stop).

Symbols: n units, m placements evaluated at once, k options of the longest list.
Cost: O(m n) array operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import JOINED, Chain, check_indices
from profiler.arrays import Floats, Ints, Mask
from profiler.placement import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainArrays:
    """The numbers of a chain as arrays; n units, k options in the longest list.

    Attributes:
        stored: [n, k] stored bytes; missing options are padded with zeros here and below.
        forward: [n, k] forward bytes.
        backward: [n, k] backward bytes.
        seconds: [n, k] recompute seconds.
        count: [n] number of options of each unit.
        keep: [n] index of the plain ``keep`` option, 0 where there is none.
        recompute: [n] index of the plain ``recompute`` option, 0 where there is none.
        can_join: [n] whether the unit can be part of a segment.
        may_continue_segment: [n] whether a segment may contain the unit and the unit before it.
        boundary: [n] bytes of the output, 0 where unknown.
        forward_seconds: [n] complete forward; the recompute option's seconds where unknown.
        gradients_after: [n] bytes of gradients left by all later units.
    """

    stored: Ints
    forward: Ints
    backward: Ints
    seconds: Floats
    count: Ints
    keep: Ints
    recompute: Ints
    can_join: Mask
    may_continue_segment: Mask
    boundary: Ints
    forward_seconds: Floats
    gradients_after: Ints


def chain_arrays(chain: Chain) -> ChainArrays:
    """Return the chain's numbers as arrays."""
    units = chain.units
    shape = (len(units), max(len(unit.options) for unit in units))
    stored, forward, backward = (np.zeros(shape, np.int64) for _ in range(3))
    seconds = np.zeros(shape)
    for i, unit in enumerate(units):
        count = len(unit.options)
        stored[i, :count] = [o.stored_bytes for o in unit.options]
        forward[i, :count] = [o.forward_bytes for o in unit.options]
        backward[i, :count] = [o.backward_bytes for o in unit.options]
        seconds[i, :count] = [o.recompute_seconds for o in unit.options]
    recompute = np.array([unit.plain_index(Decision.RECOMPUTE) or 0 for unit in units])
    gradients = np.array([unit.gradient_bytes for unit in units], np.int64)
    own = seconds[np.arange(len(units)), recompute]
    complete = [
        s if u.forward_seconds is None else u.forward_seconds
        for u, s in zip(units, own, strict=True)
    ]
    return ChainArrays(
        stored=stored,
        forward=forward,
        backward=backward,
        seconds=seconds,
        count=np.array([len(unit.options) for unit in units]),
        keep=np.array([unit.plain_index(Decision.KEEP) or 0 for unit in units]),
        recompute=recompute,
        can_join=np.array([unit.can_join for unit in units]),
        may_continue_segment=np.array([unit.may_continue_segment for unit in units]),
        boundary=np.array([unit.boundary_bytes or 0 for unit in units], np.int64),
        forward_seconds=np.array(complete, np.float64),
        gradients_after=gradients.sum() - np.cumsum(gradients),
    )


def live_bytes(chain: Chain, indices: Ints, arrays: ChainArrays | None = None) -> tuple[Ints, Ints]:
    """Return live bytes during the forward and during the backward of each unit.

    Args:
        chain: chain of n units.
        indices: [m, n] valid option indices, one placement a row.
        arrays: the chain's numbers, if the caller has them.

    Returns:
        Two arrays [m, n].
    """
    t = arrays or chain_arrays(chain)
    rows = np.arange(len(chain.units))
    joined = indices == JOINED
    leads = _next_is_joined(joined)  # the units of a segment except its last
    picked = np.where(joined, t.recompute, indices)

    # [Stored] a segment stores the output of its last unit, counted at that unit
    left = np.where(joined, t.boundary, t.stored[rows, picked])
    left[leads] = 0
    before = chain.static_bytes + np.cumsum(left, axis=1) - left
    entry = np.where(joined, np.concatenate([[0], t.boundary[:-1]]), 0)
    forward: Ints = before + entry + t.forward[rows, picked]
    backward: Ints = before + t.gradients_after + t.backward[rows, picked]
    if not joined.any():
        return forward, backward

    # [Segments] After its recomputation, a segment stores as much as if its units were kept. inner:
    # bytes that earlier units of the same segment then hold; head: the segment's first unit; rerun:
    # highest live bytes during the recomputation up to each unit.
    kept = t.stored[rows, t.keep]
    prefix = np.cumsum(kept) - kept
    head = np.maximum.accumulate(np.where(joined, 0, rows), axis=1)
    inner = prefix - prefix[head]
    in_segment = joined | leads
    keep_backward = before + inner + t.gradients_after + t.backward[rows, t.keep]
    backward = np.where(in_segment, keep_backward, backward)
    rerun = _maximum_since_lead(before + inner + t.forward[rows, t.keep], joined)
    rerun += t.gradients_after + t.boundary
    last = joined & ~leads
    return forward, np.where(last, np.maximum(backward, rerun), backward)


def unit_live_bytes(chain: Chain, indices: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return live bytes of a placement during forward and during backward of each unit."""
    forward, backward = live_bytes(chain, check_indices(chain, indices))
    return forward[0].tolist(), backward[0].tolist()


def peak_bytes_many(chain: Chain, indices: Ints) -> Ints:
    """Return [m] the peak of each row of option indices [m, n]."""
    forward, backward = live_bytes(chain, indices)
    highest: Ints = np.maximum(forward.max(axis=1), backward.max(axis=1))
    return np.maximum(highest, chain.floor_bytes)


def unit_seconds_many(chain: Chain, indices: Ints, arrays: ChainArrays | None = None) -> Floats:
    """Return [m, n] recompute seconds of each unit for each row of option indices [m, n]."""
    t = arrays or chain_arrays(chain)
    joined = indices == JOINED
    picked = np.where(joined, t.recompute, indices)
    own = t.seconds[np.arange(len(chain.units)), picked]
    return np.where(_next_is_joined(joined), t.forward_seconds, own)


def peak_bytes(chain: Chain, indices: Sequence[int]) -> int:
    """Return the highest live bytes of the step."""
    return int(peak_bytes_many(chain, check_indices(chain, indices))[0])


def recompute_seconds(chain: Chain, indices: Sequence[int]) -> float:
    """Return the time that recomputation adds to the step."""
    return math.fsum(unit_seconds_many(chain, check_indices(chain, indices))[0])


def _next_is_joined(joined: Mask) -> Mask:
    """Return for each unit whether the unit after it is joined to it."""
    result = np.zeros_like(joined)
    result[:, :-1] = joined[:, 1:]
    return result


def _maximum_since_lead(values: Ints, joined: Mask) -> Ints:
    """Return the running maximum along each row, restarted at each unit that is not joined."""
    result = values.copy()
    for i in range(1, values.shape[1]):
        carried = np.maximum(result[:, i], result[:, i - 1])
        result[:, i] = np.where(joined[:, i], carried, result[:, i])
    return result
