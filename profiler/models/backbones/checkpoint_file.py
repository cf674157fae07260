"""Reading of a checkpoint file: safetensors, or torch's format with ``weights_only=True``.

The content of the file decides how it is read, not its suffix. Nothing in the file is executed:
torch's restricted unpickler builds tensors and containers. Plain data that training scripts save
beside the weights (``argparse.Namespace``, numpy scalars, paths, configurations) is replaced by
``_PlainData``, which has no behaviour. A file with any other class or function is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import torch

from profiler.errors import InputError

_PLAIN_DATA = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.deque",
    "builtins.dict",
    "builtins.frozenset",
    "builtins.int",
    "builtins.float",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "enum.Enum",
    "fractions.Fraction",
    "uuid.UUID",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "typing.Any",
    *(
        f"{module}.{name}"
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar", "dtype", "ndarray")
    ),
    *(
        f"numpy.dtypes.{name}DType"
        for name in (
            *("Bool", "Bytes", "Complex64", "Complex128", "Float16", "Float32", "Float64"),
            *("Int8", "Int16", "Int32", "Int64", "Str", "UInt8", "UInt16", "UInt32", "UInt64"),
        )
    ),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(
        f"omegaconf.nodes.{name}Node"
        for name in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    "mmengine.logging.history_buffer.HistoryBuffer",
)
"""Classes and functions of plain data in published checkpoints, by the name in the pickle."""

_DICTIONARIES = (
    "addict.addict.Dict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Subclasses of ``dict``, which ``OrderedDict`` replaces: torch fills no other class."""


class _PlainData:
    """Stands for an object of plain data: it ignores arguments and state."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Return an object without attributes."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def _new_dictionary(*args: object) -> OrderedDict[Any, Any]:
    """Replace ``defaultdict``; its default factory is not needed."""
    return OrderedDict()


_MAX_SAFETENSORS_HEADER = 100_000_000
"""Bytes of the longest header that the safetensors library reads."""

_KINDS_OF_FILE = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; run `git lfs pull`"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"BZh", "bzip2 data; unpack it first"),
    (b"\xfd7zXZ", "xz data; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras); save the weights as safetensors"),
    (b"GGUF", "a GGUF file; save the weights as safetensors"),
    (b"\x89PNG", "an image, no weights"),
    (b"\xff\xd8\xff", "an image, no weights"),
    (b"%PDF", "a PDF document, no weights"),
)
"""First bytes of files that are often taken for weights, and their description."""


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Return the content of a checkpoint: tensors, and containers of tensors and plain data.

    Raises:
        InputError: the file cannot be read or is no checkpoint; the message names its kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise InputError(f"weights file {path} does not exist") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"weights file {path} cannot be read: {reason}") from error
    if _is_safetensors(head):
        return _read_safetensors(path)
    wrong = _other_kind(path, head)
    if wrong is not None:
        raise InputError(f"weights file {path} is {wrong}")
    return _read_torch(path)


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins as safetensors: the length of a JSON header, then the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER


def _read_safetensors(path: Path) -> dict[Any, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"weights file {path} is a damaged safetensors file ({reason})") from error


def _other_kind(path: Path, head: bytes) -> str | None:
    """Return the kind of a file that cannot be a checkpoint; None if it may be one."""
    if not head:
        return "empty"
    for first, kind in _KINDS_OF_FILE:
        if head.startswith(first):
            return kind
    if head.startswith(b"PK"):
        return _other_kind_of_archive(path)
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 512 else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    start = text.lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "a web page, not the weights; the download has failed"
    if start.startswith("<"):
        return "an XML document, not the weights; the download has failed"
    return "a text file, not the weights"


def _other_kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive: copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive; save the weights by torch.save(model.state_dict(), FILE)"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive; save the weights as safetensors"
    return "a zip archive without weights of torch"


def _read_torch(path: Path) -> dict[Any, Any]:
    stand_ins: list[Any] = [
        *((_PlainData, name) for name in _PLAIN_DATA),
        *((OrderedDict, name) for name in _DICTIONARIES),
        (_new_dictionary, "collections.defaultdict"),
    ]
    with torch.serialization.safe_globals(stand_ins):
        try:
            # An open file, because torch reads a path with the suffix of safetensors as such.
            # Its warnings about types of tensors are not for the user: the types are checked later.
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's readers raise nearly any type on damaged files
            raise InputError(f"weights file {path} {_why_unreadable(path)}") from error
    if not isinstance(content, dict):
        what = "a single tensor" if isinstance(content, torch.Tensor) else "no state dict"
        raise InputError(f"weights file {path} holds {what}, not the weights of a model by name")
    return content


def _why_unreadable(path: Path) -> str:
    """Return why torch could not read a file, as a predicate."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # no zip archive, or a damaged one
        classes = []
    if not classes:
        return "is damaged or no file of weights: neither safetensors nor torch tensors can be read"
    shown = ", ".join(repr(name[:60]) for name in sorted(classes)[:2])
    more = f" and {len(classes) - 2} more" if len(classes) > 2 else ""
    return (
        f"holds pickled objects ({shown}{more}), which are never executed; "
        "save only the weights: torch.save(model.state_dict(), FILE)"
    )
