"""Trained weights in a file: arrays and a manifest in an ``.npz`` without pickle; anything else is refused in words.

The manifest says what the weights are for (the features), what they are (version, checksum), where they come from
(training), and what they must do on states that never change (the canary): a router whose arithmetic differs from that
of the trainer finds out when it loads them.
"""

import hashlib
import io
import json
import lzma
import math
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ccr import canary, schema
from ccr.book import Floats
from ccr.cost import TERMS
from ccr.errors import WeightsError
from ccr.policies.network import KAPPA, SCALARS, Network, blank

FORMAT: Final = 1
LARGEST_BYTES: Final = 4 * 2**20
"""Larger files are not even opened: the network has some thousand numbers."""
MANIFEST: Final = "manifest"
#: What a manifest has to tell about the training, at least: name -> what it is.
TRAINING: Mapping[str, str] = MappingProxyType(
    {
        "command": "as it was typed",
        "seeds": "of everything that was drawn",
        "stages": "what was done, in order",
        "scenarios": "what it was trained on",
        "wall_s": "how long it took",
        "commit": "of the code; empty outside a checkout",
        "versions": "of the packages that had a part in it",
    }
)
_GIVEN: Final = ("version", "created_at", "training")
_LONGEST_VERSION: Final = 64
_MOST: Final = MappingProxyType({"theta": 1e3, "scalars": 1e6})
_MOST_KAPPA: Final = 100.0
_MOST_LAYER: Final = 100.0
# What numpy writes in front of such arrays; matched to the letter, so that nothing else is ever interpreted.
_HEAD: Final = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f8|\|u1)', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEAD: Final = 256
_BROKEN: Final = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A network and what is known about it.

    Args:
        network: C-contiguous, writable float64 arrays.
        manifest: ``version``, ``created_at`` and ``training``, see :data:`TRAINING`; the rest is made by :func:`save`.
    """

    network: Network
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        """What the weights are called."""
        return str(self.manifest.get("version", ""))

    @property
    def sha256(self) -> str:
        """Of the arrays' bytes, in the order of the fields of a network."""
        return checksum(self.network)


def save(weights: Weights, path: Path) -> Weights:
    """Write weights, all or nothing; what could not be read again is not written.

    Args:
        weights: what is derived in its manifest (format, features, checksum, canary) is made anew.
        path: replaced if it exists.

    Returns:
        What a reader will find.

    Raises:
        WeightsError: if the weights are not usable, or the file cannot be written.
    """
    where = f"weights for {path}"
    arrays = {
        name: np.array(value, dtype=np.float64, order="C")
        for name, value in weights.network._asdict().items()
    }
    _check_shapes(arrays, where)
    network = Network(**arrays)
    _check_numbers(network, where)
    found = canary.walk(network)
    canary.check_sane(found, where)
    given = {name: weights.manifest.get(name) for name in _GIVEN}
    derived = {"format": FORMAT, "sha256": checksum(network), "canary": found.as_json()}
    manifest = given | schema.described() | derived
    _check_given(manifest, where)
    text = _canonical(manifest, where)
    _write(path, arrays | {MANIFEST: np.frombuffer(text, dtype=np.uint8)})
    return Weights(network, json.loads(text))


def load(path: Path) -> Weights:
    """Read weights and try them on the canary.

    Raises:
        WeightsError: if anything about the file is not as :func:`save` writes it, or this router would not do with it
            what its trainer did.
    """
    where = f"weights {path}"
    return parse(_bytes(path, where), where)


def parse(data: bytes, where: str) -> Weights:
    """Weights from the bytes of a file, as :func:`load` reads it.

    Args:
        data: of the file.
        where: what messages begin with.

    Raises:
        WeightsError: as :func:`load`.
    """
    return tried(data, where)[0]


def tried(data: bytes, where: str, rest: Callable[[], object] | None = None) -> "tuple[Weights, canary.Walk]":
    """The same, and what they did on the canary.

    Args:
        data: of the file.
        where: what messages begin with.
        rest: as of :func:`ccr.canary.walk`.

    Raises:
        WeightsError: as :func:`load`.
    """
    _check_size(data, where)
    arrays, manifest = _read(data, where)
    schema.check(manifest, where)
    _check_names(arrays, where)
    layers = {name: np.array(arrays[name], dtype=np.float64, order="C") for name in Network._fields}
    _check_shapes(layers, where)
    network = Network(**layers)
    _check_numbers(network, where)
    _check_given(manifest, where)
    if checksum(network) != manifest.get("sha256"):
        raise WeightsError(
            f"{where}: the arrays are not those of the manifest's sha256; fetch the file again"
        )
    found = canary.walk(network, rest)
    canary.check_sane(found, where)
    canary.check_same(found, manifest.get("canary"), where)
    return Weights(network, manifest), found


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays and the manifest of a file of whatever features, for people to look at; not to decide with.

    Raises:
        WeightsError: if it is not plain arrays and a manifest of this format.
    """
    where = f"weights {path}"
    return _read(_bytes(path, where), where)


def _read(data: bytes, where: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    entries = _entries(data, where)
    arrays = {name: _array(name, raw, where) for name, raw in entries.items()}
    return arrays, _manifest(arrays, where)


def checksum(network: Network) -> str:
    """SHA-256 of the bytes of all arrays, little-endian, in the order of the fields."""
    seen = hashlib.sha256()
    for array in network:
        seen.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return seen.hexdigest()


# -- the file -----------------------------------------------------------------------------------------------------------


def _bytes(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {where}: {getattr(error, 'strerror', error)}") from error
    _check_size(data, where)
    return data


def _check_size(data: bytes, where: str) -> None:
    if len(data) > LARGEST_BYTES:
        raise WeightsError(f"{where}: larger than {LARGEST_BYTES // 2**20} MiB, which no policy of ours is")


def _entries(data: bytes, where: str) -> dict[str, bytes]:
    """Name of an array -> its bytes with the head that numpy wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = archive.infolist()
            if sum(one.file_size for one in inside) > LARGEST_BYTES:
                raise WeightsError(
                    f"{where}: unpacks to more than {LARGEST_BYTES // 2**20} MiB; refused unread"
                )
            entries = {one.filename.removesuffix(".npy"): archive.read(one) for one in inside}
    except _BROKEN as error:
        raise WeightsError(
            f"{where}: not a whole .npz file ({error}); give a file that `ccr train` wrote, or fetch it again"
        ) from error
    if len(entries) < len(inside):
        raise WeightsError(f"{where}: an array is there twice")
    return entries


