"""`analyze` and `plot`: every analysis from the command line, as tables, JSON and pictures, and what they refuse."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import neuroscope_fast as nsf
import pytest
from command_line import run
from neuroscope_fast.cli.analyses import ANALYSES
from neuroscope_fast.demo.pairs import repeated_words

Capsys = pytest.CaptureFixture[str]
HOOKS = [
    *(f"model.layers.*.self_attn:{component}" for component in ("attention_pattern", "attention", "head_output")),
    "model.layers.*:residual",
    "model.layers.*.mlp:mlp",
    "model.layers.{9..11}:neuron",
    "model.embed_tokens:embedding",
]
EXTRA = {"circuits": ("--other",), "graph": ("--other",), "patching": ("--other", "--model", "--component")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Clean and corrupted prompts of the embedded model."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = repeated_words(3, seed=5)
    for name, prompts in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
        nsf.generate("demo", prompts, HOOKS, folder / name, max_new_tokens=2, store_readout=True)
    return folder / "clean", folder / "corrupted"


def arguments(what: str, runs: tuple[Path, Path]) -> list[str]:
    clean, corrupted = map(str, runs)
    more = {"--other": corrupted, "--model": "demo", "--component": "attention"}
    return [clean, "--what", what, *(part for option in EXTRA.get(what, ()) for part in (option, more[option]))]


@pytest.mark.parametrize("what", ANALYSES)
def test_every_analysis(what: str, runs: tuple[Path, Path], capsys: Capsys) -> None:
    done = run(capsys, "analyze", *arguments(what, runs))
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) > 5
    assert not re.search(r"\bnan\b(?! or)", done.out)
    parsed = json.loads(run(capsys, "analyze", *arguments(what, runs), "--json").out)
    assert isinstance(parsed, dict)
    assert parsed


@pytest.mark.parametrize("what", ANALYSES)
def test_every_picture(what: str, runs: tuple[Path, Path], capsys: Capsys, tmp_path: Path) -> None:
    given = {"head": ["--layer", "11", "--head", "3"]}
    for number, figure in enumerate(ANALYSES[what].figures):
        ending = (".png", ".svg", ".html")[number % 3]
        out = tmp_path / (figure + ending)
        done = run(capsys, "plot", *arguments(what, runs), "--figure", figure, *given.get(figure, []), "-o", out)
        assert done.code == 0, done.err
        assert done.out.strip() == str(out)
        data = out.read_bytes()
        if ending == ".png":
            assert data.startswith(b"\x89PNG")
        elif ending == ".svg":
            ET.fromstring(data)
        else:
            assert b"<svg" in data
        assert not re.search(rb'(src|href)="https?:', data)


def test_the_attention_page_is_one_file(runs: tuple[Path, Path], capsys: Capsys, tmp_path: Path) -> None:
    out = tmp_path / "attention.html"
    assert run(capsys, "plot", runs[0], "--what", "attention", "--prompt", 1, "-o", out).code == 0
    page = out.read_text()
    assert "Content-Security-Policy" in page
    assert "clean" in page


def test_the_graph_is_exported(runs: tuple[Path, Path], capsys: Capsys, tmp_path: Path) -> None:
    import networkx

    nodes = []
    for name in ("graph.json", "graph.graphml"):
        out = tmp_path / name
        assert run(capsys, "analyze", *arguments("graph", runs), "--export", out).code == 0
        if out.suffix == ".json":
            nodes.append(sorted(node["id"] for node in json.loads(out.read_text())["nodes"]))
        else:
            nodes.append(sorted(networkx.read_graphml(out).nodes))
    assert nodes[0] == nodes[1]
    assert len(nodes[0]) > 3


def test_prompts_of_one_run_as_two_groups(runs: tuple[Path, Path], capsys: Capsys) -> None:
    done = run(capsys, "analyze", runs[0], "-w", "circuits", "--prompts", "0", "--other-prompts", "1..2", "--unpaired")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--what", "attentoin"],
            2,
            "there is no analysis 'attentoin'; did you mean attention? available: attention, flow",
        ),
        (["--what", "flow", "--sae", "x"], 2, "--sae is not for --what flow; it is for features"),
        (["--what", "attention", "--model", "demo"], 2, "--model is not for --what attention; it is for flow, lens"),
        (["--what", "circuits", "--prompts", "0-2"], 2, "'0-2' is no list of numbers such as 0,2,5..9"),
        (["--what", "lens", "--export", "x.json"], 2, "only a graph is exported"),
        (["--what", "patching", "--other", "x"], 2, "name it with --model"),
        (["--what", "patching", "--model", "demo"], 2, "name that of the corrupted prompts with --other"),
        (["--what", "lens", "--prompt", "17"], 1, "prompt 17"),
        (["--what", "features", "--sae", "nowhere"], 1, "nowhere"),
        (["--what", "features", "--hook", "no"], 1, "no hook 'no'"),
        (["--what", "circuits", "--measure", "l2"], 2, "'l2' is none of norm, direction"),
        ([], 2, "Missing option '--what'"),
    ],
)
def test_mistakes(options: list[str], code: int, said: str, runs: tuple[Path, Path], capsys: Capsys) -> None:
    done = run(capsys, "analyze", runs[0], *options)
    assert done.code == code
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""


@pytest.mark.parametrize("what", ["attention", "flow", "lens", "attribution", "features"])
def test_what_is_missing_is_named_with_its_hooks(what: str, tmp_path: Path, capsys: Capsys) -> None:
    nsf.generate("demo", "A loop is", "lm_head:logits", tmp_path / "run", max_new_tokens=1)
    done = run(capsys, "analyze", tmp_path / "run", "--what", what)
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1
    assert "--hook '" in done.err or "--store-readout" in done.err
    drawn = run(capsys, "plot", tmp_path / "run", "--what", what, "-o", tmp_path / "x.png")
    assert (drawn.code, drawn.err) == (1, done.err)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "x.pdf"], "a picture is .png, .svg or .html"),
        (
            ["-o", "x.png", "--figure", "nothing"],
            "--what attention has no picture 'nothing'; it has scores, head, attended",
        ),
        (["-o", "x.png", "--figure", "head"], "give --layer and --head"),
        (["-o", "no/such/folder/x.png"], "cannot write no/such/folder/x.png: No such file or directory"),
        (["-o", "no/such/folder/x.html"], "cannot write no/such/folder/x.html: No such file or directory"),
    ],
)
def test_pictures_that_cannot_be(options: list[str], said: str, runs: tuple[Path, Path], capsys: Capsys) -> None:
    done = run(capsys, "plot", runs[0], "--what", "attention", *options)
    assert done.code in (1, 2)
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_texts_of_a_run_are_neither_markup_nor_controls(tmp_path: Path, capsys: Capsys) -> None:
    prompt = "[red]a[/red] <script>alert(1)</script> \x1b[31m $x^2$ </svg>"
    nsf.generate("demo", prompt, HOOKS, tmp_path / "run", max_new_tokens=2, store_readout=True)
    for what in ("attention", "lens", "features", "attribution"):
        done = run(capsys, "analyze", tmp_path / "run", "--what", what)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
        out = tmp_path / f"{what}.html"
        figure = {"attention": ["--figure", "attended"]}.get(what, [])
        assert run(capsys, "plot", tmp_path / "run", "--what", what, *figure, "-o", out).code == 0
        assert "<script>alert" not in out.read_text()
