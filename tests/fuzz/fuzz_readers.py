"""Feeds the readers of a run with bytes of any kind: each must give a result, or one of the project's own errors.

    python tests/fuzz/fuzz_readers.py TARGET [options of libFuzzer] NEW_INPUTS tests/fuzz/seeds/TARGET

needs atheris (the extra `fuzz`). tests/test_fuzz.py runs each target for some seconds, without atheris too.
"""

from __future__ import annotations

import io
import os
import random
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path

import msgspec
import typer
from mutations import mutate_json

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["neuroscope_fast"]) if __name__ == "__main__" else nullcontext():
    from neuroscope_fast.cli.report import report
    from neuroscope_fast.cli.show import show
    from neuroscope_fast.cli.summary import summarise_run
    from neuroscope_fast.cli.verify import verify
    from neuroscope_fast.errors import NeuroscopeError
    from neuroscope_fast.journal import parse_journal
    from neuroscope_fast.layer_pattern import expand_pattern
    from neuroscope_fast.manifest import Manifest, decode_manifest, encode_manifest
    from neuroscope_fast.prompt_log import PROMPTS_FILE, read_prompts, texts_of
    from neuroscope_fast.reader import Run, open_run
    from neuroscope_fast.records import DataRef, decode_metadata, encode_metadata
    from neuroscope_fast.recovery import metadata_of
    from neuroscope_fast.report import render
    from neuroscope_fast.shard_file import ShardFile, parse_header
    from neuroscope_fast.sources import DirectorySource, MemorySource
    from neuroscope_fast.spec import parse_hooks

SEEDS = Path(__file__).parent / "seeds"
MOST_ENTRIES = 50
# What steers a terminal: of the control characters only tab and line feed may come out.
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_scratch = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
SCRATCH = Path(_scratch.name)


def header(data: bytes) -> None:
    """A whole shard, and the same bytes as the JSON of a header."""
    path = SCRATCH / "shard.safetensors"
    path.write_bytes(data)
    try:
        shard = ShardFile.published(path)
    except NeuroscopeError as error:
        one_line(error)
    else:
        for key in list(shard.entries)[:MOST_ENTRIES]:
            entry = shard.entry(key)
            assert 8 <= entry.begin <= entry.end <= len(data)
            assert len(shard.view(key)) == entry.end - entry.begin
    try:
        parse_header(data, 8 + len(data), 8 + len(data) + 64, "the header")
    except NeuroscopeError as error:
        one_line(error)


def journal(data: bytes) -> None:
    """A journal as it is, and with checksums that are right, so that what it says is looked at."""
    path = SCRATCH / "shard.partial"
    if not path.exists():
        path.write_bytes(bytes(12_000))
    for content in (data, with_checksums(data)):
        try:
            parsed = parse_journal(content, "the journal")
            shard = ShardFile.open_shard(path, parsed)
        except NeuroscopeError as error:
            one_line(error)
            continue
        end = 0
        for record in parsed.records:
            assert record.begin == end
            end = record.end
        for entry in list(shard.entries.values())[:MOST_ENTRIES]:
            assert 0 < parsed.data_start <= entry.begin <= entry.end <= 12_000


def prompts(data: bytes) -> None:
    """The prompts of a run, as a capture closed them and as a kill left them; the latter is never an error."""
    (SCRATCH / PROMPTS_FILE).write_bytes(data)
    torn = read_prompts(SCRATCH, torn=True)
    assert [entry.prompt for entry in torn] == list(range(len(torn)))
    texts_of(torn)
    try:
        whole = read_prompts(SCRATCH)
    except NeuroscopeError as error:
        one_line(error)
    else:
        assert whole == torn


def with_checksums(data: bytes) -> bytes:
    """`data` with the checksums that its header and its entries would have, as far as their lengths lead."""
    content = bytearray(data)
    if len(content) >= 32:
        content[28:32] = struct.pack("<I", zlib.crc32(content[:28]))
    position = 32
    while position + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, position)
        payload = content[position + 8 : position + 8 + length]
        content[position + 4 : position + 8] = struct.pack("<I", zlib.crc32(payload))
        position += 8 + length
    return bytes(content)


