"""`neuroscope-fast capture`: the main job at the command line, and its options."""

from __future__ import annotations

import importlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import neuroscope_fast as nsf
import pytest
import tiny_models
from command_line import command, environment, run, run_process
from neuroscope_fast.cli.progress import GenerationMeter
from neuroscope_fast.generate import GenerationProgress

HOOK = "model.layers.2.self_attn:attention:attention_layer_2"
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("model"))


def main_job(model: object, out: Path) -> list[object]:
    return [
        *("capture", "--model", model, "--prompt", "Recursion is", "--max-new-tokens", 30),
        *("--hook", "model.layers.2.self_attn:attention:attention_layer_2"),
        *("--hook", "model.layers.10.self_attn:attention:attention_layer_10"),
        *("--analysis", "attention_patterns", "--description", "Analyze attention patterns across layers"),
        *("--out", out),
    ]


def check_main_job(out: Path, hidden: int) -> None:
    text = (out / "circuit_analysis_attention_patterns.json").read_text()
    metadata = json.loads(text)
    assert metadata["hooks_used"] == 2
    assert list(metadata["activations"]) == ["attention_layer_2", "attention_layer_10"]
    prompt = metadata["usage"]["prompt_tokens"]
    for records in metadata["activations"].values():
        assert [record["shape"] for record in records] == [[1, prompt, hidden]] + [[1, 1, hidden]] * 29
    report = (out / "circuit_analysis_attention_patterns_format.md").read_text()
    assert "unknown" not in text + report


def test_the_main_job(folder: Path, tmp_path: Path) -> None:
    done = run_process(*main_job(folder, tmp_path / "run"))
    assert (done.code, done.err) == (0, "")
    check_main_job(tmp_path / "run", tiny_models.HIDDEN)
    assert done.out.startswith("Recursion is")
    assert f"{tmp_path / 'run'}: complete, captured from {folder}" in done.out
    assert "\x1b" not in done.out


