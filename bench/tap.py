"""tap: what a captured tensor costs on the critical path, beside the model's own work.

72 hooks (24 layers × 3) on tensors of hidden size 64, nothing written to disk. The layers compute nothing, so the
time that a contestant adds is its own: PyTorch's dispatch of the hook and what the hook does. Then the same places in
a Llama of 24 layers, for the tools that need a real model: nnsight's tracer.cache, TransformerLens's run_with_cache,
Hugging Face's output_hidden_states. There each one's cost is what it adds to the bare pass of its own model object,
over the tensors that it hands over; and since a pass is a hundred times what its hooks cost, it is counted in CPU time
of the calling thread, which other processes disturb less. Every contestant is asked for tensors that survive when the
model changes its own in place; a row says where it does not. Run: python bench/tap.py
"""

from __future__ import annotations

import copy
import functools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from harness import Contestant, Row, settle_process

if TYPE_CHECKING:
    from peers import Peer

Clock = Callable[[], float]
ModulesOf = Callable[[Any], list[Any]]

PASSES = 10
LAYERS = 24
OURS = "neuroscope-fast, memory"
PEERS = ("nnsight", "TransformerLens")
"""Those that neuroscope-fast is held against."""


def peer_contestants(peer: Peer, model: Any, inputs: Any, passes: int, clock: Clock) -> list[Contestant]:
    """A peer, and before it the bare pass of its own model, which its cost is counted from."""
    from harness import CheckError, timed
    from peers import check_values

    bare = f"bare, {peer.name}"

    def check() -> None:
        check_values(peer.take(inputs.clone()), peer.expected(model, lambda: model(inputs.clone())), peer.tolerance)

    def repeat(one: Callable[[Any], object]) -> float:
        def run() -> None:
            for _ in range(passes):
                one(inputs)

        one(inputs)
        return timed(run, clock)

    try:
        note = peer.note(inputs.clone())
    except CheckError as error:
        note = f"not known whether it copies: {error}"
    return [
        Contestant(bare, lambda: repeat(peer.bare), lambda: None),
        Contestant(
            peer.name, lambda: repeat(peer.take), check, note, less=bare, brings=passes * len(peer.modules)
        ),
    ]  # fmt: skip