def _array(name: str, raw: bytes, where: str) -> NDArray[Any]:
    head = _HEAD.match(raw[:_LONGEST_HEAD])
    if head is None or (head[1] == b"|u1") != (name == MANIFEST):
        raise WeightsError(
            f"{where}: {name!r} is not a plain array of float64; objects (pickle) are never read"
        )
    try:
        shape = tuple(int(length) for length in head[2].decode().split(",") if length.strip())
        if math.prod(shape) * (1 if name == MANIFEST else 8) != len(raw) - head.end():
            raise WeightsError(f"{where}: {name!r} says it has shape {shape}, and its bytes are not as many")
        array: NDArray[Any] = np.load(io.BytesIO(raw), allow_pickle=False)
    except _BROKEN as error:
        raise WeightsError(f"{where}: {name!r} cannot be read ({error})") from error
    return array


def _manifest(arrays: Mapping[str, NDArray[Any]], where: str) -> dict[str, Any]:
    stored = arrays.get(MANIFEST)
    if stored is None:
        raise WeightsError(f"{where}: no manifest in it; give a file that `ccr train` wrote")
    try:
        manifest = json.loads(stored.tobytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: its manifest is not JSON ({error}); fetch the file again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise WeightsError(
            f"{where}: format {found!r}, and this release reads {FORMAT}; use the release that wrote the file"
        )
    return manifest


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} in it")


def _canonical(manifest: Mapping[str, Any], where: str) -> bytes:
    try:
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: the manifest cannot be JSON: {error}") from error
    return text.encode()


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own keywords
    try:
        with beside.open("xb") as file:
            file.write(packed.getvalue())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise WeightsError(f"cannot write weights to {path}: {error.strerror or error}") from error


# -- what must hold -----------------------------------------------------------------------------------------------------


def _check_names(arrays: Mapping[str, object], where: str) -> None:
    expected = {*Network._fields, MANIFEST}
    missing, extra = sorted(expected - set(arrays)), sorted(set(arrays) - expected)[:5]
    if missing:
        raise WeightsError(f"{where}: these arrays are missing: {', '.join(missing)}")
    if extra:
        raise WeightsError(f"{where}: these arrays do not belong there: {', '.join(extra)}")


def _check_shapes(arrays: Mapping[str, NDArray[Any]], where: str) -> None:
    for name, like in _like()._asdict().items():
        if arrays[name].shape != like.shape:
            raise WeightsError(
                f"{where}: {name!r} has shape {arrays[name].shape}, and {like.shape} is expected"
            )


@cache
def _like() -> Network:
    return blank(np.zeros(len(TERMS)))


def _check_numbers(network: Network, where: str) -> None:
    for name, values in network._asdict().items():
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{where}: {name!r} holds {_first(values, ~np.isfinite(values))}, which is not finite"
            )
        low = 0.0 if name in _MOST else -_MOST_LAYER
        high = np.full(values.shape, _MOST.get(name, _MOST_LAYER))
        if name == "scalars":
            high[KAPPA] = _MOST_KAPPA
        outside = (values < low) | (values > high)
        if outside.any():
            raise WeightsError(
                f"{where}: {name!r} holds {_first(values, outside)}, outside {low:g} to {high[outside][0]:g}"
            )
    if network.scalars[KAPPA] <= 0.0:
        raise WeightsError(f"{where}: {SCALARS[KAPPA]!r} is 0; it must be above")


def _check_given(manifest: Mapping[str, Any], where: str) -> None:
    version, created, training = (manifest.get(name) for name in _GIVEN)
    if not (isinstance(version, str) and version.isprintable() and 0 < len(version) <= _LONGEST_VERSION):
        raise WeightsError(
            f"{where}: its version is {version!r}; give 1 to {_LONGEST_VERSION} printable characters"
        )
    if not isinstance(created, str) or not _is_moment(created):
        raise WeightsError(f"{where}: it was created at {created!r}; give a moment as ISO 8601")
    missing = sorted(set(TRAINING).difference(training if isinstance(training, Mapping) else ()))
    if missing:
        raise WeightsError(f"{where}: its training does not tell {', '.join(missing)}")


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _first(values: Floats, where: NDArray[np.bool_]) -> str:
    place = tuple(int(i) for i in np.argwhere(where)[0])
    return f"{values[place]:g} at {place[0] if len(place) == 1 else place}"
