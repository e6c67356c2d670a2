"""The native engine of neuroscope-fast."""

from collections.abc import Callable, Sequence
from typing import Any

class Slab:
    """Memory that holds whole records of a memory capture."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Records:
    """The whole records of a closed session."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def count(self, hook: int) -> int: ...
    def lines(self, hook: int) -> bytes: ...
    def kinds(self, hook: int) -> list[tuple[list[int], str, bool, int]]: ...
    def weight_map(self) -> bytes: ...
    def checksums(self) -> bytes: ...
    @property
    def shards(self) -> list[str]: ...
    @property
    def total_bytes(self) -> int: ...
    def find(
        self, stream: int, prompt: int, step: int, call: int, is_scale: bool
    ) -> tuple[Slab, str, tuple[int, ...], int] | None: ...

class ComputedCall:
    """One call of a module, of which records are wanted."""

    @property
    def wanted(self) -> list[Any]: ...
    @property
    def real(self) -> bytes: ...
    @property
    def offset(self) -> int | None: ...
    def store(self, number: int, tensor: Any, stream: int | None = None) -> None: ...

class ComputedTap:
    """A tap whose tensors are computed, as far as they are stored."""

    def begin(self, module: Any, given: Any, shape: Sequence[int]) -> ComputedCall | None: ...

class Session:
    """One capture: the engine and its taps."""

    def __init__(
        self,
        streams: Sequence[tuple[str, bool, bool]],
        taps: int,
        *,
        folder: str | None,
        ring_bytes: int,
        block_bytes: int,
        shard_bytes: int,
        sync_at_close: bool = False,
        sync_bytes: int = 0,
        sync_seconds: float = 0.0,
        patience: float = 0.0,
        first_prompt: int = 0,
        first_shards: dict[str, int] = {},
        detaches: bool = False,
        overflow: str,
        direct_io: bool,
        e4m3_saturates: bool,
        e5m2_saturates: bool,
        tensor_access: str,
        staging_bytes: int,
        staging_share: float,
    ) -> None: ...
    def open_device(self, device: int, casts: Sequence[tuple[str, str]]) -> None: ...
    def devices(self) -> list[Any]: ...
    def warnings(self) -> list[str]: ...
    def tap(
        self,
        index: int,
        module: Any,
        is_input: bool,
        in_encoder: bool,
        sequence: str,
        field: str,
        argument: int,
        description: str,
        rules: list[Any],
    ) -> Callable[..., None]: ...
    def tapped_call(
        self,
        module: Any,
        before: tuple[Callable[..., None], ...],
        after: tuple[Callable[..., None], ...],
    ) -> Callable[..., Any]: ...
    def computed_tap(
        self,
        index: int,
        module: Any,
        in_encoder: bool,
        sequence: str,
        description: str,
        rules: list[Any],
    ) -> ComputedTap: ...
    def begin_step(
        self,
        *,
        decode: bool,
        offset: int,
        batch: int,
        length: int,
        mask: bytes,
        logits_kept: int,
        guessed: bool,
        continues_encoder: bool,
    ) -> int: ...
    def begin_encoder(self, *, batch: int, length: int, mask: bytes) -> None: ...
    def end_step(self) -> None: ...
    def next_prompt(self) -> None: ...
    @property
    def prompt(self) -> int: ...
    @property
    def uses_dlpack(self) -> bool: ...
    @property
    def small_records(self) -> int: ...
    def sync(self) -> None: ...
    def detach(self, why: str) -> bool: ...
    @property
    def detached_by(self) -> str: ...
    def close(self) -> None: ...
    def records(
        self,
        hooks: Sequence[tuple[bytes, bytes, int | None, int | None]],
        indices: dict[int, int],
        published: Callable[[str], bool] | None,
    ) -> Records: ...
    def dropped(self) -> list[Any]: ...
    def fired(self) -> list[int]: ...
    @property
    def hung(self) -> bool: ...
    def stats(self) -> dict[str, Any]: ...
    def slab(self, number: int) -> Slab: ...

class GraphRecording:
    """The taps that fired while a CUDA graph was captured; see core/graph_recording.hpp."""

    def __init__(self, session: Session) -> None: ...
    def close(self) -> None: ...
    def begin_capture(self) -> None: ...
    def end_capture(self) -> None: ...
    @property
    def calls(self) -> int: ...
    def before_replay(self, stream: int) -> None: ...
    def store(self, first: int, last: int, stream: int) -> None: ...

def crc32c(data: Any, initial: int = 0) -> int: ...
def cast(
    tensor: Any,
    dtype: str,
    e4m3_saturates: bool = True,
    e5m2_saturates: bool = False,
    tensor_access: str = "automatic",
) -> tuple[bytes, bytes]: ...
def cast_into(
    tensor: Any,
    dtype: str,
    out: Any,
    e4m3_saturates: bool = True,
    e5m2_saturates: bool = False,
) -> bytes: ...
def head_reduce(
    tensor: Any,
    head_axis: int,
    reduction: str,
    heads: Sequence[int] | None = None,
    dtype: str = "float32",
    e4m3_saturates: bool = True,
    e5m2_saturates: bool = False,
) -> tuple[bytes, tuple[int, ...]]: ...
def build_info() -> dict[str, Any]: ...
def supports_direct_io(folder: str) -> bool: ...
