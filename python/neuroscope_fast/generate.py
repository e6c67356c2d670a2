"""`generate(model, prompts, hooks, …)`: load a causal language model, let it write, capture what it computes.

run = nsf.generate("demo", "Recursion is", ["model.layers.2.self_attn:attention"], out="runs/recursion")
print(run.metadata.generated_text)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .capture import Capture, capture
from .errors import CaptureError, ModelError, OptionError
from .manifest import MANIFEST_FILE
from .models import LoadedModel, load_model, load_tokenizer
from .prompts import EncodedPrompt, Prompts, decode_completion, encode_prompt, split_prompts, token_texts
from .run_directory import metadata_file_name
from .sampling import ending_arguments, generation_arguments, seeded
from .spec import Hooks, parse_hooks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .reader import Run

DEFAULT_NEW_TOKENS = 30


class GenerationProgress(NamedTuple):
    """Where a generation stands. Counts are over all prompts."""

    capture: Capture
    """`capture.stats` tells what has been captured so far."""
    prompt: int
    """The prompt that is being worked on, counted from 0; `prompts` once all are done."""
    prompts: int
    tokens: int
    """Tokens generated so far, those of a run that is resumed not counted."""
    most_tokens: int
    """As many as there can be: fewer, where the model ends a text."""


ProgressCallback = Callable[[GenerationProgress], None]


def generate(
    model: str | os.PathLike[str] | nn.Module,
    prompts: Prompts,
    hooks: Hooks,
    out: str | os.PathLike[str] | None = None,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    ignore_eos: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    capture_dtype: str | torch.dtype | None = None,
    analysis: str | None = None,
    description: str = "",
    overwrite: bool = False,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Run:
    """Generate text from each prompt in turn and capture `hooks` in every forward pass of it.

    The tokens are those that `model.generate` gives without a capture. Every prompt is a batch of one, and its steps
    are counted from 0: step 0 is the prefill, of shape [1, P, …] for a prompt of P tokens (logits: [1, 1, V], as
    transformers computes no others), and each further step one decoded token, [1, 1, …]. The last token is chosen and
    not read again: n tokens take n steps.

    Args:
        model: `"demo"` for the embedded model, the path of a folder, an id on the Hugging Face Hub, or a
            model that is loaded already, with its `tokenizer`.
        prompts: text, or the messages of a chat (a list of `{"role": …, "content": …}`), or a list of either.
        hooks, out, analysis, description, overwrite, resume, options: as for `capture`. A run is resumed with the
            same prompts and settings as it was begun.
        max_new_tokens: the most tokens to generate for a prompt; a model that ends its text sooner stops
            there.
        do_sample: sample, or take the likeliest token each time. None: sample if temperature, top_p or
            top_k is given. Those that are not given are the model's own generation settings, and where it
            has none transformers' defaults (temperature 1, top_p 1, top_k 50).
        temperature: 0 is the same as not to sample.
        top_k: 0 is no limit.
        seed: prompt number n (from 0) is sampled with seed + n, so that each can be repeated alone; torch's
            random generators stand afterwards where they stood. None samples from them as they stand.
        ignore_eos: go on to max_new_tokens: the token that ends a text is never chosen.
        dtype: of the weights (`float32`, `bfloat16`, `float16`, `float64`); None keeps the checkpoint's.
        device, revision, trust_remote_code: where the model runs (None: the CPU), which version of it is
            loaded, and whether code that comes with it may run. Like `dtype` only for a model that is
            loaded here.
        capture_dtype: floating-point activations are stored as this: `capture`'s dtype.
        progress: called before each prompt, after each token, and at the end.

    Raises OptionError for values that cannot be, HookError for hooks that cannot be on this model,
    ModelError where the model cannot be loaded, and CaptureError where the capture fails. An exception in
    the midst of it leaves a run with the status `interrupted` in `out`, which holds what was captured until
    then.
    """
    specs = parse_hooks(hooks)  # before the model is loaded: that can take minutes
    asked = split_prompts(prompts)
    arguments = generation_arguments(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    metadata_file_name(analysis)
    standing = out is not None and (Path(out) / MANIFEST_FILE).exists()
    if standing and resume and arguments["do_sample"] and seed is None:
        raise OptionError("a run that is sampled without a seed cannot be resumed: its texts would be others")
    if standing and not (overwrite or resume):
        raise CaptureError(f"{out!s} already holds a run: choose another folder, resume it, or replace it (overwrite)")
    if isinstance(model, (str, os.PathLike)):
        loaded = load_model(
            model,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            tokenizer=tokenizer,
        )
    else:
        if (dtype, device, revision, trust_remote_code) != (None, None, None, False):
            raise OptionError("dtype, device, revision and trust_remote_code are for a model that is loaded here")
        loaded = _given(model, tokenizer)
    encoded = [encode_prompt(loaded.tokenizer, prompt, number) for number, prompt in enumerate(asked, start=1)]
    check_lengths(loaded.model, encoded, max_new_tokens)
    prepared = capture(
        loaded.model,
        specs,
        out,
        dtype=capture_dtype,
        overwrite=overwrite,
        resume=resume,
        analysis=analysis,
        description=description,
        **options,
    )
    prepared.generation = {**arguments, "seed": seed, "prompts": len(encoded), "prompts_sha256": _digest(encoded)}
    if prepared.options.store_readout:
        prepared.vocabulary = token_texts(loaded.tokenizer, range(len(loaded.tokenizer)))
    with prepared as cap:
        _generate_all(cap, loaded, encoded, arguments=arguments, seed=seed, progress=progress)
    return cap.result


def _given(model: Any, tokenizer: Any) -> LoadedModel:
    if not callable(getattr(model, "generate", None)):
        raise ModelError(
            f"a {type(model).__name__} has no generate(): use nsf.capture around forward passes of your own"
        )
    if tokenizer is None:
        raise OptionError("a model that is loaded already needs its tokenizer: generate(model, …, tokenizer=…)")
    return LoadedModel(model, load_tokenizer(tokenizer))


def check_lengths(model: Any, prompts: list[EncodedPrompt], max_new_tokens: int) -> None:
    """Raises OptionError for more tokens than the model has positions: beyond the last of them, models with learned
    ones fail with an error that tells nothing.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return
    for number, prompt in enumerate(prompts, start=1):
        read = len(prompt.tokens) + max_new_tokens - 1  # the last token is not read
        if read > limit:
            raise OptionError(
                f"prompt {number} and its {max_new_tokens} new tokens need {read} positions, the model has {limit}: "
                "shorten the prompt, or lower max_new_tokens"
            )


