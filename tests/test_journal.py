"""The journal parser: whole entries are found, and nothing that is not whole is believed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.dtypes import DTYPES
from neuroscope_fast.errors import RunError
from neuroscope_fast.journal import JournalHeaderError, parse_journal
from run_writer import Tensor, journal_entries, journal_entry, journal_header, random_tensor

NOTE = {"positions": [3], "real_tokens": [[0, 2], [], [0, 1, 3, 4]]}
TENSORS = [
    Tensor("a/000000", "a", random_tensor((1, 7, 4)), source="bfloat16", stream=5),
    Tensor("ünïcode/000000", "ünïcode", random_tensor((), seed=1), stream=6),
    Tensor("a/000001", "a", random_tensor((1, 1, 4), seed=2), step=1, stream=5, note=NOTE),
    Tensor("a/p2/c3/000004/input", "a", random_tensor((2, 0, 3)), 2, 4, 3, is_input=True, stream=7, note=NOTE),
    Tensor("a/000002/scale", "a", random_tensor((2,), seed=3), step=2, is_scale=True, stream=5),
]
ENTRIES = journal_entries(TENSORS)
WHOLE = journal_header("float32") + b"".join(ENTRIES)


def test_every_field_is_read() -> None:
    journal = parse_journal(WHOLE, "j")
    assert not journal.torn
    assert journal.dtype.name == "float32"
    assert journal.data_start == 8192
    assert [record.key for record in journal.records] == [item.key for item in TENSORS]
    assert [record.shape for record in journal.records] == [tuple(item.tensor.shape) for item in TENSORS]
    assert journal.records[0].source.name == "bfloat16"
    assert [record.begin for record in journal.records] == [0, 112, 116, 132, 132]
    assert journal.records[1].note.positions is None
    assert journal.records[2].note.positions == [3]
    assert journal.records[3].note.real_tokens == [[0, 2], [], [0, 1, 3, 4]]
    assert journal.records[4].note.real_tokens is None


def test_reading_stops_at_every_cut() -> None:
    starts = [32 + sum(map(len, ENTRIES[:count])) for count in range(len(ENTRIES) + 1)]
    whole_keys = [record.key for record in parse_journal(WHOLE, "j").records]
    for length in range(32, len(WHOLE)):
        journal = parse_journal(WHOLE[:length], "j")
        assert [record.key for record in journal.records] == whole_keys[: len(journal.records)]
        assert journal.torn == (length not in starts)
    assert [len(parse_journal(WHOLE[:length], "j").records) for length in starts] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
    ]


@given(position=st.integers(32, len(WHOLE) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_is_never_believed(position: int, flip: int) -> None:
    data = bytearray(WHOLE)
    data[position] ^= flip
    records = parse_journal(bytes(data), "j").records
    assert records == parse_journal(WHOLE, "j").records[: len(records)]
    assert len(records) < len(TENSORS)


@given(st.binary(max_size=200))
def test_any_tail_is_survived(tail: bytes) -> None:
    assert len(parse_journal(WHOLE + tail, "j").records) >= len(TENSORS)


@given(st.binary(max_size=200))
def test_any_payload_is_survived(payload: bytes) -> None:
    parse_journal(journal_header("int8") + journal_entry(payload), "j")


@given(st.binary(max_size=100))
def test_any_bytes_are_survived(data: bytes) -> None:
    with pytest.raises(JournalHeaderError, match=r"^some\.journal "):
        parse_journal(data, "some.journal")


def test_a_tail_of_zeros_is_no_entry() -> None:
    journal = parse_journal(WHOLE + bytes(4096), "j")
    assert journal.torn
    assert len(journal.records) == len(TENSORS)


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_torn_header_is_said(length: int) -> None:
    with pytest.raises(JournalHeaderError, match="cut short"):
        parse_journal(WHOLE[:length], "j")


def test_an_unknown_version_names_both_numbers() -> None:
    with pytest.raises(RunError, match=r"version 2; .* version 1") as caught:
        parse_journal(journal_header("float32", version=2), "j")
    assert not isinstance(caught.value, JournalHeaderError)


@pytest.mark.parametrize("start", [0, 8, 4097])
def test_a_data_start_that_no_writer_makes(start: int) -> None:
    with pytest.raises(JournalHeaderError, match="data start"):
        parse_journal(journal_header("float32", data_start=start), "j")


def _record(
    *,
    stream: int = 5,
    source: int = 1,
    rank: int = 1,
    shape: tuple[int, ...] = (2,),
    offset: int = 0,
    size: int = 8,
) -> bytes:
    front = struct.pack("<BIIIIBBH", 3, stream, 0, 0, 0, 0, source, rank)
    return journal_entry(front + struct.pack(f"<{len(shape)}QQQI", *shape, offset, size, 0))


@pytest.mark.parametrize(
    "entry",
    [
        _record(stream=9),  # no such stream
        _record(source=16),  # no such dtype
        _record(rank=2),  # more dimensions than it brings
        _record(rank=65, shape=(0,) * 65, size=0),  # more than any tensor has
        _record(shape=(2**63, 2), size=0),  # does not wrap around to zero bytes
        _record(size=12),  # not the size of its shape
        _record(offset=8),  # a hole
        journal_entry(b"\x05what is this"),  # no such kind
        journal_entry(b"\x04" + struct.pack("<Q", 99)),  # acknowledges more than there is
        journal_entry(b"\x04" + struct.pack("<I", 0)),  # cut short
        journal_entry(b"\x01\0"),  # a stream that is cut short
        journal_entry(b"\x01\0\0\0\0\0\xff"),  # not UTF-8
        journal_entry(b"\x02{"),  # not JSON
        journal_entry(b"\x02" + b"[" * 10_000),  # JSON that nests too deeply
    ],
)
def test_an_entry_that_makes_no_sense_ends_the_journal(entry: bytes) -> None:
    stream = ENTRIES[0]
    assert parse_journal(journal_header("float32") + stream + _record(), "j").records
    journal = parse_journal(journal_header("float32") + stream + entry + _record(), "j")
    assert journal.records == []
    assert journal.torn


def test_acknowledgements_only_grow() -> None:
    def acknowledged(*counts: int) -> tuple[int, int]:
        entries = ENTRIES + [journal_entry(b"\x04" + struct.pack("<Q", count)) for count in counts]
        journal = parse_journal(journal_header("float32") + b"".join(entries), "j")
        return journal.acknowledged, len(journal.records)

    assert acknowledged() == (0, 5)
    assert acknowledged(0, 3, 3, 5) == (5, 5)
    assert acknowledged(3, 2, 5) == (3, 5)
    assert acknowledged(6) == (0, 5)


def test_dtype_codes_are_the_positions_in_the_format() -> None:
    for code, dtype in enumerate(DTYPES):
        assert parse_journal(journal_header(dtype.name), "j").dtype == dtype
        assert dtype.code == code
