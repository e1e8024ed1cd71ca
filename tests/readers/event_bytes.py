"""TensorBoard's event files made by hand: protobuf fields and TFRecords, independent of the reader."""

import struct


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def blob(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def double(number: int, value: float) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<d", value)


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def scalar(tag: str, value: float) -> bytes:
    """Encode a ``Value`` as older writers (and torch) do."""
    return blob(1, blob(1, tag.encode()) + single(2, value))


def tensor(tag: str, content: bytes, dtype: int = 1, shape: bytes = b"") -> bytes:
    """Encode a ``Value`` as newer writers do, with the plugin's name in its metadata."""
    metadata = blob(9, blob(1, blob(1, b"scalars")))
    return blob(1, blob(1, tag.encode()) + metadata + blob(8, integer(1, dtype) + blob(2, shape) + content))


def event(step: int, *values: bytes, time: float = 1000.0) -> bytes:
    return record(double(1, time) + integer(2, step) + blob(5, b"".join(values)))


def version() -> bytes:
    return record(double(1, 1000.0) + blob(3, b"brain.Event:2"))


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def masked(data: bytes) -> int:
    """CRC-32C bit by bit, then masked."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
