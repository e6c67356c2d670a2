"""What stands in a run's folder in place of a file: links to elsewhere, pipes, folders, sockets. Each is one clear
error, nothing outside the folder is read or written, and nothing waits.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import environment, run
from neuroscope_fast.errors import RunError
from neuroscope_fast.manifest import replace_file
from neuroscope_fast.reader import RunIncompleteWarning, open_run
from neuroscope_fast.report import render
from neuroscope_fast.run_directory import RunDirectory
from test_reader import generation

SHARD = "activations-float32-00000.safetensors"
METADATA = "activation_capture.json"
MANIFEST = "capture.json"
Capsys = pytest.CaptureFixture[str]


def link(path: Path) -> None:
    """To the same content elsewhere, so that whoever follows it reads what looks right."""
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path.rename(elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent.parent / "nowhere")


def link_inside(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unix_socket(path: Path) -> None:
    path.unlink()
    before = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def device_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")  # without end


Place = Callable[[Path], None]
PLACES: list[tuple[Place, str]] = [
    (link, "it is a symbolic link, and a run is read from its own files only; put the file itself there"),
    (link_to_nowhere, "it is a symbolic link"),
    (link_inside, "it is a symbolic link"),
    (device_link, "it is a symbolic link"),
    (pipe, "it is a named pipe"),
    (folder, "it is a folder"),
    (unix_socket, "it is a socket"),
]
each_place = pytest.mark.parametrize(("place", "cause"), PLACES, ids=[place.__name__ for place, _ in PLACES])


@each_place
@pytest.mark.parametrize("file", [MANIFEST, METADATA, SHARD])
def test_a_file_of_a_complete_run(place: Place, cause: str, file: str, tmp_path: Path) -> None:
    directory = generation(tmp_path / "run").close()
    place(directory / file)
    with pytest.raises(RunError) as caught:
        open_run(directory)["layer_2"][0]
    assert str(caught.value).startswith(f"{directory / file} cannot be read: {cause}")
    if file == SHARD:
        assert {bad.reason for bad in open_run(directory).verify()} == {str(caught.value)}


@each_place
@pytest.mark.parametrize("ending", [".partial", ".journal"])
def test_a_file_of_a_killed_run(place: Place, cause: str, ending: str, tmp_path: Path) -> None:
    directory = generation(tmp_path / "run").kill()
    place(directory / (SHARD + ending))
    with pytest.warns(RunIncompleteWarning, match="0 records are whole") as caught:
        assert open_run(directory).records == []
    assert f"{SHARD}{ending} cannot be read: {cause}" in str(caught[0].message)


@each_place
def test_a_published_shard_of_a_killed_run(place: Place, cause: str, tmp_path: Path) -> None:
    writer = generation(tmp_path / "run")
    directory = writer.close()
    (directory / METADATA).unlink()
    writer.write_manifest("writing")
    place(directory / SHARD)
    with pytest.warns(RunIncompleteWarning, match="0 records are whole") as caught:
        assert open_run(directory).records == []
    assert f"{SHARD} cannot be read: {cause}" in str(caught[0].message)


@each_place
def test_a_shard_that_is_replaced_before_it_is_mapped(place: Place, cause: str, tmp_path: Path) -> None:
    directory = generation(tmp_path / "run").close()
    opened = open_run(directory)
    shard = opened._source.shard(SHARD)  # type: ignore[attr-defined]
    place(directory / SHARD)
    for action in (shard.tensor, shard.view):
        with pytest.raises(RunError, match=cause):
            action("layer_2/000000")


@each_place
@pytest.mark.parametrize("file", [MANIFEST, METADATA])
def test_the_commands_say_it_in_one_line(place: Place, cause: str, file: str, tmp_path: Path, capsys: Capsys) -> None:
    directory = generation(tmp_path / "run").close()
    place(directory / file)
    for command in ("show", "verify", "report"):
        done = run(capsys, command, directory)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: {directory / file} cannot be read: {cause}")
        assert done.err.count("\n") == 1


@each_place
def test_the_report_of_what_is_no_file(place: Place, cause: str, tmp_path: Path) -> None:
    directory = generation(tmp_path / "run").close()
    place(directory / METADATA)
    with pytest.raises(RunError, match=cause):
        render(directory / METADATA)


def test_a_run_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    directory = generation(tmp_path / "run").close()
    (tmp_path / "latest").symlink_to(directory)
    assert open_run(tmp_path / "latest").verify() == []


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "..", "a\0b", "a\nb.json", "\x1b.json", "n" * 300])
def test_the_manifest_names_no_metadata_elsewhere(name: str, tmp_path: Path, capsys: Capsys) -> None:
    writer = generation(tmp_path / "run")
    writer.close().joinpath(METADATA).rename(tmp_path / "secret.json")
    manifest = writer.folder / MANIFEST
    before = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(before) | {"metadata_file": name}))
    for command in ("report", "show", "verify"):
        done = run(capsys, command, writer.folder)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: the run names the file ")
        assert done.err[:-1].isprintable()


def test_a_report_is_not_written_through_a_link(tmp_path: Path, capsys: Capsys) -> None:
    directory = generation(tmp_path / "run").close()
    outside = tmp_path / "outside"
    outside.write_text("mine")
    report = directory / "report.md"
    for path, overwrite in ((report, True), (report.with_name("report.md.tmp"), False)):
        report.unlink(missing_ok=True)
        path.symlink_to(outside)
        arguments = ["--overwrite"] if overwrite else []
        assert run(capsys, "report", directory, "--out", report, *arguments).code == 0
        assert outside.read_text() == "mine"
        assert not report.is_symlink()
        assert report.read_text().startswith("# Activation Capture")
    report.unlink()
    report.symlink_to(tmp_path / "nowhere")  # somebody's, though nothing is there
    done = run(capsys, "report", directory, "--out", report)
    assert (done.code, done.err.endswith("add --overwrite\n")) == (1, True)
    assert not (tmp_path / "nowhere").exists()


def test_what_stands_where_a_file_is_written_first(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json.tmp")  # opening it would wait for a reader
    replace_file(tmp_path / "a.json", b"1")
    assert (tmp_path / "a.json").read_bytes() == b"1"
    (tmp_path / "b.json.tmp").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        replace_file(tmp_path / "b.json", b"1")
    assert caught.value.filename == str(tmp_path / "b.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json.tmp"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_end_that_comes_soon(tmp_path: Path) -> None:
    """In a process of its own, which a pipe that is opened would hold for ever, and with as much memory as it needs to
    start and a little more: a device without end would take all of it.
    """
    directory = generation(tmp_path / "run").kill()
    for file, place in ((MANIFEST, device_link), (SHARD + ".journal", pipe), (SHARD + ".partial", device_link)):
        place(directory / file)
        script = (
            "import resource, sys, warnings; from neuroscope_fast.reader import open_run\n"
            "from neuroscope_fast.errors import RunError\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
            "warnings.simplefilter('ignore')\n"
            "try: print(open_run(sys.argv[1]).notice)\n"
            "except RunError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, directory],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=environment(),
        )
        assert "cannot be read: it is a" in done.stdout
        if file == MANIFEST:
            (directory / file).unlink()
            generation(tmp_path / "other").kill().joinpath(MANIFEST).rename(directory / MANIFEST)


def test_a_new_run_is_not_written_through_the_links_of_an_old_one(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    directory = generation(tmp_path / "run").close()
    for name in (MANIFEST, METADATA, METADATA + ".tmp", SHARD + ".partial", SHARD + ".journal"):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(outside)
    claimed = RunDirectory(directory, METADATA, overwrite=True)
    claimed.write({METADATA: b"{}", MANIFEST: b"{}"})
    claimed.release()
    assert outside.read_text() == "mine"
    assert sorted(path.name for path in directory.iterdir()) == [METADATA, MANIFEST]
