# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: PLR0917, PLR0124, PLR1714 - a kernel's parameters have their places; Triton knows no sets, and a NaN there is what differs from itself
"""The Triton kernels of attention scores, patterns and reductions of patterns.

`attention_rows` reads the keys of some query rows of one head once, from block to block, with the running maximum and
sum of Milakov and Gimelshein 2018 (arXiv:1805.02867), and leaves one or two numbers a row: the two that a softmax
needs, the entropy, or the probability of one key. `attention_tiles` computes the logits of a tile anew and, with the
first two numbers, its probabilities; mean and max go through the heads in the tile. No tensor is
larger than the result.
attention_launch.py launches both; `reference_attention` is the twin in torch.

As in `downcast`, annotations of kernels other than `tl.constexpr` would mean something to Triton.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit
def _tanh(x):
    # 1 - 2 / (e^2x + 1) loses all digits next to 0, where the series has them: the next term is below 2^-26 of it.
    square = x * x
    series = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    magnitude = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0.0, 0.0 - magnitude, magnitude))


@triton.jit
def _limits(position, keys, causal_offset, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """The first key and the end behind the last that rows at these positions can see; below 0 is no row."""
    last = tl.max(position, axis=0)
    start = tl.zeros_like(last)
    stop = tl.where(last < 0, start, keys)
    if CAUSAL:
        stop = tl.minimum(stop, last + causal_offset + 1)
    if WINDOW:
        first = tl.min(tl.where(position < 0, 0x7FFFFFFFFFFFFFFF, position), axis=0)
        start = tl.maximum(start, tl.where(last < 0, start, first + causal_offset - window + 1))
    return start, stop


@triton.jit
def _logits(
    query,
    key,
    mask,
    position,
    column,
    keys,
    query_stride,
    query_step,
    key_stride,
    key_step,
    mask_stride,
    mask_step,
    scale,
    softcap,
    hidden_below,
    causal_offset,
    window,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIZE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Masked logits, float32 [rows, columns], of the queries at `position` with the keys `column`, and what is visible.

    The pointers are those of one batch row and head. -inf where a key is hidden.
    """
    row = position >= 0
    visible = row[:, None] & (column < keys)[None, :]
    logits = tl.zeros([position.shape[0], column.shape[0]], tl.float32)
    for first in tl.static_range(0, SIZE, PIECE):
        dimension = first + tl.arange(0, PIECE)
        query_mask = row[:, None]
        key_mask = (column < keys)[None, :]
        if SIZE % PIECE != 0:
            query_mask = query_mask & (dimension < SIZE)[None, :]
            key_mask = key_mask & (dimension < SIZE)[:, None]
        from_query = query + position[:, None] * query_stride + dimension[None, :] * query_step
        from_key = key + column[None, :] * key_stride + dimension[:, None] * key_step
        q = tl.load(from_query, mask=query_mask, other=0.0)
        k = tl.load(from_key, mask=key_mask, other=0.0)
        logits = tl.dot(q, k, logits, input_precision="ieee")
    logits = logits * scale
    if SOFTCAP:
        logits = _tanh(logits / softcap) * softcap
    if MASK != "none":
        given = tl.load(mask + position[:, None] * mask_stride + column[None, :] * mask_step, mask=visible, other=0)
        if MASK == "bool":
            visible = visible & (given != 0)
        else:
            bias = given.to(tl.float32)
            visible = visible & ((bias > hidden_below) | (bias != bias))
            logits = logits + bias
    if CAUSAL:
        visible = visible & (column[None, :] <= position[:, None] + causal_offset)
    if WINDOW:
        visible = visible & (column[None, :] > position[:, None] + (causal_offset - window))
    return tl.where(visible, logits, float("-inf")), visible


