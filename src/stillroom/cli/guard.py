"""`stillroom guard`: whether somebody distilled or copied a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.cli import guard_logs
from stillroom.core.plain import shown

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

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
    guard.command("trace")(trace)
    guard.command("ask")(ask)
    guard.command("verify")(verify)
    guard_logs.add(guard)
    key = typer.Typer(help="Keys of marks.", no_args_is_help=True, rich_markup_mode=None)
    key.command("new")(key_new)
    key.command("list")(key_list)
    guard.add_typer(key, name="key")
    coins = typer.Typer(help="Twin answers with secret coins.", no_args_is_help=True, rich_markup_mode=None)
    coins.command("new")(coins_new)
    coins.command("test")(coins_test)
    guard.add_typer(coins, name="coins")
    honeypots = typer.Typer(help="Facts that only one account was told.", no_args_is_help=True, rich_markup_mode=None)
    honeypots.command("new")(honeypots_new)
    honeypots.command("test")(honeypots_test)
    guard.add_typer(honeypots, name="honeypots")
    app.add_typer(guard, name="guard")


def lineage(
    suspect: Annotated[Path, typer.Argument(metavar="SUSPECT", help="A Hugging Face folder or a GGUF file.")],
    owner: Annotated[Path, typer.Option(help="Your run, package, Hugging Face folder or GGUF file.")],
    base: Annotated[
        Path | None, typer.Option(help="The public model that both may stem from; a run knows its own.")
    ] = None,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Your model was trained from fresh weights: there is no base.")
    ] = False,
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
    from stillroom.guard.findings import subject_digest
    from stillroom.guard.lineage_examine import examine, open_owner
    from stillroom.guard.lineage_order import examine_order

    signers = ready(output, keys, passphrase_fd, [suspect, owner, base, controls, texts, reference])
    if no_base and base is not None:
        raise UsageError("--base and --no-base exclude each other.", "Give one of them.")
    opened = open_owner(_there(owner))
    if no_base and opened.from_base:
        raise UsageError(f"{owner} was made from another model: it has a base.", "Leave --no-base out.")
    if no_base:
        opened = replace(opened, from_base=False)
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
    if texts is not None:
        made.subjects[f"texts {texts.name}"] = subject_digest(texts)
    if training_order and opened.run is not None:
        other = _model(reference) if reference is not None else None
        if reference is not None and other is not None:
            made.subjects[f"reference {reference.name}"] = subject_digest(other)
        made.findings.append(examine_order(_model(suspect), opened.run, other, _say))
    deliver(made.result(), made.subjects, output, signers, as_json)


KeyFile = Annotated[Path, typer.Option("--key", help="A key's file (`stillroom guard key new`).")]
Suspect = Annotated[Path, typer.Argument(metavar="SUSPECT", help="A Hugging Face folder or a GGUF file.")]
Reference = Annotated[
    Path, typer.Option(help="A model that never saw marked text: your unmarked one, a control, or the suspect's base.")
]
Folder = Annotated[Path, typer.Option("--folder", help="The folder of keys.")]


def key_new(
    name: Annotated[str, typer.Argument(help="What you call it: a server, a customer, an account.")],
    folder: Folder = Path("marks"),
    as_json: Json = False,
) -> None:
    """Draw a key of 256 bits. Publish its commitment before you serve with it."""
    from stillroom.core.marks import SUFFIX, new_key

    key = new_key(folder, name)
    path = folder / f"{name}{SUFFIX}"
    if as_json:
        _echo({"name": name, "file": str(path), "commitment": key.secret.commitment})
        return
    typer.echo(f"Written to {path}, for you alone. Commitment (SHA-256): {key.secret.commitment}")


def key_list(folder: Folder = Path("marks"), as_json: Json = False) -> None:
    """List keys and their commitments."""
    from stillroom.core.marks import list_keys

    found = list_keys(folder)
    if as_json:
        _echo([{"name": key.name, "commitment": key.secret.commitment} for key in found])
        return
    for key in found:
        typer.echo(f"{key.name:<24} {key.secret.commitment}")


def trace(
    suspect: Suspect,
    key: Annotated[list[Path], typer.Option(help="A key's file; may be repeated.")],
    reference: Reference,
    month: Annotated[
        list[str] | None,
        typer.Option(help="A month in which the key served, as 2026-01; may be repeated. This one without."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Plain, unmarked text: contexts in which both models predict.")
    ] = None,
    said: Annotated[
        Path | None, typer.Option(help="Instead of running SUSPECT: a file of its answers; needs --reference-said.")
    ] = None,
    reference_said: Annotated[
        Path | None, typer.Option(help="Answers of the unmarked reference, in the same way.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=100, help="Contexts that the models predict in.")] = 20_000,
    output: Output = None,
    keys: Keys = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Test whether a model learnt from answers that were marked with a key."""
    from stillroom.core.errors import UsageError
    from stillroom.core.marks import period_now, require_period
    from stillroom.guard.findings import findings_of, subject_digest
    from stillroom.guard.lineage_match import default_text, open_model
    from stillroom.guard.marks import frequencies, probabilities, weights_against
    from stillroom.guard.marks import trace as traced

    signers = ready(output, keys, passphrase_fd, [suspect, *key, reference, texts, said, reference_said])
    months = [require_period(value) for value in month or [period_now()]]
    for path in key:
        # Not opened before the weights are made; only looked at from outside.
        if not 64 <= _there(path).stat().st_size <= 66:
            raise UsageError(f"{path} is no key's file.", "Make one: stillroom guard key new NAME.")
    if len({path.resolve() for path in key}) != len(key):
        raise UsageError("The same key is given twice.", "Give each key once.")
    if (said is None) != (reference_said is None):
        raise UsageError("--said and --reference-said go together.", "Give both files, or neither.")
    if len(set(months)) != len(months):
        raise UsageError("A month is given twice.", "Give each month once.")
    other = open_model(_model(reference))
    subjects = {f"reference {reference.name}": subject_digest(_model(reference))}
    if said is not None and reference_said is not None:
        # The weights are made before any key is opened.
        weights = weights_against(
            frequencies(other.tokenizer, _text(said)), frequencies(other.tokenizer, _text(reference_said))
        )
        how = "frequencies in the suspect's answers minus those in the reference's, by the reference's tokenizer"
        subjects[f"answers {said.name}"] = subject_digest(said)
        subjects[f"answers {reference_said.name}"] = subject_digest(reference_said)
    else:
        words = _text(texts) if texts is not None else default_text()
        if texts is not None:
            subjects[f"texts {texts.name}"] = subject_digest(texts)
        _say("probabilities of the suspect and the reference")
        weights = weights_against(
            probabilities(open_model(_model(suspect)), words, tokens), probabilities(other, words, tokens)
        )
        how = f"mean probabilities over at most {tokens} contexts, the suspect's minus the reference's"
        subjects[f"suspect {suspect.name}"] = subject_digest(_model(suspect))
    deliver(findings_of(traced(weights, key, months, how)), subjects, output, signers, as_json)


