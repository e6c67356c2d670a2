"""A circuit graph as a file: node-link JSON (d3, networkx) or GraphML (networkx, Gephi, Cytoscape)."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec

from ..errors import OptionError, RunError
from ..manifest import replace_file
from .circuit_graph import CircuitGraph, Node
from .results import encode

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPES = {str: "string", int: "long", float: "double", bool: "boolean"}
_NODE_FIELDS: dict[str, type] = {
    "kind": str,
    "layer": int,
    "head": int,
    "written": float,
    "to_output": float,
    "significant": bool,
}
_LINK_FIELDS: dict[str, type] = {"share": float, "cosine": float, "weight": float}


def node_link_json(graph: CircuitGraph) -> bytes:
    """`{"directed": true, "multigraph": false, "graph": {…}, "nodes": [{"id", …}], "links": [{"source", "target", …}]}`

    As `networkx.node_link_graph(data, edges="links")` and d3's force layout read it. `weight` is |share|.
    """
    return encode(
        _NodeLink(
            directed=True,
            multigraph=False,
            graph={"note": graph.note, "least_share": graph.least_share},
            nodes=graph.nodes,
            links=[{**msgspec.structs.asdict(link), "weight": abs(link.share)} for link in graph.links],
        )
    )


class _NodeLink(msgspec.Struct):
    directed: bool
    multigraph: bool
    graph: dict[str, Any]
    nodes: list[Node]
    links: list[dict[str, Any]]


def graphml(graph: CircuitGraph) -> bytes:
    """GraphML (http://graphml.graphdrawing.org), UTF-8. A node without a layer or a head has no such entry."""
    ET.register_namespace("", _NAMESPACE)
    root = ET.Element(f"{{{_NAMESPACE}}}graphml")
    for of, fields in (("node", _NODE_FIELDS), ("edge", _LINK_FIELDS)):
        for name, kind in fields.items():
            key = {"id": f"{of}_{name}", "for": of, "attr.name": name, "attr.type": _TYPES[kind]}
            ET.SubElement(root, f"{{{_NAMESPACE}}}key", key)
    body = ET.SubElement(root, f"{{{_NAMESPACE}}}graph", {"id": "circuit", "edgedefault": "directed"})
    for node in graph.nodes:
        element = ET.SubElement(body, f"{{{_NAMESPACE}}}node", {"id": _clean(node.id)})
        _data(element, "node", {name: getattr(node, name) for name in _NODE_FIELDS})
    for link in graph.links:
        ends = {"source": _clean(link.source), "target": _clean(link.target)}
        element = ET.SubElement(body, f"{{{_NAMESPACE}}}edge", ends)
        _data(element, "edge", {"share": link.share, "cosine": link.cosine, "weight": abs(link.share)})
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def save_graph(graph: CircuitGraph, path: str | os.PathLike[str]) -> None:
    """Writes `.json` or `.graphml`. Raises OptionError for another suffix, RunError where it cannot be written."""
    target = Path(path)
    writers = {".json": node_link_json, ".graphml": graphml}
    if target.suffix.lower() not in writers:
        raise OptionError(f"{target} cannot be written: a graph is .json or .graphml, by the end of its name")
    try:
        replace_file(target, writers[target.suffix.lower()](graph))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error


def _data(element: ET.Element, of: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else value
            ET.SubElement(element, f"{{{_NAMESPACE}}}data", {"key": f"{of}_{name}"}).text = _clean(str(text))


def _clean(text: str) -> str:
    """Without what XML 1.0 cannot hold at all."""
    return _NOT_XML.sub("\ufffd", text)
