"""The runs whose metadata JSON and report stand in tests/golden, as structs.

`python tests/golden_runs.py` writes the golden files and the schemas of the package anew: read the difference
before committing it.
"""

from __future__ import annotations

import json
from pathlib import Path

from neuroscope_fast.keys import tensor_key
from neuroscope_fast.manifest import manifest_schema
from neuroscope_fast.records import (
    ActivationCapture,
    CircuitAnalysis,
    DataRef,
    Generation,
    HookConfiguration,
    Metadata,
    Record,
    Usage,
    encode_metadata,
    json_schema,
)
from neuroscope_fast.report import render

GOLDEN = Path(__file__).parent / "golden"
REFERENCE_JSON = GOLDEN / "reference" / "circuit_analysis_attention_patterns.json"
REFERENCE_DOCUMENT = GOLDEN / "reference" / "attention_patterns_format.md"
SCHEMAS = Path(__file__).parent.parent / "python" / "neuroscope_fast" / "schema"
BFLOAT16 = "activations-bfloat16-00000.safetensors"


def analysis() -> CircuitAnalysis:
    """Two attention hooks over a generation: a prefill of seven tokens and four decode steps, cast to
    bfloat16.
    """
    hooks = {
        "attention_layer_2": "model.layers.2.self_attn",
        "attention_layer_10": "model.layers.10.self_attn",
    }
    return CircuitAnalysis(
        timestamp="2026-01-02T03:04:05.678901",
        demo_type="circuit_analysis",
        analysis_name="attention_patterns",
        analysis_description="Analyze attention patterns across layers",
        hooks_used=2,
        generated_text="Recursion is when a function calls itself.",
        activations={
            hook_id: [
                Record(
                    hook_id=hook_id,
                    layer_name=layer,
                    component="attention",
                    shape=[1, 1 if step else 7, 64],
                    dtype="bfloat16",
                    is_input=False,
                    step=step,
                    source_dtype="float32",
                    data=DataRef(BFLOAT16, tensor_key(hook_id, step)),
                )
                for step in range(5)
            ]
            for hook_id, layer in hooks.items()
        },
        usage=Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12),
        hook_configurations=[
            HookConfiguration(layer_name=layer, component="attention", hook_id=hook_id, capture_output=True)
            for hook_id, layer in hooks.items()
        ],
    )


def capture() -> ActivationCapture:
    """A padded batch of two prompts, with every extension field in use somewhere."""
    usage = Usage(prompt_tokens=4, completion_tokens=1, total_tokens=5)
    texts = ["First *line*\n\n# no heading", "Zweite Zeile: 你好 🙂"]
    shared = {"hook_id": "mlp", "layer_name": "model.layers.0.mlp", "component": "mlp", "dtype": "int8"}
    records = [
        Record(
            **shared,
            shape=[2, 1, 16],
            is_input=is_input,
            step=step,
            prompt=prompt,
            call=step,
            positions=[[3], [1]] if step else [3],
            real_tokens=[[0, 1], []] if prompt else None,
            source_dtype="float32",
            scale=DataRef("activations-float32-00000.safetensors", key + "/scale"),
            data=DataRef("activations-int8-00000.safetensors", key),
        )
        for prompt in range(2)
        for step in range(2)
        for is_input in (True, False)
        for key in [tensor_key("mlp", step, prompt=prompt, call=step, is_input=is_input)]
    ]
    return ActivationCapture(
        timestamp="2026-01-02T03:04:05.678901",
        demo_type="activation_capture",
        total_hooks=3,
        generated_text="\n\n".join(texts),
        activations={
            "mlp": records,
            'tokens "in" memory': [Record('tokens "in" memory', "model.embed_tokens", "embedding", [], "int64", False)],
            "nothing": [],
        },
        usage=Usage(prompt_tokens=8, completion_tokens=2, total_tokens=10),
        hook_configurations=[
            HookConfiguration(
                layer_name="model.layers.0.mlp",
                component="mlp",
                hook_id="mlp",
                capture_output=True,
                capture_input=True,
                dtype="int8",
                positions=[-1],
                every=2,
            ),
            HookConfiguration("model.embed_tokens", "embedding", 'tokens "in" memory', True, positions="2:"),
            HookConfiguration("model.norm", "layernorm", "nothing", False, capture_input=True, phase="decode"),
        ],
        generations=[
            Generation(prompt=f"Prompt {number}", generated_text=text, usage=usage) for number, text in enumerate(texts)
        ],
    )


RUNS: dict[str, Metadata] = {
    "circuit_analysis_attention_patterns": analysis(),
    "activation_capture": capture(),
}


def main() -> None:
    for name, metadata in RUNS.items():
        data = encode_metadata(metadata)
        (GOLDEN / f"{name}.json").write_bytes(data)
        (GOLDEN / f"{name}_format.md").write_text(render(data), encoding="utf-8")
    SCHEMAS.mkdir(exist_ok=True)
    for name, schema in (("metadata", json_schema()), ("manifest", manifest_schema())):
        (SCHEMAS / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