def plain_contestants(
    model: Any, modules_of: ModulesOf, places: Any, inputs: Any, *, passes: int, clock: Clock, open_blocks: ExitStack
) -> list[Contestant]:
    """The bare model, Python hooks and neuroscope-fast, each on a copy of the model of its own.

    Their hooks stay on for as long as `open_blocks`, so that a round is a few passes of each, one right after the
    other: on a machine whose speed changes from one second to the next, nothing else can be compared.
    """
    import neuroscope_fast as nsf
    import torch
    from harness import timed
    from peers import check_values, clones, first_tensor
    from stack import PlainHooks

    kept: list[torch.Tensor] = []

    def nothing(*_: object) -> None:
        return None

    def clone(_module: object, _inputs: object, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    def passes_of(own: Any) -> Callable[[], float]:
        def run() -> None:
            for _ in range(passes):
                own(inputs)

        def work() -> float:
            kept.clear()
            own(inputs)  # warm
            return timed(run, clock)

        return work

    def hooked(hook: Callable[..., None]) -> Any:
        own = copy.deepcopy(model)
        open_blocks.enter_context(PlainHooks(modules_of(own), hook))
        return own

    expected = clones(modules_of(model), lambda: model(inputs.clone()))

    def change_the_models_own(own: Any) -> None:
        """A pass, after which every tensor that the hooked modules gave out is another one."""
        seen: list[torch.Tensor] = []
        with PlainHooks(modules_of(own), lambda _module, _inputs, output: seen.append(first_tensor(output))):
            own(inputs.clone())
        for tensor in seen:
            tensor.add_(1)

    def check_clone() -> None:
        kept.clear()
        change_the_models_own(cloning)
        check_values(kept, expected)

    def check_capture() -> None:
        own = copy.deepcopy(model)
        with nsf.capture(own, places) as capture:
            change_the_models_own(own)
        found = {hook: list(capture.result[hook]) for hook in capture.result.hooks}
        ordered = [found[hook] for hook in in_order(modules_of(own), own, found)]
        check_values([tensor for [tensor] in ordered], expected)

    passive, native, cloning = hooked(nothing), hooked(functools.partial(sys.audit, "")), hooked(clone)
    captured = copy.deepcopy(model)
    open_blocks.enter_context(nsf.capture(captured, places))
    brings = passes * len(expected)
    return [
        Contestant("bare", passes_of(copy.deepcopy(model)), lambda: None),
        Contestant("no-op hook", passes_of(passive), lambda: None, "keeps nothing", "bare", brings),
        Contestant("no-op hook in C", passes_of(native), lambda: None, "keeps nothing: sys.audit", "bare", brings),
        Contestant("clone hook", passes_of(cloning), check_clone, "", "bare", brings),
        Contestant(OURS, passes_of(captured), check_capture, "", "bare", brings),
    ]


def in_order(modules: list[Any], model: Any, hooks: Any) -> list[str]:
    """The ids of the hooks on these modules, one each: `{layer_name}_{component}`, the default."""
    names = {module: name for name, module in model.named_modules()}
    return [next(hook for hook in hooks if hook.rpartition("_")[0] == names[module]) for module in modules]


def stack_rows(rounds: int, passes: int) -> list[Row]:
    import torch
    from harness import race
    from peers import Nnsight, invite
    from stack import PLACES, Stack

    model, x = Stack(LAYERS), torch.randn(1, 1, 64)
    peers, absent = invite([(Nnsight.name, lambda: Nnsight(model, Stack.hooked))])
    with ExitStack() as blocks:
        contestants = plain_contestants(
            model, Stack.hooked, PLACES, x, passes=passes, clock=time.perf_counter, open_blocks=blocks
        )
        for peer in peers:
            contestants += peer_contestants(peer, model, x, passes, time.perf_counter)
        return race(contestants, rounds=rounds, warm_up=3) + absent


def llama_rows(model: Any, tokens: int, rounds: int, passes: int) -> list[Row]:
    import torch
    from harness import race
    from peers import LLAMA_PLACES, HiddenStates, Lens, Nnsight, invite, layer_modules

    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    peers, absent = invite([(kind.name, lambda kind=kind: kind(model)) for kind in (Nnsight, Lens, HiddenStates)])
    with ExitStack() as blocks:
        contestants = plain_contestants(
            model, layer_modules, LLAMA_PLACES, ids, passes=passes, clock=time.thread_time, open_blocks=blocks
        )
        for peer in peers:
            contestants += peer_contestants(peer, model, ids, passes, time.thread_time)
        return race(contestants, rounds=rounds, warm_up=2) + absent


def bare_milliseconds(rows: list[Row], passes: int) -> dict[str, Any]:
    """The forward passes that costs are counted from."""
    from harness import floors

    return {row.name: row.summary(1e3 / passes) for row in rows if row.name in floors(rows) and row.rounds}


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=200)
    import torch

    results = Results("tap", "what a captured tensor costs on the critical path", options)
    rounds, bases = options.rounds, ("no-op hook", "clone hook", *PEERS)
    with torch.inference_mode():
        passes = 3 if options.quick else PASSES
        rows = stack_rows(rounds, passes)
        results.add(
            "72 hooks, hidden 64, modules that compute nothing",
            "µs a tensor",
            rows,
            scale=1e6,
            bases=bases[:3],
            bare_pass_ms=bare_milliseconds(rows, passes),
        )
        from peers import llama

        passes = 1
        model = llama(layers=LAYERS, hidden=64, heads=4, intermediate=128, vocabulary=256)
        for tokens in (1, 16):
            rows = llama_rows(model, tokens, max(2, rounds // 2), passes)
            results.add(
                f"72 hooks in a Llama, hidden 64, {tokens} token{'s' * (tokens > 1)}",
                "µs of CPU time of the calling thread, a tensor",
                rows,
                scale=1e6,
                bases=bases,
                bare_pass_ms=bare_milliseconds(rows, passes),
            )
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
