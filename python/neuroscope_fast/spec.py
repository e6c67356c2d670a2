"""What a user asks to be captured: `HookSpec`, and `parse_hooks` for every form in which it can be written.

    "model.layers.10.self_attn:attention"                       LAYER:COMPONENT
    "model.layers.*:residual:resid"                             LAYER:COMPONENT:ID, with a pattern
    {"layer_name": "model.layers.3", "component": "mlp"}        the reference document's form
    "hooks.json", Path("hooks.json"), '[{"layer_name": …}]'     the same in a file or a string
    "runs/recursion/activation_capture.json"                    the hooks of an earlier run, to repeat it

Nothing here looks at a model; `model_map.resolve_hooks` does.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import msgspec

from .errors import HookError
from .head_options import HEAD_COMPONENTS, TOP_K, check_head_options, normal_heads
from .layer_pattern import LayerPattern, expand_pattern
from .positions import normal_positions, position_slice

__all__ = [
    "AVAILABLE_COMPONENTS",
    "CAST_DTYPES",
    "HEAD_COMPONENTS",
    "HookSpec",
    "Hooks",
    "check_hook_id",
    "expand_pattern",
    "parse_hooks",
    "position_slice",
]

AVAILABLE_COMPONENTS: tuple[str, ...] = (
    "residual",
    "attention",
    "mlp",
    "moe",
    "expert",
    "router",
    "embedding",
    "layernorm",
    "neuron",
    "logits",
    *HEAD_COMPONENTS,
)
"""Every component name there is."""

CAST_DTYPES: tuple[str, ...] = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8")
"""What `HookSpec.dtype` may name: the dtype to which floating-point activations are cast on copy."""

MAX_HOOK_ID_BYTES = 512


class HookSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One place to capture, or, where `layer_name` holds a pattern, one for each layer that it matches.

    Building a HookSpec checks nothing; `parse_hooks`, and with it everything that takes hooks, does.
    """

    layer_name: str
    """Module path as in `model.named_modules()`; may hold `*`, `{2,10}` and `{0..11}`."""
    component: str
    """One of `AVAILABLE_COMPONENTS`."""
    hook_id: str | None = None
    """The name of its records everywhere; None: `{layer_name}_{component}`. Where a pattern gives several
    hooks, the parts that it matched are appended: `resid` on `model.layers.*` gives `resid.0`, `resid.1`,
    …"""
    capture_input: bool = False
    """Capture what goes into the component."""
    capture_output: bool = True
    """Capture what comes out of it."""
    dtype: str | None = None
    """One of `CAST_DTYPES`; None leaves the choice to the capture."""
    positions: str | list[int] = "all"
    """Positions of each step to keep: `all`, `last`, a list of indices (negative ones count from the end), or
    a slice as a string: `2:`, `:-1`, `::2`. `parse_hooks` takes slice objects too, and makes strings of
    them."""
    phase: Literal["both", "prefill", "decode"] = "both"
    """Capture only the first pass of a generation, or only those after it."""
    every: int = 1
    """Capture only steps whose number is a multiple of it: 2 takes the steps 0, 2, 4, …"""
    heads: list[int] | None = None
    """Of a component that is split by head (`HEAD_COMPONENTS`) the heads to keep, in this order; negative ones count
    from the end. Query heads, for `key` and `value` the heads that these have. None: all."""
    reduction: str | None = None
    """For `attention_pattern` [B, H, Q, K]: `mean` or `max` over the heads [B, Q, K]; the `entropy` of each row in
    nats, the mass on the first token (`sink`) or on the `previous` one [B, H, Q]; `top_k`: the k largest of each row,
    and their keys beside them [B, H, Q, k]. For `head_output` [B, S, H, D]: `head_norm`, the Euclidean norms
    [B, S, H]. None: the tensor itself."""
    top_k: int = TOP_K
    """How many keys of each query the reduction `top_k` keeps: at most all there are."""


