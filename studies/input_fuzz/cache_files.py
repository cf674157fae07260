"""Mutants of a file of the profile cache: the right profile is returned, whatever is on the disk."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from outcome import FaultError, canary

from profiler.arrays import Floats
from profiler.prediction.profile_records import Envelope
from profiler.store import Store


@dataclass(frozen=True, kw_only=True)
class SmallProfile:
    """A profile with a number, a vector and a record, as the real ones have."""

    level: Floats
    sizes: Floats
    envelope: Envelope


PROFILE = SmallProfile(
    level=np.array(3.5),
    sizes=np.linspace(0.0, 1.0, 37),
    envelope=Envelope(
        lines=np.arange(24.0).reshape(6, 4),
        reduction=np.array([-1, 0, -1, -1, 1, -1]),
        starts=np.array([0, 2, 5]),
    ),
)

KEY = ("a", 1)

PATCHES = (
    (b"<f8", b"<f4"), (b"<f8", b"|O8"), (b"<f8", b"<M8"), (b"<f8", b"'+1"), (b"<i8", b"<V8"),
    (b"(37,)", b"(38,)"), (b"(37,)", b"(9**"), (b"(37,)", b"(-1,)"), (b"(6, 4)", b"(4, 6)"),
    (b"(6, 4)", b"(64)  "), (b"False", b"True "), (b"{'des", b"exec("), (b"'shape'", b"'shap\x00'"),
    (b"NUMPY\x01", b"NUMPY\x09"), (b"NUMPY\x01", b"NUMPY\x03"), (b"PK\x05\x06", b"PK\x06\x06"),
    (b".npy", b".npx"), (b"sizes", b"level"), (b"sizes", b"../..")
)  # fmt: skip


class CacheTarget:
    """Damages the file of one profile in a store.

    Args:
        folder: folder of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.canary = folder / "canary"
        self.folder = folder / "store"
        self.store = Store(self.folder)
        self.store.fetch(SmallProfile, KEY, lambda: PROFILE)
        (self.file,) = self.folder.iterdir()
        self.whole = self.file.read_bytes()
        with zipfile.ZipFile(self.file) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def check(self, rng: Random) -> None:
        """Write a mutant, and fetch the profile twice.

        Raises:
            FaultError: another profile is returned, the second fetch makes it again, code was run,
                or a temporary file is left.
        """
        self.file.write_bytes(self.mutant(rng))
        made = 0

        def make() -> SmallProfile:
            nonlocal made
            made += 1
            return PROFILE

        for _ in range(2):
            if not _equal(self.store.fetch(SmallProfile, KEY, make)):
                raise FaultError("another profile was read")
        if made > 1:
            raise FaultError("the damaged file was not replaced")
        if self.canary.exists():
            self.canary.unlink()
            raise FaultError("code of the file was run")
        if list(self.folder.iterdir()) != [self.file]:
            raise FaultError("a temporary file is left")

    def mutant(self, rng: Random) -> bytes:
        """Return the bytes of a damaged file."""
        kind = rng.random()
        if kind < 0.35:
            return _flipped(self.whole, rng)
        if kind < 0.50:
            return self._packed(rng, rng.choice((8, 12, 14)))
        if kind < 0.65:
            old, new = rng.choice(PATCHES)
            return self.whole.replace(old, new, rng.choice((1, -1)))
        if kind < 0.75:
            return self._with_sizes(rng)
        if kind < 0.90:
            return self._with_payload(rng)
        return rng.choice(
            (b"", b"\x80\x04.", self.whole + self.whole, self.whole[::-1], b"<!doctype html>",
             pickle.dumps(canary(self.canary)), rng.randbytes(300))
        )  # fmt: skip

    def _packed(self, rng: Random, method: int) -> bytes:
        """Return a compressed archive with flipped bytes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression=method) as archive:
            for name, data in self.members.items():
                archive.writestr(name, data)
        return _flipped(buffer.getvalue(), rng)

    def _with_sizes(self, rng: Random) -> bytes:
        """Return the archive with other sizes in its directory."""
        data = bytearray(self.whole)
        at = data.index(b"PK\x01\x02", rng.randrange(len(data) // 2))
        struct.pack_into(
            "<I", data, at + rng.choice((16, 20, 24, 42)), rng.choice((0, 1, 2**31, 2**32 - 1))
        )
        return bytes(data)

    def _with_payload(self, rng: Random) -> bytes:
        """Return an archive in which a member is an array of objects with a payload."""
        buffer = io.BytesIO()
        payload = np.array([canary(self.canary)], dtype=object)
        np.lib.format.write_array(buffer, payload, allow_pickle=True)
        name = rng.choice(list(self.members))
        members = {**self.members, name: buffer.getvalue()}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return packed.getvalue()


def _equal(found: SmallProfile) -> bool:
    pairs = (
        (found.level, PROFILE.level),
        (found.sizes, PROFILE.sizes),
        (found.envelope.lines, PROFILE.envelope.lines),
        (found.envelope.reduction, PROFILE.envelope.reduction),
        (found.envelope.starts, PROFILE.envelope.starts),
    )
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _flipped(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)
