"""What a package says of itself, read from its checked copy, and the part of verification that evaluates it. Trusts the bytes.

Names, notices and licence files that the terms oblige must be there; scores must keep the bounds that the package itself sets;
the runtime must be new enough; the weights must be safe to open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from stillroom.core.errors import FloorMissed, TermsRefused, VerificationFailed
from stillroom.core.files import digest_bytes
from stillroom.verification.closed import Closed, parse, parse_json, read_bytes, validate
from stillroom.verification.documents import Policy
from stillroom.verification.lineage import Ancestor
from stillroom.verification.manifest import check_names

POLICY, TERMS, EVALUATION, EXPORT = "policy.json", "terms.json", "eval.json", "export.json"
PROVENANCE, BOM, NOTICE, CARD, LICENCES, TEMPLATE = (
    "provenance.json",
    "bom.cdx.json",
    "NOTICE",
    "README.md",
    "LICENSES",
    "template.jinja",
)
REQUIRED = (POLICY, TERMS, EVALUATION, EXPORT, PROVENANCE, BOM, CARD)


class Named(Closed):
    """A text that must travel with the model."""

    name: str
    text: str


class Obligations(Closed):
    """What the terms ask of the student."""

    name_prefix: str | None
    notices: tuple[str, ...]
    licences: tuple[Named, ...]
    use_policies: tuple[Named, ...]


class Bound(Closed):
    """A minimum or a maximum, and what was found."""

    name: str
    kind: Literal["floor", "ceiling"]
    bound: float
    value: float

    @property
    def met(self) -> bool:
        """Evaluated here again; no one's word is taken."""
        if not math.isfinite(self.value) or not math.isfinite(self.bound):
            return False
        return self.value >= self.bound if self.kind == "floor" else self.value <= self.bound


class Claims(Closed):
    """Everything that a package says of itself."""

    policy: Policy
    verdict: str
    reasons: tuple[str, ...]
    teachers: tuple[dict[str, Any], ...]
    table_version: str
    obligations: Obligations
    scores: dict[str, Any]
    bounds: tuple[Bound, ...]
    ancestors: tuple[Ancestor, ...]
    operations: dict[str, Any]

    def passport(self) -> dict[str, Any]:
        """The claims for a reader."""
        return {
            "released": self.policy.released.isoformat(),
            "teachers": [dict(teacher) for teacher in self.teachers],
            "ancestors": [ancestor.model_dump(mode="json") for ancestor in self.ancestors],
            "terms": {
                "verdict": self.verdict,
                "reasons": list(self.reasons),
                "table_version": self.table_version,
                "name_prefix": self.obligations.name_prefix,
                "notices": list(self.obligations.notices),
                "licences": [licence.name for licence in self.obligations.licences],
                "use_policies": [policy.name for policy in self.obligations.use_policies],
            },
            "scores": self.scores,
            "bounds": [bound.model_dump(mode="json") | {"met": bound.met} for bound in self.bounds],
            "policy": self.policy.model_dump(mode="json"),
            "operations": self.operations,
        }

    def require_all(self, folder: Path) -> Path:
        """Step 5 of verification; returns the GGUF file to run.

        Raises:
            VerificationFailed: Something obliged or needed is missing.
            TermsRefused: The recorded result forbids the model.
            FloorMissed: A score is beyond its bound.
            InspectionRefused: A file is not safe to open.
        """
        self._require_runtime()
        gguf = _require_safe(folder)
        self._require_terms(folder)
        for bound in self.bounds:
            if not bound.met:
                kind = "minimum" if bound.kind == "floor" else "maximum"
                raise FloorMissed(
                    f"{self.policy.name}: {bound.name} is {bound.value:.4g}, its {kind} {bound.bound:.4g}.",
                    "The publisher's own bound is missed; use another release.",
                )
        return gguf

    def _require_runtime(self) -> None:
        from stillroom.core.version import tool_version

        mine, least = tool_version(), self.policy.minimum_runtime
        if _version(mine) < _version(least):
            raise VerificationFailed(
                f"{self.policy.name} asks for Stillroom {least} or newer; this is {mine}.", "Upgrade Stillroom."
            )

    def _require_terms(self, folder: Path) -> None:
        name, obliged = self.policy.name, self.obligations
        if self.verdict not in ("allowed", "allowed_with_conditions"):
            raise TermsRefused(
                f"{name}: the terms recorded in the package say `{self.verdict}`: {'; '.join(self.reasons) or 'no reason'}.",
                "Its publisher may not have made it; use another model.",
            )
        from stillroom.verification.obligations import unmet

        notice, copies = folder / NOTICE, sorted((folder / LICENCES).glob("*.txt"))
        lacking = unmet(
            {"obligations": obliged.model_dump(mode="json")},
            name=name,
            notice=_text(notice) if notice.is_file() else "",
            texts={copy.name: _text(copy) for copy in copies},
        )
        if lacking:
            raise VerificationFailed(f"{name} lacks what its terms oblige: {'; '.join(lacking)}.", "Ask the publisher.")


