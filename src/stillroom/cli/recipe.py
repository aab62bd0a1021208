"""`stillroom init`, `stillroom runs` and `stillroom recipe`: recipes begin here, and runs are found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.core import files
from stillroom.core.bounded import least
from stillroom.core.errors import CorpusError, RecipeError, UsageError
from stillroom.core.outputs import require_apart

recipe_app = typer.Typer(help="The recipe's own format.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(init)
    app.command("runs")(list_runs)
    app.add_typer(recipe_app, name="recipe")


@recipe_app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from stillroom.recipe.reading import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


@recipe_app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")],
) -> None:
    """Read a recipe and show every mistake in it; nothing is opened."""
    from stillroom.recipe.reading import load_recipe

    load_recipe(recipe)
    typer.echo(f"{recipe}: no mistakes")


@recipe_app.command()
def upgrade(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML); it is written anew in place.")],
) -> None:
    """Write a recipe's keys by today's names; comments and everything else stay as they are."""
    from stillroom.core import files
    from stillroom.recipe.reading import load_recipe, upgraded

    load_recipe(recipe, kept=True)  # says what is wrong with the file
    text, changes = upgraded(recipe.read_bytes().decode("utf-8"), str(recipe))
    if not changes:
        typer.echo(f"{recipe}: nothing to change")
        return
    with files.replacing(recipe) as beside:
        beside.write_bytes(text.encode("utf-8"))
        beside.chmod(recipe.stat().st_mode)
    for former, now in changes.items():
        typer.echo(f"{recipe}: `{former}` is `{now}` now")


def init(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")] = Path("recipe.yaml"),
    teacher: Annotated[
        str | None, typer.Option(help="The model to learn from: a folder, a GGUF file, or owner/name.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The text: a folder or a file (.jsonl, .parquet, or text).")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the text, such as CC-BY-4.0.")] = None,
    size: Annotated[
        str | None, typer.Option(help="The student: a share of the teacher (0.5), or parameters (60M).")
    ] = None,
    own: Annotated[
        str | None, typer.Option(help="Who decides that teacher and student are your own; empty where they are not.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a recipe with comments: asks five questions, or takes the flags."""
    files.require_no_folder(path)
    if path.exists() and not force:
        raise UsageError(f"{path} exists.", "Name another file, or give --force.")
    if teacher is None:
        teacher = typer.prompt("The model to learn from (a folder, a GGUF file, or owner/name)")
    if text is None:
        text = typer.prompt("The text to learn on (a folder, or a .jsonl or .parquet file)")
    if licence is None:
        licence = typer.prompt("Its licence (such as CC-BY-4.0; `proprietary` for your own)", default="proprietary")
    if size is None:
        size = typer.prompt(
            "How large the student should be (a share such as 0.5, or parameters such as 60M)", default="0.5"
        )
    if own is None:
        own = typer.prompt(
            "If the teacher is your own: who says so (leave empty where its licence decides)", default=""
        )
    require_apart(path, [given for given in map(Path, (str(teacher), str(text))) if given.is_file()])
    kind, left_out = _kind(str(text))
    written = _recipe(path, str(teacher), str(text), kind, str(licence), str(size), str(own))
    files.write_text(path, written)
    for sentence in left_out:
        typer.echo(f"{text}: {sentence}; for those, write another source of their kind (docs/recipe.md)")
    typer.echo(f"{path} is written. What it will take: stillroom plan {path}")
    typer.echo(f"Then: stillroom run {path}")


def _recipe(path: Path, teacher: str, text: str, kind: str, licence: str, size: str, own: str) -> str:
    """The recipe's text; it is read before it is written.

    Raises:
        UsageError: An answer does not fit.
    """
    import datetime

    from stillroom.recipe.reading import parse_recipe
    from stillroom.recipe.section import integer_of

    parameters = integer_of(size)
    if parameters is None or parameters <= 1:
        parameters = _share(size, teacher)
    target = f"parameters: {parameters}"
    folder = path.absolute().parent
    name = "".join(sign if (sign.isalnum() and sign.isascii()) or sign in "._-" else "-" for sign in path.stem).strip(
        "-._"
    )
    is_gguf = teacher.startswith("package:") or teacher.lower().endswith(".gguf")
    lines = [
        "# A recipe of Stillroom: from a teacher and text to a student. Every key: docs/recipe.md",
        f"# What it will take: stillroom plan {path.name}; to do it: stillroom run {path.name} (again resumes)",
        f"name: {name or 'my-run'}",
        "",
        "corpus:",
        "  sources:  # the more like your use, the better; several are mixed",
        f"    - kind: {kind}",
        f"      path: {_quoted(_path(text, folder))}",
        f"      licence: {_quoted(licence)}  # of the text; the licence check reads it",
        "  # train_tokens: 1M  # without it, all there is",
        "",
        "teacher:",
        *(
            [
                "  kind: gguf",
                f"  path: {_quoted(teacher if teacher.startswith('package:') else _path(teacher, folder))}",
            ]
            if is_gguf
            else [
                "  kind: huggingface",
                f"  name: {_quoted(_path(teacher, folder) if Path(teacher).exists() else teacher)}",
            ]
        ),
        "",
        "student:",
        "  kind: shrink  # pruned from the teacher, repaired, then trained",
        "  target:",
        f"    {target}",
        "",
        "distill:",
        "  epochs: 1",
        "  learning_rate: 5e-4",
        "",
        "export:",
        "  gguf: [Q8_0]  # smaller: Q4_K_M",
        "",
    ]
    if own:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines += ["terms:", "  decisions:  # the teacher is your own: no licence of others decides"]
        for subject in ("teacher", "student"):
            lines.append(f"    - {{subject: {subject}, kind: own, decided_by: {_quoted(own)}, decided_at: {now}}}")
        lines.append("")
    found = "\n".join(lines)
    try:
        parse_recipe(found, str(path))
    except RecipeError as error:
        raise UsageError(f"These answers give no recipe: {error.what}", error.todo) from None
    return found


