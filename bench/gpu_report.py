"""What `make gpu-check` shows in the end: the tests' XML files put together, and the table."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MOST_FAILURES = 40


def merge_junit(paths: Iterable[Path], target: Path) -> dict[str, Any]:
    """Puts pytest's XML files into one; gives the counts, and names and messages of what failed and was skipped."""
    together = ET.Element("testsuites")
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failures: dict[str, str] = {}
    skips: dict[str, int] = {}
    for path in paths:
        if not path.exists():  # its process was ended
            continue
        for suite in ET.parse(path).getroot().iter("testsuite"):
            together.append(suite)
            for case in suite.iter("testcase"):
                name = f"{case.get('classname')}::{case.get('name')}"
                for tag, count in (("failure", "failed"), ("error", "errors")):
                    bad = case.find(tag)
                    if bad is not None:
                        counts[count] += 1
                        failures.setdefault(name, (bad.get("message") or "").split("\n")[0][:300])
                skipped = case.find("skipped")
                if skipped is not None:
                    counts["skipped"] += 1
                    reason = skipped.get("message") or ""
                    skips[reason] = skips.get(reason, 0) + 1
                elif case.find("failure") is None and case.find("error") is None:
                    counts["passed"] += 1
    ET.ElementTree(together).write(target, encoding="utf-8", xml_declaration=True)
    return {"counts": counts, "failures": dict(list(failures.items())[:MOST_FAILURES]), "skips": skips}


def table(results: dict[str, Any]) -> str:
    """The whole check on one screen."""
    facts = results["environment"]
    lines = [
        f"gpu-check on {facts.get('device', 'the CPU')}, driver {facts['driver']}, torch {facts['torch']}, "
        f"triton {facts['triton']}, commit {results['commit'][:12]}, {results['date']}, {results['seconds']} s",
        "",
        *columns([("part", "seconds", "result"), *map(_part, results["parts"].items())]),
    ]
    failures = results["parts"].get("tests", {}).get("failures", {})
    lines += [f"  FAILED {name}: {message}" for name, message in failures.items()]
    kernels = results.get("kernels", {})
    rows = [(name, *_kernel(found)) for name, found in kernels.items() if isinstance(found, dict)]
    rows = [row for row in rows if row[0] != "ceilings"]
    if rows:
        lines += ["", *columns([("kernel", "GB/s", "of a device copy"), *rows])]
    lines += _capture(results.get("capture", {}))
    return "\n".join(lines)


def _part(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, part = item
    counts = ", ".join(f"{count} {what}" for what, count in part.get("counts", {}).items() if count)
    return (name, str(part["seconds"]), part["result"] + (f" ({counts})" if counts else ""))


def _kernel(found: dict[str, Any]) -> tuple[str, str]:
    if "error" in found:
        return (found["error"], "")
    return (str(found.get("gb_s", "")), str(found.get("share_of_device_copy", "")))


def _capture(capture: dict[str, Any]) -> list[str]:
    rows = []
    lines = []
    for name, found in capture.items():
        if not isinstance(found, dict) or name == "ceilings":
            continue
        if "error" in found:
            lines.append(f"{name}: {found['error']}")
        for variant, ratio in found.get("ratio_to_bare", {}).items():
            facts = found["captures"].get(variant, {})
            shown = [facts.get(key, "") for key in ("tap_microseconds", "dtoh_gb_s", "dtoh_share_of_pinned")]
            spread = f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['rounds']} rounds)"
            rows.append((name, variant, spread, *map(str, shown)))
    if rows:
        lines += columns([("workload", "variant", "time to bare", "µs a tap", "DtoH GB/s", "of pinned"), *rows])
    for name in ("device_copy_gb_s", "pinned_dtoh_gb_s"):
        if name in capture.get("ceilings", {}):
            lines.append(f"{name}: {capture['ceilings'][name]}")
    return ["", *lines] if lines else []


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one length, as lines with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