def read_claims(folder: Path) -> Claims:
    """Read everything that a package says of itself.

    Raises:
        VerificationFailed: A document is missing or not what Stillroom would write.
    """
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise VerificationFailed(f"The package has no {name}.", "Get another package.")

    def document(name: str) -> dict[str, Any]:
        value = parse_json(read_bytes(folder / name), name)
        if not isinstance(value, dict):
            raise VerificationFailed(f"{name}: not what it should hold.", "Such a file is not Stillroom's.")
        return value

    terms, evaluation, provenance = document(TERMS), document(EVALUATION), document(PROVENANCE)
    document(BOM)
    document(EXPORT)
    definition = provenance.get("predicate", {})
    definition = definition.get("buildDefinition", {}) if isinstance(definition, dict) else {}
    internal = definition.get("internalParameters", {}) if isinstance(definition, dict) else {}
    if not isinstance(internal, dict):
        internal = {}
    bounds = evaluation.get("bounds")
    return validate(
        Claims,
        {
            "policy": parse(Policy, read_bytes(folder / POLICY), POLICY).model_dump(mode="json"),
            "verdict": terms.get("verdict"),
            "reasons": terms.get("reasons"),
            "teachers": terms.get("teachers"),
            "table_version": str(terms.get("table_version")),
            "obligations": terms.get("obligations"),
            "scores": evaluation.get("scores"),
            "bounds": [
                {key: entry.get(key) for key in ("name", "kind", "bound", "value")}
                if isinstance(entry, dict)
                else entry
                for entry in bounds
            ]
            if isinstance(bounds, list)
            else bounds,
            "ancestors": internal.get("ancestors"),
            "operations": internal.get("operations"),
        },
        "what the package says of itself",
    )


def licence_files(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The files of licence copies, one for each different text of a name.

    A digest of the text is added where several texts would have one file's name (also where only case tells them apart, as some
    systems do not), and where what is left of a name can be no file's name in a package.

    Args:
        named: Names of licences and use policies, and their texts.

    Returns:
        Texts by file name.
    """
    alike: dict[str, dict[str, str]] = {}
    for name, text in named:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100]
        alike.setdefault(stem.casefold(), {}).setdefault(text, stem)
    found = {}
    for texts in alike.values():
        for text, stem in texts.items():
            holds = _holds(f"{stem}.txt")
            digest = digest_bytes(text.encode())[:12]
            found[f"{stem}.txt" if holds and len(texts) == 1 else f"{stem if holds else 'licence'}-{digest}.txt"] = text
    return found


def _holds(name: str) -> bool:
    """Whether a package may hold a file of this name."""
    try:
        check_names([name])
    except VerificationFailed:
        return False
    return True


def weights_of(folder: Path) -> list[Path]:
    """Every file under a package's ``weights/``, sorted."""
    return sorted(file for file in (folder / "weights").rglob("*") if file.is_file())


def _require_safe(folder: Path) -> Path:
    """Every weights file is looked over; returns the smallest GGUF file."""
    from stillroom.inspection.inspect import require_safe

    found = sorted((folder / "weights").glob("*.gguf"), key=lambda file: (file.stat().st_size, file.name))
    if not found:
        raise VerificationFailed("The package has no weights/*.gguf.", "Get another package.")
    require_safe(folder / "weights")
    for file in found:
        require_safe(file)
    return found[0]


def _text(path: Path) -> str:
    return read_bytes(path).decode("utf-8", errors="replace")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:4])
