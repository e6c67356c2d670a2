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

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness import Contestant, Row, settle_process

if TYPE_CHECKING:
    from peers import Peer

Clock = Callable[[], float]

PASSES = 60
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
    model: Any, modules: list[Any], places: Any, inputs: Any, *, passes: int, clock: Clock
) -> list[Contestant]:
    """The bare model, Python hooks and neuroscope-fast, on one model object."""
    import neuroscope_fast as nsf
    import torch
    from harness import timed
    from peers import check_values, clones, first_tensor
    from stack import PlainHooks

    kept: list[torch.Tensor] = []

    def run() -> None:
        for _ in range(passes):
            model(inputs)

    def bare() -> float:
        model(inputs)
        return timed(run, clock)

    def nothing(*_: object) -> None:
        return None

    def clone(_module: object, _inputs: object, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    def with_hooks(hook: Callable[..., None]) -> float:
        kept.clear()
        with PlainHooks(modules, hook):
            model(inputs)
            return timed(run, clock)

    def with_capture() -> float:
        with nsf.capture(model, places):
            model(inputs)
            return timed(run, clock)

    expected = clones(modules, lambda: model(inputs.clone()))

    def change_the_models_own() -> None:
        """A pass, after which every tensor that the hooked modules gave out is another one."""
        own: list[torch.Tensor] = []
        with PlainHooks(modules, lambda _module, _inputs, output: own.append(first_tensor(output))):
            model(inputs.clone())
        for tensor in own:
            tensor.add_(1)

    def check_clone() -> None:
        kept.clear()
        with PlainHooks(modules, clone):
            change_the_models_own()
        check_values(kept, expected)

    def check_capture() -> None:
        with nsf.capture(model, places) as capture:
            change_the_models_own()
        found = {hook: list(capture.result[hook]) for hook in capture.result.hooks}
        ordered = [found[hook] for hook in in_order(modules, model, found)]
        check_values([tensor for [tensor] in ordered], expected)

    brings = passes * len(modules)
    return [
        Contestant("bare", bare, lambda: None),
        Contestant("no-op hook", lambda: with_hooks(nothing), lambda: None, "keeps nothing", "bare", brings),
        Contestant("clone hook", lambda: with_hooks(clone), check_clone, "", "bare", brings),
        Contestant(OURS, with_capture, check_capture, "", "bare", brings),
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
    contestants = plain_contestants(model, model.hooked(), PLACES, x, passes=passes, clock=time.perf_counter)
    for peer in peers:
        contestants += peer_contestants(peer, model, x, passes, time.perf_counter)
    return race(contestants, rounds=rounds, warm_up=3) + absent


def llama_rows(model: Any, tokens: int, rounds: int, passes: int) -> list[Row]:
    import torch
    from harness import race
    from peers import LLAMA_PLACES, HiddenStates, Lens, Nnsight, invite, layer_modules

    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    peers, absent = invite([(kind.name, lambda kind=kind: kind(model)) for kind in (Nnsight, Lens, HiddenStates)])
    contestants = plain_contestants(
        model, layer_modules(model), LLAMA_PLACES, ids, passes=passes, clock=time.thread_time
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

    options = parse_arguments(__doc__.splitlines()[0], rounds=40)
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

        passes = 1 if options.quick else 2
        model = llama(layers=LAYERS, hidden=64, heads=4, intermediate=128, vocabulary=256)
        for tokens in (1, 16):
            rows = llama_rows(model, tokens, rounds, passes)
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
