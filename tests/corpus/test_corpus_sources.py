"""Sources: every kind is read, and every mistake says what, where, and what to do."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.errors import CorpusError, MissingDependency, NotWritable, StillroomError, SwitchedOff
from stillroom.corpus.documents import Document
from stillroom.corpus.sources import name_of, read_source
from stillroom.corpus.tally import Tally
from stillroom.recipe.corpus import (
    DatasetSource,
    JsonlSource,
    ParquetSource,
    PythonDocsSource,
    ReasoningGymSource,
    Source,
    TextSource,
)
from stillroom.recipe.recipe import Recipe
from stillroom.runs.known import Known, made_from
from stillroom.switch import Switch

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def read(source: Source) -> list[Document]:
    return list(read_source(source))


def message(source: Source, kind: type[StillroomError] = CorpusError) -> str:
    with pytest.raises(kind) as caught:
        read(source)
    return str(caught.value)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Text ----------------------------------------------------------------------------------------------------------------


def test_text_of_a_folder_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "z.txt").write_text("last")
    (tmp_path / "b" / "a.md").write_text("\ufefffirst")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert [document.text for document in read(TextSource(path=tmp_path))] == ["first", "last"]
    assert [document.text for document in read(TextSource(path=tmp_path / "z.txt"))] == ["last"]
    assert [d.text for d in read(TextSource(path=tmp_path, pattern=("*.txt",)))] == ["last"]


def test_text_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Käse".encode("latin-1"))
    assert read(TextSource(path=tmp_path, encoding="latin-1"))[0].text == "Käse"


def test_a_missing_path(tmp_path: Path) -> None:
    for source in (
        TextSource(path=tmp_path / "no"),
        JsonlSource(path=tmp_path / "no"),
        ParquetSource(path=tmp_path / "no"),
    ):
        assert message(source) == (
            f"{tmp_path / 'no'}: no such file or folder.\nCheck `path`; relative paths start at the recipe's folder."
        )


def test_a_folder_without_fitting_files(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    assert message(TextSource(path=tmp_path, pattern=("*.txt", "*.md"))) == (
        f"{tmp_path}: the folder holds no file that fits *.txt, *.md (it has 1 .pdf).\n"
        'Check `path` and `pattern`: `pattern: ["**/*.pdf"]` would take those.'
    )
    assert message(ParquetSource(path=tmp_path)) == (
        f"{tmp_path}: the folder holds no file that fits **/*.parquet (it has 1 .pdf).\nCheck `path`."
    )


def test_unreadable_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    assert message(TextSource(path=tmp_path)) == (
        f"{tmp_path / 'a.txt'}: the bytes at offset 5 are not utf-8.\n"
        "Name the right `encoding` in the recipe, or save the file as UTF-8."
    )


def test_an_unknown_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert message(TextSource(path=tmp_path, encoding="utf-9")) == (
        f"{tmp_path / 'a.txt'}: `utf-9` is not an encoding.\nWrite for example utf-8 or latin-1."
    )


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and rights that a file's mode can take away: the system's administrator may read everything."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        root = os.geteuid() == 0
        yield folder
        if root:
            os.seteuid(0)
        for path in [*folder.rglob("*")]:
            path.chmod(0o700)


def drop_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX's")
def test_a_file_that_may_not_be_read(unprivileged: Path) -> None:
    for name, source in (
        ("a.txt", TextSource(path=unprivileged)),
        ("a.jsonl", JsonlSource(path=unprivileged)),
        ("a.parquet", ParquetSource(path=unprivileged)),
    ):
        path = unprivileged / name
        path.write_text("x")
        path.chmod(0)
        drop_rights()
        found = message(source, NotWritable)
        if os.getuid() == 0:
            os.seteuid(0)
        assert found == f"{path}: may not be read.\nCheck its permissions."


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX's")
def test_a_folder_that_may_not_be_read(unprivileged: Path) -> None:
    inner = unprivileged / "inner"
    inner.mkdir()
    (unprivileged / "b.txt").write_text("x")
    inner.chmod(0)
    drop_rights()
    # It must not look like a folder without files.
    assert message(TextSource(path=unprivileged), NotWritable) == f"{inner}: may not be read.\nCheck its permissions."


# JSON Lines ----------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one"}, "\n", {"messages": CHAT}, {"text": None}, {"messages": []})
    one, chat, null, nothing = read(JsonlSource(path=tmp_path))
    assert one == Document("one", where=f"{path}, line 1")
    assert chat == Document(messages=tuple(CHAT), where=f"{path}, line 3")
    assert null.is_empty
    assert nothing.is_empty


def test_json_lines_by_key(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one", "body": "two", "talk": CHAT})
    assert read(JsonlSource(path=path, text_key="body"))[0].text == "two"
    assert read(JsonlSource(path=path, messages_key="talk"))[0].messages == tuple(CHAT)


@settings(max_examples=100)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5), escape=st.booleans())
def test_json_lines_give_back_any_text(texts: list[str], escape: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"".join(json.dumps({"text": t}, ensure_ascii=escape).encode() + b"\n" for t in texts))
        assert [document.text for document in read(JsonlSource(path=path))] == [t.replace("\r\n", "\n") for t in texts]


def test_bad_json(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one"}, '{"text": "two"\n')
    assert message(JsonlSource(path=path)) == (
        f"{path}, line 2: not valid JSON: Expecting ',' delimiter.\nEach line holds one JSON object."
    )
    deep = lines(tmp_path / "b.jsonl", "[" * 100_000 + "\n")
    assert f"{deep}, line 1: not valid JSON" in message(JsonlSource(path=deep))
    number = lines(tmp_path / "c.jsonl", '{"text": ' + "1" * 5000 + "}\n")
    assert f"{number}, line 1: " in message(JsonlSource(path=number))


def test_a_line_that_is_no_object(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["text"])
    assert message(JsonlSource(path=path)) == f'{path}, line 1: not a JSON object.\nA line looks like {{"text": "…"}}.'


def test_json_lines_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    assert (
        message(JsonlSource(path=path)) == f"{path}, line 2: not UTF-8 at byte 10 of the line.\nSave the file as UTF-8."
    )


@pytest.mark.parametrize("line", [b'\0\0\0{"text": "a"}', b'{"text": "a\0b"}', b'{\0"\0t\0e\0x\0t\0"\0:\0"\0a\0"\0}\0'])
def test_json_lines_with_zeros_are_told_as_such(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "zeros.jsonl"
    path.write_bytes(b'{"text": "abc"}\n' + line + b"\n")
    assert message(JsonlSource(path=path)) == (
        f"{path}, line 2: has characters that are 0, so that it is no text.\n"
        "Write the file again, or name its `encoding` in the recipe."
    )


def test_half_a_character(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", '{"text": "ab\\ud83d"}\n')
    assert message(JsonlSource(path=path)) == (
        f"{path}, line 1: character 2 of the text is half a character (\\ud83d).\n"
        "Write the text again with whole characters."
    )


def test_a_missing_key(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one"}, {"body": "two", "id": 3})
    wanted = (
        "line 2: no key `text`; there are: body, id.\n"
        "Name the right one as `text_key` or `messages_key` in the recipe, here `text_key: body`."
    )
    assert message(JsonlSource(path=path)) == f"{path}, {wanted}"
    assert "line 1: no key `talk`; there are: text." in message(JsonlSource(path=path, messages_key="talk"))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": 5}, "`text` holds a number, not text.\nName another key as `text_key`."),
        ({"text": ["a"]}, "`text` holds a list, not text.\nName another key as `text_key`."),
        (
            {"messages": "Q"},
            '`messages` holds text, not a list of messages.\nA message looks like {"role": "user", "content": "…"}.',
        ),
        (
            {"messages": ["Q"]},
            'entry 1 of `messages` is text, not a message.\nA message looks like {"role": "user", "content": "…"}.',
        ),
        (
            {"messages": [{"who": "human", "value": "Q"}]},
            "a message has `who`, `value` where `role` and `content` are needed.\n"
            'A message looks like {"role": "user", "content": "…"}.',
        ),
        (
            {"messages": [{"role": "human", "content": "Q"}]},
            "a message has the role 'human'.\nRoles are: system, developer, user, assistant, tool.",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "the user's message has nothing as its `content`.\nGive the words as one text.",
        ),
    ],
)
def test_rows_of_the_wrong_shape(tmp_path: Path, row: Any, wanted: str) -> None:
    path = lines(tmp_path / "a.jsonl", row)
    assert message(JsonlSource(path=path)) == f"{path}, line 1: {wanted}"


# Parquet -------------------------------------------------------------------------------------------------------------


def parquet(path: Path, **columns: list[Any]) -> Path:
    import pyarrow
    from pyarrow import parquet as module

    module.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(600)]
    path = parquet(tmp_path / "a.parquet", text=texts, other=texts)
    assert [document.text for document in read(ParquetSource(path=tmp_path))] == texts
    assert read(ParquetSource(path=path))[-1].where == f"{path}, row 600"
    chats = parquet(tmp_path / "b.parquet", messages=[CHAT, None])
    chat, empty = read(ParquetSource(path=chats))
    assert chat.messages == tuple(CHAT)
    assert empty.is_empty


def test_labels_of_tables(tmp_path: Path) -> None:
    answers: dict[str, list[Any]] = {"prompt": ["2 + 2 ="] * 3, "response": ["4", "5", "four"]}
    (tmp_path / "a.csv").write_text("prompt,response,label\n2 + 2 =,4,True\n2 + 2 =,5,False\n2 + 2 =,four,\n")
    table = parquet(tmp_path / "a.parquet", **answers, label=[True, False, None])
    for source in (JsonlSource(path=tmp_path / "a.csv"), ParquetSource(path=table)):
        tally = Tally()
        assert [document.is_empty for document in read_source(source, tally)] == [False, True, False]
        assert tally.notes["answers marked as unwanted (`label: false`) that are not learned"] == 1
        assert not tally.unused
    # Beside a plain text it is any column; without any text the missing one is told with all that there are.
    tally = Tally()
    texts = parquet(tmp_path / "b.parquet", text=["a", "b"], label=["cat", "dog"])
    assert [document.text for document in read_source(ParquetSource(path=texts), tally)] == ["a", "b"]
    assert tally.unused == {"label": 2}
    other = parquet(tmp_path / "c.parquet", body=["a"], label=["cat"])
    assert "no key `text`; there are: body, label." in message(ParquetSource(path=other))


def test_columns_that_are_in_no_text_are_counted_as_rows_of_json_are(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    from pyarrow import parquet as module

    rows: list[dict[str, Any]] = [
        {
            "text": f"text {index}",
            "whole": index,
            "some": index if index % 3 else None,
            "word": "" if index % 2 else "w",
            "words": ["a"] * (index % 3) if index % 4 else None,
            "long": "x" * 5000 if index % 5 else "",
            "part": {"a": index if index % 2 else None, "b": None},
            "parts": {"a": index, "b": None},
            "nothing": None,
            "when": None if index % 7 else datetime.datetime(2026, 11, 1),
            "a.b": index,
            "empty": "" if index < 20 else "late",
        }
        for index in range(300)
    ]
    table = pyarrow.Table.from_pylist(rows)
    when = pyarrow.array([row["when"] for row in rows], pyarrow.timestamp("ns"))
    table = table.set_column(table.schema.get_field_index("when"), "when", when)
    module.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    for row in rows:
        row["when"] = row["when"] and str(row["when"])
        row["part"] = {key: value for key, value in row["part"].items() if value is not None}
    lines(tmp_path / "a.jsonl", *rows)
    for limit in (1, 40, 70, 299, None):
        found = []
        for source in (ParquetSource(path=tmp_path / "a.parquet"), JsonlSource(path=tmp_path / "a.jsonl")):
            tally = Tally()
            assert [document.text for document in itertools.islice(read_source(source, tally), limit)] == [
                row["text"] for row in rows[:limit]
            ]
            found.append(dict(tally.unused))
        assert found[0] == found[1]
        assert found[0]["whole"] == (limit or 300)


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    wanted = "there are: body, id.\nName the right one as `text_key` or `messages_key` in the recipe."
    assert message(ParquetSource(path=path)) == f"{path}: no key `text`; {wanted}"
    assert message(ParquetSource(path=path, text_key="words")) == f"{path}: no key `words`; {wanted}"


def test_truncated_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"text {index}" for index in range(100)])
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        found = message(ParquetSource(path=path))
        assert found.startswith(f"{path}: not a whole Parquet file: ")
        assert found.endswith("\nCopy or write it again.")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["some words " * 50 + str(index) for index in range(500)])
    data = bytearray(path.read_bytes())
    data[8 : len(data) // 2] = b"\xaa" * (len(data) // 2 - 8)
    path.write_bytes(data)
    assert message(ParquetSource(path=path)).startswith(f"{path}: ")


# Hugging Face datasets -----------------------------------------------------------------------------------------------


def test_datasets_on_disk(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"text": ["a", "b"]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "several")
    assert [d.text for d in read(DatasetSource(name=str(tmp_path / "one")))] == ["a", "b"]
    assert [d.text for d in read(DatasetSource(name=str(tmp_path / "several"), split="test"))] == ["b"]
    assert message(DatasetSource(name=str(tmp_path / "several"), split="dev")) == (
        f"{tmp_path / 'several'}: no split `dev`; there are: train, test.\nChange `split`."
    )
    assert "row 1: no key `body`; there are: text." in message(
        DatasetSource(name=str(tmp_path / "one"), text_key="body")
    )


def test_a_saved_dataset_of_another_split_or_configuration_is_refused(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "files").mkdir()
    lines(tmp_path / "files" / "train.jsonl", {"text": "a"}, {"text": "b"})
    some = datasets.load_dataset(str(tmp_path / "files"), split="train[:1]", cache_dir=str(tmp_path / "cache"))
    none = datasets.Dataset.from_dict({"text": ["a"]})
    test = datasets.Dataset.from_dict({"text": ["a"]}, split="test")
    folders = {"some": some, "none": none, "test": test, "dict": datasets.DatasetDict({"test": some, "train": none})}
    for name, data in folders.items():
        data.save_to_disk(tmp_path / name)

    def source(name: str, **keys: str) -> DatasetSource:
        return DatasetSource(name=str(tmp_path / name), **keys)

    for good in (
        source("some"),
        source("some", split="train[:1]", config="default"),
        source("none", split="train"),
        source("test", split="test"),
        source("dict", split="test", config="default"),
    ):
        assert [document.text for document in read(good)] == ["a"]
    for name, held in (("some", "train[:1]"), ("none", "train")):
        assert message(source(name, split="test")) == (
            f"{tmp_path / name}: one saved table, of the split `{held}`, and the recipe asks for `test`.\n"
            f"Write `split: {held}`, or name the folder that has the split `test`."
        )
    assert "of the split `test`, and the recipe asks for `train`" in message(source("test"))
    assert "which names no configuration, and the recipe asks for `nope`" in message(source("none", config="nope"))
    for asked in (source("some", config="nope"), source("dict", split="test", config="nope")):
        assert "of the configuration `default`, and the recipe asks for `nope`" in message(asked)


def test_a_dataset_that_is_a_folder_of_files(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {"messages": CHAT}, {"messages": CHAT})
    found = read(DatasetSource(name=str(tmp_path)))
    assert [document.messages for document in found] == [tuple(CHAT)] * 2


def test_a_dataset_of_the_hub_is_not_fetched_while_downloads_are_blocked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_downloads: Switch
) -> None:
    monkeypatch.setattr("stillroom.corpus.sources.require_on", no_downloads.require_on)
    with pytest.raises(SwitchedOff, match="downloads"):
        read(DatasetSource(name="nobody/nothing"))
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "folder" / "train.jsonl", {"messages": CHAT})
    assert read(DatasetSource(name=str(tmp_path / "folder")))


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    # In a process of its own: the library reads once, when it is imported, whether there is a network.
    code = (
        "from stillroom.recipe.corpus import DatasetSource\n"
        "from stillroom.corpus.sources import read_source\n"
        "from stillroom.core.errors import CorpusError\n"
        "try:\n"
        "    list(read_source(DatasetSource(name='nobody/nothing')))\n"
        "except CorpusError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("The dataset nobody/nothing cannot be read: ")
    assert done.stdout.endswith("\nCheck the name, the split and the network, or give a folder.\n")


@pytest.mark.parametrize(
    ("module", "source", "wanted"),
    [
        (
            "datasets",
            DatasetSource(name="x/y"),
            "Hugging Face datasets need the package `datasets`.\nInstall it: pip install 'stillroom[datasets]'",
        ),
        (
            "pyarrow.parquet",
            ParquetSource(path=Path("x")),
            "Parquet files need pyarrow.\nInstall it: pip install 'stillroom[datasets]'",
        ),
        (
            "reasoning_gym",
            ReasoningGymSource(),
            "Generated questions need the package `reasoning-gym`.\nInstall it: pip install 'stillroom[reasoning]'",
        ),
    ],
)
def test_missing_packages(module: str, source: Source, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert message(source, MissingDependency) == wanted


# Always at hand ------------------------------------------------------------------------------------------------------


def test_pythons_documentation_without_importing_it() -> None:
    code = (
        "import sys\n"
        "from stillroom.recipe.corpus import PythonDocsSource\n"
        "from stillroom.corpus.sources import read_source\n"
        "import hashlib\n"
        "before = set(sys.modules)\n"
        "found = list(read_source(PythonDocsSource()))\n"
        "print(len(found), hashlib.sha256(''.join(d.digest for d in found).encode()).hexdigest())\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONWARNINGS": "error"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    count, _ = runs[0].splitlines()[0].split()
    assert int(count) > 500
    imported = runs[0].splitlines()[1]
    assert "antigravity" not in imported
    assert "tkinter" not in imported


def test_parts_of_pythons_documentation() -> None:
    topics = read(PythonDocsSource(parts=("topics",)))
    docstrings = read(PythonDocsSource(parts=("docstrings",)))
    assert any('The "for" statement' in document.text for document in topics)
    assert any(document.text.startswith("textwrap.TextWrapper") for document in docstrings)
    assert not any(document.is_empty for document in topics + docstrings)


def test_generated_questions() -> None:
    source = ReasoningGymSource(tasks=("leg_counting",), count=5)
    found = read(source)
    assert len(found) == 5
    assert [m["role"] for m in found[0].messages] == ["user", "assistant"]
    assert found[0].messages[1]["content"].isdigit()
    assert found[0].text == f"{found[0].messages[0]['content']}\n{found[0].messages[1]['content']}\n"
    assert read(source) == found


def test_a_task_that_is_not_there() -> None:
    found = message(ReasoningGymSource(tasks=("telepathy",)))
    assert found.startswith("reasoning-gym has no task `telepathy`: ")
    assert found.endswith("\nChange `tasks`.")


def test_names_of_sources() -> None:
    assert name_of(TextSource(path=Path("a/b"))) == str(Path("a/b"))
    assert name_of(DatasetSource(name="owner/data")) == "owner/data"
    assert name_of(ReasoningGymSource(tasks=("x", "y"))) == "reasoning-gym: x, y"
    assert name_of(PythonDocsSource()) == "Python's own documentation"


def test_pythons_documentation_as_answers_to_questions() -> None:
    plain = read(PythonDocsSource(parts=("topics",)))
    asked = read(PythonDocsSource(parts=("topics",), form="chat"))
    assert len(asked) == len(plain)
    for text, chat in zip(plain, asked, strict=True):
        question, answer = chat.messages
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"] == text.text.strip()
        assert chat.where.removeprefix("pydoc topic ").replace("-", " ") in question["content"]
    assert len({chat.messages[0]["content"].split("`")[0] for chat in asked}) == 5
    docstring = next(chat for chat in read(PythonDocsSource(form="chat")) if "`textwrap.TextWrapper`" in chat.text)
    assert "Object for wrapping/filling text" in docstring.messages[1]["content"]


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", '{"text": "one", "text": "two"}\n'), ("a.json", '[{"text": "one", "text": "two"}]')]
)
def test_a_key_that_stands_twice_in_a_row_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match="the key 'text' is there twice"):
        read(JsonlSource(path=tmp_path / name))


# Encodings -----------------------------------------------------------------------------------------------------------

WRITTEN = {
    "a.txt": "Käse",
    "a.jsonl": '{"text": "Käse"}\n',
    "a.json": '[{"text": "Käse"}]',
    "a.csv": "text\nKäse\n",
    "a.tsv": "text\nKäse\n",
}


def _source(path: Path, encoding: str, *, separated: bool = False) -> Source:
    if path.suffix == ".txt":
        return TextSource(path=path, encoding=encoding, separator="\n\n" if separated else None)
    return JsonlSource(path=path, encoding=encoding)


@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(
    ("encoding", "mark", "codec"),
    [
        *((alias, mark, "utf-8") for alias in ("utf-8", "utf_8", "U8", "utf8", "cp65001") for mark in ("", "\ufeff")),
        *((alias, mark, "utf-8") for alias in ("utf-8-sig", "UTF_8_SIG") for mark in ("", "\ufeff")),
        *((alias, "\ufeff", f"utf-16-{end}") for alias in ("utf-16", "U16") for end in ("le", "be")),
        *((f"utf_16_{end}", mark, f"utf-16-{end}") for end in ("le", "be") for mark in ("", "\ufeff")),
        *((alias, "\ufeff", f"utf-32-{end}") for alias in ("utf-32", "U32") for end in ("le", "be")),
        ("utf-32-be", "\ufeff", "utf-32-be"),
        ("latin1", "", "latin-1"),
        ("windows-1252", "", "cp1252"),
        ("gb18030", "", "gb18030"),
    ],
)
def test_every_name_of_an_encoding_with_and_without_its_mark(
    tmp_path: Path, name: str, encoding: str, mark: str, codec: str, separated: bool
) -> None:
    path = tmp_path / name
    path.write_bytes((mark + WRITTEN[name]).encode(codec))
    assert [document.text for document in read(_source(path, encoding, separated=separated))] == ["Käse"]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize(
    ("encoding", "mark", "codec", "reason"),
    [
        ("utf-16", "", "utf-16-be", "no byte order mark"),
        ("u32", "", "utf-32-le", "no byte order mark"),
        ("utf-16-le", "\ufeff", "utf-16-be", "begins with the byte order mark of UTF-16-BE"),
        ("utf-8", "\ufeff", "utf-16-le", "begins with the byte order mark of UTF-16-LE"),
        ("latin-1", "\ufeff", "utf-8", "begins with the byte order mark of UTF-8"),
        ("base64", "", "ascii", "`base64` is not an encoding"),
        ("undefined", "", "ascii", "`undefined` is not an encoding"),
        ("utf\0", "", "ascii", "is not an encoding"),
        ("ascii", "", "utf-8", "not ascii"),
        ("euc_kr", "", "latin-1", "not euc_kr"),
    ],
)
def test_an_encoding_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, name: str, encoding: str, mark: str, codec: str, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes((mark + WRITTEN[name]).encode(codec, "replace"))
    for separated in (False, True):
        assert reason in message(_source(path, encoding, separated=separated))


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written", "keys", "texts"),
    [
        ("a.csv", "text\na;b\nc\td\n", {}, ["a;b", "c\td"]),
        ("a.csv", '"text;more"\na;b\n', {"text_key": "text;more"}, ["a;b"]),
        ("a.csv", "text;more\na;b\n", {"text_key": "text;more"}, ["a;b"]),
        ("a.csv", "text;more\na;b\n", {"text_key": "text;more", "delimiter": ","}, ["a;b"]),
        ("a.csv", "text;more\na;b\n", {}, ["a"]),
        ("a.csv", "\r\n \n\ntext;more\na;b\n", {}, ["a"]),
        ("a.csv", "\n\n", {}, []),
        ("a.csv", "id;body\n1;b\n", {"text_key": "body"}, ["b"]),
        ("a.csv", "id\tbody\n1\tb\n", {"text_key": "body", "delimiter": "\t"}, ["b"]),
        ("a.csv", "id|body\n1|b\n", {"text_key": "body", "delimiter": "|"}, ["b"]),
        ("a.csv", "text;more\na;b\n", {"text_key": "text;more", "delimiter": "|"}, ["a;b"]),
        ("a.tsv", "text\na,b\n", {}, ["a,b"]),
        ("a.csv", 'id,"te\nxt"\n1,b\n', {"text_key": "te\nxt"}, ["b"]),
    ],
)
def test_columns_of_a_table(tmp_path: Path, name: str, written: str, keys: dict[str, Any], texts: list[str]) -> None:
    (tmp_path / name).write_text(written)
    assert [document.text for document in read(JsonlSource(path=tmp_path / name, **keys))] == texts


@pytest.mark.parametrize(
    ("name", "written", "wanted"),
    [
        ("a.csv", "what; or that\na;b\n", 'delimiter: ";"'),
        ("a.csv", "text\tmore\na\tb\n", 'delimiter: "\\t"'),
        ("a.tsv", "text,more\na,b\n", 'delimiter: ","'),
        ("a.csv", "text|more\na|b\n", 'delimiter: "|"'),
    ],
)
def test_a_first_line_of_two_meanings_is_refused(tmp_path: Path, name: str, written: str, wanted: str) -> None:
    (tmp_path / name).write_text(written)
    said = message(JsonlSource(path=tmp_path / name))
    assert "the first line is one column with" in said
    assert wanted in said


def test_a_delimiter_that_the_table_does_not_have_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,b\n")
    said = message(JsonlSource(path=tmp_path / "a.csv", delimiter="\t"))
    assert "the first line is one column with tabs between columns, and 2 with `,`" in said
    assert 'Write `delimiter: ","` beside `path`, or name the column as `text_key`.' in said


def test_a_delimiter_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    said = message(JsonlSource(path=tmp_path / "a.jsonl", delimiter=";"))
    assert "`delimiter`" in said
    assert "there is none here" in said
    (tmp_path / "b.csv").write_text("text;more\nb;c\n")
    both = JsonlSource(path=tmp_path, pattern=("*.jsonl", "*.csv"), delimiter=";")
    assert sorted(document.text for document in read(both)) == ["a", "b"]


# Files that are packed -----------------------------------------------------------------------------------------------

NOT_READ = ("a.tar.gz", "a.tgz", "a.zip", "a.tar.zst", "a.txt.gz.gz", "a.jsonl.xz", "a.TAR.GZ", "a.parquet.gz")


@pytest.mark.parametrize("name", NOT_READ)
def test_archives_are_refused_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text\n")
    for source in (TextSource, JsonlSource, ParquetSource):
        said = message(source(path=tmp_path / name))
        assert ("Parquet files are read unpacked" if "parquet" in name else "are not unpacked") in said


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.txt"
    os.mkfifo(pipe)
    with pytest.raises(CorpusError, match="neither a file nor a folder"):
        list(read_source(TextSource(path=pipe)))
    with pytest.raises(CorpusError, match="no name that a file can have"):
        list(read_source(TextSource(path=tmp_path / "a\0b")))
    corpus = {"sources": [{"kind": "text", "path": str(pipe)}]}
    recipe = Recipe.model_validate({"name": "a", "teacher": {"kind": "huggingface", "name": "t"}, "corpus": corpus})
    assert made_from(recipe, "corpus", Known(tmp_path / "known")) == {str(pipe): "no file"}


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(CorpusError, match="two columns have one name"):
        list(read_source(ParquetSource(path=path)))