def index(data: bytes) -> None:
    """Nothing of the package reads the Hugging Face index. What stands in one, as references to tensors of a run."""
    source = DirectorySource(SCRATCH)
    try:
        weight_map = msgspec.json.decode(data, type=dict[str, dict[str, str | int]]).get("weight_map", {})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        weight_map = {"key": data.decode("utf-8", "surrogateescape")}
    for key, file in list(weight_map.items())[:MOST_ENTRIES]:
        try:
            shard = source.shard(DataRef(str(file), key).file)
        except NeuroscopeError as error:
            one_line(error)
        else:
            assert shard.path.resolve().parent == SCRATCH.resolve()


def spec(data: bytes) -> None:
    """Hooks as text, and as the objects that its JSON has."""
    text = data.decode("utf-8", "surrogateescape")
    forms: list[object] = [text]
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        forms.append(msgspec.json.decode(data))
    for form in forms:
        try:
            for hook in parse_hooks(form):  # type: ignore[arg-type]
                expand_pattern(hook.layer_name, ["model.layers.0.self_attn", "lm_head", "transformer.h.11.mlp.experts"])
        except NeuroscopeError as error:
            one_line(error)


def manifest(data: bytes) -> None:
    """`capture.json`, its checksums, and the metadata that are made of it where there are none."""
    try:
        decoded = decode_manifest(data)
        encode_manifest(decoded)
        encode_metadata(metadata_of(decoded, {}))
        decoded.checksums.by_shard()
    except NeuroscopeError as error:
        one_line(error)


def metadata(data: bytes) -> None:
    """The metadata JSON: the report of it, and what `show` tells."""
    try:
        assert not RAW.search(render(data))
    except NeuroscopeError as error:
        one_line(error)
    try:
        decoded = decode_metadata(data)
        encode_metadata(decoded)
        empty = Manifest(status="complete", created="", metadata_file="a.json")
        msgspec.json.encode(summarise_run(Run(decoded, empty, MemorySource({}))))
    except NeuroscopeError as error:
        one_line(error)


def run(data: bytes) -> None:
    """A whole run with one file replaced: the first byte says which. Opened, verified, shown and reported."""
    if not data:
        return
    folder, files = RUNS[data[0] % len(RUNS)]
    name = sorted(files)[data[0] // len(RUNS) % len(files)]
    folder = SCRATCH / folder
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(data[1:] if file == name else content)
    try:
        opened = open_run(folder)
        one_line(opened.notice or "")
        for hook_id in opened.hooks[:MOST_ENTRIES]:
            assert len(opened[hook_id].records) <= len(opened.records)
        opened.verify()
    except NeuroscopeError as error:
        one_line(error)
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            COMMANDS[len(data) % len(COMMANDS)](folder)
        except NeuroscopeError as error:
            one_line(error)
        except typer.Exit:
            pass
    out.flush()
    said = out.buffer.getvalue().decode() + err.getvalue()
    assert not RAW.search(said), said


def _runs() -> list[tuple[str, dict[str, bytes]]]:
    """The runs of which the seeds of `run` are files: `FOLDER+FILE`, behind the byte that chooses them."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((SEEDS / "run").iterdir()):
        folder, _, file = path.name.partition("+")
        found.setdefault(folder, {})[file] = path.read_bytes()[1:]
    return sorted(found.items())


def one_line(error: NeuroscopeError | str) -> None:
    """What every message is."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) <= 2010


COMMANDS: list[Callable[[Path], None]] = [
    show,
    verify,
    report,
    partial(show, as_json=True),
    partial(verify, as_json=True),
]
RUNS = _runs() if (SEEDS / "run").is_dir() else []
TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (header, journal, index, spec, manifest, metadata, prompts, run)
}


def main() -> None:
    name = sys.argv.pop(1)
    warnings.simplefilter("ignore")

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's own changes, and as often those of a value in JSON, which it would not find by itself."""
        chance = random.Random(seed)
        if name != "journal" and chance.random() < 0.5:
            return mutate_json(chance, data)[:most]
        changed: bytes = atheris.Mutate(data, most)
        return changed

    atheris.Setup(sys.argv, TARGETS[name], custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