def coins_new(
    twins: Annotated[Path, typer.Argument(metavar="TWINS", help="Rows of JSON: prompt, and two equally good answers.")],
    key: KeyFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the answers to serve go (JSON rows).")],
) -> None:
    """Let the key's coins choose which of two answers is served."""
    from stillroom.core import files
    from stillroom.core.marks import read_key
    from stillroom.core.outputs import require_output
    from stillroom.guard.coins import read_twins, served

    require_output(output, [twins, key])
    opened = read_key(_there(key))
    rows = [{"prompt": twin.prompt, "answer": served(twin, opened)} for twin in read_twins(_there(twins))]
    files.write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    typer.echo(f"Written to {output}: {len(rows)} answers. Keep {twins}; the coins can be made again from the key.")
    typer.echo(f"Commitment (SHA-256) of the key: {opened.secret.commitment}; of the twins: {files.digest_file(twins)}")


def coins_test(
    suspect: Suspect,
    twins: Annotated[Path, typer.Option(help="The rows that `coins new` was given.")],
    key: KeyFile,
    reference: Reference,
    output: Output = None,
    keys: Keys = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Test whether a model prefers the answers that were served."""
    from stillroom.guard.coins import coins_finding, preferences, read_twins
    from stillroom.guard.findings import findings_of, subject_digest
    from stillroom.guard.lineage_match import open_model

    signers = ready(output, keys, passphrase_fd, [suspect, twins, key, reference])
    rows = read_twins(_there(twins))
    _there(key)
    _say("preferences of the suspect and the reference")
    differences = preferences(open_model(_model(suspect)), rows) - preferences(open_model(_model(reference)), rows)
    finding = coins_finding(differences, rows, key, reference.name)
    subjects = {
        f"suspect {suspect.name}": subject_digest(_model(suspect)),
        f"reference {reference.name}": subject_digest(_model(reference)),
        f"twins {twins.name}": subject_digest(twins),
    }
    deliver(findings_of([finding]), subjects, output, signers, as_json)


def honeypots_new(
    accounts: Annotated[Path, typer.Argument(metavar="ACCOUNTS", help="A file with one account per line.")],
    key: KeyFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the facts go (JSON rows).")],
) -> None:
    """Give each account a fact of 64 random bits, to be put where only a crawler asks."""
    from stillroom.core import files
    from stillroom.core.marks import read_key
    from stillroom.core.outputs import require_output
    from stillroom.guard.coins import honeypot_rows

    require_output(output, [accounts, key])
    rows = honeypot_rows(read_key(_there(key)), _lines(accounts))
    files.write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    typer.echo(f"Written to {output}: {len(rows)} facts. Use them in harmless answers only.")


def honeypots_test(
    texts: Annotated[Path, typer.Argument(metavar="TEXTS", help="What the suspect wrote.")],
    accounts: Annotated[Path, typer.Option(help="The accounts, one per line.")],
    key: KeyFile,
    output: Output = None,
    keys: Keys = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Look for accounts' facts in what a suspect said."""
    from stillroom.core.marks import read_key
    from stillroom.guard.coins import honeypot_findings
    from stillroom.guard.findings import findings_of, subject_digest

    signers = ready(output, keys, passphrase_fd, [texts, accounts, key])
    names = _lines(accounts)
    found = honeypot_findings(_text(_there(texts)), read_key(_there(key)), names)
    notes = [] if found else [f"None of the facts of {len(names)} accounts is in the text: cannot tell."]
    subjects = {f"texts {texts.name}": subject_digest(texts), f"accounts {accounts.name}": subject_digest(accounts)}
    deliver(findings_of(found, notes), subjects, output, signers, as_json)


def ask(
    suspect: Annotated[
        str,
        typer.Argument(metavar="SUSPECT", help="An address that ends in /v1, a Hugging Face folder or a GGUF file."),
    ],
    owner: Annotated[Path, typer.Option(help="Your run, package, Hugging Face folder or GGUF file.")],
    controls: Annotated[Path, typer.Option(help="A folder of independent models: at least 99.")],
    prompts: Annotated[Path, typer.Option(help="A file with one prompt a line.")],
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, help="A margin in nats a prompt, fixed on other models: 20 controls are enough then."),
    ] = None,
    name: Annotated[str, typer.Option(help="The suspect's name at its address.")] = "",
    api_key_fd: Annotated[int | None, typer.Option(help="Read the address's API key from this descriptor.")] = None,
    budget: Annotated[int, typer.Option(min=100, help="Prompts at most.")] = 5000,
    output: Output = None,
    keys: Keys = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Ask a model, and rank its agreement with yours among controls: a rank, not a proof."""
    from stillroom.guard.ask_models import ask_all
    from stillroom.guard.findings import subject_digest

    signers = ready(output, keys, passphrase_fd, [Path(suspect), owner, controls, prompts])
    findings, subjects = ask_all(
        suspect, _model(owner), _there(controls), _lines(prompts)[:budget], margin, name, api_key_fd, _say
    )
    subjects[f"prompts {prompts.name}"] = subject_digest(prompts)
    deliver(findings, subjects, output, signers, as_json)


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
    signers: list[CryptoSigner],
    as_json: bool,
) -> None:
    """Show findings, then write and sign them where asked: what took hours is shown even if it cannot be written.

    Args:
        findings: What was found.
        subjects: SHA-256 of everything that was examined, by name.
        output: The file to write.
        signers: Keys to sign with, from :func:`ready`.
        as_json: Print JSON.
    """
    from stillroom.guard.findings import write_findings

    if as_json:
        _echo({"subjects": subjects} | findings.model_dump(mode="json"))
    else:
        _show(findings)
    if output is not None:
        write_findings(output, findings, subjects, signers)
        if not as_json:
            typer.echo(f"Written to {output}" + (", signed." if signers else ", not signed (--keys FOLDER signs)."))


def ready(
    output: Path | None, keys: Path | None, passphrase_fd: int | None, inputs: Sequence[Path | None]
) -> list[CryptoSigner]:
    """The keys to sign with, opened; what could not be written or signed is refused, before anything is examined.

    Args:
        output: The file of the findings.
        keys: The folder of the keys.
        passphrase_fd: The descriptor that gives the passphrase.
        inputs: Everything that the command reads, which the findings must not overwrite.

    Raises:
        UsageError: The file cannot be written or is one of the inputs, no file is named, or the keys cannot be opened.
    """
    from stillroom.core.errors import UsageError
    from stillroom.guard.findings import require_writable

    if keys is not None and output is None:
        raise UsageError("--keys signs a file, and no --output names one.", "Add --output FINDING.json.")
    if output is not None:
        require_writable(output, [*inputs, keys])
    return guard_logs.signers_of(keys, passphrase_fd)


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
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read as UTF-8 text.", "Give a plain text file.") from None


def _lines(path: Path) -> list[str]:
    from stillroom.core.errors import UsageError

    # Only the ends of lines part entries: names may hold other characters that Python takes for one.
    found: dict[str, None] = {}
    for line in map(str.strip, _text(_there(path)).split("\n")):
        if line in found:
            raise UsageError(f"{path}: {line[:60]!r} occurs twice.", "Keep each line once.")
        if line:
            found[line] = None
    if not found:
        raise UsageError(f"{path} is empty.", "Write one entry a line.")
    return list(found)


def _show(findings: Findings) -> None:
    for finding in findings.findings:
        for line in finding.lines():
            # A finding of somebody else draws no line of its own.
            typer.echo(shown(line, one_line=True))
    for note in findings.notes:
        typer.echo(shown(f"note: {note}", one_line=True))


def _echo(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
