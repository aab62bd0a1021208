"""A publisher and a machine to attack: a packed run, keys, a repository, and somebody who verifies.

The first use in a process makes a master copy in a few tenths of a second; each attack works on a copy of its own.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import datetime
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from securesystemslib.dsse import Envelope

from attacks.case import SCRATCH, Attack
from stillroom.core import files
from stillroom.core.errors import StillroomError
from stillroom.packages.keys import Ring, Role
from stillroom.packages.pack import PackOptions, pack
from stillroom.packages.repository import Repository, signers_of
from stillroom.packages.sign import sign_package
from stillroom.recipe.reading import parse_recipe
from stillroom.recipe.teacher import GgufTeacher
from stillroom.runs.run import Run
from stillroom.serving.models import open_model
from stillroom.verification import verification
from stillroom.verification.closed import parse
from stillroom.verification.documents import Pin
from stillroom.verification.envelope import PAYLOAD_TYPE
from stillroom.verification.verification import VerifiedPackage, verify

PASSPHRASE = "correct horse battery"
DAY = datetime.timedelta(days=1)
COST = 2  # the passphrase guards nothing here
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@dataclass
class Workshop:
    """A publisher's side (`ring`, `repository`, `package`) and a machine's (`pin`, `state`)."""

    folder: Path

    @property
    def package(self) -> Path:
        """Release 2 of the package `small`, signed by two of three and published."""
        return self.folder / "package"

    @property
    def older(self) -> Path:
        """Release 1 of it, signed and published before."""
        return self.folder / "older"

    @property
    def repo(self) -> Path:
        """The repository's folder."""
        return self.folder / "repo"

    @property
    def ring(self) -> Ring:
        """The publisher's keys."""
        return Ring.open(self.folder / "keys")

    @property
    def pin(self) -> Pin:
        """What the machine trusts from the start; its repository is this copy's."""
        pin = parse(Pin, (self.repo / "trust.json").read_bytes(), "trust.json")
        return pin.model_copy(update={"repository": str(self.repo)})

    def repository(self, now: datetime.datetime | None = None, ring: Ring | None = None) -> Repository:
        """The repository, with all keys at hand."""
        chosen = ring or self.ring
        return Repository(self.repo, chosen, signers_of([chosen], PASSPHRASE), now)

    def sign(self, package: Path | None = None, names: tuple[str, ...] = ("release-1", "release-2")) -> None:
        """Sign a package with some of the release keys."""
        sign_package(package or self.package, self.ring, PASSPHRASE, list(names))

    def verify(self, package: Path | None = None, **changed: Any) -> VerifiedPackage:
        """Verify as the machine does; the caller closes what comes back."""
        options: dict[str, Any] = {
            "trust": self.pin,
            "state": self.folder / "state",
            "copies": self.folder / "copies",
        } | changed
        return verify(package or self.package, **options)

    def check(self, package: Path | None = None, **changed: Any) -> None:
        """Verify and let go."""
        self.verify(package, **changed).close()

    def edit(self, document: str, change: Callable[[Any], None], sign: bool = False) -> None:
        """Change a JSON document of the package; with ``sign`` the publisher signs the change."""
        path = self.package / document
        value = json.loads(path.read_text())
        change(value)
        files.write_json(path, value)
        if sign:
            self.sign()


def workshop(folder: Path) -> Workshop:
    """A fresh copy to attack."""
    shutil.copytree(_master(), folder, dirs_exist_ok=True)
    return Workshop(folder)


def works(folder: Path) -> None:
    """The normal case of most attacks: the package as published verifies and gives its own bytes."""
    shop = workshop(folder)
    with shop.verify() as verified:
        assert verified.gguf.read_bytes() == (shop.package / "weights" / verified.gguf.name).read_bytes()
        assert verified.passport()["signature"]["state"] == "verified"


def changed_package(change: Callable[[Workshop], object], threat: str, says: str) -> Attack:
    """An attack that is one change to a published package: verifying it is refused with these words."""

    def attack(folder: Path) -> None:
        shop = workshop(folder)
        change(shop)
        shop.check()

    return Attack(threat=threat, says=says, works=works, attack=attack)


