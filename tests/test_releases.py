"""What earlier releases left on disks and in memory still works: runs, caches, packages, switches, sessions, engines.

Every release wrote its folder in `tests/fixtures` with `tools/fixtures.py`; nothing in them is ever written again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom.core import files
from stillroom.core.errors import SignalError, StillroomError, SwitchedOff, VerificationFailed
from stillroom.corpus.sequences import Sequences
from stillroom.packages.keys import Ring
from stillroom.packages.sign import sign_package
from stillroom.pipeline import finish, run
from stillroom.recipe.capture import CaptureConfig, ThresholdCodec
from stillroom.recipe.reading import parse_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.runs.stages import inputs_of, stages_of
from stillroom.serving.ask import answer
from stillroom.serving.sessions import SessionDamaged, SessionStore
from stillroom.signals.cache.reader import TeacherCache
from stillroom.switch import Places, Switch, stopping
from stillroom.verification.closed import parse
from stillroom.verification.documents import Pin
from stillroom.verification.remembered import Remembered
from stillroom.verification.verification import VerifiedPackage, verify
from tests.serving.serve_support import running
from tools.fixtures import CODECS, PASSPHRASE, QUESTION, cache_digest

FIXTURES = Path(__file__).parent / "fixtures"
RELEASES = sorted(path.name for path in FIXTURES.iterdir() if (path / "expected.json").is_file())
OF_THE_DAY = ("recipe_digest", "version", "machine")
"""What a summary says of the program, the machine and the folder that it was written with."""


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a release wrote, and the working folder: its paths are relative to it."""
    folder = tmp_path / "release"
    shutil.copytree(FIXTURES / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(release: Path) -> Any:
    return json.loads((release / "expected.json").read_text(encoding="utf-8"))


def recipe_of(release: Path) -> Recipe:
    """The run's recipe with its paths as they were written, relative to the release's folder."""
    return parse_recipe((release / "run" / "recipe.yaml").read_text(encoding="utf-8"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def test_there_is_a_fixture_of_the_first_release() -> None:
    assert "0.1.0" in RELEASES


def test_a_finished_run_is_finished(release: Path) -> None:
    recipe = recipe_of(release)
    made = Run(Path("run"), recipe)
    specs = stages_of(recipe)
    assert len(specs) == 7
    for spec in specs:
        assert made.stage(spec.name).holds(inputs_of(made, spec)), spec.name
    records = {spec.name: made.stage(spec.name).record for spec in specs}
    events = made.events()
    again = run(recipe, ".", quiet=True)
    assert {spec.name: again.stage(spec.name).record for spec in specs} == records
    assert again.events() == events, "no stage was begun"


def test_outputs_are_what_their_records_say(release: Path) -> None:
    made = Run.open("run")
    for spec in stages_of(made.recipe):
        record = made.stage(spec.name).record
        assert record is not None
        for name, entry in record["outputs"].items():
            assert files.digest_file(made.path / spec.name / name) == entry["sha256"]


def test_summary_and_report_are_written_again(release: Path) -> None:
    before = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    for name in ("summary.json", "report.html", "report.md"):
        Path("run", name).unlink()
    after = finish(Run.open("run"))
    # Later releases may say more.
    assert {key: after[key] for key in before if key not in OF_THE_DAY} == {
        key: value for key, value in before.items() if key not in OF_THE_DAY
    }
    assert f"{before['student']['parameters']:,}" in Path("run/report.html").read_text(encoding="utf-8")
    assert Path("run/report.md").is_file()


def test_its_model_answers(release: Path) -> None:
    weights = {path.name: path for path in Path("run/export").glob("*.gguf")}
    assert len(weights) == 2
    for path in (Path("run"), *weights.values()):
        assert answer(path, QUESTION, 4)


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_decodes_to_the_same(release: Path, expected: Any, codec: str) -> None:
    folder = release / "cache" / codec
    assert cache_digest(folder) == expected["caches"][codec]
    assert TeacherCache.verify_folder(folder) == []
    flip(folder / "shard-000000.safetensors")
    assert [damage.shard for damage in TeacherCache.verify_folder(folder)] == ["shard-000000.safetensors"]


def test_the_cache_of_the_run_opens(release: Path) -> None:
    folder = release / "run" / "capture" / "cache"
    assert TeacherCache.verify_folder(folder) == []
    cache = TeacherCache.open(folder)
    signal, counts = cache.read(cache.digests)
    assert len(signal) == sum(counts) == cache.positions > 0


@pytest.mark.parametrize("codec", CODECS)
def test_another_run_takes_a_cache_as_it_is(release: Path, tmp_path: Path, codec: str) -> None:
    folder = Path("cache") / codec
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capture = CaptureConfig.model_validate({"codec": CODECS[codec], "path": str(folder)})
    recipe = recipe_of(release).model_copy(update={"capture": capture})
    # With the corpus of the release that wrote the cache.
    shutil.copytree("run/corpus", tmp_path / recipe.name / "corpus")
    made = run(recipe, tmp_path, until="capture", quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing was captured again"
    record = made.stage("capture").record
    assert record is not None
    assert record["notes"]["reused"] > 0


def test_a_cache_of_rows_does_not_serve_a_corpus_of_pieces(release: Path, tmp_path: Path) -> None:
    folder = Path("cache/threshold")
    if json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["version"] != 2:
        pytest.skip("the cache holds pieces")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capture = CaptureConfig.model_validate({"codec": CODECS["threshold"], "path": str(folder)})
    recipe = recipe_of(release).model_copy(update={"capture": capture})
    with pytest.raises(
        SignalError, match=r"cache of format 2, which is read and not written any more; it lacks [\d,]+ of"
    ):
        run(recipe, tmp_path, until="capture", quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_student_is_trained_from_its_corpus_and_cache(release: Path) -> None:
    recipe = recipe_of(release)
    changed = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"epochs": 2})})
    records = {name: Run(Path("run"), recipe).stage(name).record for name in ("corpus", "capture", "shrink")}
    made = run(changed, ".", until="distill", quiet=True)
    assert {name: made.stage(name).record for name in records} == records
    record = made.stage("distill").record
    assert record is not None
    assert record["notes"]["steps"] > 0


def test_its_corpus_is_captured_anew_with_another_codec(release: Path) -> None:
    recipe = recipe_of(release)
    capture = recipe.capture.model_copy(update={"codec": ThresholdCodec(tau=0.2)})
    made = run(recipe.model_copy(update={"capture": capture}), ".", until="capture", quiet=True)
    cache = TeacherCache.open(made.path / "capture" / "cache")
    assert cache.identity.codec == ThresholdCodec(tau=0.2)
    rows = Sequences.load(made.path / "corpus" / "train.safetensors")
    assert set(rows.digests) <= set(cache.digests)


def test_what_its_corpus_lacks_is_counted(release: Path) -> None:
    summary = finish(Run.open("run"))
    missing = summary["context"]["targets_without_context"]
    if "targets_without_context" in json.loads(Path("run/corpus/ledger.json").read_text())["splits"]["train"]:
        pytest.skip("its ledger counts them")
    assert 0 < missing["train"] < summary["tokens"]["train"]
    assert "their document's beginning" in summary["context"]["warning"]
    assert "Build it again." in Path("run/report.html").read_text(encoding="utf-8")


def machine() -> Pin:
    """What the machine trusts; its repository is beside it."""
    path = Path("machine/trust/acme.json")
    return parse(Pin, path.read_bytes(), str(path))


def verified(package: str = "publisher/package") -> VerifiedPackage:
    return verify(package, trust=machine(), state=Path("machine/state"), copies=Path("copies"))


def test_a_package_verifies_for_a_machine_that_knew_it(release: Path, expected: Any) -> None:
    with verified() as package:
        assert (package.name, package.digest) == (expected["package"]["name"], expected["package"]["digest"])
        passport = package.passport()
        assert passport["signature"] == {"state": "verified", "signers": list(package.signers), "threshold": 2}
        assert passport["sequence"] == expected["package"]["sequence"]
        assert passport["metadata"]["fetched"]
        assert package.gguf.read_bytes() == Path("publisher/package/weights", package.gguf.name).read_bytes()
        package.recheck()
    # Without a connection, by what the machine has kept.
    Path("publisher/repository").rename("elsewhere")
    with verified() as package:
        assert any("offline" in warning for warning in package.warnings)
        assert package.view is not None
        assert not package.view.fetched


def test_a_machine_knows_what_it_knew(release: Path, expected: Any) -> None:
    Path("publisher").rename("elsewhere")
    folders = sorted(Path("machine/state/publishers").iterdir())
    with Remembered.open(Path("machine/state"), machine()) as remembered:
        assert [remembered.folder] == folders, "the old memory was found, and no new one begun"
        assert remembered.memory.sequences == {expected["package"]["name"]: expected["package"]["sequence"]}
        assert [(entry.kind, entry.value) for entry in remembered.active()] == [("dataset", expected["revoked"])]
        with pytest.raises(VerificationFailed, match="older than release"):
            remembered.require_sequence(expected["package"]["name"], expected["package"]["sequence"] - 1, {})
        with pytest.raises(VerificationFailed, match="set back"):
            remembered.require_time(remembered.pin.not_before.replace(year=2020), None)


@pytest.mark.parametrize(
    "name",
    [
        "publisher/package/weights/run-Q8_0.gguf",
        "publisher/package/policy.json",
        "publisher/package/provenance.json",
        "publisher/package/package.dsse",
        "publisher/package/provenance.dsse",
        "publisher/repository/metadata/timestamp.json",
        "machine/trust/acme.json",
        "machine/state/publishers/*/memory.json",
    ],
)
def test_one_changed_byte_is_refused(release: Path, name: str) -> None:
    (path,) = Path().glob(name)
    flip(path)
    with pytest.raises(StillroomError):
        verified().close()


def test_its_keys_sign_again(release: Path, expected: Any) -> None:
    ring = Ring.open("publisher/keys")
    assert {role: len(ring.names(role)) for role in ("root", "release", "revoke", "online")} == {
        "root": 3,
        "release": 3,
        "revoke": 1,
        "online": 1,
    }
    Path("publisher/package/package.dsse").unlink()
    signed = sign_package(release / "publisher" / "package", ring, PASSPHRASE)
    assert signed.signatures == 3
    verified().close()


def test_the_switch_says_what_it_said(release: Path) -> None:
    switches = {name: Switch(Places.under(release / "switch" / name)) for name in ("on", "off", "policy")}
    for name, switch in switches.items():
        state = switch.state()
        assert (state.on, state.held_by) == ((False, "user") if name == "off" else (True, "nobody"))
        assert state.features == {"tools": "blocked", "embeddings": "enabled"}
        assert state.changed > 1.7e9
        assert not switch.is_on("tools")
    assert switches["on"].is_on("downloads")
    assert switches["on"].state().feature("embeddings") == "enabled"
    assert not switches["off"].is_on("a feature of next year")
    with pytest.raises(SwitchedOff, match="administrator"):
        switches["policy"].require_on("downloads")
    for name in ("config", "state"):  # one of the two copies is enough
        own = Places.under(release / "switch" / "off")
        kept = getattr(own, name) / "switch.json"
        content = kept.read_bytes()
        kept.unlink()
        assert not Switch(own).is_on()
        kept.write_bytes(content)
    stopping.on(switches["off"])
    assert switches["off"].is_on()
    assert not switches["off"].is_on("tools")


def test_a_session_opens(release: Path, expected: Any) -> None:
    said = expected["session"]
    places = Places.under(release / "served" / "switch")
    store = SessionStore(places.data / "sessions", keyring=False)
    session = store.load(said["id"])
    assert (session.name, session.messages) == (said["name"], said["messages"])
    assert [entry["id"] for entry in store.list()] == [said["id"]]
    assert store.load_state(session, session.digest)
    flip(store.folder / f"{said['id']}.session")
    with pytest.raises(SessionDamaged):
        store.load(said["id"])


def test_a_session_goes_on(release: Path, expected: Any) -> None:
    said = expected["session"]
    weights = release / "run" / "export" / f"{said['model']}.gguf"
    # A file without a package is known by its size, time and name; a checkout has times of its own.
    written = int(said["digest"].split("-")[1])
    os.utime(weights, ns=(written, written))
    with running([weights], release / "served") as server:
        status, first, _ = server.ask("GET", f"/v1/sessions/{said['id']}")
        assert status == 200
        assert first["messages"] == said["messages"]
        status, next_one = server.chat("And a tuple?", session=said["id"], temperature=0)
        assert status == 200, next_one
        cached = next_one["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= 0.8 * said["prompt_tokens"], "the engine's state came back from the disk"
        _, whole, _ = server.ask("GET", f"/v1/sessions/{said['id']}")
        assert whole["messages"][: len(said["messages"])] == said["messages"]
        assert len(whole["messages"]) == len(said["messages"]) + 2


# Engines of a release that run while another is installed. These words are what 0.1.0 had: never follow the code with them.
WORKER_0_1_0 = "stillroom.serve.worker"
LINE_0_1_0 = '{"kind": "%s", "pid": %d, "started": %s, "model": "tiny-Q8_0.gguf"}'
NAME_0_1_0 = "%s-%d-0123abcd.json"


@pytest.fixture
def own(tmp_path: Path) -> Switch:
    return Switch(Places.under(tmp_path / "switch"))


@pytest.fixture
def engine(own: Switch, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the command line of 0.1.0's engine, which does nothing."""
    package = tmp_path / "old" / "stillroom" / "serve"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "worker.py").write_text("import time\nprint('up', flush=True)\nwhile True: time.sleep(1)\n")
    command = [sys.executable, "-P", "-m", WORKER_0_1_0, str(own.places.state)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "old"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def start_0_1_0(pid: int) -> float:
    """How 0.1.0 told processes of one number apart."""
    return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def write_down(own: Switch, kind: str, pid: int, line: str | None = None) -> Path:
    path = own.places.state / "engines" / (NAME_0_1_0 % (kind, pid))
    path.parent.mkdir(parents=True)
    path.write_text(line if line is not None else LINE_0_1_0 % (kind, pid, start_0_1_0(pid)))
    return path


linux = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are looked up in /proc")


@linux
def test_off_stops_an_engine_of_0_1_0(own: Switch, engine: subprocess.Popen[bytes]) -> None:
    write_down(own, "engine", engine.pid)
    assert stopping.status(own)["engines"] == [{"pid": engine.pid, "model": "tiny-Q8_0.gguf"}]
    receipt = stopping.off(own)
    assert engine.wait(5) is not None
    assert [(each.pid, each.model) for each in receipt.stopped] == [(engine.pid, "tiny-Q8_0.gguf")]


@linux
@pytest.mark.parametrize("line", [None, "", "{"], ids=["lost", "empty", "half-written"])
def test_off_stops_an_engine_of_0_1_0_whose_line_is_gone(
    own: Switch, engine: subprocess.Popen[bytes], line: str | None
) -> None:
    if line is not None:
        write_down(own, "engine", engine.pid, line)
    receipt = stopping.off(own)
    assert engine.wait(5) is not None
    assert [each.pid for each in receipt.stopped] == [engine.pid]


@linux
def test_off_leaves_the_engine_of_another_switch(own: Switch, engine: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert stopping.off(Switch(Places.under(tmp_path / "another"))).stopped == []
    assert engine.poll() is None


@linux
def test_off_waits_for_a_server_of_0_1_0(own: Switch) -> None:
    write_down(own, "server", os.getpid())
    assert stopping.off(own).silenced == [os.getpid()]