Hooks = Union[str, "os.PathLike[str]", Mapping[str, Any], HookSpec, Iterable[Any]]
"""What `parse_hooks` takes: one hook in any form, or an iterable of them."""


def parse_hooks(hooks: Hooks) -> list[HookSpec]:
    """Turn hooks in any form into checked HookSpecs, in their order. Patterns stay patterns.

    Strings are short forms, JSON text, or the path of a JSON file; mappings and JSON objects are hooks, or
    hold a list of them under `hook_configurations` or `hooks`. Raises HookError, with a message that says
    which hook is wrong and why, for unknown fields, components and values, for a spec that captures neither
    side, for a file that cannot be read, and where there is no hook at all.
    """
    specs = [_check(spec, where) for spec, where in _read(hooks, "")]
    if not specs:
        raise HookError('no hooks given; name at least one, such as "model.layers.0:residual"')
    return specs


def check_hook_id(hook_id: str, where: str) -> None:
    """Raise HookError unless `hook_id` can be a hook's id: the keys of its tensors begin with it."""
    if not hook_id:
        raise HookError(f"{where}: hook_id is empty")
    if "/" in hook_id:
        raise HookError(f"{where}: hook_id {hook_id!r} holds a '/', which separates the parts of a tensor's key")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", hook_id):
        raise HookError(f"{where}: hook_id {hook_id!r} holds control characters")
    try:
        size = len(hook_id.encode())
    except UnicodeEncodeError:
        raise HookError(f"{where}: hook_id {hook_id!r} is not valid Unicode") from None
    if size > MAX_HOOK_ID_BYTES:
        raise HookError(f"{where}: hook_id is {size} bytes long, {MAX_HOOK_ID_BYTES} are allowed")


def _read(hooks: object, where: str) -> Iterator[tuple[HookSpec, str]]:
    """Every hook in `hooks`, unchecked, with words that say where it stands."""
    if isinstance(hooks, HookSpec):
        yield hooks, where or f"hook {f'{hooks.layer_name}:{hooks.component}'!r}"
    elif isinstance(hooks, str):
        yield from _read_text(hooks)
    elif isinstance(hooks, os.PathLike):
        yield from _read_file(Path(hooks))
    elif isinstance(hooks, Mapping):
        yield from _read_mapping(hooks, where)
    elif isinstance(hooks, Iterable) and not isinstance(hooks, (bytes, bytearray, memoryview)):
        for number, hook in enumerate(hooks, start=1):
            yield from _read(hook, f"{where}, hook {number}" if where else f"hook {number}")
    else:
        kind = type(hooks).__name__
        raise HookError(f"{where or 'hooks'}: a {kind} is no hook; give LAYER:COMPONENT, a dict or a HookSpec")


def _read_text(text: str) -> Iterator[tuple[HookSpec, str]]:
    text = text.strip()
    # A short form may begin with a brace too: {encoder,decoder}.block.*:residual
    if text.startswith("[") or re.match(r"\{\s*[\"}]", text):
        yield from _read(_decode(text.encode(errors="surrogatepass"), "the JSON text"), "the JSON text")
        return
    if text.endswith(".json") and (":" not in text or os.path.isfile(text)):
        yield from _read_file(Path(text))
        return
    layer_name, _, rest = text.partition(":")
    component, colon, hook_id = rest.partition(":")
    where = f"hook {text!r}"
    if not component:
        form = 'LAYER:COMPONENT or LAYER:COMPONENT:ID, such as "model.layers.0:residual"'
        raise HookError(f"{where}: its component is missing; give {form}")
    if colon and not hook_id:
        raise HookError(f"{where}: hook_id is empty; leave the last colon out")
    yield HookSpec(layer_name=layer_name.strip(), component=component.strip(), hook_id=hook_id or None), where


def _read_file(path: Path) -> Iterator[tuple[HookSpec, str]]:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise HookError(f"cannot read hooks from {path}: {getattr(error, 'strerror', None) or error}") from None
    yield from _read(_decode(content, str(path)), str(path))


