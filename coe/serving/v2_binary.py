"""The binary tensor extension of the Open Inference Protocol: JSON first, then the bytes of the tensors one after another.

The header `Inference-Header-Content-Length` says where the JSON ends. Numbers are little-endian and in row-major order; a
BYTES element is its length (four bytes) and then itself; a BOOL is one byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from coe.serving.http_api import refused

HEADER = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?"}


def split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """JSON and the binary part of a body; without the header all of it is JSON. `InvalidInput` for an impossible header."""
    if header is None:
        return body, b""
    is_count = header.isascii() and header.isdigit() and len(header) <= 19
    if not is_count or not 0 < int(header) <= len(body):
        raise refused(HEADER, f"must be a number of bytes from 1 to the body's {len(body)}", header[:40])
    return body[: int(header)], body[int(header) :]


def floats(where: str, data: bytes, count: int) -> np.ndarray:
    """(count,) float32 from exactly as many bytes."""
    if len(data) != 4 * count:
        raise refused(where, f"must hold {count} FP32 values in {4 * count} bytes", f"{len(data)} bytes")
    return np.frombuffer(data, dtype=DTYPES["FP32"]).astype(np.float32)


def encoded(values: Sequence[object], datatype: str) -> bytes:
    """The bytes of an output tensor."""
    if datatype == "BYTES":
        texts = [str(v).encode() for v in values]
        return b"".join(struct.pack("<I", len(t)) + t for t in texts)
    return np.asarray(values, dtype=DTYPES[datatype]).tobytes()


def texts(where: str, data: bytes) -> list[str]:
    """The elements of a BYTES tensor, as texts. `InvalidInput` where lengths and bytes do not fit, or are no UTF-8."""
    found, at = list[str](), 0
    try:
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            at += 4 + size
            if at > len(data):
                raise refused(where, "must hold each element's length in four bytes and then as many bytes")
            found.append(data[at - size : at].decode())
    except struct.error:
        raise refused(where, "must hold each element's length in four bytes and then as many bytes") from None
    except UnicodeDecodeError as error:
        raise refused(where, "must hold texts in UTF-8", str(error)) from None
    return found
