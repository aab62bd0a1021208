"""The commands, from keys to a revoked package, as a publisher and a machine would give them."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attacks.workshop import PASSPHRASE, finished_run
from stillroom.cli.app import app
from stillroom.core.errors import CheckFailed, UsageError, VerificationFailed
from stillroom.packages import keys as keys_module
from stillroom.packages.secret import passphrase
from stillroom.packages.show import passport_of
from stillroom.verification import manifest
from stillroom.verification import remembered as memory

RUNNER = CliRunner()


def command(*words: Any, fails: type[Exception] | None = None) -> str:
    result = RUNNER.invoke(app, [str(word) for word in words])
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
        return str(result.exception)
    assert result.exit_code == 0, f"{result.output}\n{result.exception}"
    return result.stdout


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLROOM_PASSPHRASE", PASSPHRASE)
    real = keys_module._derive
    monkeypatch.setattr(keys_module, "_derive", lambda said, salt, _cost: real(said, salt, 2))
    monkeypatch.setattr(memory, "trust_folder", lambda: tmp_path / "trust")
    monkeypatch.setattr("stillroom.verification.verification.trust_folder", lambda: tmp_path / "trust")
    monkeypatch.setattr("stillroom.verification.verification.state_folder", lambda: tmp_path / "state")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_from_keys_to_a_revoked_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path / "runs")
    ring, repo, folder = tmp_path / "keys", tmp_path / "repo", run.path / "package"
    shown = json.loads(command("keys", "init", ring, "--publisher", "acme", "--json"))
    assert shown["roles"]["release"]["threshold"] == 2
    assert "acme is your own, and trusted on this machine" in command("repo", "init", repo, "--keys", ring)
    assert "unsigned" in command("package", run.path)
    with monkeypatch.context() as patched:
        # Of an unsigned package, of any size, nothing is read but what is shown.
        patched.setattr(manifest, "_list", None)
        unsigned = json.loads(command("inspect", folder, "--json"))
        assert "none yet: `stillroom sign` makes it" in command("inspect", folder)
    assert unsigned["digest"] is None
    assert {file["name"]: file["bytes"] for file in unsigned["files"]} == {
        file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()
    }
    of_its_files = passport_of(folder, whole=True)["digest"]
    assert "refuse" in command("package", run.path, "--at-expiry", "later", fails=UsageError)
    assert "1 more" in command("sign", folder, "--keys", ring, "--key", "release-1")
    digest = json.loads(command("sign", folder, "--keys", ring, "--json"))["digest"]
    command("repo", "add", repo, folder, "--keys", ring)
    assert "verified by 3 keys of acme" in command("verify", folder)
    for kept in (tmp_path / "trust").iterdir():
        kept.unlink()
    assert "No publisher is trusted" in command("verify", folder, fails=VerificationFailed)
    assert "is trusted" in command("repo", "trust", repo / "trust.json")
    passport = json.loads(command("verify", folder, "--json"))
    assert passport["digest"] == digest == of_its_files
    assert "verified by 3 keys of acme" in command("verify", folder)
    assert json.loads(command("inspect", folder, "--json"))["digest"] == digest
    assert "Nothing is proven" in command("inspect", folder)
    command("revoke", repo, "package", folder, "--reason", "a defect", "--keys", ring)
    assert "a defect" in command("verify", folder, fails=VerificationFailed)
    assert "revoked package" in command("inspect", repo)
    command("reinstate", repo, digest, "--keys", ring)
    command("verify", folder)
    assert "cannot be revoked" in command(
        "revoke", repo, "person", digest, "--reason", "x", "--keys", ring, fails=UsageError
    )
    assert "neither a digest" in command(
        "revoke", repo, "teacher", "abc", "--reason", "x", "--keys", ring, fails=UsageError
    )


def test_a_revoked_key_says_what_it_does_and_what_is_left(tmp_path: Path) -> None:
    ring, repo = tmp_path / "keys", tmp_path / "repo"
    shown = json.loads(command("keys", "init", ring, "--publisher", "acme", "--json"))
    command("repo", "init", repo, "--keys", ring)
    keys = {key["name"]: key["keyid"] for role in shown["roles"].values() for key in role["keys"]}
    rest = ("--reason", "stolen", "--keys", ring)
    said = command("revoke", repo, "key", keys["release-1"], *rest)
    assert "count no signature of it" in said
    assert f"stillroom keys rotate {ring} release release-1" in said
    command("keys", "rotate", ring, "release", "release-2")
    assert "Rotate" not in command("revoke", repo, "key", keys["release-2"], *rest)
    for name in ("root-1", "revoke-1", "online-1"):
        assert "keys rotate" in command("revoke", repo, "key", keys[name], *rest, fails=UsageError)
    assert "no key of acme" in command("revoke", repo, "key", "0" * 64, *rest, fails=UsageError)


def test_rotation_and_thresholds(tmp_path: Path) -> None:
    ring, repo = tmp_path / "keys", tmp_path / "repo"
    command("keys", "init", ring, "--publisher", "acme")
    command("repo", "init", repo, "--keys", ring)
    assert "release-4" in command("keys", "rotate", ring, "release", "release-2")
    assert "3 of 3 sign" in command("keys", "threshold", ring, "root", "3")
    assert "release-4" in command("keys", "show", ring)
    assert "holds until" in command("repo", "refresh", repo, "--keys", ring)
    assert json.loads((repo / "metadata" / "2.root.json").read_text())["signed"]["roles"]["root"]["threshold"] == 3
    assert "not a role" in command("keys", "rotate", ring, "king", "king-1", fails=UsageError)


def test_refresh_says_what_it_renewed_and_fails_where_something_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, online, repo = tmp_path / "keys", tmp_path / "online", tmp_path / "repo"
    command("keys", "init", ring, "--publisher", "acme")
    (online / "private").mkdir(parents=True)
    for name in ("ring.json", "private/online-1.key"):
        (online / name).write_bytes((ring / name).read_bytes())
    long_ago = dict.fromkeys(("root", "targets", "revoke"), -10)
    with monkeypatch.context() as patch:
        patch.setattr("stillroom.packages.repository.VALID_DAYS", {**long_ago, "snapshot": 14, "timestamp": 14})
        command("repo", "init", repo, "--keys", ring)
    refused = command("repo", "refresh", repo, "--keys", online, fails=CheckFailed)
    assert "targets.json expired on" in refused
    assert "2 keys of the role root must sign, 0 are at hand" in refused
    assert "repo refresh" in refused
    with monkeypatch.context() as patch:
        patch.setattr(
            "stillroom.packages.repository.VALID_DAYS", dict.fromkeys((*long_ago, "snapshot", "timestamp"), 14)
        )
        assert "root.json was re-signed" in command("repo", "refresh", repo, "--keys", ring)
    soon = RUNNER.invoke(app, ["repo", "refresh", str(repo), "--keys", str(online)])
    assert soon.exit_code == 0
    assert "revoke.json expires on" in soon.stderr
    assert "holds until" in soon.stdout
    said = command("repo", "refresh", repo, "--keys", ring)
    assert [line.partition(" ")[0] for line in said.splitlines()[:3]] == ["root.json", "targets.json", "revoke.json"]


def test_ones_own_package_verifies_where_its_address_cannot_be_reached(tmp_path: Path) -> None:
    """The sequence of docs/packages.md, as it is written there: nothing answers at the address yet."""
    run = finished_run(tmp_path / "runs")
    ring, repo, folder = tmp_path / "keys", tmp_path / "site", run.path / "package"
    command("keys", "init", ring, "--publisher", "acme")
    command("repo", "init", repo, "--keys", ring, "--address", "https://127.0.0.1:9/models")
    command("package", run.path)
    command("sign", folder, "--keys", ring)
    command("repo", "add", repo, folder, "--keys", ring)
    assert "verified by 3 keys of acme" in command("verify", folder)
    # Elsewhere there is no such folder, and the message says why the address does not answer.
    (tmp_path / "trust" / "acme.own").unlink()
    for kept in sorted((tmp_path / "state").rglob("*"), reverse=True):
        kept.rmdir() if kept.is_dir() else kept.unlink()
    refused = command("verify", folder, fails=VerificationFailed)
    assert "127.0.0.1:9" in refused
    assert "()" not in refused
    command("keys", "init", tmp_path / "others", "--publisher", "acme")
    other = command("repo", "init", tmp_path / "elsewhere", "--keys", tmp_path / "others")
    assert "pins acme otherwise, and stays" in other


def test_keys_from_several_folders_sign_together(tmp_path: Path) -> None:
    one, other, repo = tmp_path / "one", tmp_path / "other", tmp_path / "repo"
    command("keys", "init", one, "--publisher", "acme")
    other.mkdir()
    (other / "private").mkdir()
    (other / "ring.json").write_bytes((one / "ring.json").read_bytes())
    (one / "private" / "root-1.key").rename(other / "private" / "root-1.key")
    (one / "private" / "root-2.key").unlink()
    assert "1 are at hand" in command("repo", "init", repo, "--keys", one, fails=UsageError)
    command("repo", "init", repo, "--keys", one, "--keys", other)


def test_served_folder_is_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that finds the repository over HTTP sees the same."""
    import functools
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from attacks.workshop import workshop

    shop = workshop(tmp_path / "shop")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    served: list[ThreadingHTTPServer] = []

    def serve(server: ThreadingHTTPServer) -> None:
        served.append(server)

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", serve)
    assert "http://127.0.0.1:" in command("repo", "serve-dir", shop.repo, "--port", "0")
    monkeypatch.undo()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shop.repo))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert urllib.request.urlopen(f"{address}/metadata/timestamp.json").status == 200
        shop.check(trust=shop.pin.model_copy(update={"repository": address}))
        server.shutdown()
    with shop.verify(trust=shop.pin.model_copy(update={"repository": address})) as verified:
        assert "offline" in verified.warnings[0]


def test_passphrase_comes_from_a_descriptor_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"from the pipe\nsecond line\n")
    os.close(write)
    assert passphrase(read) == "from the pipe"
    os.close(read)
    assert passphrase() == PASSPHRASE
    monkeypatch.delenv("STILLROOM_PASSPHRASE")
    with pytest.raises(UsageError, match="not a terminal"):
        passphrase()
    with pytest.raises(UsageError, match="gives no passphrase"):
        passphrase(987)
