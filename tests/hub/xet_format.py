"""How xet clients pack files: chunks with headers in xorbs, and shards that list those of a file.

Only what the test Hub needs of https://huggingface.co/docs/xet: where the chunks of a xorb begin,
what is in them, and which chunks of which xorbs a shard makes a file of.
"""

import struct
from dataclasses import dataclass

RECORD = 48  # bytes of a shard's header, and of everything that stands in its list of files
BOOKEND = b"\xff" * 32
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
RAW, LZ4, GROUPED_LZ4 = range(3)


@dataclass(frozen=True)
class Term:
    """A part of a file: the chunks of a xorb from `first` up to `stop`, `size` bytes unpacked."""

    xorb: str
    size: int
    first: int
    stop: int


def hash_text(content: bytes) -> str:
    """A hash as addresses spell it: four numbers of eight bytes, the last byte of each first."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", content))


def parse_shard(shard: bytes) -> dict[str, list[Term]]:
    """The parts of each file that a shard lists, by the hash of the file."""
    files, place = {}, RECORD
    while (name := shard[place : place + 32]) != BOOKEND:
        flags, num_terms = struct.unpack_from("<II", shard, place + 32)
        place += RECORD
        files[hash_text(name)] = [
            _parse_term(shard[start : start + RECORD])
            for start in range(place, place + num_terms * RECORD, RECORD)
        ]
        per_term = 2 if flags & HAS_VERIFICATION else 1
        place += RECORD * (num_terms * per_term + bool(flags & HAS_METADATA))
    return files


def _parse_term(record: bytes) -> Term:
    _, size, first, stop = struct.unpack_from("<4I", record, 32)
    return Term(hash_text(record[:32]), size, first, stop)


def chunk_bounds(xorb: bytes, num_chunks: int) -> list[int]:
    """Where each of the first chunks begins, header included, and where the last one ends."""
    bounds = [0]
    for _ in range(num_chunks):
        packed_size = int.from_bytes(xorb[bounds[-1] + 1 : bounds[-1] + 4], "little")
        bounds.append(bounds[-1] + 8 + packed_size)
    return bounds


def unpack(xorb: bytes, term: Term) -> bytes:
    """The bytes of a file that a term stands for."""
    bounds = chunk_bounds(xorb, term.stop)
    return b"".join(_unpack_chunk(xorb, start) for start in bounds[term.first : term.stop])


def _unpack_chunk(xorb: bytes, start: int) -> bytes:
    packed_size = int.from_bytes(xorb[start + 1 : start + 4], "little")
    scheme, size = xorb[start + 4], int.from_bytes(xorb[start + 5 : start + 8], "little")
    packed = xorb[start + 8 : start + 8 + packed_size]
    if scheme == RAW:
        return packed
    import pyarrow  # takes long to import, and chance weights are stored raw

    content = pyarrow.decompress(packed, decompressed_size=size, codec="lz4", asbytes=True)
    return content if scheme == LZ4 else _interleave(content)


def _interleave(grouped: bytes) -> bytes:
    """Undo the grouping by place in a float: all first bytes, all second ones, and so on."""
    whole, start = bytearray(len(grouped)), 0
    for place in range(4):
        num_bytes = len(whole[place::4])
        whole[place::4] = grouped[start : start + num_bytes]
        start += num_bytes
    return bytes(whole)
