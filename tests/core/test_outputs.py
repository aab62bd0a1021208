"""What a command writes is nothing that it reads, and no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.core.errors import UsageError
from stillroom.core.outputs import require_apart, require_output


def refused(path: Path, *inputs: Path | None) -> str:
    with pytest.raises(UsageError) as caught:
        require_output(path, inputs)
    return str(caught.value)


def test_an_input_is_no_output_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, folder = tmp_path / "given.txt", tmp_path / "model"
    given.write_text("evidence")
    (tmp_path / "hard").hardlink_to(given)
    (tmp_path / "soft").symlink_to(given)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "way").symlink_to(folder)
    for path in ("given.txt", "model/../given.txt", "hard", "soft"):
        assert "is read here" in refused(Path(path), None, folder, given)
    for path in ("model/config.json", "way/config.json"):
        assert "is a file of" in refused(Path(path), folder)
    require_output(Path("new/other.txt"), [given, folder])
    require_output(Path("model/new.json"), [given, folder])
    assert "is a folder" in refused(folder, folder)
    with pytest.raises(UsageError, match="which would be replaced"):
        require_apart(folder, [folder / "config.json"])
    assert given.read_text() == "evidence"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mark", ""),
        ("secret.key", "x"),
        ("lineage.secret", "x"),
        ("renamed", "ab" * 32 + "\n"),
        ("private", '{"cipher":"chacha20-poly1305","kdf":"scrypt"}'),
        ("id", "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
    ],
)
def test_a_key_is_never_overwritten(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert "holds a key" in refused(tmp_path / name)
    assert (tmp_path / name).read_text() == text
