"""The embedded demo model: a small Llama that needs no network and is worth looking at.

Twelve layers of four heads, trained by :mod:`neuroscope_fast.demo.train` on text that the project generates
itself. It continues simple English on programming ideas, short stories and facts, and has previous-token
and induction heads (:mod:`neuroscope_fast.demo.scores` measures them). Importing this module is cheap:
torch and transformers are imported by :func:`load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["PROMPTS", "load", "path"]

# Each shows something to look for: recall of an explanation, indirect object identification, a colour bound
# to its owner, a fact, a successor, the turns of a conversation.
PROMPTS: tuple[str, ...] = (
    "Recursion is",
    "When Mary and John went to the store, John gave a drink to",
    "Anna has a red ball. Tom has a blue hat. The hat of Tom is",
    "The capital of France is",
    "The day after Monday is",
    "User: What is recursion?\nAssistant:",
)


def path() -> Path:
    """The directory of the model's files, as ``from_pretrained`` of transformers takes it."""
    return Path(__file__).parent / "model"


def load(
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load the demo model, in eval mode, and its tokenizer from the package's own files.

    dtype: float32 if None; the weights are stored as bfloat16. attn_implementation: as in
    ``from_pretrained`` of transformers; None is its default there (SDPA), "eager" gives attention weights.
    Raises OSError if the files are missing.
    """
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        path(),
        dtype=torch.float32 if dtype is None else dtype,
        attn_implementation=attn_implementation,
        local_files_only=True,
    )
    torch.nn.Module.to(model, device)  # transformers' own `to` checks for quantized models and is untyped
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path(), local_files_only=True)
    return model, tokenizer  # from_pretrained leaves a model in eval mode
