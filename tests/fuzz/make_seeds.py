"""Writes the seeds of the fuzz targets: small real files, made with the tests' own writer of the format.

`python tests/fuzz/make_seeds.py` writes them anew; that changes no byte unless the format or this file changed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

FUZZ = Path(__file__).parent
sys.path.insert(0, str(FUZZ.parent))

import golden_runs  # noqa: E402
import torch  # noqa: E402
from run_writer import RunWriter, Tensor, journal_entries, journal_header, random_tensor, write_shard  # noqa: E402

NOTE = {"positions": [[3], [4]], "real_tokens": [[0, 2], [0, 1, 3, 4]]}
SPECS = {
    "short": "model.layers.10.self_attn:attention",
    "pattern": "model.layers.{0..11,13}.*:residual:resid",
    "list": '[{"layer_name": "model.layers.3", "component": "mlp", "hook_id": "m", "positions": "::2", "every": 2}]',
    "object": '{"layer_name": "h.0", "component": "attention_pattern", "heads": [0, -1], "reduction": "top_k"}',
    "configurations": '{"hook_configurations": [{"layer_name": "a", "component": "key", "capture_output": true}]}',
    "file": "no_such_file.json",
}


TEXT = {
    "prompt": "Recursion is",
    "generated_text": " a\u2028\n<b>",
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
    "token_ids": [1, 862, 2**31],
    "tokens": ["<|bos|>", "Rec", "\x1b[31m"],
}
ENTRIES = [
    {"prompt": 0, "records": 12, "drops": 3, "usage": TEXT["usage"], "texts": [TEXT, {**TEXT, "tokens": []}]},
    {"prompt": 1, "records": 0, "ended": False},
]
PROMPTS = b"".join(json.dumps(each).encode() + b"\n" for each in ENTRIES)


def tensors() -> list[Tensor]:
    return [
        Tensor("a/000000", "a", random_tensor((1, 2, 2)), source="bfloat16", stream=5),
        Tensor("a/p2/c3/000004/input", "a", random_tensor((2, 0, 3)), 2, 4, 3, is_input=True, stream=7, note=NOTE),
        Tensor("ünï/000000/scale", "ünï", random_tensor((2,), seed=3), is_scale=True, stream=6, note=NOTE),
    ]


def writer(folder: Path) -> RunWriter:
    made = RunWriter(folder, ["a", "b"], shared={"b": "a"}, analysis="flow")
    made.add("a", random_tensor((1, 3, 2)))
    made.add("a", torch.ones(1, 1, 4, dtype=torch.int8), step=1, source="float32", scale=torch.ones(1, 1), note=NOTE)
    return made


def without_padding(shard: bytes) -> bytes:
    """A shard whose header is no longer than it needs to be: shorter seeds are mutated where it matters."""
    length = int.from_bytes(shard[:8], "little")
    text = shard[8 : 8 + length].rstrip()
    text += b" " * (-(8 + len(text)) % 8)
    return len(text).to_bytes(8, "little") + text + shard[8 + length :]


def seeds(scratch: Path) -> dict[str, dict[str, bytes]]:
    """By target and name."""
    write_shard(scratch / "s.safetensors", tensors())
    shard = without_padding((scratch / "s.safetensors").read_bytes())
    length = int.from_bytes(shard[:8], "little")
    journal = journal_header("float32", data_start=4096) + b"".join(journal_entries(tensors()))
    writer(scratch / "complete").close()
    weights = {"a/000000": "activations-float32-00000.safetensors", "a/000001": "activations-int8-00000.safetensors"}
    index = json.dumps({"metadata": {"total_size": 32}, "weight_map": weights})
    (scratch / "complete" / "activations.safetensors.index.json").write_text(index)
    killed = writer(scratch / "killed")
    killed.roll_over("float32")
    killed.add("a", random_tensor((1, 1, 2)), step=2)
    killed.kill()
    runs: dict[str, bytes] = {}
    folders = ("complete", "killed")
    for number, folder in enumerate(folders):
        for place, path in enumerate(sorted((scratch / folder).iterdir())):
            content = path.read_bytes()
            content = without_padding(content) if path.suffix == ".safetensors" else content
            runs[f"{folder}+{path.name}"] = bytes([place * len(folders) + number]) + content
    return {
        "header": {"shard": shard, "json": shard[8 : 8 + length]},
        "journal": {"whole": journal, "stream": journal[:60]},
        "index": {
            "index": runs["complete+activations.safetensors.index.json"][1:],
            "names": json.dumps({"weight_map": {"a": "../x", "b": "/etc/passwd", "c": "a\0b", "d": ".."}}).encode(),
        },
        "spec": {name: text.encode() for name, text in SPECS.items()},
        "manifest": {folder: (scratch / folder / "capture.json").read_bytes() for folder in folders},
        "metadata": {
            **{path.stem: path.read_bytes() for path in sorted(golden_runs.GOLDEN.glob("*.json"))},
            "flow": (scratch / "complete" / "circuit_analysis_flow.json").read_bytes(),
        },
        "prompts": {"two": PROMPTS, "torn": PROMPTS[:-40], "bare": b'{"prompt":0,"records":0}\n'},
        "run": runs,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = seeds(Path(scratch))
    shutil.rmtree(FUZZ / "seeds", ignore_errors=True)
    for target, files in made.items():
        (FUZZ / "seeds" / target).mkdir(parents=True)
        for name, content in files.items():
            (FUZZ / "seeds" / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
