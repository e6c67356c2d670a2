"""How near the capture kernels come to the speed of a plain copy on the device.

Each kernel is launched as the engine has it compiled (kernels/launch.py), on random data, among several sets of inputs
that are larger than any cache, inside a CUDA graph; its result must be that of its twin in torch before it is timed.
Rates count bytes read and written. Run: python bench/gpu_kernels.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_common import Budget, Device, ceilings, has_errors, parse_arguments, same_bits, section
from neuroscope_fast.kernels import launch, reference

SETS = 3
REPEATS = 30
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One kernel on one kind of input. `start` launches it, `twin` says what it must give."""

    name: str
    make: Callable[[torch.Generator], torch.Tensor]
    start: Callable[[torch.Tensor], Callable[[], Tensors]]
    """Makes room for the results of an input, and gives what launches the kernel into it."""
    twin: Callable[[torch.Tensor], Tensors]
    tolerance: float = 0.0
    """Relative; 0: the same bits."""


def layout(tensor: torch.Tensor) -> tuple[int, ...]:
    """length, stride, and size and stride of three dimensions, innermost first: what a kernel is told of a record."""
    sizes, strides = [1, 1, 1, *tensor.shape][-4:], [0, 0, 0, *tensor.stride()][-4:]
    return (sizes[3], strides[3], sizes[2], strides[2], sizes[1], strides[1], sizes[0], strides[0])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load(kind: str, source: str, target: str, device: torch.device, *, rows: int, columns: int) -> launch.Kernel:
    """The engine's kernel for aligned records without a table."""
    return launch.load(
        kind,
        source,
        target,
        table=0,
        per_row=False,
        write=3,
        rows=rows,
        columns=columns,
        aligned=True,
        e4m3_saturates=True,
        e5m2_saturates=False,
        device=device.index or 0,
    )


def start_kernel(kernel: launch.Kernel, programs: int, arguments: tuple[int, ...]) -> None:
    kernel.launch(programs, torch.cuda.current_stream().cuda_stream, arguments)


