"""What `doctor` says of CUDA devices and of the kernels for them: found out by doing it."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import TYPE_CHECKING

from ..environment import float8_rules, package_version

if TYPE_CHECKING:
    import torch


def cuda() -> tuple[str, str]:
    """State and detail: a captured tensor of each device was compared with the model's, or why there is none."""
    import torch

    if torch.version.cuda is None:
        return "unused", f"captures are made from models on the CPU: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        reason = "no device" if _loads("libcuda.so.1") else "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
        return "unused", f"captures are made from models on the CPU: {reason}"
    names = []
    for number in range(torch.cuda.device_count()):
        names.append(torch.cuda.get_device_name(number))
        if not _captures(torch.device("cuda", number)):
            return "fails", f"a tensor captured from {names[-1]} differs from the model's: report this with --json"
    return "works", f"{', '.join(names)} with CUDA {torch.version.cuda}: a captured tensor was compared, bit for bit"


def triton() -> tuple[str, str]:
    """State and detail: who launches the kernels."""
    import torch

    version = package_version("triton")
    if importlib.util.find_spec("triton") is None:
        return "unused", "not installed; captures from CUDA devices need it: pip install triton"
    if not torch.cuda.is_available():
        return "unused", f"triton {version} is for CUDA devices, and there is none"
    from ..kernels.launch import load

    e4m3_saturates, e5m2_saturates = float8_rules()
    kernel = load(
        "gather_cast",
        "float32",
        "bfloat16",
        table=0,
        per_row=False,
        write=3,
        rows=1,
        columns=4096,
        aligned=True,
        e4m3_saturates=e4m3_saturates,
        e5m2_saturates=e5m2_saturates,
        device=torch.cuda.current_device(),
    )
    if kernel.image is None:
        return "limited", f"triton {version}: kernels go through Triton's launcher, slower, since {kernel.reason}"
    return "works", f"triton {version}: kernels are launched by the engine itself"


def _captures(device: torch.device) -> bool:
    import torch

    from ..capture import capture

    model = torch.nn.Sequential(torch.nn.Linear(8, 8)).to(device)
    x = torch.arange(16.0, device=device).view(2, 8)
    size = 1 << 16
    with (
        torch.no_grad(),
        capture(
            model, "0:mlp", dtype="bfloat16", ring_bytes=16 * size, block_bytes=size, staging_bytes=4 * size
        ) as cap,
    ):
        output = model(x)
    return torch.equal(cap.result["0_mlp"][0], output.to(torch.bfloat16).cpu())


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
