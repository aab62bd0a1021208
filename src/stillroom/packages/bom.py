"""A package's bill of materials as CycloneDX 1.7: model card, teachers, datasets, software.

The document is written directly: the CycloneDX library drops model cards and data when it writes. Tests validate it against the
schema that the library carries.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.bounded import least
from stillroom.core.extras import version_of
from stillroom.core.version import tool_version
from stillroom.verification.claims import weights_of

SOFTWARE = ("stillroom", "torch", "transformers", "tokenizers", "safetensors", "gguf", "xllamacpp", "numpy")
NAMESPACE = uuid.UUID("7d3d9a51-9e3b-5c55-8f6f-5c1d1ce0a9a1")


def bill_of_materials(
    *,
    name: str,
    sequence: int,
    released: str,
    folder: Path,
    summary: dict[str, Any],
    provenance: dict[str, Any],
    terms: dict[str, Any],
) -> dict[str, Any]:
    """The bill of materials; ``metadata.timestamp`` is the only thing in it that is dated."""
    definition = provenance["predicate"]["buildDefinition"]
    ancestors = definition["internalParameters"]["ancestors"]
    licences = {
        entry["digest"]["sha256"]: entry["annotations"].get("licence") for entry in definition["resolvedDependencies"]
    }
    teachers = [entry for entry in ancestors if entry["kind"] == "teacher"]
    datasets = [entry for entry in ancestors if entry["kind"] == "dataset"]
    student = summary["student"]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "version": str(sequence),
        "description": "Distilled from "
        + ", ".join(str(entry["name"]) for entry in summary.get("teachers") or [summary["teacher"]])
        + " by Stillroom.",
        "licenses": [{"license": {"name": licence["name"]}} for licence in terms["obligations"]["licences"]],
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": f"teacher-{entry['digest'][:16]}",
                    "name": entry["name"],
                    "hashes": [{"alg": "SHA-256", "content": entry["digest"]}],
                    **_licence(licences.get(entry["digest"])),
                    "properties": [{"name": "stillroom:generation", "value": str(entry["generation"])}],
                }
                for entry in teachers
            ]
        },
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "self-supervised"},
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": str(summary["teacher"].get("family")),
                "datasets": [{"ref": f"dataset-{entry['digest'][:16]}"} for entry in datasets],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(student)},
            "considerations": {
                "technicalLimitations": [
                    "A student knows less than its teacher; eval.json says by how much, and where it was measured."
                ],
                **_use(terms),
            },
        },
    }
    if not model["licenses"]:
        del model["licenses"]
    bom: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "timestamp": f"{released}T00:00:00Z",
            "tools": {"components": [{"type": "application", "name": "stillroom", "version": tool_version()}]},
            "component": model,
        },
        "components": [
            *(
                {
                    "type": "data",
                    "bom-ref": f"dataset-{entry['digest'][:16]}",
                    "name": entry["name"],
                    "hashes": [{"alg": "SHA-256", "content": entry["digest"]}],
                    **_licence(licences.get(entry["digest"])),
                    "data": [{"type": "dataset", "name": entry["name"]}],
                }
                for entry in datasets
            ),
            *(
                {
                    "type": "file",
                    "bom-ref": f"file-{file.relative_to(folder / 'weights').as_posix()}",
                    "name": file.relative_to(folder).as_posix(),
                    "hashes": [{"alg": "SHA-256", "content": files.digest_file(file)}],
                }
                for file in weights_of(folder)
            ),
            *(
                {
                    "type": "library",
                    "bom-ref": f"pkg:pypi/{package}@{version}",
                    "name": package,
                    "version": version,
                    "purl": f"pkg:pypi/{package}@{version}",
                }
                for package, version in _software()
            ),
        ],
        "dependencies": [{"ref": "model", "dependsOn": [f"dataset-{entry['digest'][:16]}" for entry in datasets]}],
    }
    undated = {**bom, "metadata": {**bom["metadata"], "timestamp": None}}
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, files.digest_json(undated))}"
    return bom


def _metrics(student: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name in sorted(student):
        value, interval = student[name], student.get(f"{name}_interval")
        if isinstance(value, int | float) and not isinstance(value, bool):
            kind = f"{name}, at least" if least(student, name) else name
            metric: dict[str, Any] = {"type": kind, "value": repr(value)}
            if isinstance(interval, list) and len(interval) == 2:
                metric["confidenceInterval"] = {"lowerBound": repr(interval[0]), "upperBound": repr(interval[1])}
            found.append(metric)
    return found


def _use(terms: dict[str, Any]) -> dict[str, Any]:
    policies = [policy["name"] for policy in terms["obligations"]["use_policies"]]
    return {"useCases": [f"Only within {name} (see LICENSES/)." for name in policies]} if policies else {}


def _licence(name: Any) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": str(name)}}]} if name else {}


def _software() -> list[tuple[str, str]]:
    versions = ((package, version_of(package)) for package in SOFTWARE)
    return [(package, version.replace("+", "%2B")) for package, version in versions if version is not None]
