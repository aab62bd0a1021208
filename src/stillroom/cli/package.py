"""`stillroom package`, `keys`, `sign`, `verify`, `inspect`, `revoke`, `reinstate` and `repo`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stillroom.core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from stillroom.packages.keys import Ring, Role
    from stillroom.packages.repository import Repository
    from stillroom.verification.documents import Kind, Revocation

Package = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A package's folder.")]
Repo = Annotated[Path, typer.Argument(metavar="REPO", help="A repository's folder.")]
KeyFolder = Annotated[Path, typer.Option("--keys", help="The folder of keys.")]
KeyFolders = Annotated[list[Path], typer.Option("--keys", help="A folder of keys; may be given several times.")]
Descriptor = Annotated[int | None, typer.Option("--passphrase-fd", help="Read the passphrase from this descriptor.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
Trust = Annotated[Path | None, typer.Option("--trust", help="A trust.json, or a folder of them.")]
State = Annotated[Path | None, typer.Option("--state", help="Where this machine's memory is stored.")]
ROLE_WORDS = "root, release, revoke or online"

keys_app = typer.Typer(help="A publisher's keys.", no_args_is_help=True)
repo_app = typer.Typer(help="A publisher's repository of releases and revocations.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    for command in (package, sign, verify, inspect, revoke, reinstate):
        app.command()(command)
    app.add_typer(keys_app, name="keys")
    app.add_typer(repo_app, name="repo")


def package(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; RUN/package without it.")] = None,
    sequence: Annotated[int, typer.Option(min=1, help="Place among the releases of this name.")] = 1,
    released: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="The day; today without it.")] = None,
    grace_days: Annotated[int, typer.Option(min=0, help="Days offline beyond expiry.")] = 30,
    at_expiry: Annotated[str, typer.Option(help="After the grace: refuse or warn.")] = "refuse",
    safetensors: Annotated[bool, typer.Option(help="Carry the full-precision weights too.")] = False,
    closed_weights: Annotated[
        bool, typer.Option(help="The weights are not published (export-control fact sheet).")
    ] = False,
    teacher_operations: Annotated[
        float | None, typer.Option(help="The teacher's training operations, if known.")
    ] = None,
    to: Annotated[list[str] | None, typer.Option(help="A destination; may be given several times.")] = None,
    denied: Annotated[
        list[Path] | None, typer.Option(help="A list of denied destinations, one per line; needs --to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's package: files, bill of materials, provenance, terms, scores, policy, licences."""
    import datetime

    from stillroom.packages.pack import PackOptions, pack
    from stillroom.packages.show import lines, passport_of
    from stillroom.runs.run import Run

    if at_expiry not in ("refuse", "warn"):
        raise UsageError(f"--at-expiry {at_expiry} is not known.", "Give refuse or warn.")
    try:
        day = datetime.date.fromisoformat(released) if released else None
    except ValueError:
        raise UsageError(f"--released {released} is not a day.", "Write it as 2026-11-24.") from None
    options = PackOptions(
        sequence=sequence,
        released=day,
        grace_days=grace_days,
        at_expiry=at_expiry,  # type: ignore[arg-type]
        safetensors=safetensors,
        open_weights=not closed_weights,
        teacher_operations=teacher_operations,
        destinations=tuple(to or ()),
        denied=tuple(denied or ()),
    )
    folder = pack(Run.open(run), out, options)
    passport = passport_of(folder, whole=True) | {"folder": str(folder)}
    _show(passport, [*lines(passport), f"Written to {folder}. Sign it: stillroom sign {folder} --keys FOLDER"], as_json)


