"""Stillroom's own bill of materials as CycloneDX 1.7: what it needs to run, serve and verify, at the versions that are locked.

    .venv/bin/python -m tools.sbom [--out build/stillroom.cdx.json]

The graph comes from the installed packages' metadata, versions from constraints.txt, digests from requirements-dev.lock. The
same environment gives the same bytes. Other extras than ``serve`` and ``trust`` are not in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tools.lock import DEV_LOCK, ROOT, name_of, read_constraints, read_lock

NAMESPACE = uuid.UUID("1b671a64-40d5-491e-99b0-da01ff1f3341")
EXTRAS = ("serve", "trust")


def graph(root: str = "stillroom") -> dict[str, list[str]]:
    """What each package needs, from a root on, without extras that nobody asks for."""
    found: dict[str, list[str]] = {}
    queue = [(root, frozenset[str]())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        needs = found.setdefault(name, [])
        for line in _own_needs() if name == root else metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not any(
                requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})
            ):
                continue
            need = name_of(requirement.name)
            if need not in needs:
                needs.append(need)
            queue.append((need, frozenset(requirement.extras)))
    return {name: sorted(needs) for name, needs in sorted(found.items())}


def _own_needs() -> list[str]:
    """The base and :data:`EXTRAS`, from the checkout: what is installed may be older."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        project = tomllib.load(stream)["project"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]


def bill() -> dict[str, Any]:
    """The bill of materials."""
    needs = graph()
    wanted, locked = read_constraints(), read_lock(DEV_LOCK)
    components = []
    references = {}
    for name in needs:
        installed = metadata.distribution(name)
        version = installed.version.partition("+")[0]
        if name != "stillroom" and wanted.get(name) != version:
            sys.exit(f"{name}: {version} is installed, constraints.txt says {wanted.get(name)}. Run `make` again.")
        references[name] = f"pkg:pypi/{name}@{version}"
        component: dict[str, Any] = {
            "type": "application" if name == "stillroom" else "library",
            "bom-ref": references[name],
            "name": name,
            "version": version,
            "purl": references[name],
        }
        facts = installed.metadata
        stated = [facts[key] for key in ("License-Expression", "License") if key in facts]
        licence = next(filter(None, stated), None)
        if licence:
            component["licenses"] = [{"license": {"name": licence.strip().splitlines()[0][:200]}}]
        if name in locked:
            component["hashes"] = [{"alg": "SHA-256", "content": locked[name][1]}]
        components.append(component)
    own = next(component for component in components if component["name"] == "stillroom")
    bom: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {"component": own},
        "components": [component for component in components if component is not own],
        "dependencies": [
            {"ref": references[name], "dependsOn": [references[need] for need in of if need in references]}
            for name, of in needs.items()
        ],
    }
    digest = hashlib.sha256(json.dumps(bom, sort_keys=True).encode()).hexdigest()
    return {**bom, "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}"}


def main() -> None:
    """Write the bill of materials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "stillroom.cdx.json")
    out = parser.parse_args().out
    made = bill()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: {len(made['components'])} packages")


if __name__ == "__main__":
    main()
