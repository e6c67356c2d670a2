"""How tokens are chosen: the arguments for `model.generate`, and random numbers that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import OptionError


def generation_arguments(
    *,
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    ignore_eos: bool,
) -> dict[str, Any]:
    """The arguments for `model.generate`, one new token for each forward pass. Raises OptionError for
    values that cannot be. What each option means is said in `neuroscope_fast.generate.generate`.
    """
    _check("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1")
    _check("temperature", temperature, temperature is None or 0 <= temperature < float("inf"), "0 or more")
    _check("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0, and at most 1")
    _check("top_k", top_k, top_k is None or top_k >= 0, "0 or more")
    _check("seed", seed, seed is None or 0 <= seed < 2**63, "from 0 to 2**63 - 1")
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in sampled.items() if value is not None}
    if do_sample is None:
        do_sample = bool(given) and temperature != 0
    elif do_sample and temperature == 0:
        raise OptionError("temperature 0 takes the likeliest token each time: leave it out, or do not sample")
    elif given and not do_sample and temperature != 0:
        raise OptionError(f"{', '.join(given)} need sampling: leave them out, or let do_sample be true")
    # A model's own settings may ask for beams, or for compiled steps, in which no hook runs.
    choices: dict[str, Any] = {
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


def ending_arguments(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Further arguments: what `model.generate` would otherwise complain about, or look for in vain."""
    settings = getattr(model, "generation_config", None)
    arguments: dict[str, Any] = {}
    if getattr(settings, "stop_strings", None):
        arguments["tokenizer"] = tokenizer
    if settings is not None and settings.pad_token_id is None and settings.eos_token_id is not None:
        ends = settings.eos_token_id
        arguments["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    return arguments


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Inside, random numbers come from `seed`; afterwards the CPU's generator stands where it stood before."""
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, and for good
        yield
