"""Random changes to a valid file's bytes, lengths and sizes; checksums are made to fit, if the format has them."""

import contextlib
import functools
import random
import struct
import zlib
from collections.abc import Callable

EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SIZES = (0, 1, 2, 3, 17, 255, 1000, 4096, 9459, 16383, 65_535)  # pixels: both sides of the limits
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
KINDS = (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT")


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Apply one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(rng, data, others)
    return data


def flip_bits(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[_place(rng, changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_number(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Set a length, a size or an offset to an edge value."""
    form = rng.choice(("B", "<H", ">H", "<I", ">I"))
    number = rng.choice((*EDGES, *SIZES, rng.getrandbits(32)))
    value = struct.pack(form, number & ((1 << 8 * struct.calcsize(form)) - 1))
    start = _place(rng, data)
    return data[:start] + value + data[start + len(value) :]


def cut(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def remove(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 4, 16, 256)) :]


def insert(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = rng.choice((rng.randbytes(rng.choice((1, 4, 64))), b"\0" * 4096, b"\xff" * 64, data[start : start + 200]))
    return data[:start] + piece * rng.choice((1, 1, 20)) + data[start:]


def splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Join the beginning of one file and the end of another."""
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def change_structure(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change the file as its format is built; in unknown formats, set a number."""
    if data.startswith(PNG_MAGIC):
        return _png(rng, data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(rng, data)
    if data.startswith(b"RIFF"):
        return _riff(rng, data)
    return set_number(rng, data, others)


MUTATIONS: tuple[Callable[[random.Random, bytes, list[bytes]], bytes], ...] = (
    flip_bits,
    set_number,
    set_number,
    cut,
    remove,
    insert,
    splice,
    change_structure,
    change_structure,
    change_structure,
)


def _place(rng: random.Random, data: bytes | bytearray) -> int:
    """A random index, in half of the cases in the header."""
    return rng.randrange(max(1, min(len(data), rng.choice((64, len(data))))))


@functools.cache
def compressed_zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(rng: random.Random, data: bytes) -> bytes:
    chunks, at = [], len(PNG_MAGIC)
    while at + 8 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    index = rng.randrange(len(chunks))
    kind, body = chunks[index]
    action = rng.randrange(7)
    if action == 0:
        del chunks[index]
    elif action == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
    elif action == 2:
        chunks.insert(rng.randrange(len(chunks) + 1), (rng.choice(KINDS), rng.randbytes(rng.choice((0, 1, 13, 300)))))
    elif action == 3 and chunks[0][0] == b"IHDR":  # another size, depth or colour type than the pixels have
        size = struct.pack(">II", rng.choice(SIZES), rng.choice(SIZES))
        chunks[0] = (
            b"IHDR",
            rng.choice((size, body[:8])) + bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in "12345"),
        )
    elif action == 4:  # a bomb in the text or the profile
        bomb = compressed_zeros(rng.choice((2_000_000, 70_000_000)))
        bombs = ((b"zTXt", b"k\0\0" + bomb), (b"iCCP", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb))
        chunks.insert(1, rng.choice(bombs))
    elif action == 5 and kind == b"IDAT":
        with contextlib.suppress(zlib.error):
            pixels = bytearray(zlib.decompressobj().decompress(body, 1 << 16))
            pixels[: rng.randrange(len(pixels) + 1)] = rng.randbytes(4)
            chunks[index] = (kind, zlib.compress(bytes(pixels)))
    else:
        chunks[index] = (kind, flip_bits(rng, body, []))
    return PNG_MAGIC + b"".join(png_chunk(*chunk) for chunk in chunks)


def _jpeg(rng: random.Random, data: bytes) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        segments.append(data[at : at + 2 + length])
        at += 2 + max(length, 2)
    if not segments:
        return data
    index = rng.randrange(len(segments))
    segment = segments[index]
    action = rng.randrange(6)
    if action == 0:
        del segments[index]
    elif action == 1:
        segments.insert(rng.randrange(len(segments) + 1), segment)
    elif action == 2:
        segments[index] = segment[:2] + struct.pack(">H", rng.choice(EDGES) & 0xFFFF) + segment[4:]
    elif action == 3:  # the frame's size
        for i, each in enumerate(segments):
            if 0xC0 <= each[1] <= 0xC2:
                segments[i] = each[:5] + struct.pack(">HH", rng.choice(SIZES), rng.choice(SIZES)) + each[9:]
    elif action == 4:
        body = b"Exif\0\0" + rng.choice((b"MM\0*", b"II*\0")) + rng.randbytes(rng.choice((4, 30, 300)))
        segments.insert(0, b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    else:
        segments[index] = segment[:4] + flip_bits(rng, segment[4:], [])
    return data[:2] + b"".join(segments) + data[at:]


def _riff(rng: random.Random, data: bytes) -> bytes:
    """Put WebP's extended header in front, with a canvas and features that do not fit the chunks."""
    canvas = [rng.choice(SIZES) & 0xFFFFFF for _ in "wh"]
    body = bytes([rng.getrandbits(8), 0, 0, 0]) + b"".join(side.to_bytes(3, "little") for side in canvas)
    rest = data[30:] if data[12:16] == b"VP8X" else data[12:]
    content = b"WEBP" + rng.choice((b"VP8X" + struct.pack("<I", 10) + body, b"")) + rest
    return b"RIFF" + struct.pack("<I", rng.choice((len(content), len(content), *EDGES))) + content
