"""Where a run's student came from, as an in-toto statement in the shape of SLSA.

The ancestors of a teacher that is itself a Stillroom package, or that is in another run's folder, are inherited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillroom.core import files
from stillroom.core.errors import RunError
from stillroom.core.version import tool_version
from stillroom.recipe.routes import OWN
from stillroom.recipe.teacher import Teacher as TeacherConfig
from stillroom.recipe.teacher import is_private_host
from stillroom.runs.run import Run
from stillroom.runs.stages import TEACHERS
from stillroom.verification.claims import weights_of
from stillroom.verification.lineage import Ancestor, inherit

BUILD_TYPE = "urn:stillroom:run:1"
PREDICATE = "https://slsa.dev/provenance/v1"
PRIVATE_ENDINGS = (".internal", ".local", ".lan", ".home.arpa", ".intranet", ".corp", ".private", ".test", ".example")
"""Endings of names that only a private network answers for."""
SECRET = ("token", "secret", "password", "api_key", "authorization")


def statement(run: Run, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The in-toto statement of a finished run, over the weights that are in a package's folder."""
    records = {name: run.stage(name).record for name in summary["stages"]}
    finished = [record["finished"] for record in records.values() if record]
    begun = run.events()
    started = min((event["time"] for event in begun), default=None)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": file.relative_to(folder).as_posix(), "digest": {"sha256": files.digest_file(file)}}
            for file in weights_of(folder)
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": public_recipe(run), "seed": run.recipe.public_seed},
                "internalParameters": {
                    "recipe_digest": run.recipe_digest,
                    "ancestors": [ancestor.model_dump(mode="json") for ancestor in ancestors(run)],
                    "operations": operations(run, summary),
                    "randomness": run.randomness_record(),
                    **({"lora": lora} if (lora := _lora(summary)) is not None else {}),
                    **({"rounds": own} if (own := _rounds(summary)) is not None else {}),
                },
                "resolvedDependencies": dependencies(run, summary),
            },
            "runDetails": {
                "builder": {"id": "urn:stillroom", "version": {"stillroom": tool_version()}},
                "metadata": {
                    "invocationId": run.recipe_digest,
                    **({"startedOn": _time(started)} if started is not None else {}),
                    **({"finishedOn": max(finished)} if finished else {}),
                },
                "byproducts": [
                    {
                        "name": f"stage/{name}",
                        "digest": {"sha256": run.stage(name).output_digest},
                        "annotations": {"seed": record["seed"], "seconds": record["seconds"]},
                    }
                    for name, record in records.items()
                    if record
                ],
            },
        },
    }


