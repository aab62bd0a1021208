"""Answers under schemas, real ones and random ones: every one is checked by another library against its own schema.

Schemas of zod, pydantic, the Berkeley leaderboard and JSON Schema's own test suite (`benchmarks.schema_sources`) are compiled
one and all; what compiles is answered. Besides, there are random schemas, hand-written ones with recursion, references and
patterns, and the tools of the Berkeley Function Calling Leaderboard where the package ``bfcl-eval`` can be had; tools of our
own stand in otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks import report, schema_sources
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving

_WRITTEN = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))
HAND_WRITTEN: list[dict[str, Any]] = _WRITTEN["schemas"]
OWN_TOOLS: list[dict[str, Any]] = _WRITTEN["tools"]


def random_schema(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema of any kind that has values."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum"] + (
        ["object", "array", "anyOf"] * 2 if depth else []
    )
    kind = draw.choice(kinds)
    if kind == "string":
        least = draw.randint(0, 6)
        return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 20)}
    if kind in ("integer", "number"):
        low = draw.randint(-5000, 5000)
        limits = [{}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + draw.randint(0, 3000)}]
        return {"type": kind, **draw.choice(limits)}
    if kind == "enum":
        return {"enum": [draw.choice([name(draw), draw.randint(-9, 9), None, True, [1, "a"]]) for _ in range(3)]}
    if kind == "array":
        least = draw.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(draw, depth - 1),
            "minItems": least,
            "maxItems": least + draw.randint(0, 3),
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind == "object":
        names = list({name(draw) for _ in range(draw.randint(1, 5))})
        required = [each for each in names if draw.random() < 0.6]
        closed: dict[str, Any] = draw.choice([{}, {"additionalProperties": False}])
        return {
            "type": "object",
            "properties": {each: random_schema(draw, depth - 1) for each in names},
            "required": required,
            **closed,
        }
    return {"type": kind}


def name(draw: random.Random) -> str:
    """A property's name, now and then a difficult one."""
    letters = string.ascii_letters + draw.choice(["", "", " -_.", '"\\/', "éß漢"])
    return "".join(draw.choice(letters) for _ in range(draw.randint(1, 8)))


def bfcl_tools() -> tuple[list[dict[str, Any]], str]:
    """The functions of the Berkeley leaderboard, and where they come from."""
    try:
        return schema_sources.bfcl_functions(), "bfcl-eval"
    except (subprocess.SubprocessError, OSError) as error:
        return OWN_TOOLS, f"own tools (bfcl-eval cannot be had here: {schema_sources.why(error)})"


_TYPES = {
    "dict": "object", "HashMap": "object", "Hashtable": "object", "float": "number", "double": "number", "bool": "boolean",
    "tuple": "array", "list": "array", "ArrayList": "array", "Array": "array", "Queue": "array", "Stack": "array",
    "byte": "integer", "short": "integer", "long": "integer", "Bigint": "integer", "char": "string", "String": "string",
    "any": "string", "Any": "string",
}  # fmt: skip
"""The leaderboard's types in the words of JSON schema: its own table, by which it sends them to models."""


def as_json_schema(schema: Any) -> Any:
    """A schema of the leaderboard in the words of JSON schema."""
    if isinstance(schema, list):
        return [as_json_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value for key, value in schema.items() if key not in ("default", "optional")}
    if isinstance(made.get("type"), str):
        made["type"] = _TYPES.get(made["type"], made["type"])
    if isinstance(made.get("properties"), dict):
        made["properties"] = {name: as_json_schema(inner) for name, inner in made["properties"].items()}
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf"):
        if key in made:
            made[key] = as_json_schema(made[key])
    return made


