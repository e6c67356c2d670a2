"""The fixed text of the report. That of a circuit analysis is the reference document's, trailing spaces
included.
"""

from __future__ import annotations

_RECORDS = """\
  "activations": {{
    "hook_id": [
      {{
        "hook_id": "unique identifier",
        "layer_name": "model layer path",
        "component": "component type",
        "shape": [dimensions],
        "dtype": "data type",
        "is_input": boolean
      }}
    ]
  }},
  "usage": {{
    "prompt_tokens": number,
    "completion_tokens": number,
    "total_tokens": number
  }},
  "hook_configurations": [
    {{
      "layer_name": "target layer",
      "component": "component type",
      "hook_id": "identifier",
      "capture_output": boolean
    }}
  ]
}}
```
"""

ANALYSIS_STRUCTURE = (
    """\
## File Structure

```json
{{
  "timestamp": "ISO 8601 timestamp of analysis",
  "demo_type": "circuit_analysis",
  "analysis_name": {name},
  "analysis_description": {description},
  "hooks_used": {hooks_used},
  "generated_text": "The text generated during this analysis",
"""
    + _RECORDS
)

CAPTURE_STRUCTURE = (
    """\
## File Structure

```json
{{
  "timestamp": "ISO 8601 timestamp of capture",
  "demo_type": "activation_capture",
  "total_hooks": {total_hooks},
  "generated_text": "The text generated during this capture",
"""
    + _RECORDS
)

ANALYSIS_NOTES = """
## NeuroScope Integration

This circuit analysis data provides:

1. **Multi-layer Analysis**: Activations from multiple transformer layers
2. **Component Isolation**: Separate data for attention, MLP, and other components\x20\x20
3. **Temporal Dynamics**: Activation sequences showing how information flows during generation
4. **Circuit Mapping**: Data to identify which layers/components are active for specific tasks

### Recommended Analysis Workflows

1. **Attention Pattern Analysis**: Examine attention layer activations to understand what the model is "looking at"
2. **Information Flow**: Track how information moves through residual connections
3. **Feature Detection**: Analyze MLP activations to identify what features are being computed
4. **Circuit Discovery**: Compare activations across different prompts to identify consistent patterns

### Data Processing Notes

- Each activation tensor represents one forward pass step
- Multiple activations per hook indicate multi-token generation
- Shape information is crucial for proper tensor manipulation
- Hook IDs provide traceability back to specific model components
"""

CAPTURE_NOTES = """
## NeuroScope Integration

This activation data provides:

1. **Hook ID**: The name under which a hook's activations stand here and in the shards
2. **Layer and Component**: The module that was captured, and what was taken there
3. **Shape**: The dimensions of each tensor, [batch, sequence, hidden] for most components
4. **Activations Count**: The number of forward passes that were captured

### Data Processing Notes

- Each activation tensor represents one forward pass step
- Multiple activations per hook indicate multi-token generation
- Shape information is crucial for proper tensor manipulation
- Hook IDs provide traceability back to specific model components
"""