def sign(
    folder: Package,
    keys: KeyFolder = Path("keys"),
    key: Annotated[list[str] | None, typer.Option(help="Sign with this key only; may be given several times.")] = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Sign a package with every release key at hand, or add signatures to it."""
    from stillroom.packages.keys import Ring
    from stillroom.packages.secret import passphrase
    from stillroom.packages.sign import sign_package

    ring = Ring.open(keys)
    done = sign_package(folder, ring, passphrase(passphrase_fd), key)
    missing = max(0, done.threshold - done.signatures)
    words = f"{folder}: signed by {done.signatures} release keys; {done.threshold} are needed"
    _show(
        {"digest": done.manifest.root, "signatures": done.signatures, "threshold": done.threshold},
        [words + (f", so {missing} more." if missing else "."), f"  digest {done.manifest.root}"],
        as_json,
    )


def verify(
    folder: Package,
    trust: Trust = None,
    state: State = None,
    repository: Annotated[str | None, typer.Option(help="Read metadata from this mirror.")] = None,
    as_json: Json = False,
) -> None:
    """Let a package prove itself; exit code 1 when it does not."""
    from stillroom.packages.show import lines
    from stillroom.verification.verification import verify as prove

    with prove(folder, trust=trust, state=state, repository=repository) as verified:
        passport = verified.passport()
    _show(passport, lines(passport), as_json)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A package, a repository, or a model from elsewhere.")],
    as_json: Json = False,
) -> None:
    """Show what a package says of itself, or look over a model from elsewhere; nothing is loaded."""
    from stillroom.packages.show import is_package, lines, passport_of

    if is_package(path):
        passport = passport_of(path)
        _show(passport, [*lines(passport), f"Nothing is proven by this: stillroom verify {path}"], as_json)
    elif (path / "metadata" / "timestamp.json").is_file():
        _inspect_repository(path, as_json)
    else:
        from stillroom.inspection.facts import facts_in_words, model_facts
        from stillroom.inspection.inspect import report
        from stillroom.runs.run import Run

        if Run.is_at(path):
            _inspect_run(path, as_json)
            return
        found: dict[str, Any] = report(path)
        facts = model_facts(path)
        words = [f"{path}: {facts_in_words(facts)}"] if facts is not None else []
        quantized, said = _quantized(path) if facts is not None and found["safe"] and path.is_dir() else (None, [])
        _show({**found, "model": facts, "quantized": quantized}, [*words, *said, *_plain(found)], as_json)
        if found.get("refused") or found.get("safe") is False:
            raise typer.Exit(1)


def _quantized(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """How a folder's weights are quantized and what they take, as JSON and in words; nothing of one that is not quantized."""
    from stillroom.core.errors import StillroomError
    from stillroom.core.files import read_json
    from stillroom.models.stored_as import quantization_of

    said = quantization_of(read_json(folder / "config.json"))
    if said is None:
        return None, []
    from stillroom.models.stored_size import stored_size
    from stillroom.recipe.teacher import HuggingFaceTeacher

    try:
        size = stored_size(HuggingFaceTeacher(name=str(folder)))
    except StillroomError as error:
        return {"quantization": said.words, "refused": error.what}, [f"  as a teacher it is refused: {error}"]
    assert size is not None
    return size.as_dict(), [f"  {size.words}"]


def _inspect_run(path: Path, as_json: bool) -> None:
    """What a run of one's own is, and whether the models in it are safe to open."""
    from stillroom.inspection.facts import facts_in_words, model_facts
    from stillroom.inspection.inspect import report
    from stillroom.runs.run import Run
    from stillroom.runs.stages import stages_of

    run = Run.open(path)
    finished = [spec.name for spec in stages_of(run.recipe) if run.stage(spec.name).record is not None]
    value: dict[str, Any] = {"run": str(path), "finished": finished, "models": []}
    lines = [f"{path}: a run of Stillroom; finished: {', '.join(finished) or 'nothing yet'}"]
    places = [path / "shrink" / "model", path / "distill" / "model", *sorted((path / "export").glob("*.gguf"))]
    for place in (place for place in places if place.exists()):
        found, facts = report(place), model_facts(place)
        name = place.relative_to(path).as_posix()
        value["models"].append({"path": name, "safe": found["safe"], "refused": found["refused"], "model": facts})
        words = facts_in_words(facts) if facts is not None else "not a whole model"
        lines.append(f"  {name}: {words}; {'safe to open' if found['safe'] else 'not safe to open:'}")
        lines += [f"    {entry['file']}: {entry['reason']} {entry['todo']}" for entry in found["refused"]]
    value["safe"] = all(entry["safe"] for entry in value["models"])
    _show(value, lines, as_json)
    if not value["safe"]:
        raise typer.Exit(1)


def _inspect_repository(path: Path, as_json: bool) -> None:
    from stillroom.packages.show import read_repository

    found = read_repository(path)
    text = [f"{path}: {len(found['releases'])} releases, {len(found['revocations'])} revocations"]
    text += [f"  {entry['name']} {entry['sequence']}  {entry['digest']}" for entry in found["releases"]]
    text += [
        f"  revoked {entry['kind']} {entry['value']}, {entry['date']}: {entry['reason']}"
        + (" (reinstated)" if entry["reinstated"] else "")
        for entry in found["revocations"]
    ]
    _show(found, text, as_json)


def revoke(
    repo: Repo,
    kind: Annotated[str, typer.Argument(help="package, key, teacher or dataset.")],
    value: Annotated[
        str, typer.Argument(help="Its digest or a release key's identifier (64 hex digits), or a package's folder.")
    ],
    reason: Annotated[str, typer.Option(help="Why, for those who read it.")],
    keys: KeyFolders,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Withdraw a package, a release key, or a teacher or dataset with everything that learnt from it."""
    if kind not in ("package", "key", "teacher", "dataset"):
        raise UsageError(f"{kind} cannot be revoked.", "Give package, key, teacher or dataset.")
    repository = _repository(repo, keys, passphrase_fd)
    entry = repository.revoke(cast("Kind", kind), _digest(value), reason)
    _show(entry.model_dump(mode="json"), [f"Revoked {entry}.", *_effect(entry, repository)], as_json)


def _effect(entry: Revocation, repository: Repository) -> list[str]:
    """What a revocation does, and what it leaves to be done."""
    if entry.kind != "key":
        reached = "it" if entry.kind == "package" else "every student whose provenance names it"
        return [f"Machines refuse {reached} once they look."]
    ring = repository.ring
    name = ring.name_of(entry.value)
    lines = ["Machines count no signature of it on a package once they look."]
    if name in ring.names("release"):
        lines.append(
            f"It still signs the list of releases. Rotate it: stillroom keys rotate {ring.folder} release {name}"
        )
        lines.append(f"  then: stillroom repo refresh {repository.folder} --keys {ring.folder}")
    return lines


def reinstate(
    repo: Repo,
    value: Annotated[str, typer.Argument(help="The digest that was revoked, or a package's folder.")],
    keys: KeyFolders,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Take a revocation back; the release keys sign."""
    repository = _repository(repo, keys, passphrase_fd)
    entries = repository.reinstate(_digest(value))
    _show([entry.model_dump(mode="json") for entry in entries], [f"Reinstated: {entry}" for entry in entries], as_json)


@keys_app.command("init")
def keys_init(
    folder: Annotated[Path, typer.Argument(metavar="KEYS", help="A new folder.")],
    publisher: Annotated[str, typer.Option(help="Whose keys they are.")],
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Make keys: three for root and three for release, of which two must sign; one for revoke, one online."""
    from stillroom.packages.keys import Ring, describe
    from stillroom.packages.secret import passphrase

    ring = Ring.create(folder, publisher, passphrase(passphrase_fd, again=True))
    _show(describe(ring), _ring_lines(ring), as_json)


@keys_app.command("show")
def keys_show(folder: Annotated[Path, typer.Argument(metavar="KEYS")], as_json: Json = False) -> None:
    """Show keys, roles and thresholds; only what is public."""
    from stillroom.packages.keys import Ring, describe

    ring = Ring.open(folder)
    _show(describe(ring), _ring_lines(ring), as_json)


@keys_app.command("rotate")
def keys_rotate(
    folder: Annotated[Path, typer.Argument(metavar="KEYS")],
    role: Annotated[str, typer.Argument(help=ROLE_WORDS)],
    name: Annotated[str, typer.Argument(help="The key to replace, such as release-1.")],
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Put a new key in the place of another; `stillroom repo refresh` publishes it."""
    from stillroom.packages.keys import Ring, describe
    from stillroom.packages.secret import passphrase

    ring = Ring.open(folder)
    new = ring.rotate(_role(role), name, passphrase(passphrase_fd))
    _show(describe(ring), [f"{new} holds the role {role} in place of {name}. Publish: stillroom repo refresh"], as_json)


@keys_app.command("threshold")
def keys_threshold(
    folder: Annotated[Path, typer.Argument(metavar="KEYS")],
    role: Annotated[str, typer.Argument(help=ROLE_WORDS)],
    number: Annotated[int, typer.Argument(min=1, help="How many keys must sign together.")],
    as_json: Json = False,
) -> None:
    """Say how many keys of a role must sign; `stillroom repo refresh` publishes it."""
    from stillroom.packages.keys import Ring, describe

    ring = Ring.open(folder)
    ring.set_threshold(_role(role), number)
    _show(describe(ring), _ring_lines(ring), as_json)


@repo_app.command("init")
def repo_init(
    repo: Repo,
    keys: KeyFolders,
    address: Annotated[str | None, typer.Option(help="Where machines find it; this folder without it.")] = None,
    passphrase_fd: Descriptor = None,
) -> None:
    """Make a repository, and trust.json to ship with an application; this machine trusts it from now on."""
    from stillroom.verification.remembered import remember_own

    _repository(repo, keys, passphrase_fd).init(address)
    typer.echo(f"{repo}: made. Ship {repo / 'trust.json'}; renew with `stillroom repo refresh` every week.")
    pin, held = remember_own(repo)
    if held is None:
        typer.echo(f"{pin.publisher} is your own, and trusted on this machine.")
    else:
        typer.echo(
            f"{held} pins {pin.publisher} otherwise, and stays: to trust these keys here, remove that file, then"
        )
        typer.echo(f"  stillroom repo trust {repo / 'trust.json'}")


@repo_app.command("add")
def repo_add(
    repo: Repo,
    folder: Package,
    keys: KeyFolders,
    least: Annotated[bool, typer.Option("--least", help="No earlier release may run any more.")] = False,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Publish a signed package."""
    release = _repository(repo, keys, passphrase_fd).add(folder, least)
    _show(release.model_dump(mode="json"), [f"Published {release.name}, release {release.sequence}."], as_json)


@repo_app.command("refresh")
def repo_refresh(repo: Repo, keys: KeyFolders, passphrase_fd: Descriptor = None) -> None:
    """Renew the metadata's dates with the online key, publish rotated keys, and re-sign what expires within half a year."""
    repository = _repository(repo, keys, passphrase_fd)
    done = repository.refresh()
    for part, until in done.renewed.items():
        typer.echo(f"{part}.json was re-signed: it expires on {until:%Y-%m-%d}.")
    soon = [str(part) for part in done.ending if not part.expired]
    if soon:
        todo = f"Give these keys and the online key in time: stillroom repo refresh {repo} --keys FOLDER --keys FOLDER"
        typer.echo(f"{repo}: {'; '.join(soon)}. {todo}", err=True)
    expired = [str(part) for part in done.ending if part.expired]
    if expired:
        raise CheckFailed(
            f"{repo}: {'; '.join(expired)}. Every machine refuses the repository until it is renewed; the other dates were.",
            f"Give these keys and the online key: stillroom repo refresh {repo} --keys FOLDER --keys FOLDER",
        )
    typer.echo(f"{repo}: holds until {repository.expires():%Y-%m-%d %H:%M} UTC.")


@repo_app.command("trust")
def repo_trust(
    file: Annotated[Path, typer.Argument(metavar="TRUST.JSON", help="From the publisher, over a way you trust.")],
) -> None:
    """Pin a publisher on this machine."""
    from stillroom.core import files
    from stillroom.verification.client import pinned_keys
    from stillroom.verification.closed import parse, read_bytes
    from stillroom.verification.documents import Pin
    from stillroom.verification.remembered import trust_folder

    data = read_bytes(file)
    pin = parse(Pin, data, str(file))
    keys, threshold = pinned_keys(pin)
    target = trust_folder() / f"{pin.publisher}.json"
    if target.is_file() and target.read_bytes() != data:
        raise UsageError(f"{target} pins {pin.publisher} otherwise.", "Remove that file first, if you mean to.")
    files.write_bytes(target, data)
    typer.echo(f"{pin.publisher} is trusted: {threshold} of these release keys must sign.")
    for key in keys:
        typer.echo(f"  {key.keyid}")


@repo_app.command("serve-dir")
def repo_serve_dir(
    repo: Repo,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8400,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the folder as a plain web server would, for a try or a local network."""
    import functools
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not (repo / "metadata").is_dir():
        raise UsageError(f"{repo} is not a repository.", "Make one: stillroom repo init FOLDER.")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(repo))
    with ThreadingHTTPServer((host, port), handler) as server:
        typer.echo(f"{repo} at http://{host}:{server.server_address[1]} (Ctrl-C ends)")
        server.serve_forever()


def _repository(folder: Path, keys: list[Path], descriptor: int | None) -> Repository:
    from stillroom.packages.keys import Ring
    from stillroom.packages.repository import Repository, signers_of
    from stillroom.packages.secret import passphrase

    rings = [Ring.open(path) for path in keys]
    return Repository(folder, rings[0], signers_of(rings, passphrase(descriptor)))


def _digest(value: str) -> str:
    """A digest, or the digest of the package in a folder."""
    import re

    if re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    from stillroom.packages.show import is_package, passport_of

    if is_package(Path(value)):
        digest: str = passport_of(Path(value), whole=True)["digest"]
        return digest
    raise UsageError(
        f"{value} is neither a digest of 64 hex digits nor a package.", "`stillroom inspect` shows digests."
    )


def _role(text: str) -> Role:
    from stillroom.packages.keys import ROLES

    if text not in ROLES:
        raise UsageError(f"{text} is not a role.", f"Give {ROLE_WORDS}.")
    return text


def _ring_lines(ring: Ring) -> list[str]:
    from stillroom.packages.keys import describe

    found = [f"Keys of {ring.publisher} in {ring.folder}"]
    for role, entry in describe(ring)["roles"].items():
        found.append(f"  {role}: {entry['threshold']} of {len(entry['keys'])} sign")
        for key in entry["keys"]:
            place = "" if key["private_here"] else ", private half elsewhere"
            found.append(f"    {key['name']:<12} {key['keyid']}  {key['created']}{place}")
    return found


def _plain(value: Any, indent: str = "") -> list[str]:
    """Any dictionary as lines."""
    found = []
    for key, item in value.items():
        if isinstance(item, dict):
            found += [f"{indent}{key}:", *_plain(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            found.append(f"{indent}{key}:")
            for entry in item:
                inner = _plain(entry, indent + "    ")
                found += [f"{indent}  - {inner[0].strip()}", *inner[1:]]
        elif isinstance(item, list):
            found.append(f"{indent}{key}: {', '.join(map(str, item)) or 'none'}")
        else:
            found.append(f"{indent}{key}: {item}")
    return found


def _show(value: Any, text: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        for line in text:
            typer.echo(line)
