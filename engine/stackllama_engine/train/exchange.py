"""Exchange of rows between ranks: JSON in tensors of bytes, so that nothing which arrives is executed."""

import json
from itertools import zip_longest
from typing import Any

import torch
from torch import distributed

_NOTHING = object()
_SCALARS = (str, int, float, bool, type(None))


def gather_rows(rows: list[Any], device: torch.device) -> list[Any]:
    """Gather rows of all ranks, interleaved: rank r holds rows r, r + world size, …

    They arrive as they were: numbers bit for bit, NaN and infinities too.

    Args:
        rows: of dictionaries with text as keys, lists, texts, numbers, booleans and None.
        device: through whose memory the group exchanges.

    Raises:
        TypeError: a row holds something else, such as a tuple, which would arrive as a list.
    """
    _check(rows)
    parts = [json.loads(text) for text in _gather_bytes(json.dumps(rows).encode(), device)]
    return [row for group in zip_longest(*parts, fillvalue=_NOTHING) for row in group if row is not _NOTHING]


def _gather_bytes(data: bytes, device: torch.device) -> list[bytes]:
    """Gather the bytes of every rank, in order; their lengths may differ."""
    world = distributed.get_world_size()
    length = torch.tensor([len(data)], device=device)
    lengths = [torch.zeros_like(length) for _ in range(world)]
    distributed.all_gather(lengths, length)
    counts = [int(one) for one in lengths]
    padded = torch.zeros(max(counts), dtype=torch.uint8)  # [longest]
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    padded = padded.to(device)
    arrived = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(arrived, padded)
    return [part[:count].cpu().numpy().tobytes() for part, count in zip(arrived, counts, strict=True)]


def _check(value: Any) -> None:
    """Check exact types: a subclass would arrive as what it derives from."""
    if type(value) is list:
        for each in value:
            _check(each)
    elif type(value) is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise TypeError(f"a key that is not a string cannot be sent to other ranks: {key!r}")
            _check(each)
    elif type(value) not in _SCALARS:
        raise TypeError(f"a {type(value).__name__} cannot be sent to other ranks: {value!r}")