def flip(path: Path, position: int = -1, bit: int = 0) -> None:
    """Turn one bit of a file around; the middle one without a position."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position < 0 else position] ^= 1 << bit
    path.write_bytes(bytes(data))


def each(cases: Iterable[Callable[[], object]], says: str) -> None:
    """Try several forms of one attack: ends without an exception as soon as one is not refused, else with the last refusal."""
    last: StillroomError | None = None
    for case in cases:
        try:
            case()
        except StillroomError as error:
            if says not in str(error):
                raise AssertionError(f"refused otherwise: {error}") from error
            last = error
        else:
            return
    if last is not None:
        raise last


@contextlib.contextmanager
def just_before(module: Any, name: str, act: Callable[[], object]) -> Iterator[None]:
    """Win a race every time: do something right before a function of Stillroom is called."""
    function = getattr(module, name)

    def raced(*arguments: Any, **options: Any) -> Any:
        act()
        return function(*arguments, **options)

    setattr(module, name, raced)
    try:
        yield
    finally:
        setattr(module, name, function)


@contextlib.contextmanager
def used_here(shop: Workshop) -> Iterator[None]:
    """While it lasts, this process is the machine: what names neither pins nor memory uses the workshop's."""
    files.write_json(shop.folder / "trust" / "acme.json", shop.pin.model_dump(mode="json"))
    places = {"trust_folder": shop.folder / "trust", "state_folder": shop.folder / "state"}
    own = {name: getattr(verification, name) for name in places}
    for name, place in places.items():
        setattr(verification, name, lambda place=place: place)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(verification, name, function)


def named_inside(shop: Workshop) -> Iterator[Callable[[], object]]:
    """Every way to name a file inside the package instead of the package."""
    file = next((shop.package / "weights").glob("*.gguf"))
    link = shop.folder / "link.gguf"
    link.symlink_to(file)
    elsewhere = shop.package / "weights" / ".." / "weights" / file.name
    for name in (file, link, elsewhere):
        yield functools.partial(_open, name)
    yield functools.partial(_load, file)


def _open(path: Path) -> None:
    open_model(path).close()


def _load(file: Path) -> None:
    from stillroom.models.load import load_tokenizer

    load_tokenizer(GgufTeacher(kind="gguf", path=str(file)))


def resign(
    shop: Workshop,
    change: Callable[[dict[str, Any]], None] | None = None,
    *,
    kind: str = PAYLOAD_TYPE,
    signers: Any = None,
) -> None:
    """Write another statement into ``package.dsse`` and sign it: a publisher who lies, or a thief of keys."""
    path = shop.package / "package.dsse"
    statement = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
    if change is not None:
        change(statement)
    envelope = Envelope(files.canonical_json(statement), kind, {})
    for signer in signers or shop.ring.signers("release", PASSPHRASE)[:2]:
        envelope.sign(signer)
    files.write_json(path, envelope.to_dict())


@functools.cache
def _master() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="workshop-", dir=SCRATCH))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = finished_run(folder / "runs")
    shop = Workshop(folder)
    Ring.create(folder / "keys", "acme", PASSPHRASE, cost=COST)
    yesterday = datetime.datetime.now(datetime.UTC) - DAY
    shop.repository(yesterday).init(None)
    for sequence, target in ((1, shop.older), (2, shop.package)):
        pack(made, target, PackOptions(sequence=sequence, released=yesterday.date()))
        shop.sign(target)
        shop.repository(yesterday).add(target)
    shutil.rmtree(folder / "runs")
    return folder


