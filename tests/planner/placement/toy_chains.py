"""Random chains, and the peak of a choice told step by step in plain Python."""

from __future__ import annotations

import itertools

import numpy as np

from planner.placement.chain import JOINED, Chain, ChainOption, ChainUnit, OptionIndices
from planner.placement.chain_cost import peak_bytes_many, unit_seconds_many
from profiler.placement import Decision


def option(decision, stored, forward, backward, seconds, **parts):
    return ChainOption(
        decision=decision,
        stored_bytes=stored,
        forward_bytes=forward,
        backward_bytes=backward,
        recompute_seconds=seconds,
        parts=parts,
    )


def random_chain(rng, n, k, *, joinable=False, full=False, top=30, real=False):
    """n units of 1 to k options each (k if full or joinable), under no law but the evaluator's."""

    def number(high):
        return int(rng.integers(0, high * 100_000 if real else high))

    units = []
    for i in range(n):
        menu = (
            [Decision.KEEP, Decision.RECOMPUTE, Decision.DROP_CHEAP]
            if joinable
            else [Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE]
        )
        options = []
        for o in range(k if full or joinable else int(rng.integers(1, k + 1))):
            seconds = float(rng.random()) if real else float(rng.integers(0, 10))
            name, parts = (
                (menu[o], {})
                if o < len(menu)
                else (Decision.KEEP, {f"part{o}": Decision.DROP_CHEAP})
            )
            options.append(
                option(name, number(top), number(2 * top), number(3 * top), seconds, **parts)
            )
        units.append(
            ChainUnit(
                name=f"u{i}",
                options=tuple(options),
                gradient_bytes=number(8),
                boundary_bytes=number(8) if joinable and rng.random() < 0.9 else None,
                forward_seconds=float(rng.integers(0, 12)) if rng.random() < 0.5 else None,
            )
        )
    return Chain(units=tuple(units), static_bytes=number(40), floor_bytes=number(200))


def all_choices(chain, *, segments=True):
    """Every valid choice, [m, n]."""
    units = chain.units
    menus = [
        [*range(len(unit.options)), *([JOINED] if segments and unit.can_join else [])]
        for unit in units
    ]
    rows = np.array(list(itertools.product(*menus)), np.int64)
    for i, unit in enumerate(units):
        joined = rows[:, i] == JOINED
        if i == 0 or not units[i - 1].can_join:
            rows = rows[~joined]
            continue
        before = rows[:, i - 1]
        fine = (before == JOINED) | (before == units[i - 1].plain_index(Decision.RECOMPUTE))
        rows = rows[~joined | fine]
        assert unit is not None
    return rows


def brute_force(chain, *, segments=True):
    """Peak and seconds of every valid choice."""
    rows = all_choices(chain, segments=segments)
    return peak_bytes_many(chain, rows), unit_seconds_many(chain, rows).sum(axis=1)


def brute_force_by_doubling(chain):
    """Peak and seconds of every choice without segments, each prefix extended by each option."""
    live, peak = np.array([chain.static_bytes]), np.array([chain.floor_bytes])
    seconds = np.zeros(1)
    for i, unit in enumerate(chain.units):
        later = sum(u.gradient_bytes for u in chain.units[i + 1 :])
        need = [max(o.forward_bytes, later + o.backward_bytes) for o in unit.options]
        peak = np.concatenate([np.maximum(peak, live + here) for here in need])
        seconds = np.concatenate([seconds + o.recompute_seconds for o in unit.options])
        live = np.concatenate([live + o.stored_bytes for o in unit.options])
    return peak, seconds


def told_step_by_step(chain: Chain, choice: OptionIndices) -> tuple[int, float]:
    """Peak and seconds, by walking through the step and keeping the books."""
    units, n = chain.units, len(chain.units)
    live, peak, seconds = chain.static_bytes, chain.floor_bytes, 0.0
    pieces = []  # (units, live bytes at entry)
    for i in range(n):
        if choice[i] != JOINED:
            pieces.append(([i], live))
            chosen = units[i].options[choice[i]]
            peak = max(peak, live + chosen.forward_bytes)
            live += chosen.stored_bytes
        else:
            members, entry = pieces[-1]
            previous = units[i - 1]
            held = previous.boundary_bytes
            live = entry + held
            recompute = units[i].options[units[i].plain_index(Decision.RECOMPUTE)]
            peak = max(peak, live + recompute.forward_bytes)
            members.append(i)
            live = entry + units[i].boundary_bytes
    gradients = 0
    for members, entry in reversed(pieces):
        if len(members) == 1:
            (i,) = members
            chosen = units[i].options[choice[i]]
            peak = max(peak, entry + gradients + chosen.backward_bytes)
            seconds += chosen.recompute_seconds
            gradients += units[i].gradient_bytes
            continue
        kept = [units[i].options[units[i].plain_index(Decision.KEEP)] for i in members]
        inside = [0]
        for keep in kept:
            level = entry + gradients + units[members[-1]].boundary_bytes + inside[-1]
            peak = max(peak, level + keep.forward_bytes)
            inside.append(inside[-1] + keep.stored_bytes)
        for place in reversed(range(len(members))):
            unit = units[members[place]]
            peak = max(peak, entry + inside[place] + gradients + kept[place].backward_bytes)
            gradients += unit.gradient_bytes
            again = unit.options[unit.plain_index(Decision.RECOMPUTE)].recompute_seconds
            whole = again if unit.forward_seconds is None else unit.forward_seconds
            seconds += again if place == len(members) - 1 else whole
    return peak, seconds


def uniform_chain(n=12, *, a=100, x=10, m0=500, work=5, seconds=1.0, gradient=0):
    """n equal blocks: kept they store a, recomputed their output x; a backward needs a + work."""
    block = (
        option(Decision.KEEP, a, a, a + work, 0.0),
        option(Decision.RECOMPUTE, x, a, a + work, seconds),
    )
    return Chain(
        units=tuple(
            ChainUnit(name=f"b{i}", options=block, gradient_bytes=gradient, boundary_bytes=x)
            for i in range(n)
        ),
        static_bytes=m0,
    )