def _kind(text: str) -> tuple[str, list[str]]:
    """The kind of source that reads a file, packed or not, a pattern, or a folder by what is in it; and what it leaves out.

    Raises:
        UsageError: No kind reads such a file.
    """
    from stillroom.corpus.inputs import inner_suffix, require_known

    path = Path(text).expanduser()
    if path.is_dir():
        return _kind_of_folder(path)
    try:
        require_known(path)
    except CorpusError as error:
        raise UsageError(error.what, error.todo) from None
    suffix = inner_suffix(path)
    if suffix in (".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
        return "jsonl", []
    return "parquet" if suffix == ".parquet" else "text", []


def _kind_of_folder(folder: Path) -> tuple[str, list[str]]:
    """The first kind of source that takes a file of a folder, and what it leaves out of it, in words.

    Text where none does, so that the plan says why.
    """
    from stillroom.corpus.inputs import find_files
    from stillroom.corpus.tally import Tally, sentences
    from stillroom.recipe.corpus import TABLES, JsonlSource, TextSource

    patterns: dict[str, tuple[str, ...]] = {
        "text": TextSource.model_fields["pattern"].default,
        "jsonl": JsonlSource.model_fields["pattern"].default,
        "parquet": TABLES,
    }
    for kind, pattern in patterns.items():
        tally = Tally()
        try:
            for _ in find_files(folder, pattern, tally=tally):
                pass
        except CorpusError:
            continue
        return kind, [f"`kind: {kind}` {sentence}" for sentence in sentences(tally.as_dict())]
    return "text", []


def _share(size: str, teacher: str) -> int:
    """Parameters that a share of the teacher means.

    Raises:
        UsageError: It is no share, or the teacher is not here to be counted.
    """
    from stillroom.inspection.facts import model_facts
    from stillroom.models.gguf_source import gguf_path
    from stillroom.models.stored_size import stored_size
    from stillroom.recipe.teacher import HuggingFaceTeacher

    try:
        share = float(size.rstrip("%")) / (100 if size.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UsageError(
            f"{size}: neither a share of the teacher nor a number of parameters.", "Write 0.5, 50% or 60M."
        )
    facts = model_facts(gguf_path(teacher) if teacher.startswith("package:") else Path(teacher).expanduser())
    if facts is None:
        raise UsageError(
            f"{teacher} is not a model on this machine, so that {size} of it cannot be counted.",
            "Give the student's parameters instead, such as 60M, or the path of the model.",
        )
    folder = Path(teacher).expanduser()
    # Of a quantized folder, numbers in its files are no parameters: some are scales, and some hold several.
    quantized = stored_size(HuggingFaceTeacher(name=str(folder))) if folder.is_dir() else None
    return int(share * (facts["parameters"] if quantized is None else quantized.parameters))


def _quoted(value: str) -> str:
    """A string as YAML has it."""
    return json.dumps(value, ensure_ascii=False)


def _path(value: str, folder: Path) -> str:
    """A path as seen from the recipe's folder; one that starts at the root or at home stays."""
    import os

    if value.startswith(("/", "~")):
        return value
    found = Path(os.path.relpath(Path(value).absolute(), folder)).as_posix()
    return found if found.startswith("../") else f"./{found}" if Path(value).is_dir() else found


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds runs, or a run.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """List runs: how far they are, how large, and their headline numbers."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder.", "Give the folder that holds runs, such as recipes/runs.")
    from stillroom.runs.run import Run

    # A run by itself is one, too.
    found = [_entry(path) for path in (folder, *sorted(folder.iterdir())) if Run.is_at(path)]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if not found:
        typer.echo(f"{folder}: no runs")
    for entry in found:
        numbers = ", ".join(entry["numbers"])
        typer.echo(
            f"{entry['path']}: {entry['state']}; {entry['bytes'] / 1e6:,.1f} MB{'; ' if numbers else ''}{numbers}"
        )


def _entry(path: Path) -> dict[str, Any]:
    from stillroom.core.errors import StillroomError
    from stillroom.core.files import folder_bytes
    from stillroom.runs.run import Run
    from stillroom.runs.stages import stages_of, unfinished

    entry: dict[str, Any] = {"path": str(path), "bytes": folder_bytes(path), "finished": [], "numbers": []}
    try:
        run = Run.open(path)
    except StillroomError as error:
        return entry | {"state": f"cannot be opened: {error.what}"}
    left = [name for name, _ in unfinished(run)]
    entry["finished"] = [spec.name for spec in stages_of(run.recipe) if spec.name not in left]
    entry["state"] = f"not finished: {left[0]} is next" if left else "finished"
    try:
        summary = {} if left else run.summary
        student = summary.get("student", {})
        entry["parameters"] = student.get("parameters")
        entry["kl_to_teacher"] = student.get("kl_to_teacher")
        if isinstance(student.get("parameters"), int):
            entry["numbers"].append(f"{student['parameters'] / 1e6:,.1f} M parameters")
        if isinstance(student.get("kl_to_teacher"), (int, float)):
            entry["numbers"].append(
                f"KL to the teacher {least(student, 'kl_to_teacher')}{student['kl_to_teacher']:.3f}"
            )
        if isinstance(student.get("top1_agreement"), (int, float)):
            entry["numbers"].append(f"same next token {student['top1_agreement']:.0%}")
    except (StillroomError, OSError, ValueError, AttributeError):
        entry["state"] += f"; its summary cannot be read: stillroom report {path}"
    return entry