def _decode(content: bytes, where: str) -> object:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HookError(f"{where} is not valid JSON: {error}") from None


def _read_mapping(hook: Mapping[Any, Any], where: str) -> Iterator[tuple[HookSpec, str]]:
    where = where or "hook"
    fields = HookSpec.__struct_fields__
    if "layer_name" not in hook:
        if "format_version" in hook and "metadata_file" in hook:
            raise HookError(f"{where} is a run's manifest; its hooks stand in {hook['metadata_file']}")
        for key in ("hook_configurations", "hooks"):
            if key in hook:
                if not isinstance(hook[key], (list, tuple)):
                    raise HookError(f"{where}: {key} is not a list of hooks")
                yield from _read(hook[key], f"{where}, {key}" if where != "hook" else key)
                return
    for field in hook:
        if field not in fields:
            near = difflib.get_close_matches(str(field), fields, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise HookError(f"{where}: unknown field {field!r}; {guess}fields: {', '.join(fields)}")
    for field in ("layer_name", "component"):
        if field not in hook:
            raise HookError(f"{where}: {field} is missing")
    yield HookSpec(**hook), where


def _check(spec: HookSpec, where: str) -> HookSpec:
    """`spec` with its values in their one normal form; HookError where one is wrong."""
    values = msgspec.structs.asdict(spec)
    values["positions"] = normal_positions(spec.positions, where)
    values["heads"] = normal_heads(spec.heads, where)
    if spec.dtype is not None:  # a torch.dtype prints as torch.bfloat16: no need to import torch here
        values["dtype"] = str(spec.dtype).removeprefix("torch.")
    try:
        spec = msgspec.convert(values, HookSpec)
    except msgspec.ValidationError as error:
        message = re.sub(r" - at `\$\.(\w+)`", r" (\1)", " ".join(str(error).split()))
        raise HookError(f"{where}: {message[:1].lower()}{message[1:]}") from None
    if not spec.layer_name:
        raise HookError(f"{where}: layer_name is empty; name a module, such as model.layers.0")
    LayerPattern(spec.layer_name)  # raises for a malformed pattern
    _check_component(spec, where)
    if spec.hook_id is not None:
        check_hook_id(spec.hook_id, where)
    if not (spec.capture_input or spec.capture_output):
        raise HookError(f"{where}: captures neither side; set capture_output or capture_input")
    if spec.dtype is not None and spec.dtype not in CAST_DTYPES:
        raise HookError(f"{where}: unknown dtype {spec.dtype!r}; available: {', '.join(CAST_DTYPES)}")
    if not 1 <= spec.every < 2**63:
        raise HookError(f"{where}: every is {spec.every}; it counts steps and is at least 1")
    return spec


def _check_component(spec: HookSpec, where: str) -> None:
    name = spec.component
    available = f"available: {', '.join(AVAILABLE_COMPONENTS)}"
    if name not in AVAILABLE_COMPONENTS:
        near = difflib.get_close_matches(name.lower(), AVAILABLE_COMPONENTS, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise HookError(f"{where}: unknown component {name!r}; {guess}{available}")
    if name == "neuron" and spec.capture_input:
        raise HookError(
            f"{where}: 'neuron' is one tensor, that which enters the down projection, and has no input side; "
            "leave capture_input out, or capture the input of 'mlp'"
        )
    if name == "expert" and spec.positions != "all":
        raise HookError(
            f"{where}: positions cannot be chosen for 'expert', whose rows are the tokens routed to it; "
            "leave positions out, or capture 'moe'"
        )
    if name in HEAD_COMPONENTS and spec.capture_input:
        raise HookError(f"{where}: {name!r} is one tensor and has no input side; leave capture_input out")
    if name in ("key", "value") and spec.positions != "all":
        raise HookError(
            f"{where}: positions cannot be chosen for {name!r}, whose rows are the whole cache; leave positions out"
        )
    check_head_options(name, spec.heads, spec.reduction, spec.top_k, where)
