"""Mutants of weights files: loaded with finite values, or refused in one line; no code is run."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from outcome import FaultError, canary
from safetensors.torch import save

from profiler.models import backbones
from profiler.models.backbones.load_checkpoint import load_checkpoint_file

MODEL = "test_vit"

SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".pth.tar", "")

KEYS: tuple[Any, ...] = (
    "", "state_dict", "model", "module", "model_ema", "module.", "a" * 3000, "\ud800", "\x1b[2J",
    "blocks.0", "blocks.0.attn.qkv.weight", "head.weight", "pos_embed", 0, -1, 1.5, None, True,
    (1, 2), b"x", "{}", "%s", "..", "\u202e",
)  # fmt: skip


class WeightTarget:
    """Damages files of weights of a small ViT.

    Args:
        folder: folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary = folder, folder / "canary"
        torch.manual_seed(0)
        self.model = backbones.build(MODEL, num_classes=10, image_size=32, device="cpu")
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.whole = [
            _torch_bytes(self.state),
            _torch_bytes({"model": self.state, "args": argparse.Namespace(lr=0.1), "epoch": 3}),
            _torch_bytes(self.state, legacy=True),
            save(self.state),
        ]

    def check(self, rng: Random) -> None:
        """Load a mutant into the model.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: code was run, or a weight is not finite.
        """
        path = self.folder / f"weights{rng.choice(SUFFIXES)}"
        path.write_bytes(self._mutant(rng))
        try:
            load_checkpoint_file(self.model, MODEL, path)
        finally:
            path.unlink()
            if self.canary.exists():
                self.canary.unlink()
                raise FaultError("code of the file was run")
        if not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            raise FaultError("a weight is not finite")

    def _mutant(self, rng: Random) -> bytes:
        kind = rng.random()
        if kind < 0.30:
            return damaged(rng.choice(self.whole), rng)
        if kind < 0.65:
            content = self._changed_content(rng)
            try:
                return _torch_bytes(content, legacy=rng.random() < 0.2)
            except (RuntimeError, TypeError, ValueError, UnicodeEncodeError):
                return b""
        if kind < 0.80:
            return _with_pickle(self.whole[0], lambda data: _damaged_pickle(data, rng))
        if kind < 0.90:
            return self._payload(rng)
        return damaged_header(self.whole[3], rng)

    def _changed_content(self, rng: Random) -> Any:
        """Return a state dict with other names, values and containers."""
        state: dict[Any, Any] = dict(self.state)
        for _ in range(rng.choice((1, 1, 2, 5))):
            name = rng.choice(list(state))
            kind = rng.random()
            if kind < 0.35:
                state[name] = _value(state[name], rng)
            elif kind < 0.5:
                del state[name]
            elif kind < 0.75:
                state[rng.choice(KEYS)] = state.pop(name)
            else:
                state[rng.choice(KEYS)] = _value(state[name], rng)
        if rng.random() < 0.2:
            prefix = rng.choice(("module.", "model.", "x", "", "backbone.net."))
            state = {f"{prefix}{name}": value for name, value in state.items()}
        if rng.random() < 0.3:
            return {
                rng.choice(KEYS): state,
                rng.choice(KEYS): rng.choice((1, "a", None, {}, state)),
            }
        return rng.choice(
            (state, state, state, [state], state.get("cls_token"), {"model": [state]})
        )

    def _payload(self, rng: Random) -> bytes:
        """Return a file with a pickled object that makes a file when it is unpickled."""
        trap = canary(self.canary)
        content = rng.choice(
            (trap, [trap], {"model": self.state, "x": trap}, {**self.state, "cls_token": trap},
             {trap: self.state}, {"args": argparse.Namespace(inner=trap), **self.state})
        )  # fmt: skip
        if rng.random() < 0.4:
            return pickle.dumps(content, protocol=rng.choice((0, 2, 4, 5)))
        data = pickle.dumps(content if not isinstance(content, dict) else trap, protocol=2)
        if rng.random() < 0.5:
            return _with_pickle(self.whole[0], lambda _: data)
        return _torch_bytes(content, legacy=rng.random() < 0.5)


def _torch_bytes(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _is_plain(value: Any) -> bool:
    """Return whether a value is a tensor that was not mutated before."""
    return (
        type(value) is torch.Tensor
        and value.dtype == torch.float32
        and value.numel() > 0
        and (value.layout == torch.strided and not value.is_meta)
    )


def _value(old: Any, rng: Random) -> Any:
    """Return another value in the place of a tensor."""
    tensor = old if _is_plain(old) else torch.ones(3)
    bad = tensor.clone().to(torch.float32)
    bad.view(-1)[0] = rng.choice((float("nan"), float("inf"), 1e30))
    makers: tuple[Callable[[], Any], ...] = (
        lambda: bad,
        lambda: tensor.to(rng.choice((torch.float16, torch.float64, torch.int64, torch.bool))),
        lambda: tensor.to(rng.choice((torch.complex64, torch.bfloat16, torch.float8_e4m3fn))),
        lambda: tensor.reshape(-1),
        lambda: tensor[:0],
        lambda: tensor.unsqueeze(0),
        lambda: tensor.expand(2, *tensor.shape),
        tensor.to_sparse,
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.nn.Parameter(tensor.float()),
        tensor.tolist,
        lambda: rng.choice((None, 1, "text", 10**400, {}, [], {"a": tensor}, b"bytes", {1, 2})),
    )
    return rng.choice(makers)()


def damaged(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    kind = rng.random()
    if kind < 0.2:
        del changed[rng.randrange(len(changed)) :]
    elif kind < 0.6:  # the directory of the archive, or the header
        for _ in range(rng.choice((1, 2, 10))):
            at = rng.randrange(min(3000, len(changed)))
            changed[at if rng.random() < 0.5 else -1 - at] = rng.randrange(256)
    elif kind < 0.95:
        for _ in range(rng.choice((1, 5, 100))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    else:
        return rng.choice((b"", b"\x80\x02.", b"PK\x03\x04", bytes(1000), rng.randbytes(2000)))
    return bytes(changed)


def _with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return an archive of torch with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def _damaged_pickle(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(len(changed))
        kind = rng.random()
        if kind < 0.5:
            changed[at] = rng.choice(
                b"(.0125ABCDFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x85\x86\x87\x8a"
            )
        elif kind < 0.8:
            changed[at] ^= 1 << rng.randrange(8)
        else:
            changed[at:at] = rng.choice(
                (b"}", b"]", b"(", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"R", b"b")
            )
    return bytes(changed)


def damaged_header(data: bytes, rng: Random) -> bytes:
    """Return a safetensors file with another JSON header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    kind = rng.randrange(7)
    if kind == 0:
        header[name]["dtype"] = rng.choice(("F16", "I64", "BOOL", "F8_E4M3", "X", None, 1))
    elif kind == 1:
        header[name]["shape"] = rng.choice(([], [0], [-1], [2**40], [10**30], ["a"], None))
    elif kind == 2:
        header[name]["data_offsets"] = rng.choice(([0, 4], [4, 0], [0, 2**62], [-1, 4], [], None))
    elif kind == 3:
        header[rng.choice(("a" * 3000, "\x1b[2J", "", "module.x"))] = header.pop(name)
    elif kind == 4:
        del header[name]
    elif kind == 5:
        header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, [], None))
    text = json.dumps(header).encode()
    if kind == 6:
        text = b"{" * rng.choice((10, 5000)) + text
    size = rng.choice((len(text), len(text), len(text), len(text) + 1, 2**63, 0))
    return size.to_bytes(8, "little") + text + data[8 + length :]
