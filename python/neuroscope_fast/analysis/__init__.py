"""What the activations of a run say: each analysis takes a run, without the model unless it says otherwise, and gives a
typed result whose arrays are NumPy's; `.tables()` of it is for people, `encode` gives its JSON, `plots` draws it.

    import neuroscope_fast as nsf

    heads = nsf.analysis.attention(nsf.open("runs/demo"))
    heads.ranked("induction_score")[0].name                  # "11.3"

One page a workflow: docs/attention_patterns.md, information_flow.md, feature_detection.md, circuit_discovery.md.
"""

from __future__ import annotations

from .attention import AttentionPatterns, HeadScore, attention
from .attribution import Attribution, logit_attribution
from .circuit_comparison import Comparison
from .circuit_graph import CircuitGraph, circuit_graph
from .circuits import compare
from .feature_results import Features, LayerFeatures
from .features import detect_features
from .flow import Flow, information_flow
from .graph_files import save_graph
from .interventions import Patch, Site, patched, sites
from .logit_lens import LogitLens, logit_lens
from .patching import Ablation, Patching, ablate, activation_patching
from .results import encode
from .run_patching import patch_runs
from .sequences import MissingActivations, join, pattern, tokens
from .sparse_autoencoder import SparseAutoencoder, load_sparse_autoencoder
from .tables import Table

__all__ = [
    "Ablation",
    "AttentionPatterns",
    "Attribution",
    "CircuitGraph",
    "Comparison",
    "Features",
    "Flow",
    "HeadScore",
    "LayerFeatures",
    "LogitLens",
    "MissingActivations",
    "Patch",
    "Patching",
    "Site",
    "SparseAutoencoder",
    "Table",
    "ablate",
    "activation_patching",
    "attention",
    "circuit_graph",
    "compare",
    "detect_features",
    "encode",
    "information_flow",
    "join",
    "load_sparse_autoencoder",
    "logit_attribution",
    "logit_lens",
    "patch_runs",
    "patched",
    "pattern",
    "save_graph",
    "sites",
    "tokens",
]