@triton.jit
def attention_rows(
    query,
    key,
    mask,
    sinks,
    positions,
    heads,
    wanted,
    target,
    inverses,
    head_count,
    count,
    keys,
    queries_per_key_head,
    query_batch,
    query_head,
    query_stride,
    query_step,
    key_batch,
    key_head,
    key_stride,
    key_step,
    mask_batch,
    mask_head,
    mask_stride,
    mask_step,
    scale,
    softcap,
    hidden_below,
    causal_offset,
    window,
    RESULT: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SIZE: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes one number for each row of each chosen head to target, [B, head_count, count] float32.

    RESULT is `softmax` (the row's maximum, and to `inverses` 1 / sum of the exponentials of the rest, so that
    p = exp(logit - maximum) * inverse; 0 and 0 for a row that sees no key), `entropy`, or `probability` of the key
    wanted[batch, row], 0 where that is none.

    `query` and `key` are pointers to SIZE numbers a position, `positions` and `wanted` to int64 [B, count], positions
    below 0 being rows that see nothing, `heads` to int64 [head_count], `sinks` to float32 [H]; strides are in elements.
    MASK is none, bool (int8) or additive (values up to hidden_below hide); its strides are those of [B, H, Q, K]. SIZE
    is the head size, read in pieces of PIECE. The grid is cdiv(count, ROWS) * B * head_count in one dimension.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(count, ROWS)
    line = program // blocks  # of batch rows and heads
    batch = line // head_count
    head = tl.load(heads + line % head_count)
    row = program % blocks * ROWS + tl.arange(0, ROWS)
    inside = row < count
    position = tl.load(positions + batch * count + row, mask=inside, other=-1)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head // queries_per_key_head * key_head
    if MASK != "none":
        mask += batch * mask_batch + head * mask_head

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    rest = tl.zeros([ROWS], tl.float32)  # of the sum: what is no key
    if SINKS:
        maximum = tl.zeros([ROWS], tl.float32) + tl.load(sinks + head)
        rest += 1.0
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS], tl.float32)  # of the exponentials, with the logits less the maximum
    found = tl.full([ROWS], float("-inf"), tl.float32)
    seen = tl.zeros([ROWS], tl.int32)
    sought = position
    if RESULT == "probability":
        sought = tl.load(wanted + batch * count + row, mask=inside, other=-1)
    start, stop = _limits(position, keys, causal_offset, window, CAUSAL, WINDOW)
    for first in range(start, stop, COLUMNS):
        column = tl.cast(first, tl.int64) + tl.arange(0, COLUMNS)
        logits, visible = _logits(
            query,
            key,
            mask,
            position,
            column,
            keys,
            query_stride,
            query_step,
            key_stride,
            key_step,
            mask_stride,
            mask_step,
            scale,
            softcap,
            hidden_below,
            causal_offset,
            window,
            MASK,
            CAUSAL,
            WINDOW,
            SOFTCAP,
            SIZE,
            PIECE,
        )
        seen = tl.maximum(seen, tl.max(visible.to(tl.int32), axis=1))
        larger = tl.maximum(maximum, tl.max(logits, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        decay = tl.exp(maximum - shift)
        centred = logits - shift[:, None]
        exponentials = tl.exp(centred)
        if RESULT == "entropy":
            moved = tl.where(maximum == float("-inf"), 0.0, maximum - shift)
            terms = tl.where(logits == float("-inf"), 0.0, exponentials * centred)
            weighted = decay * (weighted + moved * total) + tl.sum(terms, axis=1)
        if RESULT == "probability":
            is_sought = visible & (column[None, :] == sought[:, None])
            found = tl.maximum(found, tl.max(tl.where(is_sought, logits, float("-inf")), axis=1))
        total = total * decay + tl.sum(exponentials, axis=1)
        rest = rest * decay
        maximum = larger

    sums = total + rest
    offset = line * count + row
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    inverse = tl.where(seen > 0, 1.0 / sums, 0.0)
    if RESULT == "softmax":
        tl.store(target + offset, tl.where(seen > 0, shift, 0.0), mask=inside)
        tl.store(inverses + offset, inverse, mask=inside)
    elif RESULT == "entropy":
        entropy = (tl.log(sums) * total - weighted) * inverse
        tl.store(target + offset, tl.where(seen > 0, entropy, 0.0), mask=inside)
    else:
        probability = tl.exp(found - shift) * inverse
        tl.store(target + offset, tl.where(seen > 0, probability, 0.0), mask=inside)


@triton.jit
def attention_tiles(
    query,
    key,
    mask,
    positions,
    heads,
    maxima,
    inverses,
    target,
    head_count,
    count,
    keys,
    queries_per_key_head,
    query_batch,
    query_head,
    query_stride,
    query_step,
    key_batch,
    key_head,
    key_stride,
    key_step,
    mask_batch,
    mask_head,
    mask_stride,
    mask_step,
    scale,
    softcap,
    hidden_below,
    causal_offset,
    window,
    RESULT: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIZE: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes scores or pattern, [B, head_count, count, keys], or mean or max over the heads, [B, count, keys], float32.

    RESULT says which. `maxima` and `inverses`, [B, head_count, count], are those of `attention_rows` with RESULT
    softmax (for the scores without sinks: a row with inverse 0 sees no key); the other parameters are its own, too. The
    grid is cdiv(keys, COLUMNS) * cdiv(count, ROWS) * B in one dimension, for scores and pattern times head_count.
    """
    program = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(keys, COLUMNS)
    row_blocks = tl.cdiv(count, ROWS)
    column = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    row = program // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    line = program // column_blocks // row_blocks
    EACH: tl.constexpr = RESULT == "scores" or RESULT == "pattern"  # head has a result of its own
    batch = line // head_count if EACH else line
    first_head = line % head_count if EACH else tl.zeros_like(line)
    inside = row < count
    position = tl.load(positions + batch * count + row, mask=inside, other=-1)
    start, stop = _limits(position, keys, causal_offset, window, CAUSAL, WINDOW)
    is_seen = (program % column_blocks * COLUMNS < stop) & (program % column_blocks * COLUMNS + COLUMNS > start)
    end_head = tl.where(is_seen | (RESULT == "scores"), first_head + 1 if EACH else head_count, first_head)

    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for number in range(first_head, end_head):
        head = tl.load(heads + number)
        from_mask = mask
        if MASK != "none":
            from_mask += batch * mask_batch + head * mask_head
        logits, _ = _logits(
            query + (batch * query_batch + head * query_head),
            key + (batch * key_batch + head // queries_per_key_head * key_head),
            from_mask,
            position,
            column,
            keys,
            query_stride,
            query_step,
            key_stride,
            key_step,
            mask_stride,
            mask_step,
            scale,
            softcap,
            hidden_below,
            causal_offset,
            window,
            MASK,
            CAUSAL,
            WINDOW,
            SOFTCAP,
            SIZE,
            PIECE,
        )
        offset = (batch * head_count + number) * count + row
        inverse = tl.load(inverses + offset, mask=inside, other=0.0)
        if RESULT == "scores":
            result = tl.where((inverse == 0.0)[:, None], 0.0, logits)
        else:
            maximum = tl.load(maxima + offset, mask=inside, other=0.0)
            pattern = tl.exp(logits - maximum[:, None]) * inverse[:, None]
            if RESULT == "max":
                result = tl.where((pattern > result) | (pattern != pattern), pattern, result)
            else:
                result += pattern
    if RESULT == "mean":
        result = result / tl.cast(head_count, tl.float32)
    to = target + (line * count + row)[:, None] * keys + column[None, :]
    tl.store(to, result, mask=inside[:, None] & (column < keys)[None, :])
