"""Loading models: local folders, the Hub with and without a network, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_models
import torch
from neuroscope_fast.errors import ModelError, OptionError
from neuroscope_fast.models import load_model, load_skeleton, load_tokenizer
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("model"))


def message_of(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_folder_is_loaded_in_its_own_dtype_and_in_evaluation_mode(tmp_path: Path) -> None:
    tiny_models.llama().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.decode(tokenizer("Recursion is")["input_ids"]) == "Recursion is"


@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_dtype_of_the_weights(folder: Path, dtype: Any) -> None:
    assert next(load_model(str(folder), dtype=dtype).model.parameters()).dtype == torch.float64


def test_the_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_tokenizer(f"~/{folder.name}").eos_token == "</s>"


def test_a_tokenizer_of_another_folder(folder: Path, tmp_path: Path) -> None:
    tiny_models.llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded") as error:
        load_model(tmp_path)
    message_of(error)
    assert load_model(tmp_path, tokenizer=folder).tokenizer.eos_token == "</s>"
    own = tiny_models.tokenizer()
    assert load_model(tmp_path, tokenizer=own).tokenizer is own


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./no-such-folder", "there is no folder './no-such-folder'"),
        ("runs/models/tiny", "there is no folder 'runs/models/tiny'"),
        ("/no such/folder", "there is no folder"),
        (Path("gpt2"), "there is no folder 'gpt2'"),
        ("", "there is no folder ''"),
    ],
)
def test_no_such_folder(name: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text) as error:
        load_model(name)
    message_of(error)


def test_folders_without_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model: there is no config\.json in it"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="is a file: give the folder"):
        load_model(folder / "config.json")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_torn_files_are_one_line(folder: Path, tmp_path: Path, file: str) -> None:
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / file).write_bytes((torn / file).read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_model(torn)
    assert str(torn) in message_of(error)


def test_code_in_a_model_is_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    coded = shutil.copytree(folder, tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {
        "model_type": "nobody_knows_it",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.M"},
    }
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "code.py").write_text("raise RuntimeError('the code ran')\n")
    for load in (load_model, load_skeleton):
        with pytest.raises(ModelError, match=r"code of its own.*trust_remote_code") as error:
            load(coded)
        assert "the code ran" not in message_of(error)


def test_wrong_options(folder: Path) -> None:
    with pytest.raises(OptionError, match="'float8'; available: auto, float32"):
        load_model(folder, dtype="float8")
    with pytest.raises(ModelError, match="cannot be moved to nowhere") as error:
        load_model(folder, device="nowhere")
    message_of(error)
    with pytest.raises(OptionError, match="no revisions"):
        load_model("demo", revision="main")


def test_a_skeleton_has_all_modules_and_no_weights(folder: Path) -> None:
    skeleton = load_skeleton(folder)
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert [name for name, _ in skeleton.named_modules()] == [
        name for name, _ in load_model(folder).model.named_modules()
    ]


def test_a_model_that_cannot_be_built_without_weights_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
    assert {parameter.device.type for parameter in load_skeleton(folder).parameters()} == {"cpu"}


def test_an_installation_without_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroscope_fast.demo.path", lambda: tmp_path / "gone")
    with pytest.raises(ModelError, match=r"the embedded model is missing from this installation: .*gone; install"):
        load_model("demo")


# The Hub. What it answers and whether it is asked is settled when huggingface_hub is imported: a process of its own.

SCRIPT = """
import json, sys
from neuroscope_fast.errors import ModelError
from neuroscope_fast.models import load_model
results = {}
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        results[name] = type(load_model(name, revision=revision or None).model).__name__
    except ModelError as error:
        results[name] = str(error)
print(json.dumps(results))
"""


def load_in_a_process(names: list[str], **environment: str) -> dict[str, str]:
    cleared = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=cleared | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    results: dict[str, str] = json.loads(done.stdout)
    assert not any("\n" in text for text in results.values())
    return results


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face Hub does for models that are not there."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("/")[2]
        code, reason = {
            "missing": (404, "RepoNotFound"),
            "gated": (403, "GatedRepo"),
            "old": (404, "RevisionNotFound"),
        }.get(name, (503, ""))
        self.send_response(code)
        if reason:
            self.send_header("X-Error-Code", reason)
            self.send_header("X-Error-Message", reason)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked.clear()
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def cache_with(folder: Path, cache: Path, name: str) -> Path:
    """A Hugging Face cache that holds the model under a Hub id, as a download would have left it."""
    commit = "0" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    return cache


def test_what_the_hub_answers(folder: Path, tmp_path: Path, hub: str) -> None:
    cache = cache_with(folder, tmp_path, "org/kept")
    names = ["org/missing", "org/gated", "org/old@v9", "org/down", "org/kept"]
    results = load_in_a_process(names, HF_ENDPOINT=hub, HF_HUB_CACHE=str(cache))
    assert "has no model org/missing, or it is private" in results["org/missing"]
    assert "org/gated is gated: ask for access" in results["org/gated"]
    assert "org/old has no revision 'v9'" in results["org/old"]
    assert "org/down is not on this machine, and the Hugging Face Hub cannot be reached" in results["org/down"]
    assert "503" in results["org/down"]
    assert results["org/kept"] == "LlamaForCausalLM"
    assert len(Hub.asked) == len(names)  # no question is repeated


def test_without_a_network(folder: Path, tmp_path: Path) -> None:
    cache = cache_with(folder, tmp_path, "org/kept")
    results = load_in_a_process(["gpt2", "org/kept"], HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_CACHE=str(cache))
    assert results["gpt2"].startswith("model gpt2 is not on this machine, and the Hugging Face Hub cannot be reached (")
    assert "connect to the network, or give the path of a local copy" in results["gpt2"]
    assert results["org/kept"] == "LlamaForCausalLM"


def test_in_offline_mode(folder: Path, tmp_path: Path) -> None:
    cache = cache_with(folder, tmp_path, "org/kept")
    results = load_in_a_process(["gpt2", "org/kept"], HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert "gpt2 is not on this machine, and HF_HUB_OFFLINE forbids to fetch it" in results["gpt2"]
    assert results["org/kept"] == "LlamaForCausalLM"
