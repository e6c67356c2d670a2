"""tap: what a captured tensor costs on the critical path, beside the model's own work.

72 hooks (24 layers × 3) on tensors of hidden size 64, nothing written to disk. The layers compute nothing, so the time
that a contestant adds is its own: PyTorch's dispatch of the hook and what the hook does. Then the same places in a Llama
of 24 layers, for the tools that need a real model. Every contestant is asked for tensors that survive when the model
changes its own in place; a row says where it does not. Run: python bench/tap.py
"""

from __future__ import annotations

from harness import Contestant, Row, settle_process

PASSES = 60


def stack_rows(rounds: int, passes: int) -> list[Row]:
    import neuroscope_fast as nsf
    import torch
    from harness import race, timed
    from stack import PLACES, PlainHooks, Stack, check_tensors

    model, x = Stack(), torch.randn(1, 1, 64)
    modules = model.hooked()
    expected = [x.clone() for _ in modules]
    kept: list[torch.Tensor] = []

    def run() -> None:
        for _ in range(passes):
            model(x)

    def nothing(*_: object) -> None:
        return None

    def clone(_module: object, _inputs: object, output: torch.Tensor) -> None:
        kept.append(output.clone())

    def with_hooks(hook: object) -> float:
        kept.clear()
        with PlainHooks(modules, hook):  # type: ignore[arg-type]
            model(x)
            return timed(run)

    def with_capture() -> float:
        with nsf.capture(model, PLACES):
            model(x)
            return timed(run)

    def check_clone() -> None:
        kept.clear()
        mine = x.clone()
        with PlainHooks(modules, clone):
            model(mine)
        mine.add_(1)
        check_tensors(kept, expected)

    def check_capture() -> None:
        mine = x.clone()
        with nsf.capture(model, PLACES) as capture:
            model(mine)
            mine.add_(1)
        check_tensors([tensor for hook in capture.result.hooks for tensor in capture.result[hook]], expected)

    contestants = [
        Contestant("bare", lambda: timed(run), lambda: None),
        Contestant("no-op hook", lambda: with_hooks(nothing), lambda: None, "keeps nothing"),
        Contestant("clone hook", lambda: with_hooks(clone), check_clone),
        Contestant("neuroscope-fast, memory", with_capture, check_capture),
    ]
    return race(contestants, rounds=rounds, warm_up=3)


def main() -> int:
    settle_process(threads=1)
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=60)
    import torch

    results = Results("tap", "what a captured tensor costs on the critical path", options)
    passes = 3 if options.quick else PASSES
    with torch.inference_mode():
        rows = stack_rows(options.rounds, passes)
    results.add(
        "72 hooks, hidden 64, modules that compute nothing",
        "µs a tensor",
        rows,
        scale=1e6 / (72 * passes),
        bases=("no-op hook", "clone hook"),
        less="bare",
    )
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
