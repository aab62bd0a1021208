"""`stillroom guard`: whether somebody distilled or copied a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.cli import guard_logs

if TYPE_CHECKING:
    from stillroom.guard.findings import Findings

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the findings to this file (JSON).")]
Keys = Annotated[Path | None, typer.Option("--keys", help="Sign the findings with the release keys of this folder.")]
Descriptor = Annotated[int | None, typer.Option("--passphrase-fd", help="Read the passphrase from this descriptor.")]


def register(app: typer.Typer) -> None:
    """Add `stillroom guard`."""
    guard = typer.Typer(
        help="See whether somebody distilled or copied your model.", no_args_is_help=True, rich_markup_mode=None
    )
    guard.command("lineage")(lineage)
    guard.command("verify")(verify)
    guard_logs.add(guard)
    app.add_typer(guard, name="guard")


def lineage(
    suspect: Annotated[Path, typer.Argument(metavar="SUSPECT", help="A Hugging Face folder or a GGUF file.")],
    owner: Annotated[Path, typer.Option(help="Your run, package, Hugging Face folder or GGUF file.")],
    base: Annotated[
        Path | None, typer.Option(help="The public model that both may stem from; a run knows its own.")
    ] = None,
    controls: Annotated[
        Path | None, typer.Option(help="A folder of independent models that the match of activations is ranked among.")
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="Text (UTF-8) over which activations are compared.")] = None,
    training_order: Annotated[
        bool, typer.Option(help="Test the order of training too: runs the suspect over the run's whole training text.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="For the order of training: a model that does not depend on it; the untrained student without."
        ),
    ] = None,
    weights_only: Annotated[bool, typer.Option(help="Run no model: compare stored weights alone.")] = False,
    output: Output = None,
    keys: Keys = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Test by weights whether a model stems from yours."""
    from stillroom.core.errors import UsageError
    from stillroom.guard.lineage_examine import examine, open_owner
    from stillroom.guard.lineage_order import examine_order

    opened = open_owner(_there(owner))
    if training_order and opened.run is None:
        raise UsageError(
            f"{owner} is not a run: its order of training is not known.", "Give the run's folder with --owner."
        )
    if reference is not None and not training_order:
        raise UsageError("--reference is for the order of training.", "Add --training-order.")
    made = examine(
        _model(suspect),
        opened,
        _model(base) if base is not None else None,
        _there(controls) if controls is not None else None,
        _text(texts) if texts is not None else None,
        match=not weights_only,
        say=_say,
    )
    if training_order and opened.run is not None:
        other = _model(reference) if reference is not None else None
        made.findings.append(examine_order(_model(suspect), opened.run, other, _say))
    deliver(made.result(), made.subjects, output, keys, passphrase_fd, as_json)


def verify(
    path: Annotated[Path, typer.Argument(metavar="FINDINGS", help="A file of findings.")],
    keys: Annotated[Path, typer.Option("--keys", help="Folder of the signer's (public) keys.")],
    as_json: Json = False,
) -> None:
    """Check the signature of findings, and show them."""
    from stillroom.guard.findings import read_findings
    from stillroom.packages.keys import Ring

    ring = Ring.open(keys)
    statement, signers = read_findings(path, ring)
    if as_json:
        _echo({"publisher": ring.publisher, "signers": signers} | statement.predicate.model_dump(mode="json"))
        return
    typer.echo(f"Signed by {ring.publisher} ({len(signers)} of its release keys), {statement.predicate.created}.")
    _show(statement.predicate)


def deliver(
    findings: Findings,
    subjects: dict[str, str],
    output: Path | None,
    keys: Path | None,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Show findings, and write and sign them where asked.

    Args:
        findings: What was found.
        subjects: SHA-256 of everything that was examined, by name.
        output: The file to write.
        keys: A folder of keys to sign with.
        passphrase_fd: Descriptor to read their passphrase from.
        as_json: Print JSON.

    Raises:
        UsageError: Keys without a file to sign.
    """
    from stillroom.core.errors import UsageError
    from stillroom.guard.findings import write_findings
    from stillroom.packages.keys import Ring
    from stillroom.packages.secret import passphrase

    if keys is not None and output is None:
        raise UsageError("--keys signs a file, and no --output names one.", "Add --output FINDING.json.")
    if output is not None:
        ring = Ring.open(keys) if keys is not None else None
        write_findings(output, findings, subjects, ring, passphrase(passphrase_fd) if ring is not None else "")
    if as_json:
        _echo({"subjects": subjects} | findings.model_dump(mode="json"))
        return
    _show(findings)
    if output is not None:
        typer.echo(
            f"Written to {output}" + (", signed." if keys is not None else ", not signed (--keys FOLDER signs).")
        )


def _say(words: str) -> None:
    typer.echo(f"{words} …", err=True)


def _there(path: Path) -> Path:
    from stillroom.core.errors import UsageError

    if not path.exists():
        raise UsageError(f"{path}: there is nothing at this path.", "Check it.")
    return path


def _model(path: Path) -> Path:
    """A model's folder or file; of a run its student."""
    from stillroom.guard.lineage_examine import open_owner

    return open_owner(_there(path)).model


def _text(path: Path) -> str:
    from stillroom.core.errors import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read as UTF-8 text.", "Give a plain text file.") from None


def _show(findings: Findings) -> None:
    for finding in findings.findings:
        for line in finding.lines():
            typer.echo(line)
    for note in findings.notes:
        typer.echo(f"note: {note}")


def _echo(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