def finished_run(
    root: Path, name: str = "small", learnt_from: dict[str, Any] | None = None, weights: bytes = b"", **recipe: Any
) -> Run:
    """A run's folder with every record that packing reads, around a tiny GGUF file.

    Args:
        root: The folder that holds runs.
        name: The run.
        learnt_from: Facts of the teacher that differ.
        weights: Changes the student's digests.
        recipe: Sections of the recipe that differ.
    """
    root.mkdir(parents=True, exist_ok=True)
    settings = {
        "name": name,
        "corpus": {"sources": [{"kind": "python_docs"}]},
        "teacher": {"kind": "huggingface", "name": str(_teacher(root))},
        "baseline": False,
        "chat": {"prompt": None},
    } | recipe
    run = Run.create(parse_recipe(json.dumps(settings)), root)
    facts = {
        "name": "SmolLM2-135M-Instruct",
        "family": "llama",
        "digest": files.digest_bytes(b"teacher"),
        "tokenizer_digest": files.digest_bytes(b"tokenizer"),
        "licence": "apache-2.0",
        "parameters": 2_000_000,
        "bytes": 8_000_000,
        "dtype": "float32",
    } | (learnt_from or {})
    source = {
        "kind": "python_docs",
        "name": "Python's own documentation",
        "licence": "PSF-2.0",
        "digest": files.digest_bytes(b"dataset"),
        "documents": 12,
    }
    model = run.path / "distill" / "model"
    model.mkdir(parents=True, exist_ok=True)
    files.write_json(model / "config.json", {"model_type": "llama", "hidden_size": 8})
    files.write_json(model / "tokenizer.json", {"version": "1.0"})
    files.write_text(model / "chat_template.jinja", TEMPLATE)
    files.write_bytes(model / "model.safetensors", _safetensors(weights))
    exported = run.path / "export" / f"{name}-Q8_0.gguf"
    write_gguf(exported, name, weights)
    entry = {
        "type": "Q8_0",
        "path": f"export/{exported.name}",
        "bytes": exported.stat().st_size,
        "sha256": files.digest_file(exported),
        "kl_to_pytorch": 1e-4,
    }
    files.write_json(run.path / "export" / "export.json", {"files": [entry]})
    files.write_json(run.path / "capture" / "teacher.json", facts)
    splits = {"train": {"tokens": 4096}, "validation": {"tokens": 128}, "heldout": {"tokens": 512}}
    files.write_json(run.path / "corpus" / "ledger.json", {"sources": [source], "splits": splits})
    student = {
        "parameters": 1_000_000,
        "bytes": 4_000_000,
        "kl_to_teacher": 0.42,
        "kl_to_teacher_interval": [0.4, 0.44],
        "top1_agreement": 0.71,
        "bits_per_byte": 1.1,
    }
    files.write_json(run.path / "evaluate" / "evaluation.json", {"models": {"student": student}})
    stages = ("corpus", "capture", "shrink", "distill", "export", "evaluate")
    for stage in stages:
        record = {
            "format": 1,
            "stage": stage,
            "version": "0.1.0",
            "inputs": {},
            "outputs": {},
            "seed": 0,
            "seconds": 1.5,
            "peak_memory_bytes": 1 << 20,
            "finished": "2026-11-20T10:00:00Z",
            "notes": {},
        }
        files.write_json(run.path / stage / "stage.json", record)
    files.write_json(
        run.path / "summary.json",
        {
            "format": 1,
            "name": name,
            "teacher": facts | {"bits_per_byte": 0.9},
            "student": student,
            "compared": {},
            "bounds": [
                {"name": "fidelity.kl_to_teacher", "kind": "ceiling", "bound": 1.0, "value": 0.42, "met": True},
            ],
            "interval": "95%",
            "heldout_documents": 12,
            "tokens": {split: entry["tokens"] for split, entry in splits.items()},
            "stages": {stage: {} for stage in stages},
            "machine": {"processor": "test", "cores": 2},
        },
    )
    return run


def _teacher(root: Path) -> Path:
    """A teacher's folder that says what its licence is; nothing loads it."""
    folder = root.absolute() / "teachers" / "SmolLM2"
    files.write_json(folder / "config.json", {"model_type": "llama"})
    files.write_text(folder / "README.md", "---\nlicense: apache-2.0\n---\n")
    return folder


def write_gguf(path: Path, name: str, salt: bytes = b"", template: str = TEMPLATE) -> None:
    """A small well-formed GGUF file."""
    from gguf import GGUFWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_chat_template(template)
    writer.add_token_list(["a", "b", "c", "d"])
    values = np.frombuffer(files.digest_bytes(salt).encode().ljust(64, b"0"), dtype=np.uint8).astype(np.float32)
    writer.add_tensor("token_embd.weight", values.reshape(4, 16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _safetensors(salt: bytes) -> bytes:
    from safetensors.numpy import save

    values = np.frombuffer(files.digest_bytes(salt).encode(), dtype=np.uint8).astype(np.float32)
    data: bytes = save({"weight": values})
    return data


def signed_by_thief(shop: Workshop, role: str, path: str, document: Any, key: Role) -> None:
    """Publish a document in the metadata of ``role``, signed by the key of another role; the online key is the thief's too."""
    repository = shop.repository()
    repository._put(role, path, document)
    metadata = repository._metadata(role)
    metadata.signed.version += 1
    metadata.signatures.clear()
    for signer in shop.ring.signers(key, PASSPHRASE):
        metadata.sign(signer, append=True)
    repository._publish()


def third_generation(shop: Workshop) -> Path:
    """The signed package of a student whose teacher is a package, whose teacher is the package `small`."""
    teacher = shop.package
    for generation in (2, 3):
        weights = next((teacher / "weights").glob("*.gguf"))
        facts = {"name": teacher.name, "digest": files.digest_file(weights)}
        run = finished_run(
            shop.folder / "runs",
            f"generation-{generation}",
            facts,
            weights=bytes([generation]),
            teacher={"kind": "gguf", "path": str(weights)},
        )
        teacher = pack(run, shop.folder / f"generation-{generation}")
        shop.sign(teacher)
    return teacher
