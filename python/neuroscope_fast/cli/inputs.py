"""What `capture` reads from its options: prompts, hooks, sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from ..durability import size_in_bytes
from ..head_options import HEAD_COMPONENTS, REDUCTIONS
from ..prompts import Prompt, split_prompts
from ..spec import HookSpec, parse_hooks


def read_prompts(texts: Sequence[str], file: Path | None, messages: Sequence[str], *, chat: bool) -> list[Prompt]:
    """All prompts: the texts, then those of the file, then the chats. `chat` makes texts a user's messages."""
    prompts: list[Any] = list(texts)
    if file is not None:
        prompts += _prompts_of(file)
    prompts += [_chat(text) for text in messages]
    if not prompts:
        raise typer.BadParameter("there is no prompt: give --prompt, --prompts-file or --messages")
    if chat:
        prompts = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts]
    return split_prompts(prompts)


def _prompts_of(file: Path) -> list[Any]:
    """Of a `.jsonl` file each line's JSON: a string, `{"prompt": …}`, `{"messages": […]}` or a list of messages.
    Of any other file each line as it stands. Empty lines are passed over.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}", param_hint="--prompts-file") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not UTF-8 text", param_hint="--prompts-file") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{file}, line {number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> Any:
    value = _decode(line, where, "--prompts-file")
    if isinstance(value, dict):
        for key in ("prompt", "messages"):
            if key in value:
                return value[key]
        raise typer.BadParameter(f"{where}: it has neither prompt nor messages", param_hint="--prompts-file")
    return value


def _chat(text: str) -> Any:
    if not text.lstrip().startswith("["):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise typer.BadParameter(
                'give a list such as [{"role": "user", "content": "Hello"}], or a JSON file that holds one',
                param_hint="--messages",
            ) from None
    return _decode(text, "it", "--messages")


def _decode(text: str, what: str, option: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise typer.BadParameter(f"{what} is not valid JSON: {error}", param_hint=option) from None


def read_hooks(
    hooks: Sequence[str],
    files: Sequence[Path],
    *,
    positions: str | None,
    phase: str | None,
    every: int | None,
    heads: str | None = None,
    reduction: str | None = None,
    top_keys: int | None = None,
) -> list[HookSpec]:
    """All hooks. The others are for those that do not say otherwise themselves, and that it fits."""
    specs = parse_hooks([*hooks, *files])
    specs = _with({"positions": _positions(positions), "phase": phase, "every": every}, specs, specs)
    specs = _with({"heads": _heads(heads)}, specs, [each for each in specs if each.component in HEAD_COMPONENTS])
    specs = _with(
        {"reduction": reduction}, specs, [each for each in specs if reduction in REDUCTIONS.get(each.component, ())]
    )
    specs = _with({"top_k": top_keys}, specs, [each for each in specs if each.reduction == "top_k"])
    return parse_hooks(specs)


def _with(wanted: dict[str, Any], specs: list[HookSpec], fitting: list[HookSpec]) -> list[HookSpec]:
    """What is wanted goes to the hooks it fits; where it fits none, to all, so that its check says why."""
    untouched = HookSpec(layer_name="x", component="residual")
    return [
        msgspec.structs.replace(
            spec,
            **{
                name: value
                for name, value in wanted.items()
                if value is not None and getattr(spec, name) == getattr(untouched, name)
            },
        )
        if not fitting or any(spec is each for each in fitting)
        else spec
        for spec in specs
    ]


def _heads(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise typer.BadParameter(f"{text!r} is no list of heads such as 0,5 or -1", param_hint="--heads")
    return [int(number) for number in text.split(",")]


def _positions(text: str | None) -> str | list[int] | None:
    if text is None or not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        return text
    return [int(number) for number in text.split(",")]


def read_size(text: str, option: str) -> int:
    """Bytes, at least one: `256MiB`, `4GiB`, `500MB`, `1048576`."""
    size = size_in_bytes(text)
    if size is None:
        raise typer.BadParameter(f"{text!r} is no size: write it like 256MiB or 4GiB", param_hint=option)
    return size


def one_of(value: str | None, allowed: Sequence[str], option: str) -> str | None:
    """`value`, if it is one that is allowed."""
    if value is not None and value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}", param_hint=option)
    return value
