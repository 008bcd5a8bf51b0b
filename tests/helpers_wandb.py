"""What wandb has recorded, read from its files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any


def read_wandb(path: Path) -> list[Any]:
    """The records of an offline run, decoded by wandb's own messages. Its file is a LevelDB log:
    blocks of 32 KiB hold chunks of CRC, length, kind (1 whole, 2 first, 3 middle, 4 last) and data.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, records, parts = path.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        assert zlib.crc32(data[position + 6 : position + 7] + chunk) == crc
        position += 7 + length
        parts += chunk
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records
