"""What is written about: chunks of the training documents that a corpus takes; and how much that is at most."""

from __future__ import annotations

import array
import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from stillroom.core import files
from stillroom.corpus.cutting import cut, overlap_of
from stillroom.corpus.documents import Document
from stillroom.corpus.near_duplicates import text_of
from stillroom.corpus.sources import read_source
from stillroom.corpus.split import split_of
from stillroom.corpus.store import DocumentStore
from stillroom.corpus.tokens import Encoder
from stillroom.models.load import load_tokenizer
from stillroom.models.tokenizer import control_texts
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher, Teacher
from stillroom.recipe.write import WriteConfig
from stillroom.teachers.write.filters import spells
from stillroom.teachers.write.prompts import ANSWER, QUESTION, REPHRASE, Chunk, chunks_of
from stillroom.teachers.write.writers import SPARE_TOKENS

BEYOND = "documents beyond `corpus.train_tokens`"
"""What is not written about where the corpus is full without it."""


def documents(recipe: Recipe, store: DocumentStore) -> tuple[list[tuple[str, int]], list[int]]:
    """Digests and numbers of the training documents, in the corpus's order, and numbers of all others."""
    numbers: dict[str, int] = {}
    for source in recipe.corpus.sources:
        for document in itertools.islice(read_source(source), source.limit):
            if not document.is_empty and document.digest not in numbers:
                numbers[document.digest] = store.add(document)
    sides = split_of(list(numbers), recipe.corpus.validation_share, recipe.corpus.heldout_share)
    order = sorted(numbers, key=lambda digest: files.digest_bytes(f"{recipe.public_seed}:{digest}".encode()))
    train = [(digest, numbers[digest]) for digest in order if sides[digest] == "train"]
    return train, [numbers[digest] for digest in order if sides[digest] != "train"]


def spellings(recipe: Recipe, writer: Teacher) -> set[str]:
    """Spellings of control tokens. One in a chunk would end the writer's prompt and begin another turn; and in what is written
    the corpus, which has the teacher's tokenizer, would read it as the token. A server keeps its own apart.
    """
    readers = [recipe.teacher] if isinstance(writer, EndpointTeacher) else [recipe.teacher, writer]
    return set().union(*(control_texts(load_tokenizer(config)) for config in readers))


def chunks(
    recipe: Recipe, train: list[tuple[str, int]], store: DocumentStore, control: Collection[str], counts: Counter[str]
) -> Iterator[Chunk]:
    """What may be written about, in the corpus's order.

    Args:
        recipe: The recipe, with ``write``.
        train: From :func:`documents`.
        store: Holds them.
        control: From :func:`spellings`.
        counts: Takes what is passed over.
    """
    assert recipe.write is not None
    for digest, document in _taken(recipe, train, store, counts):
        if document.messages:
            counts["chats, which are not written about"] += 1
            continue
        found = False
        for chunk in chunks_of(digest, text_of(document), recipe.write.chunk_characters):
            found = True
            if spells(chunk.text, control):
                counts["chunks that spell a control token"] += 1
                continue
            yield chunk
        if not found:
            counts["documents too short to be written about"] += 1


def _taken(
    recipe: Recipe, train: list[tuple[str, int]], store: DocumentStore, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """The training documents that the corpus takes at most: those before ``corpus.train_tokens`` are reached, counted as there.

    What is written is text of the corpus as well, so that it takes fewer of them, and none of the others.
    """
    config = recipe.corpus
    if config.train_tokens is None:
        yield from ((digest, store.get(number)) for digest, number in train)
        return
    encoder = Encoder(load_tokenizer(recipe.teacher), config.add_bos, config.add_eos)
    overlap = overlap_of(config.sequence_length) if config.overlap_tokens is None else config.overlap_tokens
    taken = 0
    for place, (digest, number) in enumerate(train):
        if taken >= config.train_tokens:
            counts[BEYOND] += len(train) - place
            return
        document = store.get(number)
        (tokens,) = encoder.encode([document])
        if config.skip_longer_than is None or len(tokens.ids) <= config.skip_longer_than:
            # As `PieceList.add` counts them.
            pieces = cut(tokens, config.sequence_length, overlap)
            taken += sum(p.own for p in pieces if p.targets or (config.cross_documents and p.learned.any()))
        yield digest, document


def chosen(count: int, limit: int | None) -> list[int]:
    """Numbers of the chunks that are written about: at most so many, spread over the documents."""
    if limit is None or count <= limit:
        return list(range(count))
    return [number * count // limit for number in range(limit)]


@dataclass(frozen=True)
class Bound:
    """How much is asked of a writer at most, where no request has to be repeated.

    Attributes:
        chunks: That are written about.
        texts: That are asked for.
        tokens_in: Of prompts; as many as they have bytes, since no token has less than one.
        tokens_out: Of texts.
    """

    chunks: int
    texts: int
    tokens_in: int
    tokens_out: int


def bound(recipe: Recipe) -> Bound:
    """Count what the stage would ask for: the same documents, chunks and prompts. Errors as in reading a corpus."""
    config = recipe.write
    assert config is not None
    sizes = array.array("Q")
    with DocumentStore() as store:
        train, _ = documents(recipe, store)
        control = spellings(recipe, recipe.every_teacher[config.by])
        for chunk in chunks(recipe, train, store, control, Counter()):
            sizes.append(len(chunk.text.encode()))
    numbers = chosen(len(sizes), config.limit)
    around = _around(config)
    texts = len(around) * len(numbers)
    read = len(around) * sum(sizes[number] for number in numbers) + len(numbers) * sum(around)
    return Bound(len(numbers), texts, read, texts * config.max_tokens)


def _around(config: WriteConfig) -> list[int]:
    """Tokens of each prompt about a chunk besides the chunk, at most."""
    found = []
    for draw in range(config.per_chunk):
        if {"question_answer", "open_book"} & set(config.forms):
            # An answer's prompt has the question, which the writer wrote.
            found += [_size(QUESTION), _size(ANSWER.replace("{question}", "")) + config.max_tokens]
        if "rephrase" in config.forms:
            found.append(_size(REPHRASE[draw % len(REPHRASE)]))
    return found


def _size(template: str) -> int:
    return len(template.format(chunk="").encode()) + SPARE_TOKENS
