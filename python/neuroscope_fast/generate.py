"""`generate(model, prompts, hooks, …)`: load a causal language model, let it write, capture what it computes.

run = nsf.generate("demo", "Recursion is", ["model.layers.2.self_attn:attention"], out="runs/recursion")
print(run.metadata.generated_text)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .capture import Capture, capture
from .errors import CaptureError, ModelError, OptionError
from .manifest import MANIFEST_FILE
from .models import LoadedModel, load_model, load_tokenizer
from .prompts import EncodedPrompt, Prompts, decode_completion, encode_prompt, split_prompts
from .run_directory import metadata_file_name
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
    """Tokens generated so far."""
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
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Run:
    """Generate text from each prompt in turn and capture `hooks` in every forward pass of it.

    The tokens are those that `model.generate` gives without a capture. Every prompt is a batch of one, and its steps
    are counted from 0: step 0 is the prefill, of shape [1, P, …] for a prompt of P tokens, and each further step one
    decoded token, [1, 1, …]. The last token is sampled and not read again, so that n tokens take n steps.

    Args:
        model: `"demo"` for the embedded model, the path of a folder, an id on the Hugging Face Hub, or a model that
            is loaded already, with its `tokenizer`.
        prompts: text, or the messages of a chat (a list of `{"role": …, "content": …}`), or a list of either.
        hooks, out, analysis, description, overwrite, options: as for `capture`.
        max_new_tokens: the most tokens to generate for a prompt; a model that ends its text before that stops.
        do_sample: sample, or take the likeliest token each time. Not said: sample if temperature, top_p or top_k is
            given. What they are not given comes from the model's own generation settings.
        temperature: 0 is the same as not to sample.
        seed: prompt number n (from 0) is sampled with seed + n, so that each can be repeated alone; the state of
            torch's random generators is as before afterwards. None samples from them as they stand.
        ignore_eos: go on to max_new_tokens: the token that ends a text is never chosen.
        dtype: of the weights (`float32`, `bfloat16`, `float16`, `float64`); None keeps that of the checkpoint.
        device, revision, trust_remote_code: where the model runs (None: the CPU), which version of it is loaded, and
            whether code that comes with it may be run. Like `dtype` only for a model that is loaded here.
        capture_dtype: floating-point activations are stored as this: `capture`'s dtype.
        progress: called before each prompt, after each token, and at the end.

    Raises OptionError for values that cannot be, HookError for hooks that cannot be on this model, ModelError where
    the model cannot be loaded, and CaptureError where the capture fails. An exception in the midst of it leaves a
    run with the status `interrupted` in `out`, which holds what was captured and written until then.
    """
    specs = parse_hooks(hooks)  # before the model is loaded: that can take minutes
    asked = split_prompts(prompts)
    choices = _choices(max_new_tokens, do_sample, temperature, top_p, top_k, seed, ignore_eos)
    metadata_file_name(analysis)
    if out is not None and not overwrite and (Path(out) / MANIFEST_FILE).exists():
        raise CaptureError(
            f"{os.fspath(out)} already holds a run: choose another folder, or ask for it to be overwritten"
        )
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
            raise OptionError(
                "dtype, device, revision and trust_remote_code are for a model that is loaded here"
            )
        loaded = _given(model, tokenizer)
    encoded = [
        encode_prompt(loaded.tokenizer, prompt, number) for number, prompt in enumerate(asked, start=1)
    ]
    _check_lengths(loaded.model, encoded, max_new_tokens)
    with capture(
        loaded.model,
        specs,
        out,
        dtype=capture_dtype,
        overwrite=overwrite,
        analysis=analysis,
        description=description,
        **options,
    ) as cap:
        _generate_all(cap, loaded, encoded, choices, seed, progress)
    return cap.result


def _given(model: Any, tokenizer: Any) -> LoadedModel:
    if not callable(getattr(model, "generate", None)):
        raise ModelError(
            f"a {type(model).__name__} has no generate(): use nsf.capture around forward passes of your own"
        )
    if tokenizer is None:
        raise OptionError(
            "a model that is loaded already needs its tokenizer: generate(model, …, tokenizer=…)"
        )
    return LoadedModel(model, load_tokenizer(tokenizer))


def _choices(
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    ignore_eos: bool,
) -> dict[str, Any]:
    """The arguments for `model.generate`. Raises OptionError."""
    _check("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1")
    _check("temperature", temperature, temperature is None or 0 <= temperature < float("inf"), "0 or more")
    _check("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0, and at most 1")
    _check("top_k", top_k, top_k is None or top_k >= 1, "at least 1")
    _check("seed", seed, seed is None or 0 <= seed < 2**63, "from 0 to 2**63 - 1")
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in sampled.items() if value is not None}
    if temperature == 0:
        if do_sample:
            raise OptionError("temperature 0 takes the likeliest token each time: leave it or do_sample out")
        do_sample = False
    if do_sample is None:
        do_sample = bool(given)
    # A model's own settings may ask for beams, whose passes are not one for each token, and for compiled steps.
    choices = {
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "num_beams": 1,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "disable_compile": True,
    }
    if do_sample:
        choices |= given
    if ignore_eos:
        choices["min_new_tokens"] = max_new_tokens
    return choices


def _check(name: str, value: object, right: bool, wanted: str) -> None:
    if not right:
        raise OptionError(f"{name} is {value}; it has to be {wanted}")


def _check_lengths(model: Any, prompts: list[EncodedPrompt], max_new_tokens: int) -> None:
    """Models with learned positions fail beyond the last one with an error that tells nothing; others turn strange."""
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
                f"prompt {number} has {len(prompt.tokens)} tokens, and {max_new_tokens} new ones would exceed the "
                f"{limit} positions of the model: shorten it, or lower max_new_tokens"
            )


class _Listener:
    """A streamer in transformers' sense: is handed the prompt's tokens, then each new one as it is chosen."""

    def __init__(self, heard: Callable[[], None]):
        self.tokens: list[int] = []
        self._heard = heard
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            self.tokens += value.flatten().tolist()
            self._heard()
        self._begun = True

    def end(self) -> None:
        """The text is complete."""


def _generate_all(
    cap: Capture,
    loaded: LoadedModel,
    prompts: list[EncodedPrompt],
    choices: dict[str, Any],
    seed: int | None,
    progress: ProgressCallback | None,
) -> None:
    import torch

    model: Any = loaded.model
    device = next((parameter.device for parameter in loaded.model.parameters()), torch.device("cpu"))
    most = len(prompts) * choices["max_new_tokens"]
    done = 0

    def report(number: int, tokens: int) -> None:
        if progress is not None:
            progress(GenerationProgress(cap, number, len(prompts), tokens, most))

    for number, prompt in enumerate(prompts):
        if number:
            cap.next_prompt()
        report(number, done)
        listener = _Listener(lambda: report(number, done + len(listener.tokens)))  # noqa: B023 - called in this round
        tokens = torch.tensor([prompt.tokens], device=device)
        try:
            with _seeded(None if seed is None else (seed + number) % 2**63, device):
                model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    streamer=listener,
                    **choices,
                    **_endings(model, loaded.tokenizer),
                )
        finally:  # an interrupted run tells how far it came
            if listener.tokens or number == 0:
                cap.add_generation(
                    prompt.text,
                    decode_completion(loaded.tokenizer, prompt.tokens, listener.tokens),
                    prompt_tokens=len(prompt.tokens),
                    completion_tokens=len(listener.tokens),
                )
            done += len(listener.tokens)
    report(len(prompts), done)


def _endings(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What `model.generate` would otherwise complain about, or look for in vain."""
    settings = getattr(model, "generation_config", None)
    arguments: dict[str, Any] = {}
    if getattr(settings, "stop_strings", None):
        arguments["tokenizer"] = tokenizer
    if settings is not None and settings.pad_token_id is None and settings.eos_token_id is not None:
        ends = settings.eos_token_id
        arguments["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    return arguments


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` inside; the generators' states as they were afterwards."""
    if seed is None:
        yield
        return
    import torch

    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device.index or 0] if on_cuda else []):
        # Not torch.manual_seed: it would seed every device there is, and for good.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield
