"""Triton kernels of the CUDA path, their plain torch twins, and how the engine gets hold of them.

`downcast` gathers and casts, `quantize` makes int8 rows, `launch` compiles for the device that is there, `reference`
says in torch what the kernels compute. Only `launch` and `reference` can be imported without Triton.
"""

from __future__ import annotations
