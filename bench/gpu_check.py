"""`make gpu-check`: builds and installs the package, runs the GPU tests and the GPU benchmarks, and reports all of it.

Nothing outside `build/gpu-check` is changed, and nothing is downloaded. Every part has a time limit; a part that fails
does not keep the next one from running, and the whole ends within TOTAL_SECONDS. Results go to `gpu_check.json`, the
tests' JUnit XML to `gpu_tests.xml` and each part's output to `PART.log`, in the folder $OUT or else bench/results.
The exit code is 0 only if every part passed. `--device cpu` tries all of it with tiny sizes where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_report import merge_junit, table

REPO = Path(__file__).resolve().parent.parent
WORK = REPO / "build" / "gpu-check"
TOTAL_SECONDS = 525.0
GRACE_SECONDS = 10.0  # between asking a part to end and ending it
# What each part is sure to get; what one leaves over goes to the next.
RESERVED = {"build": 75.0, "tests": 155.0, "kernels": 45.0, "capture": 175.0}
MOST_AT_ONCE = 6
FACTS = """
import json, platform, importlib.metadata, torch
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
facts = {"python": platform.python_version(), "torch": torch.__version__, "torch_cuda": torch.version.cuda}
facts.update({name: version(name) for name in ("triton", "transformers", "numpy", "msgspec", "pytest")})
facts["devices"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
if facts["devices"]:
    one = torch.cuda.get_device_properties(0)
    facts.update(device=one.name, compute_capability=f"{one.major}.{one.minor}", memory_mib=one.total_memory >> 20)
print(json.dumps(facts))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", default=",".join(RESERVED), help="some of build,tests,kernels,capture")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(RESERVED):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    began = time.monotonic()
    facts = environment_facts()
    if "error" in facts:
        print(f"gpu-check: {facts['error']}", file=sys.stderr)
        return 1
    if options.device == "cuda" and not facts["devices"]:
        print(f"gpu-check: there is no GPU: torch {facts['torch']} finds no CUDA device", file=sys.stderr)
        return 1
    out = Path(os.environ.get("OUT") or REPO / "bench" / "results")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "requested_device": options.device,
        "environment": facts,
        "parts": {},
    }
    check = Check(options.device, out, results, end=began + TOTAL_SECONDS)
    check.run_parts(parts)
    results["seconds"] = round(time.monotonic() - began, 1)
    check.write()
    print("\n" + table(results), flush=True)
    return int(any(part["result"] != "passed" for part in results["parts"].values()))


