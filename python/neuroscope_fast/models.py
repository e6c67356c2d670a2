"""Loads a causal language model and its tokenizer: the embedded one, or from a folder, or from the Hugging
Face Hub.

torch and transformers are imported when something is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .errors import ModelError, OptionError

if TYPE_CHECKING:
    import torch
    from torch import nn

EMBEDDED = "demo"
"""The name of the embedded model. A folder of this name is `./demo`."""

WEIGHT_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

_HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?", re.ASCII)
_PATIENCE = 5.0  # seconds to wait for a first answer of the Hub
_LONGEST_REASON = 300  # characters of another library's message

T = TypeVar("T")


class LoadedModel(NamedTuple):
    """A model, in evaluation mode, and its tokenizer."""

    model: nn.Module
    tokenizer: Any


class _Source(NamedTuple):
    """What `from_pretrained` is given."""

    name: str
    local_files_only: bool


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        name: `"demo"` for the embedded model, the path of a folder, or an id on the Hugging Face Hub.
        dtype: of the weights, one of `WEIGHT_DTYPES`; None and `"auto"` keep that of the checkpoint.
        device: where the model runs; None is the CPU.
        revision: a branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the model.
        tokenizer: the tokenizer, or where to load it from; None takes the model's own.

    Raises ModelError, in one line, where it cannot be loaded; that a model is not on this machine while the
    Hub cannot be reached is told within seconds. Raises OptionError for an unknown dtype.
    """
    chosen = _weight_dtype(dtype)
    if os.fspath(name) == EMBEDDED:
        if revision is not None:
            raise OptionError("the embedded model has no revisions: leave revision out")
        model, own_tokenizer = _load_embedded()
        if chosen is not None:
            model = model.to(chosen)
        loaded = LoadedModel(model, own_tokenizer if tokenizer is None else load_tokenizer(tokenizer))
    else:
        source = _find(name, revision)
        loaded = _load(source, chosen, revision, trust_remote_code, tokenizer)
    if device is not None:
        _guarded(f"model {name!s} cannot be moved to {device}", lambda: loaded.model.to(device))
    return loaded


def load_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer from a folder or a Hub id; one that is loaded already is given back."""
    if not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    if os.fspath(tokenizer) == EMBEDDED:
        return _load_embedded()[1]
    return _tokenizer_of(_find(tokenizer, None), None, False)


def load_skeleton(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """The model's modules without its weights, on torch's meta device: quick and small whatever the model's
    size.

    A model that cannot be built so is loaded whole. Raises ModelError as `load_model` does.
    """
    if os.fspath(name) == EMBEDDED:
        return _load_embedded()[0]
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _find(name, revision)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = _guarded(
        f"model {source.name} cannot be loaded",
        lambda: AutoConfig.from_pretrained(
            source.name, revision=revision or "main", local_files_only=source.local_files_only, **options
        ),
    )
    try:
        with torch.device("meta"):
            build: Callable[..., nn.Module] = AutoModelForCausalLM.from_config
            return build(config, **options)
    except Exception:  # models that look at their weights as they are built, each with an error of its own
        return load_model(name, revision=revision, trust_remote_code=trust_remote_code).model


def _load_embedded() -> tuple[nn.Module, Any]:
    from . import demo

    if not demo.path().is_dir():
        raise ModelError(f"the embedded model is missing from this installation: {demo.path()}; install it anew")
    model, tokenizer = _guarded("the embedded model cannot be loaded", demo.load)
    model.config.name_or_path = EMBEDDED  # and not where this installation keeps it
    return model, tokenizer


def _load(
    source: _Source, dtype: torch.dtype | None, revision: str | None, trust_remote_code: bool, tokenizer: Any
) -> LoadedModel:
    from transformers import AutoModelForCausalLM

    # The tokenizer first: where it fails, no weights have been downloaded in vain.
    own = tokenizer is None
    tokenizer = _tokenizer_of(source, revision, trust_remote_code) if own else load_tokenizer(tokenizer)
    model: nn.Module = _guarded(
        f"model {source.name} cannot be loaded",
        lambda: AutoModelForCausalLM.from_pretrained(
            source.name,
            dtype="auto" if dtype is None else dtype,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            local_files_only=source.local_files_only,
        ),
    )
    return LoadedModel(model, tokenizer)


def _tokenizer_of(source: _Source, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return _guarded(
        f"the tokenizer of {source.name} cannot be loaded",
        lambda: AutoTokenizer.from_pretrained(
            source.name,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            local_files_only=source.local_files_only,
        ),
    )


def _weight_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return None
    if name not in WEIGHT_DTYPES:
        raise OptionError(f"weights cannot be loaded as {name!r}; available: {', '.join(WEIGHT_DTYPES)}")
    import torch

    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _find(name: str | os.PathLike[str], revision: str | None) -> _Source:
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{folder} holds no model: there is no config.json in it")
        return _Source(str(folder), local_files_only=True)
    if text and folder.exists():
        raise ModelError(f"{folder} is a file: give the folder that holds the model and its config.json")
    if not isinstance(name, str) or not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise ModelError(f"there is no folder {text!r}, and it is no Hugging Face Hub id (such as ORGANISATION/NAME)")
    return _find_on_hub(text, revision)


def _find_on_hub(name: str, revision: str | None) -> _Source:
    """One question to the Hub tells whether the model is there, and whether the network is: asking for the
    files at once would repeat a failing request for the better part of a minute.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = "HF_HUB_OFFLINE forbids to fetch it"
    mend = "give the path of a local copy"
    if not constants.HF_HUB_OFFLINE:
        mend = f"connect to the network, or {mend}"
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_PATIENCE)
            return _Source(name, local_files_only=False)
        except GatedRepoError:
            raise ModelError(
                f"model {name} is gated: ask for access at https://huggingface.co/{name}, "
                "and log in with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise ModelError(
                f"the Hugging Face Hub has no model {name}, or it is private: "
                "check the name, or log in with `hf auth login`"
            ) from None
        except RevisionNotFoundError:
            raise ModelError(f"model {name} has no revision {revision!r} on the Hugging Face Hub") from None
        except EntryNotFoundError:  # an adapter, perhaps: let transformers look
            return _Source(name, local_files_only=False)
        except Exception as error:  # of whichever HTTP library is below
            unreachable = f"the Hugging Face Hub cannot be reached ({_one_line(error)})"
    for file in ("config.json", "adapter_config.json"):
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return _Source(name, local_files_only=True)
    raise ModelError(
        f"model {name} is not on this machine, and {unreachable}: {mend}, or use the embedded model, 'demo'"
    )


def _guarded(what: str, action: Callable[[], T]) -> T:
    """What `action` gives; whatever it raises becomes a ModelError of one line that begins with `what`."""
    try:
        return action()
    except Exception as error:
        text = _one_line(error)
        if "backend tokenizer" in str(error):
            text = "there is none: save one beside the model with tokenizer.save_pretrained(…)"
        if "trust_remote_code" in str(error):
            text = "it brings code of its own; if you trust it, ask for it to be run (trust_remote_code)"
        raise ModelError(f"{what}: {text}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
