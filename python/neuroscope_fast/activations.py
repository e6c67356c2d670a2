"""What one hook captured, as a sequence of torch tensors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from .errors import RunError
from .keys import tensor_key
from .records import DataRef, Record
from .summary import shape_summary, summarise

if TYPE_CHECKING:
    import numpy as np
    import torch

Selection = int | slice | Container[int] | None


SEQUENCE_AXIS = {"head_output": 3, "entropy": 1, "sink": 1, "previous": 1}
"""Counted from the end, where it is not the last but one; by the reduction, or the component if there is none."""


class Source(Protocol):
    """Where the tensors of a run are."""

    def tensor(self, ref: DataRef) -> torch.Tensor:
        """The stored tensor, without a copy. Raises RunError."""
        ...


def is_quantised(record: Record) -> bool:
    """Whether the record is int8 with a float32 scale a row, rather than integers that the model computed."""
    return record.dtype == "int8" and (record.scale is not None or record.source_dtype not in (None, "int8"))


def data_ref(record: Record) -> DataRef:
    """Where the tensor of a record is. Records held in memory have no `data`: their key is the one they would
    have.
    """
    if record.data is not None:
        return record.data
    key = tensor_key(record.hook_id, record.step, prompt=record.prompt, call=record.call, is_input=record.is_input)
    return DataRef("", key)


class Activations(Sequence["torch.Tensor"]):
    """The captured tensors of one hook in the order of capture; a slice or a selection is again one of these.

    Of a hook that captures both sides, the sequence is the outputs; `.inputs` and `.outputs` name a side.
    Tensors lie on the mapped file (or in the memory run) without a copy, except that int8 records with scales
    come as float32.
    """

    def __init__(
        self,
        hook_id: str,
        records: Sequence[Record],
        source: Source,
        everything: Sequence[Record] | None = None,
    ):
        self.hook_id = hook_id
        self._source = source
        self._everything = records if everything is None else everything
        if everything is None:
            outputs = [record for record in records if not record.is_input]
            records = outputs or records
        self._records = list(records)

    @property
    def records(self) -> list[Record]:
        """The records of this view, one for each tensor."""
        return list(self._records)

    def record(self, index: int) -> Record:
        """The record of the tensor `self[index]`."""
        return self._records[index]

    @property
    def inputs(self) -> Activations:
        """What went into the module."""
        return self._side(True)

    @property
    def outputs(self) -> Activations:
        """What came out of the module."""
        return self._side(False)

    def _side(self, is_input: bool) -> Activations:
        return self._view([record for record in self._everything if record.is_input == is_input])

    def _view(self, records: Sequence[Record], everything: Sequence[Record] | None = None) -> Activations:
        return Activations(self.hook_id, records, self._source, records if everything is None else everything)

    @property
    def indices(self) -> list[torch.Tensor]:
        """Of the reduction `top_k`: for each tensor of weights the keys that they are of, int32 [B, H, Q, k]. Of fused
        experts: the experts, [tokens, experts a token], in the model's own dtype.

        Raises RunError for records of another kind.
        """
        found = []
        for record in self._records:
            if record.data is not None and record.indices is None:
                raise self._no_indices()
            ref = record.indices or DataRef("", data_ref(record).key + "/indices")
            try:
                indices = self._source.tensor(ref)
            except RunError as error:
                if record.indices is not None:
                    raise
                raise self._no_indices() from error
            if list(indices.shape) != record.shape or indices.is_floating_point():
                raise RunError(f"{ref.file or 'memory'}: {ref.key} are no indices for weights of shape {record.shape}")
            found.append(indices)
        return found

    def where(self, *, step: Selection = None, prompt: Selection = None, call: Selection = None) -> Activations:
        """The tensors of these steps, prompts and calls: a number, a slice, or anything that has `in` (range,
        set).
        """

        def chosen(record: Record) -> bool:
            return _matches(record.step, step) and _matches(record.prompt, prompt) and _matches(record.call, call)

        return self._view(list(filter(chosen, self._records)), list(filter(chosen, self._everything)))

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Activations: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Activations:
        if isinstance(index, slice):
            return self._view(self._records[index])
        record = self._records[index]
        stored = self._stored(record)
        return _dequantise(stored, self._scale(record)) if is_quantised(record) else stored

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The tensor as it is stored, and for an int8 record its float32 scales: shape […] for a tensor of
        […, D].
        """
        record = self._records[index]
        return self._stored(record), self._scale(record) if is_quantised(record) else None

    def stack(self) -> torch.Tensor:
        """All tensors in one, of shape [count, *shape]. Raises RunError where shapes differ or nothing was
        captured.
        """
        import torch

        self._need_any("stack")
        if len({tuple(record.shape) for record in self._records}) > 1:
            raise RunError(
                f"{self.hook_id} cannot be stacked, its shapes differ ({self._shapes()}): join them with "
                ".cat(), or choose some with .where(step=…) or a slice"
            )
        return torch.stack(list(self))

    def cat(self, axis: int | None = None) -> torch.Tensor:
        """Prefill and decode steps joined along the sequence: [B, S, D] on axis 1, in general on the last
        axis but one; of `head_output` and of reductions to one number a row, where theirs is.

        Raises RunError where several prompts or calls are among them (choose one with `.where`), where the
        other axes differ, for keys and values (each is the whole cache), or where nothing was captured. A module that
        flattens [B, S] into one axis (some routers) gives its steps one after the other, each with all
        rows of the batch.
        """
        import torch

        self._need_any("join")
        for name in ("prompt", "call"):
            values = sorted({getattr(record, name) for record in self._records})
            if len(values) > 1:
                raise RunError(
                    f"{self.hook_id} has tensors of {len(values)} {name}s: choose one with .where({name}={values[0]})"
                )
        self._need_one_sequence()
        if len(self) > 1 and self._kind() in ("key", "value"):
            raise RunError(f"{self.hook_id} cannot be joined: each of its tensors is the whole cache; take the last")
        rank = len(self._records[0].shape)
        if rank == 0:
            raise RunError(f"{self.hook_id} holds scalars, which have no sequence axis: use .stack()")
        along = axis if axis is not None else max(rank - SEQUENCE_AXIS.get(self._kind(), 2), 0)
        try:
            return torch.cat(list(self), dim=along)
        except (RuntimeError, IndexError) as error:
            raise RunError(
                f"{self.hook_id} cannot be joined along axis {along}: its shapes are {self._shapes()}"
            ) from error

    def _no_indices(self) -> RunError:
        return RunError(f"{self.hook_id} holds no indices: the reduction top_k has them, and fused experts")

    def _need_one_sequence(self) -> None:
        """RunError where the positions of a later step start over: then it is of another sequence."""
        starts = [_first_position(record) for record in self._records]
        if not any(starts):
            return
        before = -1
        for record, start in zip(self._records, starts, strict=True):
            if start is None:
                return  # what comes after it cannot be told
            if start <= before:
                raise RunError(
                    f"{self.hook_id} holds several sequences: positions start over at step {record.step}. Call "
                    "next_prompt() before each prompt of a capture; of this run choose steps with .where(step=range(…))"
                )
            before = start

    def numpy(self, axis: int | None = None) -> np.ndarray[Any, Any]:
        """`cat(axis)` as a NumPy array; bfloat16 and float8, which NumPy does not have, come as float32."""
        import torch

        joined = self.cat(axis)
        if joined.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
            joined = joined.float()
        array: np.ndarray[Any, Any] = joined.numpy()
        return array

    def __repr__(self) -> str:
        dtypes: dict[str, int] = {}
        for record in self._records:
            dtypes[record.dtype] = dtypes.get(record.dtype, 0) + 1
        return f"<Activations {self.hook_id}: {len(self)} tensors, {self._shapes()}, {summarise(dtypes)}>"

    def _kind(self) -> str:
        """What says on which axis the sequence lies."""
        record = self._records[0]
        return record.reduction or record.component

    def _shapes(self) -> str:
        return shape_summary(record.shape for record in self._records)

    def _need_any(self, verb: str) -> None:
        if not self._records:
            raise RunError(f"{self.hook_id} holds nothing to {verb}")

    def _stored(self, record: Record) -> torch.Tensor:
        ref = data_ref(record)
        tensor = self._source.tensor(ref)
        if list(tensor.shape) != record.shape or str(tensor.dtype) != f"torch.{record.dtype}":
            raise RunError(
                f"{ref.file or 'memory'}: {ref.key} is {str(tensor.dtype)[6:]} {list(tensor.shape)}, "
                f"and its record says {record.dtype} {record.shape}"
            )
        return tensor

    def _scale(self, record: Record) -> torch.Tensor:
        ref = record.scale or DataRef("", data_ref(record).key + "/scale")
        scale = self._source.tensor(ref)
        if list(scale.shape) != record.shape[:-1] or str(scale.dtype) != "torch.float32":
            raise RunError(f"{ref.file or 'memory'}: {ref.key} is no scale for an int8 tensor of shape {record.shape}")
        return scale


def _dequantise(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return stored.float() * (scale.unsqueeze(-1) if stored.dim() > 0 else scale)


def _matches(value: int, wanted: Selection) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, slice):
        if min(wanted.start or 0, wanted.stop or 0, wanted.step or 1) < 0:
            raise ValueError("a selection counts from the front: its numbers cannot be negative")
        return value in range(*wanted.indices(value + 1))
    if isinstance(wanted, int):
        return value == wanted
    return value in wanted


def _first_position(record: Record) -> int | None:
    """Where on the sequence the record starts; None where that is not known."""
    if record.positions is None:
        return 0
    flat: list[int] = []
    for row in record.positions:
        flat += [row] if isinstance(row, int) else row
    return min(flat, default=None)
