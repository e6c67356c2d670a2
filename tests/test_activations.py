"""The sequence of tensors that a hook captured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from neuroscope_fast.activations import Activations
from neuroscope_fast.errors import RunError
from neuroscope_fast.manifest import Manifest
from neuroscope_fast.reader import MemorySource, Run, open_run
from neuroscope_fast.records import ActivationCapture, Record, Usage
from run_writer import RunWriter


def steps(folder: Path, dtype: torch.dtype = torch.float32) -> Activations:
    writer = RunWriter(folder, ["h"])
    for step in range(5):
        length = 1 if step else 3
        writer.add("h", (torch.arange(length * 2.0) + 10 * step).reshape(1, length, 2).to(dtype), step=step)
    return open_run(writer.close())["h"]


def test_it_is_a_sequence(tmp_path: Path) -> None:
    captured = steps(tmp_path)
    assert len(captured) == 5
    assert captured[-1].tolist() == [[[40.0, 41.0]]]
    assert captured[np.int64(1)].tolist() == [[[10.0, 11.0]]]
    assert [tensor.shape[1] for tensor in captured] == [3, 1, 1, 1, 1]
    assert isinstance(captured[1:], Activations)
    assert [record.step for record in captured[1::2].records] == [1, 3]
    assert captured[1:].stack().shape == (4, 1, 1, 2)
    with pytest.raises(IndexError):
        captured[5]
    assert repr(captured) == "<Activations h: 5 tensors, [1, 3, 2] (first), [1, 1, 2] × 4, float32>"


def test_no_copy_is_made(tmp_path: Path) -> None:
    captured = steps(tmp_path)
    assert captured[0].data_ptr() == captured[0].data_ptr()
    assert captured[1].data_ptr() == captured[0].data_ptr() + 24


def test_stack_and_cat(tmp_path: Path) -> None:
    captured = steps(tmp_path)
    joined = captured.cat()
    assert joined.shape == (1, 7, 2)
    assert joined[0, :, 0].tolist() == [0.0, 2.0, 4.0, 10.0, 20.0, 30.0, 40.0]
    with pytest.raises(RunError, match=r"shapes differ \(\[1, 3, 2\] \(first\), \[1, 1, 2\] × 4\)"):
        captured.stack()
    with pytest.raises(RunError, match="cannot be joined along axis 0"):
        captured.cat(0)
    with pytest.raises(RunError, match="cannot be joined along axis 9"):
        captured.cat(9)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.bfloat16, np.float32),
        (torch.float8_e4m3fn, np.float32),
        (torch.float8_e5m2, np.float32),
        (torch.int16, np.int16),
    ],
)
def test_numpy(dtype: torch.dtype, expected: type, tmp_path: Path) -> None:
    array = steps(tmp_path, dtype).numpy()
    assert array.dtype == expected
    assert array.shape == (1, 7, 2)
    assert array[0, 1, 1] == 3


def test_where(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    for prompt in range(2):
        for step in range(3):
            for call in range(2):
                writer.add(
                    "h",
                    torch.full((1, 1, 1), 100.0 * prompt + 10 * step + call),
                    prompt=prompt,
                    step=step,
                    call=call,
                )
    captured = open_run(writer.close())["h"]
    with pytest.raises(RunError, match=r"h has tensors of 2 prompts: choose one with \.where\(prompt=0\)"):
        captured.cat()
    with pytest.raises(RunError, match=r"h has tensors of 2 calls: choose one with \.where\(call=0\)"):
        captured.where(prompt=1).cat()
    assert captured.where(prompt=1, call=1).cat().flatten().tolist() == [101.0, 111.0, 121.0]
    assert captured.where(prompt=1).where(call=0, step=2)[0].item() == 120.0
    assert [record.step for record in captured.where(prompt=0, call=0, step=slice(1, None)).records] == [1, 2]
    assert [record.step for record in captured.where(prompt=0, call=0, step={0, 2}).records] == [0, 2]
    assert len(captured.where(step=range(1))) == 4
    assert len(captured.where(step=7)) == 0
    with pytest.raises(ValueError, match="cannot be negative"):
        captured.where(step=slice(-1, None))


def test_sides(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["both", "in"])
    for step in range(2):
        writer.add("both", torch.zeros(1, 1, 1), step=step, is_input=True)
        writer.add("both", torch.ones(1, 1, 1), step=step)
        writer.add("in", torch.zeros(1, 1, 1), step=step, is_input=True)
    run = open_run(writer.close())
    assert run["both"].cat().tolist() == run["both"].outputs.cat().tolist() == [[[1.0], [1.0]]]
    assert run["both"].inputs.cat().tolist() == [[[0.0], [0.0]]]
    assert run["both"].where(step=1).inputs[0].item() == 0.0
    assert len(run["in"]) == len(run["in"].inputs) == 2
    assert len(run["in"].outputs) == 0
    assert len(run.records) == 6


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (4,), (), (0, 4), (2, 0)])
def test_int8_comes_back_as_values(shape: tuple[int, ...], tmp_path: Path) -> None:
    stored = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale = torch.rand(shape[:-1])
    writer = RunWriter(tmp_path, ["h"])
    writer.add("h", stored, source="float32", scale=scale)
    captured = open_run(writer.close())["h"]
    values = captured[0]
    assert values.dtype == torch.float32
    assert values.shape == shape
    factors = scale.reshape(*shape[:-1], 1) if shape else scale
    assert torch.equal(values, stored.to(torch.float32) * factors)
    raw, raw_scale = captured.raw(0)
    assert torch.equal(raw, stored)
    assert raw_scale is not None
    assert torch.equal(raw_scale, scale)


def test_int8_without_scales_is_integers(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    writer.add("h", torch.tensor([1, -2], dtype=torch.int8))
    captured = open_run(writer.close())["h"]
    assert captured[0].dtype == torch.int8
    assert captured.raw(0)[1] is None


def test_a_row_that_was_not_finite_reads_as_nan(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    scale = torch.tensor([0.5, float("nan")])
    writer.add("h", torch.tensor([[1, 2], [0, 0]], dtype=torch.int8), source="float16", scale=scale)
    values = open_run(writer.close())["h"][0]
    assert values[0].tolist() == [0.5, 1.0]
    assert values[1].isnan().all()


def test_scales_of_another_shape_are_an_error(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["h"])
    writer.add("h", torch.ones(2, 4, dtype=torch.int8), source="float32", scale=torch.ones(4))
    with pytest.raises(RunError, match="no scale for an int8 tensor"):
        open_run(writer.close())["h"][0]


def test_scalars_and_vectors(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, ["scalar", "vector"])
    for step in range(2):
        writer.add("scalar", torch.tensor(float(step)), step=step)
        writer.add("vector", torch.full((3,), float(step)), step=step)
    run = open_run(writer.close())
    assert run["scalar"].stack().tolist() == [0.0, 1.0]
    with pytest.raises(RunError, match="no sequence axis"):
        run["scalar"].cat()
    assert run["vector"].cat().tolist() == [0.0] * 3 + [1.0] * 3


def test_a_run_in_memory_has_the_same_face() -> None:
    tensors = {
        "a/000000": torch.zeros(1, 3, 2),
        "a/000001": torch.ones(1, 1, 2),
        "b/p1/c2/000000/input": torch.ones(2, 2, dtype=torch.int8),
        "b/p1/c2/000000/input/scale": torch.full((2,), 0.5),
    }
    records = {
        "a": [
            Record("a", "layers.0", "residual", [1, 1 if step else 3, 2], "float32", False, step=step)
            for step in range(2)
        ],
        "b": [Record("b", "layers.1", "mlp", [2, 2], "int8", True, prompt=1, call=2, source_dtype="float32")],
    }
    metadata = ActivationCapture(
        timestamp="2026-01-02T03:04:05",
        demo_type="activation_capture",
        total_hooks=2,
        generated_text="",
        activations=records,
        usage=Usage(),
        hook_configurations=[],
    )
    manifest = Manifest(status="complete", created="2026-01-02T03:04:05", metadata_file="activation_capture.json")
    run = Run(metadata, manifest, MemorySource(tensors))
    assert run.path is None
    assert repr(run) == "<Run in memory: 2 hooks, complete>"
    assert run["a"][0] is tensors["a/000000"]
    assert run["a"].cat().shape == (1, 4, 2)
    assert run["b"][0].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert run.metadata == metadata
    assert run.verify() == []
    del tensors["a/000001"]
    with pytest.raises(RunError, match="holds no tensor 'a/000001' in memory"):
        run["a"][1]


def test_sequences_of_several_prompts_are_not_joined_as_one() -> None:
    """Two generations in one block without next_prompt(): the steps count on, and the positions start over."""
    import architectures
    import neuroscope_fast as nsf

    model = architectures.shared("llama")
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with nsf.capture(model, ["model.layers.0:residual:r", "model.layers.0:mlp:m"]) as cap:
        for length in (4, 6):
            model.generate(**architectures.inputs("llama", length=length), **options)
    for hook_id in ("r", "m"):
        with pytest.raises(RunError, match=r"positions start over at step 3. Call next_prompt\(\) before each prompt"):
            cap.result[hook_id].cat()
    assert cap.result["r"].where(step=range(3)).cat().shape[1] == 4 + 2
    assert cap.result["r"].where(step=range(3, 6)).cat().shape[1] == 6 + 2
    # Without positions nothing is known of a sequence.
    linear = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with nsf.capture(linear, "0:mlp:x") as cap:
        for _ in range(3):
            linear(torch.zeros(1, 4, 2))
    assert cap.result["x"].cat().shape == (1, 12, 2)


def test_positions_that_start_over_before_one_that_is_unknown() -> None:
    places = [None, [3], None, []]  # 0, 3, 0 again, and after a cache that does not count
    records = [
        Record(
            hook_id="h",
            layer_name="l",
            component="mlp",
            shape=[1, 1, 2],
            dtype="float32",
            is_input=False,
            step=step,
            positions=positions,
        )
        for step, positions in enumerate(places)
    ]
    with pytest.raises(RunError, match="positions start over at step 2"):
        Activations("h", records, MemorySource({})).cat()