def cast_launch(tensor: torch.Tensor, target: torch.dtype) -> tuple[torch.Tensor, int, tuple[int, ...], dict[str, Any]]:
    """Where a cast goes to, its programs, its arguments and its tile. Of one contiguous piece: a single row."""
    out = torch.empty(tensor.shape, dtype=target, device=tensor.device)
    count = tensor.numel()
    whole = tensor.view(-1) if tensor.is_contiguous() else tensor
    numbers = layout(whole)
    length, records = numbers[0], count // numbers[0]
    rows, columns = launch.tiles(length, records)
    programs = -(-records // rows) * -(-length // columns)
    return out, programs, (tensor.data_ptr(), out.data_ptr(), 0, 0, count, *numbers), {"rows": rows, "columns": columns}


def start_cast(target: torch.dtype) -> Callable[[torch.Tensor], Callable[[], Tensors]]:
    def start(tensor: torch.Tensor) -> Callable[[], Tensors]:
        out, programs, arguments, tile = cast_launch(tensor, target)
        names = (name_of(tensor.dtype), name_of(target))
        if tensor.dtype == target:  # a copy of elements of that size
            names = (f"int{8 * target.itemsize}",) * 2
        kernel = load("gather_cast", *names, tensor.device, **tile)

        def run() -> Tensors:
            start_kernel(kernel, programs, arguments)
            return (out,)

        return run

    return start


def start_quantize(tensor: torch.Tensor) -> Callable[[], Tensors]:
    codes = torch.empty(tensor.shape, dtype=torch.int8, device=tensor.device)
    scales = torch.empty(tensor.shape[:-1], dtype=torch.float32, device=tensor.device)
    columns = launch.row_columns(tensor.shape[-1])
    kernel = load("quantize", name_of(tensor.dtype), "int8", tensor.device, rows=1, columns=columns)
    out = (codes.data_ptr(), scales.data_ptr(), 0, 0, 0, tensor.numel())
    arguments = (tensor.data_ptr(), *out, *layout(tensor))

    def run() -> Tensors:
        start_kernel(kernel, scales.numel(), arguments)
        return codes, scales

    return run


def start_head_reduce(reduction: str) -> Callable[[torch.Tensor], Callable[[], Tensors]]:
    def start(tensor: torch.Tensor) -> Callable[[], Tensors]:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        return lambda: (head_reduce(tensor, reduction, head_axis=1),)

    return start


def cases(device: Device, *, tiny: bool) -> list[Case]:
    """Every kernel, with inputs of 256 MiB or more."""
    tokens, width = (8, 256) if tiny else (65536, 4096)
    side = 16 if tiny else 2048
    batch = 2 if tiny else 16

    def normal(shape: Sequence[int], dtype: torch.dtype) -> Callable[[torch.Generator], torch.Tensor]:
        return lambda generator: torch.randn(shape, generator=generator, device=device.torch, dtype=dtype)

    def transposed(generator: torch.Generator) -> torch.Tensor:
        """[batch, positions, heads, 128] as attention leaves it: with heads in front of positions in memory."""
        return normal((batch, 32, side, 128), torch.bfloat16)(generator).transpose(1, 2)

    def attention_rows(generator: torch.Generator) -> torch.Tensor:
        return normal((1, 32, side, side), torch.bfloat16)(generator).softmax(-1)

    def twin_cast(target: torch.dtype) -> Callable[[torch.Tensor], Tensors]:
        return lambda tensor: (reference.downcast(tensor, target),)

    def twin_fold(reduction: str) -> Callable[[torch.Tensor], Tensors]:
        return lambda tensor: (reference.head_reduce(tensor, reduction, head_axis=1),)

    flat32, flat16 = normal((tokens, width), torch.float32), normal((tokens, width), torch.bfloat16)
    float8 = torch.float8_e4m3fn
    return [
        Case("downcast float32 to bfloat16", flat32, start_cast(torch.bfloat16), twin_cast(torch.bfloat16)),
        Case("downcast bfloat16 to float8_e4m3fn", flat16, start_cast(float8), twin_cast(float8)),
        Case("quantize bfloat16 to int8", flat16, start_quantize, reference.quantize),
        Case("strided copy bfloat16", transposed, start_cast(torch.bfloat16), twin_cast(torch.bfloat16)),
        Case("head_reduce mean bfloat16", attention_rows, start_head_reduce("mean"), twin_fold("mean")),
        Case("head_reduce entropy bfloat16", attention_rows, start_head_reduce("entropy"), twin_fold("entropy"), 2e-6),
    ]


def by_twins(case: Case) -> Case:
    """The case with its twin in the kernel's place: what stands for a kernel where there is no GPU."""
    return Case(case.name, case.make, lambda tensor: lambda: case.twin(tensor), case.twin, case.tolerance)


def agrees(got: Tensors, want: Tensors, tolerance: float) -> bool:
    if tolerance == 0.0:
        return all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    return all(torch.allclose(a, b, rtol=tolerance, atol=0.0) for a, b in zip(got, want, strict=True))


def disagreement(case: Case, tensor: torch.Tensor, got: Tensors) -> str | None:
    """Where the kernel's result is not its twin's; checked in pieces, as twins take memory many times their input's."""
    pieces = 1 if case.name.startswith("head_reduce") else min(16, tensor.shape[0])
    results = zip(*(result.chunk(pieces) for result in got), strict=True)
    for number, (part, results_of_part) in enumerate(zip(tensor.chunk(pieces), results, strict=True)):
        if not agrees(results_of_part, case.twin(part), case.tolerance):
            return f"{case.name} is not what its twin computes, in part {number + 1} of {pieces}: no rate is reported"
    return None


def measure(case: Case, device: Device, copy_gb_s: float) -> dict[str, Any]:
    """The rate of one kernel; or, where it computes something wrong, what."""
    generator = torch.Generator(device=device.torch).manual_seed(7)
    inputs = [case.make(generator) for _ in range(SETS)]
    launches = [case.start(tensor) for tensor in inputs]
    moved = 0
    for tensor, run in zip(inputs, launches, strict=True):
        got = run()
        device.finish()
        if wrong := disagreement(case, tensor, got):
            return {"error": wrong}
        moved = tensor.numel() * tensor.dtype.itemsize + sum(each.numel() * each.dtype.itemsize for each in got)
    all_sets = device.recorded(lambda: [run() for run in launches])
    all_sets()
    times = [seconds / SETS for seconds in device.seconds(all_sets, REPEATS)]
    rate = moved / statistics.median(times) * 1e-9
    return {
        "bytes_read_and_written": moved,
        "microseconds": round(statistics.median(times) * 1e6, 2),
        "gb_s": round(rate, 2),
        "gb_s_slowest": round(moved / max(times) * 1e-9, 2),
        "share_of_device_copy": round(rate / copy_gb_s, 4),
    }


def main() -> int:
    options = parse_arguments(__doc__.splitlines()[0])
    device, tiny, budget = Device(options.device), options.device == "cpu", Budget(options.seconds)
    results: dict[str, Any] = {"sets": SETS, "repeats": REPEATS}
    with torch.no_grad():
        with section(results, "ceilings", options.json) as found:
            found.update(ceilings(device, tiny=tiny))
        for case in cases(device, tiny=tiny):
            with section(results, case.name, options.json) as found:
                if budget.left() <= 0:
                    raise TimeoutError("no time was left for it")
                copy_gb_s = results["ceilings"]["device_copy_gb_s"]
                found.update(measure(by_twins(case) if tiny else case, device, copy_gb_s))
            device.release()
    print(json.dumps(results, indent=2))
    return int(has_errors(results))


if __name__ == "__main__":
    raise SystemExit(main())