def _digest(prompts: list[EncodedPrompt]) -> str:
    """Of all tokens that are to be read."""
    return hashlib.sha256(msgspec.json.encode([prompt.tokens for prompt in prompts])).hexdigest()


class _Listener:
    """A streamer in transformers' sense: is handed the prompt's tokens, then each new one as it is chosen."""

    def __init__(self, heard: Callable[[int], None], before: int):
        self.tokens: list[int] = []
        self._heard = heard
        self._before = before
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            self.tokens += value.flatten().tolist()
            self._heard(self._before + len(self.tokens))
        self._begun = True

    def end(self) -> None:
        """The text is complete."""


def _generate_all(
    cap: Capture,
    loaded: LoadedModel,
    prompts: list[EncodedPrompt],
    *,
    arguments: dict[str, Any],
    seed: int | None,
    progress: ProgressCallback | None,
) -> None:
    first = cap.first_prompt
    most = (len(prompts) - first) * arguments["max_new_tokens"]
    done = 0

    def report(number: int, tokens: int) -> None:
        if progress is not None:
            progress(GenerationProgress(cap, number, len(prompts), tokens, most))

    for number, prompt in enumerate(prompts[first:], start=first):
        if number > first:
            cap.next_prompt()
        report(number, done)
        listener = _Listener(partial(report, number), done)
        try:
            with seeded(None if seed is None else seed + number):
                generate_tokens(loaded, prompt.tokens, arguments, streamer=listener)
        finally:  # an interrupted run tells how far it came
            cap.add_generation(
                prompt.text,
                decode_completion(loaded.tokenizer, prompt.tokens, listener.tokens),
                prompt_tokens=len(prompt.tokens),
                completion_tokens=len(listener.tokens),
                token_ids=(tokens := [*prompt.tokens, *listener.tokens]),
                tokens=token_texts(loaded.tokenizer, tokens),
            )
        done += len(listener.tokens)
    report(len(prompts), done)


def generate_tokens(loaded: LoadedModel, prompt: list[int], arguments: dict[str, Any], **more: Any) -> torch.Tensor:
    """The tokens [1, P + n] that `model.generate` ends with, those of the prompt included, where the model is."""
    import torch

    model: Any = loaded.model
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    tokens = torch.tensor([prompt], device=device)
    generated: torch.Tensor = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        **arguments,
        **ending_arguments(model, loaded.tokenizer),
        **more,
    )
    return generated