def trials_of(count: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Requests, half of them for answers under a schema and half for calls of tools."""
    draw = random.Random(seed)
    functions, origin = bfcl_tools()
    made: list[dict[str, Any]] = []
    for number in range(count):
        if number % 2 == 0:
            schema = draw.choice(HAND_WRITTEN) if draw.random() < 0.2 else random_schema(draw)
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            made.append({"response_format": form, "schema": schema})
        else:
            chosen = {function["name"]: function for function in draw.sample(functions, min(3, len(functions)))}
            tools: list[dict[str, Any]] = [
                {
                    "type": "function",
                    "function": {
                        "name": "".join(c if c.isalnum() or c in "_-" else "_" for c in each)[:64],
                        "description": str(function.get("description", ""))[:120],
                        "parameters": as_json_schema(function.get("parameters") or {"type": "object"}),
                    },
                }
                for each, function in chosen.items()
            ]
            unique = {tool["function"]["name"]: tool for tool in tools}
            made.append(
                {
                    "tools": list(unique.values()),
                    "tool_choice": "required",
                    "parallel_tool_calls": draw.random() < 0.2,
                }
            )
    return made, origin


def _multiple(validator: Any, step: Any, instance: Any, _schema: Any) -> Iterator[Exception]:
    """Of decimal numbers, as the specification has it: 675.597 is a multiple of 0.0001, which floats say it is not."""
    import jsonschema

    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(step)):
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {step!r}")


def require_valid(instance: Any, schema: Any) -> None:
    """Raise a ``ValidationError`` where an answer is not what its schema says, by the library jsonschema."""
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    jsonschema.validators.extend(kind, {"multipleOf": _multiple})(schema).validate(instance)


def check(server: Serving, trial: dict[str, Any], number: int) -> str:
    """The outcome: "valid", "refused" (a schema that cannot be guaranteed is not answered), or what is wrong."""
    import jsonschema

    body = {key: value for key, value in trial.items() if key != "schema"}
    body |= {
        "messages": [{"role": "user", "content": "Give an example."}],
        "max_tokens": 3000,
        "temperature": 0.9,
        "seed": number,
    }
    status, answer = server.ask("POST", "/v1/chat/completions", body, seconds=900)
    if status == 400 and answer["error"]["code"] == "unsupported_schema":
        return "refused"
    if status != 200:
        return f"{status}: {answer}"
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut off by the length"
    try:
        if "schema" in trial:
            require_valid(json.loads(choice["message"]["content"]), trial["schema"])
        else:
            calls = choice["message"]["tool_calls"]
            known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in trial["tools"]}
            if not calls or (len(calls) > 1 and not trial["parallel_tool_calls"]):
                return f"{len(calls)} calls"
            for call in calls:
                require_valid(json.loads(call["function"]["arguments"]), known[call["function"]["name"]])
    except (jsonschema.ValidationError, ValueError, KeyError, TypeError) as error:
        return f"invalid: {str(error)[:300]} {json.dumps(trial)[:600]}"
    return "valid"


def run(trials: int, model: Path | None = None, seed: int = 7) -> tuple[dict[str, int], dict[str, Any]]:
    """Ask for so many answers under schemas; refused schemas are replaced, and counted."""
    with tempfile.TemporaryDirectory() as folder, serving(model or default_model(), Path(folder), 4, 8192) as server:
        outcomes: list[str] = []
        refused = 0
        candidates, origin = trials_of(trials * 2, seed)
        with ThreadPoolExecutor(4) as threads:
            while candidates and len(outcomes) < trials:
                batch, candidates = candidates[: trials - len(outcomes)], candidates[trials - len(outcomes) :]
                found = list(threads.map(lambda each: check(server, each[1], each[0]), enumerate(batch)))
                refused += found.count("refused")
                outcomes += [outcome for outcome in found if outcome != "refused"]
    wrong = [outcome for outcome in outcomes if outcome != "valid"]
    details = {
        "tools": origin,
        "refused": refused,
        "outcomes": dict(Counter(each[:24] for each in outcomes)),
        "wrong": wrong[:10],
    }
    return {"valid": outcomes.count("valid"), "total": len(outcomes)}, details


def compiled(sources: dict[str, list[tuple[str, Any]]]) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
    """What compiles of each source, and what was refused and how long it took."""
    from stillroom.serving.grammars import UnsupportedSchema, checked, json_grammar

    held: dict[str, list[tuple[str, Any]]] = {}
    refused: dict[str, list[str]] = {}
    seconds: list[float] = []
    walls: list[float] = []
    for source, schemas in sources.items():
        held[source], refused[source] = [], []
        for name, schema in schemas:
            checked.cache_clear()  # a schema that another source has too is compiled once more
            # Of this thread alone: what else the machine does is not the compiler's time.
            begun, wall = time.thread_time(), time.perf_counter()
            try:
                json_grammar(schema)
                held[source].append((name, schema))
            except UnsupportedSchema as error:
                refused[source].append(f"{name}: {str(error)[:200]}")
            seconds.append(time.thread_time() - begun)
            walls.append(time.perf_counter() - wall)
    seconds.sort()
    walls.sort()
    libraries = [source for source in sources if source != "suite"]
    asked = sum(len(sources[source]) for source in libraries)
    figures = {
        "schemas": sum(map(len, sources.values())),
        "refused": sum(map(len, refused.values())),
        "wrongly_refused_share": sum(len(refused[source]) for source in libraries) / max(1, asked),
        "compile_p99_ms": 1000 * seconds[int(0.99 * (len(seconds) - 1))],
        "compile_p99_wall_ms": 1000 * walls[int(0.99 * (len(walls) - 1))],
    }
    return held, {
        "figures": figures,
        "refused": refused,
        "counts": {source: len(each) for source, each in sources.items()},
    }


def answered(
    held: dict[str, list[tuple[str, Any]]], model: Path | None, tokens: int, seed: int = 7
) -> tuple[dict[str, int], list[str]]:
    """Answers under every schema that compiles: how many are valid, cut off by their length, or invalid."""
    jobs = [(f"{source}: {name}", schema) for source, schemas in held.items() for name, schema in schemas]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, serving(model or default_model(), Path(folder), 4, 4096) as server:

        def one(job: tuple[int, tuple[str, Any]]) -> tuple[str, str]:
            number, (name, schema) = job
            return name, check_schema(server, schema, tokens, seed + number)

        with ThreadPoolExecutor(4) as threads:
            for name, outcome in threads.map(one, enumerate(jobs)):
                kind = outcome if outcome in ("valid", "cut") else "invalid"
                counts[kind] += 1
                if kind == "invalid":
                    wrong.append(f"{name}: {outcome}")
    return {kind: counts[kind] for kind in ("valid", "cut", "invalid")}, wrong


def check_schema(server: Serving, schema: Any, tokens: int, seed: int) -> str:
    """One answer under a schema: "valid", "cut" by its length, or what is wrong with it."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {
        "messages": [{"role": "user", "content": "Give an example."}],
        "max_tokens": tokens,
        "temperature": 0.9,
        "seed": seed,
        "response_format": form,
    }
    status, answer = server.ask("POST", "/v1/chat/completions", body, seconds=900)
    if status != 200:
        return f"{status}: {answer}"
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut"
    try:
        require_valid(json.loads(choice["message"]["content"]), schema)
    except Exception as error:
        return f"{str(error)[:200]} in {choice['message']['content'][:200]} under {json.dumps(schema)[:400]}"
    return "valid"


def measure(trials: int) -> dict[str, int]:
    """How many of so many answers under schemas are valid."""
    return run(trials)[0]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 trials, and 20 answers under schemas of each source.")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--sample", type=int, help="Answers under schemas of each source; default: under every one.")
    parser.add_argument("--tokens", type=int, default=400, help="Longest answer under a library's schema.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found, details = run(given.trials or (40 if given.quick else 500), given.model)
    details["model"] = (given.model or default_model()).name
    sources, details["left_out"] = schema_sources.every()
    held, told = compiled(sources)
    draw = random.Random(3)
    sample = given.sample or (20 if given.quick else None)
    asked = {name: draw.sample(each, min(len(each), sample or len(each))) for name, each in held.items()}
    counts, wrong = answered(asked, given.model, given.tokens)
    figures = {
        **told["figures"],
        **counts,
        "answered": sum(map(len, asked.values())),
        "constrained_valid": found["valid"],
        "constrained_total": found["total"],
    }
    report.write(
        figures, {**details, "refused_by_name": told["refused"], "counts": told["counts"], "invalid": wrong}, given.json
    )


if __name__ == "__main__":
    main()