class Check:
    """The parts, one after the other; each notes its result under `results["parts"]`."""

    def __init__(self, device: str, out: Path, results: dict[str, Any], *, end: float):
        self._device, self._out, self._results, self._end = device, out, results, end
        self._built = True
        WORK.mkdir(parents=True, exist_ok=True)
        self._tmp = Path(tempfile.mkdtemp(prefix="tmp-", dir=WORK))

    def run_parts(self, parts: Sequence[str]) -> None:
        for number, part in enumerate(parts):
            reserved = sum(RESERVED[later] for later in parts[number + 1 :])
            limit = max(1.0, self._end - time.monotonic() - reserved)
            print(f"gpu-check: {part} (at most {limit:.0f} s)", flush=True)
            start = time.monotonic()
            if part != "build" and not self._built:
                note: dict[str, Any] = {"result": "not run: there is no build"}
            else:
                try:
                    note = getattr(self, part)(limit)
                except Exception as error:  # a defect of this file must not hide what the other parts find
                    note = {"result": f"failed: {type(error).__name__}: {error}"}
            note["seconds"] = round(time.monotonic() - start, 1)
            note["limit_seconds"] = round(limit, 1)
            self._results["parts"][part] = note
            if note["result"] != "passed":
                print(f"gpu-check: {part}: {note['result']}\n{tail(self._out / f'{part}.log')}", flush=True)
            self.write()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def write(self) -> None:
        (self._out / "gpu_check.json").write_text(json.dumps(self._results, indent=2) + "\n")

    def build(self, limit: float) -> dict[str, Any]:
        """The package, built with the tools that are there and installed into a folder of its own."""
        site = WORK / "site"
        shutil.rmtree(site, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-index"]
        command = [*pip, "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(site), str(REPO)]
        environment = {**self._environment(), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        (result,) = run_all({"build": command}, limit, self._out / "build.log", environment).values()
        self._built = result == "passed"
        return {"result": result}

    def tests(self, limit: float) -> dict[str, Any]:
        """A process for each file, so that one that loses the device leaves it to the others.

        Compiling kernels takes most of the time, so several run at once, but for what looks at the device's memory.
        """
        environment = {**self._environment(), "NSF_GPU_TESTS_ON": self._device}
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers takes longer to start than it saves
        # Its own plugins only: what else is installed there is no part of the check, and may warn.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        commands: dict[str, list[str]] = {}
        for path in sorted((REPO / "tests" / "gpu").glob("test_*.py")):
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--color=no", "-p", "no:cacheprovider"]
            # Warnings of other packages' versions are shown, not raised; its own are errors.
            command += ["-W", "default", "-W", "error::neuroscope_fast.errors.CaptureWarning"]
            command += ["-o", "faulthandler_timeout=60", "--durations=8", f"--junitxml={self._tmp / path.stem}.xml"]
            commands[path.stem] = [*command, f"--basetemp={self._tmp / path.stem}", str(path)]
        end = time.monotonic() + limit
        alone = {name: command for name, command in commands.items() if "memory" in name}
        together = {name: command for name, command in commands.items() if name not in alone}
        log = self._out / "tests.log"
        kept = 40.0 if alone else 0.0
        found = run_all(together, limit - kept, log, environment)
        found |= run_all(alone, end - time.monotonic(), log, environment, append=True)
        note = merge_junit([self._tmp / f"{name}.xml" for name in commands], self._out / "gpu_tests.xml")
        note["files"] = found
        bad = [f"{name} {result}" for name, result in found.items() if result != "passed"]
        if note["counts"]["passed"] == 0:
            bad.append("no test passed")
        if note["failures"] and not bad:
            bad.append("tests failed")
        note["result"] = "passed" if not bad else f"failed: {', '.join(bad)}"
        return note

    def kernels(self, limit: float) -> dict[str, Any]:
        return self._benchmark("kernels", limit)

    def capture(self, limit: float) -> dict[str, Any]:
        return self._benchmark("capture", limit)

    def _benchmark(self, part: str, limit: float) -> dict[str, Any]:
        written = self._tmp / f"{part}.json"
        command = [sys.executable, str(REPO / "bench" / f"gpu_{part}.py"), "--device", self._device]
        # Imports, the last round and the end of the process are not counted by the benchmark itself.
        command += ["--seconds", str(max(1.0, limit - 45)), "--json", str(written)]
        (result,) = run_all({part: command}, limit, self._out / f"{part}.log", self._environment()).values()
        self._results[part] = json.loads(written.read_text()) if written.exists() else {}
        return {"result": result if self._results[part] or result != "passed" else "failed: it wrote no results"}

    def _environment(self) -> dict[str, str]:
        """This build comes first, whatever else is installed; temporary files lie on the disk of the repository."""
        found = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(self._tmp)}
        paths = [str(WORK / "site"), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return found


def run_all(
    commands: Mapping[str, Sequence[str]],
    limit: float,
    log: Path,
    environment: Mapping[str, str],
    *,
    append: bool = False,
) -> dict[str, str]:
    """Runs the commands, MOST_AT_ONCE at a time, for `limit` seconds at most; what became of each, by name.

    "passed", "failed: exit code N", "failed: timed out", or "failed: there was no time to start it".
    """
    end = time.monotonic() + limit
    waiting, running, found = dict(commands), {}, dict.fromkeys(commands, "failed: there was no time to start it")
    outputs = {name: log.with_name(f".{log.stem}-{name}") for name in commands}
    try:
        while waiting or running:
            while waiting and len(running) < MOST_AT_ONCE and time.monotonic() < end - GRACE_SECONDS:
                name, command = next(iter(waiting.items()))
                del waiting[name]
                with open(outputs[name], "wb") as output:
                    # A session of its own, so that what it starts in turn can be ended with it.
                    running[name] = subprocess.Popen(
                        command,
                        cwd=REPO,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    found[name] = "passed" if process.returncode == 0 else f"failed: exit code {process.returncode}"
            if time.monotonic() > end - GRACE_SECONDS:
                for name in running:
                    found[name] = "failed: timed out"
                break
            time.sleep(0.05)
    finally:
        stop(running.values(), max(0.0, end - time.monotonic()))
        with open(log, "ab" if append else "wb") as together:
            for name in commands:
                if outputs[name].exists():
                    together.write(f"\n===== {name}: {found[name]}\n".encode() + outputs[name].read_bytes())
                    outputs[name].unlink()
    return found


def stop(processes: Any, seconds: float) -> None:
    """Asks the processes to end as Ctrl-C does (pytest then still writes its XML), and ends those that do not."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    end = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment_facts() -> dict[str, Any]:
    """The device and the versions, asked for in another process: this one must not hold a context on the device."""
    probe = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True, check=False)
    try:
        facts: dict[str, Any] = json.loads(probe.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = probe.stderr.strip().splitlines()
        return {"error": f"{sys.executable} cannot import torch: {lines[-1] if lines else 'no reason given'}"}
    facts["driver"] = None
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        facts["driver"] = asked.stdout.split()[0]
    return facts


def commit() -> str:
    """The commit that is checked out, with + where files differ; else $NSF_COMMIT, or `unknown`."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found, changes = (
            subprocess.check_output(["git", *arguments], cwd=REPO, text=True, stderr=subprocess.DEVNULL, timeout=20)
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
        return found.strip() + ("+" if changes else "")
    return os.environ.get("NSF_COMMIT") or "unknown"


def tail(path: Path, lines: int = 60) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


if __name__ == "__main__":
    raise SystemExit(main())
