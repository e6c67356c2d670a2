"""The options of a capture."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Overflow = Literal["block", "drop", "fail"]

MIB = 1 << 20
Size = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class CaptureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a capture stores what it takes. Sizes are in bytes.

    On each CUDA device a capture takes `staging_bytes` of memory, but never more than `staging_share` of what is free.
    """

    dtype: str | None = None
    overflow: Overflow = "block"
    ring_bytes: Size = 64 * MIB
    block_bytes: Size = 4 * MIB
    shard_bytes: Size = 4096 * MIB
    durability: str = "shard"
    on_error: Literal["raise", "detach"] = "raise"
    patience: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 600.0
    direct_io: bool = True
    staging_bytes: Size = 256 * MIB
    staging_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    tensor_access: Literal["automatic", "dlpack", "attributes"] = "automatic"
    store_readout: bool = False
    analysis: str | None = None
    description: str = ""
