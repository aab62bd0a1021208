"""The recipe's words for text: sources, splits, packing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from stillroom.recipe.section import SINCE, Section

TABLES = ("**/*.parquet",)
"""Which files of a folder are Parquet tables."""


class _Source(Section):
    """What every source says of itself."""

    licence: str | None = None
    """Licence of the text as its owner states it; recorded in the data manifest, and checked by the terms gate."""
    generated_by: str | None = None
    """The model (its name on the hub) or service that wrote the text, if one did; the terms gate evaluates it as a teacher."""
    limit: int | None = Field(default=None, gt=0)
    """Take at most this many documents."""
    teacher: str | dict[str, float] | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """The teacher to learn from on this text: a name under ``teachers``, or several with weights, such as
    ``{code: 2, teacher: 1}``; ``teacher`` is the recipe's own ``teacher``, which is what is learned from without this key
    (docs/several-teachers.md)."""


Rows = TypeVar("Rows", "JsonlSource", "ParquetSource", "DatasetSource")


def _require_one_key(source: Rows) -> Rows:
    """Of two keys of a row one would be read, and the other left without a word."""
    if source.text_key and source.messages_key:
        raise ValueError("give text_key or messages_key, not both")
    return source


_ONE_KEY = model_validator(mode="after")(_require_one_key)


class TextSource(_Source):
    """Text and Markdown files: one document a file."""

    kind: Literal["text"] = "text"
    path: Path
    """A file, a folder, or a pattern such as ``texts/*.md``; relative paths start at the recipe's folder."""
    pattern: tuple[str, ...] = ("**/*.txt", "**/*.md", "**/*.markdown", "**/*.rst")
    """Which files of a folder are taken, in upper or lower case, and packed as ``.gz`` or ``.zst`` too."""
    encoding: str = "utf-8"
    """How bytes become text. Bytes that do not fit are an error that names the file and the offset."""
    separator: str | None = Field(default=None, min_length=1, json_schema_extra={SINCE: "0.2.0"})
    """What is between the documents of a file of plain text, such as ``"\n\n"``; without it, a file is one document."""


class JsonlSource(_Source):
    """JSON Lines, a JSON array, or CSV: one document a line or row, as text, a chat, or a question with its answer."""

    kind: Literal["jsonl"] = "jsonl"
    path: Path
    """A file, a folder of ``*.jsonl`` files, or a pattern such as ``data/*.jsonl.gz``."""
    pattern: tuple[str, ...] = Field(default=("**/*.jsonl", "**/*.ndjson"), json_schema_extra={SINCE: "0.2.0"})
    """Which files of a folder are taken, in upper or lower case, and packed as ``.gz`` or ``.zst`` too. Files of the endings
    ``.json``, ``.csv`` and ``.tsv`` can be read as well."""
    encoding: str = Field(default="utf-8", json_schema_extra={SINCE: "0.2.0"})
    """How bytes become text."""
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """What is between the columns of ``.csv`` and ``.tsv`` files; a tab is written in double quotes, as ``"\\t"``. Without it,
    a comma and a tab; and a semicolon where that makes of a CSV file's first line the columns that are read."""
    text_key: str | None = None
    """The key that holds plain text. Give this or ``messages_key``; without either, each row's shape is found."""
    messages_key: str | None = None
    """The key that holds chat messages ``[{"role": …, "content": …}]``."""
    ignore: tuple[str, ...] = Field(default=(), json_schema_extra={SINCE: "0.2.0"})
    """Keys of rows and of messages that are left out on purpose, such as ``[reasoning_content]`` or ``[tools]``. What is in no
    text without being named here is counted, or refused where the text would say something else."""

    _one_key = _ONE_KEY


class ParquetSource(_Source):
    """Parquet files: one document a row."""

    kind: Literal["parquet"] = "parquet"
    path: Path
    """A file, a folder of ``*.parquet`` files, or a pattern."""
    text_key: str | None = None
    """The column that holds plain text."""
    messages_key: str | None = None
    """The column that holds chat messages."""
    ignore: tuple[str, ...] = Field(default=(), json_schema_extra={SINCE: "0.2.0"})
    """Keys of rows and of messages that are left out on purpose, such as ``[reasoning_content]`` or ``[tools]``. What is in no
    text without being named here is counted, or refused where the text would say something else."""

    _one_key = _ONE_KEY


class DatasetSource(_Source):
    """A Hugging Face dataset: a folder on disk, or a name on the hub (the hub needs a network)."""

    kind: Literal["dataset"] = "dataset"
    name: str
    """A folder, or a name on the hub."""
    config: str | None = None
    """The dataset's configuration, if it has several."""
    split: str = "train"
    """Which split is read."""
    revision: str | None = None
    """The commit to read, so that a run can be repeated."""
    text_key: str | None = None
    """The column that holds plain text."""
    messages_key: str | None = None
    """The column that holds chat messages."""
    ignore: tuple[str, ...] = Field(default=(), json_schema_extra={SINCE: "0.2.0"})
    """Keys of rows and of messages that are left out on purpose, such as ``[reasoning_content]`` or ``[tools]``. What is in no
    text without being named here is counted, or refused where the text would say something else."""

    _one_key = _ONE_KEY


class PythonDocsSource(_Source):
    """Python's own reference documentation and its standard library's docstrings: always at hand."""

    kind: Literal["python_docs"] = "python_docs"
    licence: str | None = "PSF-2.0"
    """Licence of the text."""
    parts: tuple[Literal["topics", "docstrings"], ...] = ("topics", "docstrings")
    """The language reference's topics, the docstrings of the standard library, or both."""
    form: Literal["text", "chat"] = "text"
    """``chat`` asks for each of them and lets the assistant answer with it, so that a chat model's student goes on
    answering."""


class ReasoningGymSource(_Source):
    """Generated questions with answers, from the package ``reasoning-gym`` (an extra)."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    licence: str | None = "Apache-2.0"
    """Licence of the generators."""
    tasks: tuple[str, ...] = ("basic_arithmetic", "leg_counting")
    """Names of generators."""
    count: int = Field(default=200, gt=0, le=10_000_000)
    """Questions a generator."""


Source = Annotated[
    TextSource | JsonlSource | ParquetSource | DatasetSource | PythonDocsSource | ReasoningGymSource,
    Field(discriminator="kind"),
]


class CorpusConfig(Section):
    """Text, how it is split, and how it is packed into token sequences."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where text comes from; every source is one of the kinds below."""
    sequence_length: int = Field(default=2048, ge=8, le=131_072)
    """Tokens of a packed sequence, and most tokens of a piece of a document."""
    overlap_tokens: int | None = Field(default=None, gt=0, json_schema_extra={SINCE: "0.2.0"})
    """Tokens before it that a piece of a longer document repeats; they are seen and not learned. At most half of
    ``sequence_length``; without it, a quarter of it, and 512 at most."""
    train_tokens: int | None = Field(default=None, gt=0)
    """Tokens to train on; without it, all there are. Tokens of text are counted: not what pieces repeat, and no padding."""
    validation_tokens: int | None = Field(default=None, gt=0)
    """Tokens that choose the best checkpoint, likewise; without it, all of the validation documents up to a sixteenth of the
    training tokens, or 10,000 if that is more."""
    heldout_tokens: int | None = Field(default=None, gt=0)
    """Tokens that the final numbers are measured on, likewise; without it, all of the held-out documents up to an eighth of the
    training tokens, or 20,000 if that is more."""
    skip_longer_than: int | None = Field(default=None, gt=0, json_schema_extra={SINCE: "0.2.0"})
    """Leave out documents with more tokens than this; how many of each source were left out is counted and said. Without it,
    long documents are split into pieces."""
    max_document_tokens: int = Field(default=1024, gt=0, json_schema_extra={SINCE: "0.2.0"})
    """Most learned tokens that one document gives to validation, and to held-out text: its beginning is taken. Otherwise a few
    long documents decide the numbers. Training text has no such limit."""
    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of documents that only choose the checkpoint."""
    heldout_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of documents that nothing but the final evaluation sees."""
    cross_documents: bool = False
    """Let attention and targets cross from one document to the next inside a packed sequence. The teacher's outputs then depend
    on the whole sequence, so that a corpus that grows is captured anew."""
    add_bos: bool | None = None
    """Begin each document with the beginning-of-text token; without it, as the tokenizer does."""
    add_eos: bool = True
    """End each plain-text document with the end-of-text token, where the tokenizer has one."""

    @model_validator(mode="after")
    def _room(self) -> CorpusConfig:
        if self.overlap_tokens is not None and 2 * self.overlap_tokens > self.sequence_length:
            raise ValueError("overlap_tokens is more than half of sequence_length")
        return self
