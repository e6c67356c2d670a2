"""Triton kernels of the CUDA path, their plain torch twins, and how the engine gets hold of them.

`downcast` gathers and casts, `quantize` makes int8 rows, `launch` compiles for the device that is there, `reference`
says in torch what the kernels compute. `attention_pattern` and `attention_launch` make attention patterns and their
reductions, from what `attention_call` has checked; their twin is `reference_attention`. Only `launch`, the twins and
`attention_call` can be imported without Triton.
"""

from __future__ import annotations
