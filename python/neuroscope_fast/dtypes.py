"""The sixteen dtypes that a run can hold, and what each is called where.

The order is part of the file format: a journal names a dtype by its position in `DTYPES`
(docs/file_format.md).
"""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """One dtype: `name` is torch's own (`float8_e4m3fn`), `header` the one in a safetensors header
    (`F8_E4M3`).
    """

    name: str
    header: str
    size: int  # bytes of one element
    code: int


_TABLE = (
    ("float64", "F64", 8),
    ("float32", "F32", 4),
    ("float16", "F16", 2),
    ("bfloat16", "BF16", 2),
    ("float8_e4m3fn", "F8_E4M3", 1),
    ("float8_e5m2", "F8_E5M2", 1),
    ("int64", "I64", 8),
    ("int32", "I32", 4),
    ("int16", "I16", 2),
    ("int8", "I8", 1),
    ("uint64", "U64", 8),
    ("uint32", "U32", 4),
    ("uint16", "U16", 2),
    ("uint8", "U8", 1),
    ("bool", "BOOL", 1),
    ("complex64", "C64", 8),
)

DTYPES = tuple(DType(name, header, size, code) for code, (name, header, size) in enumerate(_TABLE))
DTYPE_NAMES = tuple(dtype.name for dtype in DTYPES)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_HEADER = {dtype.header: dtype for dtype in DTYPES}
MAX_RANK = 64  # more dimensions than torch or NumPy hand out; a file that names more is not believed
