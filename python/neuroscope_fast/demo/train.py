"""Train the demo model: ``python -m neuroscope_fast.demo.train --out DIRECTORY``.

Nothing but the language-model loss is trained on; what makes the heads form within minutes is the order of
the data. A model of width 64 cannot hold a bag of many tokens out of a thousand, so from repeated sequences
over the whole vocabulary it learns next to nothing at first. From short sequences over 64 tokens it learns
to copy, then to match (the induction head appears within some 500 steps), and what it has learned carries
over as the alphabet widens and the sequences grow. Text joins in once the heads are there.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import PROMPTS, path, scores
from .batches import IGNORED, Batch, RepeatRows, TextRows, concatenate
from .corpus import passages
from .optimizer import Muon
from .tokenizer import build

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1152
LAYERS = 12
LEARNING_RATE = 5e-3
WARMUP_STEPS = 50
HELD_OUT_SEED = 1_000_003  # added to the training seed for what the report is measured on


@dataclass(frozen=True)
class Stage:
    """A part of the training with data of one kind.

    length: tokens a row. text_share: share of rows that are text, the others repeat. alphabet: number of
    tokens that repeated sequences are drawn from, all if None. learning_rate: relative to LEARNING_RATE,
    from the first step to the last of the stage, in a straight line.
    """

    steps: int
    rows: int
    length: int
    longest_period: int
    alphabet: int | None = None
    text_share: float = 0.0
    learning_rate: tuple[float, float] = (1.0, 1.0)


STAGES: tuple[Stage, ...] = (
    Stage(700, rows=32, length=33, longest_period=12, alphabet=64),
    Stage(150, rows=32, length=33, longest_period=12, alphabet=128),
    Stage(150, rows=32, length=33, longest_period=14, alphabet=256),
    Stage(150, rows=32, length=33, longest_period=15, alphabet=512),
    Stage(250, rows=32, length=33, longest_period=15),
    Stage(1500, rows=32, length=128, longest_period=60, text_share=0.7, learning_rate=(1.0, 0.1)),
    Stage(150, rows=16, length=256, longest_period=100, text_share=0.7, learning_rate=(0.1, 0.0)),
)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained demo model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        # Slow rotations leave most of a head's dimensions to matching content, the fast ones tell
        # neighbours apart.
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    # The default of 0.02 is meant for wide models; here it would leave attention flat for hundreds of steps.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.1 if "embed" in name else parameter.shape[1] ** -0.5
            if "o_proj" in name or "down_proj" in name:  # these add to the residual stream 2 * LAYERS times
                std /= math.sqrt(2 * LAYERS)
            torch.nn.init.normal_(parameter, std=std)
    return model


def loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, over the labelled tokens: logits are computed for no others."""
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state[:, :-1]
    labels = batch.labels[:, 1:]
    wanted = labels != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]), labels[wanted])


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stages: Sequence[Stage],
    seed: int,
) -> None:
    """Train the model in place, and print the loss of every fiftieth batch."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    text, repeats = TextRows(tokenizer, seed), RepeatRows(len(tokenizer), seed)
    begin, step, total = time.monotonic(), 0, sum(stage.steps for stage in stages)
    model.train()
    for stage in stages:
        text_rows = round(stage.rows * stage.text_share)
        first, last = stage.learning_rate
        for stage_step in range(stage.steps):
            batch = repeats.batch(stage.rows - text_rows, stage.length, stage.longest_period, stage.alphabet)
            if text_rows:
                batch = concatenate(text.batch(text_rows, stage.length), batch)
            factor = min(1.0, (step + 1) / WARMUP_STEPS) * (first + (last - first) * stage_step / stage.steps)
            learning_rate = LEARNING_RATE * factor
            value = loss(model, batch)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step(learning_rate)
            adamw.param_groups[0]["lr"] = learning_rate
            adamw.step()
            model.zero_grad()
            step += 1
            if step % 50 == 0 or step == total:
                seconds = time.monotonic() - begin
                print(f"step {step:5d}/{total}  loss {value.item():.3f}  {seconds:6.0f} s", flush=True)


def report(directory: Path, seed: int) -> None:
    """Print what a saved model can do, on text and sequences that training has not seen."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    model = LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    held_out = TextRows(tokenizer, seed).batch(128, 128)
    with torch.no_grad():
        print(f"text loss             {loss(model, held_out).item():.3f} nats a token")
    print(f"copy accuracy         {scores.copy_accuracy(model, seed=seed):.3f}")
    print(f"induction head        {scores.best_head(scores.induction_scores(model, seed=seed))}")
    print(f"previous-token head   {scores.best_head(scores.previous_token_scores(model, seed=seed))}")
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=30)  # type: ignore[misc]
        print(f"\n{tokenizer.decode(output[0], skip_special_tokens=True)}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write config, weights (as bfloat16) and tokenizer in the layout of transformers."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "python -m neuroscope_fast.demo.train"
    parser = argparse.ArgumentParser(prog=program, description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=path(), help="model directory (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.out.exists() and any(options.out.iterdir()) and not options.overwrite:
        print(f"{options.out} is not empty: give --overwrite to replace the model there", file=sys.stderr)
        return 2

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = build(list(islice(passages(options.seed), 20_000)), VOCABULARY)
    model = new_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    begin = time.monotonic()
    train(model, tokenizer, STAGES, options.seed)
    save(model, tokenizer, options.out)
    print(f"trained in {(time.monotonic() - begin) / 60:.1f} minutes, saved in {options.out}")
    report(options.out, options.seed + HELD_OUT_SEED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
