"""Scalars of TensorBoard's event files, read as they grow, without TensorBoard.

A file is TFRecords one after another (https://www.tensorflow.org/tutorials/load_data/tfrecord)::

    uint64 length, uint32 masked CRC-32C of the length, length bytes, uint32 masked CRC-32C of the bytes

each holding an ``Event`` in protobuf's wire format (https://protobuf.dev/programming-guides/encoding/; messages of
``tensorflow/core/util/event.proto``, ``framework/summary.proto`` and ``framework/tensor.proto``). Fields read::

    Event        1 wall_time (double)   2 step (int64)   5 summary
    Summary      1 value
    Value        1 tag   2 simple_value (float)   8 tensor
    TensorProto  1 dtype (1 float, 2 double)   2 shape   4 tensor_content   5 float_val   6 double_val

A tensor counts where it holds a single float or double, as newer writers store a scalar. The CRC of the length is
checked, since a wrong length would lead anywhere; that of the bytes is not: wrong bytes make a wrong point at worst.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from stackllama_engine.contract.user_files import open_regular

MOST_BYTES = 2 << 20
"""Bytes per `EventFile.read`: a long file is read in portions."""

_LONGEST = 16 << 20  # bytes; images and graphs that are larger are stepped over unread
_HEADER = 12
_FOOTER = 4
_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DOUBLE, _FLOAT, _LENGTH = struct.Struct("<d"), struct.Struct("<f"), struct.Struct("<QI")

_Field = tuple[int, int, int | bytes]


class Scalar(Struct, frozen=True, gc=False):
    """One value. ``time`` in Unix seconds."""

    tag: str
    step: int
    time: float
    value: float


class EventFile:
    """One event file. A read that finds nothing new costs one ``stat``.

    Attributes:
        bad_records: records that could not be read.
        broken: whether a wrong length was found; nothing beyond it is read unless it is repaired.
        restarts: how often the file was found truncated or replaced; reading began anew each time.
        behind: whether there is more to read already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_records = 0
        self.broken = False
        self.restarts = 0
        self.behind = False
        self._offset = 0
        self._bad_at = -1
        self._identity: tuple[int, int] | None = None

    def read(self, most: int = MOST_BYTES) -> list[Scalar]:
        """Return scalars of records that are complete now and were not returned before.

        A record that is truncated at the end of the file is left for later, as is one with a wrong length: it may be
        being written. ``broken`` is set when the file has grown beyond it and it is still wrong.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            status = os.stat(self.path)  # noqa: PTH116 - half the price of Path.stat
            if self._identity == (status.st_ino, status.st_size) and not self.behind:
                return []
            descriptor = open_regular(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            status = os.fstat(descriptor)
            if self._identity and (self._identity[0] != status.st_ino or status.st_size < self._offset):
                self.restarts += 1
                self._offset, self._bad_at = 0, -1
            self._identity = status.st_ino, status.st_size
            self.behind = False
            return self._records(descriptor, status.st_size, most)
        finally:
            os.close(descriptor)

    def _records(self, descriptor: int, size: int, most: int) -> list[Scalar]:
        scalars: list[Scalar] = []
        data = os.pread(descriptor, max(most, _HEADER), self._offset)
        at = 0
        self.broken = False
        while at + _HEADER <= len(data):
            length, crc = _LENGTH.unpack_from(data, at)
            if masked_crc32c(data[at : at + 8]) != crc:
                self.broken = self._offset + at + _HEADER + _FOOTER <= size
                self._count_bad(self._offset + at)
                break
            end = at + _HEADER + length + _FOOTER
            if end > len(data):
                return self._beyond(descriptor, size, at, length, scalars)
            self._event(data[at + _HEADER : end - _FOOTER], scalars)
            at = end
        self._offset += at
        self.behind = not self.broken and at > 0 and self._offset + _HEADER <= size
        return scalars

    def _beyond(self, descriptor: int, size: int, at: int, length: int, scalars: list[Scalar]) -> list[Scalar]:
        """Handle a record that does not end in what was read: truncated, larger than one read, or of no interest."""
        self._offset += at
        end = self._offset + _HEADER + length + _FOOTER
        if end > size:
            return scalars
        if at == 0:
            if length <= _LONGEST:
                self._event(os.pread(descriptor, length, self._offset + _HEADER), scalars)
            self._offset = end
        self.behind = True
        return scalars

    def _count_bad(self, offset: int) -> None:
        if self.broken and offset != self._bad_at:
            self.bad_records += 1
            self._bad_at = offset

    def _event(self, data: bytes, scalars: list[Scalar]) -> None:
        try:
            scalars.extend(read_event(data))
        except (ValueError, struct.error):
            self.bad_records += 1


def read_event(data: bytes) -> list[Scalar]:
    """Decode the scalars of one ``Event``.

    Raises:
        ValueError, struct.error: it is not one.
    """
    time, step = 0.0, 0
    summaries: list[bytes] = []
    for number, kind, value in _fields(data):
        if number == 5 and isinstance(value, bytes):
            summaries.append(value)
        elif number == 1 and kind == _FIXED64 and isinstance(value, bytes):
            (time,) = _DOUBLE.unpack(value)
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
    return [
        Scalar(tag, step, time, value)
        for summary in summaries
        for number, _, part in _fields(summary)
        if number == 1 and isinstance(part, bytes)
        for tag, value in _value(part)
    ]


def _value(data: bytes) -> Iterator[tuple[str, float]]:
    tag, scalar = "", None
    for number, kind, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1 and kind == _BYTES:
            tag = value.decode("utf-8", "replace")
        elif number == 2 and kind == _FIXED32:
            (scalar,) = _FLOAT.unpack(value)
        elif number == 8 and kind == _BYTES:
            scalar = _tensor(value)
    if scalar is not None:
        yield tag, scalar


def _tensor(data: bytes) -> float | None:
    """Return the value of a tensor of a single float or double; None for every other one."""
    kind, raw = 0, b""
    for number, _, value in _fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and value:  # it has dimensions
            return None
        elif number in (4, 5, 6) and isinstance(value, bytes):
            raw = value
    packed = {1: _FLOAT, 2: _DOUBLE}.get(kind)
    if packed is None or len(raw) != packed.size:
        return None
    return float(packed.unpack(raw)[0])


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield (number, wire type, value) of each field; fixed ones as bytes.

    Raises:
        ValueError: not protobuf, or truncated.
    """
    at, end = 0, len(data)
    while at < end:
        key = data[at]  # nearly always of one byte
        if key < 0x80:
            at += 1
        else:
            key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, kind, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind == _FIXED64:
            size = 8
        elif kind == _FIXED32:
            size = 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("truncated")
        yield key >> 3, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7
    raise ValueError("a number without end")


def _crc_table() -> list[int]:
    table: list[int] = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 3720, appendix B.4), rotated by 15 bits plus a constant, as TFRecords store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