def test_json_is_all_that_stdout_holds(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, *main_job(folder, tmp_path / "run"), "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["status"] == "complete"
    assert summary["run"] == str(tmp_path / "run")
    assert summary["usage"] == {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
    assert summary["generations"][0]["prompt"] == "Recursion is"
    assert [hook["records"] for hook in summary["hooks"]] == [30, 30]
    assert summary["hooks"][0]["shapes"] == [{"shape": [1, 12, 16], "records": 1}, {"shape": [1, 1, 16], "records": 29}]
    assert summary["records"] == 60
    assert summary["bytes"] == summary["counters"]["bytes_written"] == 2 * (12 + 29) * 16 * 4
    assert summary["seconds"] > 0
    assert summary["tokens_per_second"] > 0


def test_many_options(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    hooks = tmp_path / "hooks.json"
    hooks.write_text('[{"layer_name": "model.layers.3", "component": "mlp", "hook_id": "own", "phase": "decode"}]')
    (tmp_path / "more.txt").write_text("second\n\nthird\n")
    sampled = f"-m {folder} -n 4 --sample --temperature 1.5 --top-p 0.9 --top-k 0 --ignore-eos --dtype float64 --json"
    done = run(
        capsys,
        *f"capture -p first --prompts-file {tmp_path / 'more.txt'} -o {tmp_path / 'run'} {sampled} --seed 3".split(),
        *f"--hooks {hooks} --hook model.layers.{{0..2}}:residual:resid --positions last --phase prefill".split(),
        *("--device", "cpu", "--capture-dtype", "bfloat16", "--overflow", "fail", "--ring", "1MiB"),
        *("--shard-size", "64KiB"),
    )
    assert (done.code, done.err) == (0, "")
    captured = nsf.open(tmp_path / "run")
    assert captured.hooks == ["resid.0", "resid.1", "resid.2", "own"]
    assert captured.manifest.model.dtype == "float64"
    assert [record.shape for record in captured["resid.0"].records] == [[1, 1, 16]] * 3  # a prefill for each prompt
    assert [record.step for record in captured["own"].records] == [1, 2, 3] * 3  # as it says itself
    assert {record.dtype for record in captured.records} == {"bfloat16"}
    options = captured.manifest.options
    assert (options["ring_bytes"], options["shard_bytes"], options["overflow"]) == (1 << 20, 64 << 10, "fail")
    assert options["block_bytes"] == 256 << 10
    texts = [each["generated_text"] for each in json.loads(done.out)["generations"]]
    again = run(capsys, *f"capture -p second -o {tmp_path / 'again'} --hooks {hooks} {sampled} --seed 4".split())
    assert json.loads(again.out)["generated_text"] == texts[1]  # prompt number n has seed + n


def test_heads_and_reductions_go_where_they_fit(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    hooks = "--hook model.layers.0:residual:r --hook model.layers.0:attention_pattern:p --hook model.layers.0:query:q"
    options = "--heads -1 --reduction top_k --top-keys 2"
    done = run(
        capsys, "capture", "--model", folder, "--out", tmp_path / "run", "--prompt", "x", "-n", "2",
        *hooks.split(), *options.split(),
    )  # fmt: skip
    assert done.code == 0, done.err
    captured = nsf.open(tmp_path / "run")
    assert captured["p"].records[0].heads == captured["q"].records[0].heads == [1]
    assert captured["p"].records[0].shape[1] == captured["q"].records[0].shape[1] == 1
    assert captured["p"].indices[1].shape == captured["p"][1].shape
    assert captured["r"].records[0].heads is None


def test_a_chat(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    messages = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]'
    options = ["--hook", HOOK, "-n", 2, "--json"]
    done = run(
        capsys, "capture", "-m", folder, "-o", tmp_path / "a", "-p", "Hi", "--chat", "--messages", messages, *options
    )
    prompts = [each["prompt"] for each in json.loads(done.out)["generations"]]
    assert prompts == ["<s><user> Hi\n<assistant>", "<s><system> Be brief.\n<user> Hello\n<assistant>"]


def test_hooks_of_an_earlier_run(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    run(capsys, *main_job(folder, tmp_path / "first"))
    earlier = tmp_path / "first" / "circuit_analysis_attention_patterns.json"
    done = run(
        capsys, "capture", "-m", folder, "-p", "x", "-n", 1, "--hooks", earlier, "-o", tmp_path / "second", "--json"
    )
    assert [hook["hook_id"] for hook in json.loads(done.out)["hooks"]] == ["attention_layer_2", "attention_layer_10"]


def test_a_run_is_replaced_only_when_asked(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    arguments = ["capture", "-m", folder, "-p", "x", "-n", 1, "--hook", HOOK, "-o", tmp_path / "run"]
    assert run(capsys, *arguments).code == 0
    refused = run(capsys, *arguments)
    assert refused.code == 1
    assert "already holds a run" in refused.err
    assert run(capsys, *arguments, "--overwrite").code == 0


def test_a_short_text_is_remarked(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    ending = folder / "generation_config.json"
    before = ending.read_text()
    ending.write_text(json.dumps({**json.loads(before), "eos_token_id": list(range(259))}))
    try:
        done = run(capsys, *main_job(folder, tmp_path / "run"), "--json")
    finally:
        ending.write_text(before)
    assert done.err == "note: the model ended its text after 1 of 30 tokens; --ignore-eos goes on\n"
    assert json.loads(done.out)["usage"]["completion_tokens"] == 1


def test_ctrl_c_leaves_a_whole_run(
    folder: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = GenerationMeter.__call__

    def interrupted(meter: GenerationMeter, progress: GenerationProgress) -> None:
        measure(meter, progress)
        if progress.tokens == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GenerationMeter, "__call__", interrupted)
    # A shell starts what runs in its background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = run(capsys, *main_job(folder, tmp_path / "run"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == (130, "", f"interrupted: {tmp_path / 'run'} holds what was captured until then\n")
    shown = run(capsys, "show", tmp_path / "run", "--json")
    assert json.loads(shown.out)["status"] == "interrupted"
    assert run(capsys, "verify", tmp_path / "run").code == 0


def test_ctrl_c_before_anything_is_captured(
    folder: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, *main_job(folder, tmp_path)).code == 0

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("neuroscope_fast.generate"), "load_model", interrupted)
    assert run(capsys, *main_job(folder, tmp_path), "--overwrite") == (130, "", "interrupted\n")
    assert run(capsys, "verify", tmp_path).code == 0


def test_a_terminal_sees_progress_and_a_pipe_gets_json(folder: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*main_job(folder, tmp_path / "run"), "--json"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(TERM="xterm", COLUMNS="120"),
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["records"] == 60
    text = seen.decode()
    assert "loading the model" in text
    assert "tokens/s" in text
    assert "captured" in text