def dependencies(run: Run, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that went in: teacher, tokenizer and datasets, each with its digest."""
    teachers, originals = _teachers(run), _originals(run)
    teacher = teachers[0]
    found = [
        {
            "name": f"teacher/{teacher['name']}",
            "digest": {"sha256": teacher["digest"]},
            "annotations": {"licence": teacher.get("licence"), "family": summary["teacher"].get("family")}
            | _quantization(teacher, originals),
        },
        *(
            {
                "name": f"teacher/{other['name']}",
                "digest": {"sha256": other["digest"]},
                "annotations": {"licence": other.get("licence"), "family": other.get("family")}
                | _quantization(other, originals),
            }
            for other in teachers[1:]
        ),
        *(
            {
                "name": f"original/{kl['original']['name']}",
                "digest": {"sha256": kl["original"]["digest"]},
                "annotations": {"licence": kl["original"].get("licence"), "original_of": called},
            }
            for called, kl in originals.items()
        ),
    ]
    if teacher.get("tokenizer_digest"):
        found.append({"name": "tokenizer", "digest": {"sha256": teacher["tokenizer_digest"]}, "annotations": {}})
    for source in _ledger(run)["sources"]:
        found.append(
            {
                "name": f"dataset/{Path(source['name']).name}",
                "digest": {"sha256": source["digest"]},
                "annotations": {"licence": source.get("licence"), "documents": source.get("documents")},
            }
        )
    return found


def ancestors(run: Run) -> tuple[Ancestor, ...]:
    """What the student of a run learnt from, through any number of generations."""
    direct: list[Ancestor] = []
    inherited: list[tuple[Ancestor, ...]] = []
    originals = _originals(run)
    for teacher in _teachers(run):
        called = teacher.get("called", OWN)
        mine, before = _ancestor(run, run.recipe.every_teacher[called], teacher)
        direct.append(mine)
        inherited.append(before)
        if called in originals and called in run.recipe.originals:
            # What the teacher was quantized from is to it what a teacher is to its student.
            first, further = _ancestor(run, run.recipe.originals[called], originals[called]["original"])
            inherited.append(inherit([first], [further]))
    direct += [
        Ancestor(kind="dataset", name=Path(source["name"]).name[:500], digest=source["digest"], generation=1)
        for source in _ledger(run)["sources"]
    ]
    return inherit(direct, inherited)


def _ancestor(run: Run, config: TeacherConfig, record: dict[str, Any]) -> tuple[Ancestor, tuple[Ancestor, ...]]:
    """A model that was opened, as an ancestor, and its own ancestors where they are known.

    Args:
        run: The run that opened it.
        config: Its section of the recipe.
        record: Its ``name`` and ``digest``.
    """
    aliases, before = _origin(run, config) or ((), ())
    mine = Ancestor(
        kind="teacher",
        name=str(record["name"])[:500],
        digest=record["digest"],
        aliases=tuple(sorted(set(aliases) - {record["digest"]})),
        generation=1,
    )
    return mine, before


def operations(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """Arithmetic operations of the run, estimated as 2 a parameter and token forward and 6 for training.

    A parameter that training left as it was takes 4 (LoRA): it has no gradient.
    """
    tokens = summary["tokens"]
    teacher, student = summary["teacher"]["parameters"], summary["student"]["parameters"]
    steps = [int(event["tokens"]) for event in run.events("distill") if "step" in event and "tokens" in event]
    seen = max(steps, default=int(tokens.get("train", 0)))
    # Of several teachers at most all read all of it.
    teacher += sum(int(other.get("parameters") or 0) for other in _teachers(run)[1:])
    lora = _lora(summary)
    training = 6 * student * seen if lora is None else (4 * student + 6 * lora["trained_parameters"]) * seen
    estimate = "6 x parameters x tokens for training" + ("" if lora is None else " (4 for frozen ones)")
    own = _rounds(summary) or {}
    read = tokens.get("train", 0) + tokens.get("validation", 0) + own.get("scored_tokens", 0)
    capture = 2 * teacher * read
    training += 2 * student * own.get("written_tokens", 0)
    estimate += ", 2 x parameters x tokens that the student wrote" if own else ""
    return {
        "student_training": training,
        "teacher_inference": capture,
        "total": training + capture,
        "teacher_training": None,
        "estimate": f"{estimate}, 2 x parameters x tokens for the teacher's signal",
        "training_tokens": seen,
    }


def _lora(summary: dict[str, Any]) -> dict[str, Any] | None:
    """What the summary says of the adapters that were trained; None where the weights themselves were."""
    found: dict[str, Any] | None = summary.get("training", {}).get("distill", {}).get("lora")
    return found


def _rounds(summary: dict[str, Any]) -> dict[str, Any] | None:
    """What the summary says of text that the student wrote while it was trained; None where it wrote none."""
    found: dict[str, Any] | None = summary.get("training", {}).get("distill", {}).get("rounds")
    if found is None:
        return None
    kept = (
        "count",
        "own_share",
        "texts",
        "written_tokens",
        "scored_tokens",
        "learned",
        "learned_own_share",
        "left_out",
    )
    return {key: found[key] for key in kept}


def public_recipe(run: Run) -> dict[str, Any]:
    """The resolved recipe without what belongs to one machine or network: folders of paths, anything that looks like a secret,
    and where an endpoint is. Of a service's address its host is kept, of one on a private network nothing.
    """

    def clean(value: Any, key: str = "") -> Any:
        if key == "base_url" and isinstance(value, str):
            return public_address(value)
        if key != "tokenizer" and any(word in key.lower() for word in SECRET) and isinstance(value, str):
            return "(left out)"
        if isinstance(value, dict):
            return {name: clean(item, name) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, key) for item in value]
        if isinstance(value, str) and (value.startswith(("/", "~")) or Path(value).is_absolute()):
            return Path(value).name
        return value

    cleaned: dict[str, Any] = clean(run.recipe.model_dump(mode="json"))
    return cleaned


def public_address(base_url: str) -> str:
    """What may be published of an endpoint's address: the host of a service; nothing of this machine's or a private network's.

    A name without a dot, and the endings that are reserved for private networks, are such, too.
    """
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    private = is_private_host(host) or ("." not in host and ":" not in host) or host.endswith(PRIVATE_ENDINGS)
    return "(left out: on this machine or a private network)" if private else f"https://{host}"


def student_digests(run: Run) -> list[str]:
    """Every digest by which a later generation may know this run's student as its teacher."""
    weights = sorted((run.stage("distill").path / "model").glob("*.safetensors"))
    record = run.stage("export").path / "export.json"
    exported = files.read_json(record)["files"] if record.is_file() else []
    whole = files.digest_json({file.name: files.digest_file(file) for file in weights})
    return [whole, *(entry["sha256"] for entry in exported)]


def _origin(run: Run, teacher: TeacherConfig) -> tuple[tuple[str, ...], tuple[Ancestor, ...]] | None:
    """Other digests of a teacher, and its own ancestors, where it is a package's or a run's student."""
    place = getattr(teacher, "path", None) or getattr(teacher, "name", None)
    if not isinstance(place, str) or not Path(place).exists():
        return None
    for parent in (Path(place).absolute(), *Path(place).absolute().parents):
        if (parent / "provenance.json").is_file() and (parent / "policy.json").is_file():
            from stillroom.verification.claims import read_claims
            from stillroom.verification.manifest import make_manifest

            claims = read_claims(parent)
            manifest = make_manifest(parent, claims.policy.name, claims.policy.sequence)
            weights = [file.sha256 for file in manifest.files if file.name.startswith("weights/")]
            named = _student_of(parent)
            return (manifest.root, *weights, *named), claims.ancestors
        if (parent / "recipe.yaml").is_file() and (parent / "summary.json").is_file() and parent != run.path.absolute():
            other = Run.open(parent)
            return tuple(student_digests(other)), ancestors(other)
    return None


def _student_of(package: Path) -> list[str]:
    """The digests of a packaged student before packing, as its own export-control fact sheet names them."""
    return [str(digest) for digest in files.read_json(package / "export.json").get("student_digests", ())]


def _teachers(run: Run) -> list[dict[str, Any]]:
    """Every teacher, the recipe's own first."""
    path = run.stage("capture").path / "teacher.json"
    if not path.is_file():
        raise RunError(f"{run.path}: the run has no captured teacher.", "Finish it: stillroom run RECIPE.")
    several = path.with_name(TEACHERS)
    teachers: list[dict[str, Any]] = files.read_json(several) if several.is_file() else [files.read_json(path)]
    return teachers


def _originals(run: Run) -> dict[str, dict[str, Any]]:
    """The KL of quantized teachers to their originals, by the teacher's name; where it was measured."""
    path = run.stage("evaluate").path / "evaluation.json"
    found: dict[str, dict[str, Any]] = files.read_json(path).get("kl_to_original", {}) if path.is_file() else {}
    return found


def _quantization(teacher: dict[str, Any], originals: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How a teacher's weights are stored where they are quantized: it is another model than the one it was made of. And how far
    it is from that one, where that was measured.
    """
    if "quantization" not in teacher:
        return {}
    found: dict[str, Any] = {"quantization": str(teacher["quantization"])}
    kl = originals.get(teacher.get("called", OWN))
    return (
        found if kl is None else found | {"kl_to_original": {key: kl[key] for key in ("value", "interval", "tokens")}}
    )


def _ledger(run: Run) -> dict[str, Any]:
    ledger: dict[str, Any] = files.read_json(run.stage("corpus").path / "ledger.json")
    return ledger


def _time(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
