"""Documents to token ids, with what is to be learned and every token's bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.corpus.chat import ChatTemplate, Rendered, find_turns
from stillroom.corpus.documents import Document

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

LONG = 1 << 20
"""Characters of plain text that are tokenized in one piece: an encoding takes some hundred times the text's memory."""
WINDOW = 256
"""Characters on both sides of a split that must give the same ids with and without it."""
TRIES = 64
"""Positions for a split that are tried before the text stays whole."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tokens:
    """One document's tokens, each array [T].

    Attributes:
        ids: Token ids, int64.
        learned: Whether a token is a target, bool.
        bytes: UTF-8 bytes of text that each token adds, int32; they sum to the text's bytes. 0 for the tokens that are
            put around a text, and for a chat's special tokens.
        bos: Beginning-of-text tokens at the beginning, 0 or 1.
        head: Tokens of what a chat begins with before its first turn (system message, tools); of plain text ``bos``.
        turns: Of a chat, for each user's turn that follows an answer, and for the first: where it begins, and where the
            assistant's words that answer it begin.
    """

    ids: Array
    learned: Array
    bytes: Array
    bos: int = 0
    head: int = 0
    turns: tuple[tuple[int, int], ...] = ()


class Encoder:
    """Turns documents into tokens.

    Args:
        tokenizer: The teacher's.
        add_bos: Begin plain text with the beginning-of-text token; None does as the tokenizer does.
        add_eos: End plain text with the end-of-text token.

    Attributes:
        chats: Chats among the documents so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, add_bos: bool | None = None, add_eos: bool = True) -> None:
        from tokenizers import Tokenizer

        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # A post-processor adds tokens and trims white space off offsets; a truncation would lose text without a word.
        rules["post_processor"] = rules["truncation"] = rules["padding"] = None
        self._backend = Tokenizer.from_str(json.dumps(rules))
        self._template = ChatTemplate(tokenizer)
        self.chats = 0
        self._special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        adds_bos = bos is not None and _adds_bos(tokenizer)
        # Some chat templates open every turn with a token that is called the beginning of text: there it is none.
        self._bos = bos if adds_bos else None
        wants_bos = bos is not None and (adds_bos if add_bos is None else add_bos)
        self._head = np.asarray([bos] if wants_bos else [], dtype=np.int64)
        self._tail = np.asarray([eos] if add_eos and eos is not None else [], dtype=np.int64)

    def encode(self, documents: list[Document]) -> list[Tokens]:
        """Tokens of documents.

        Raises:
            CorpusError: A chat and a tokenizer without a chat template, or a template that refuses the chat.
        """
        rendered = [self._render(document) for document in documents]
        pieces = [
            self._pieces(document.text) if chat is None else [chat.text]
            for document, chat in zip(documents, rendered, strict=True)
        ]
        encodings = self._encodings([piece for group in pieces for piece in group])
        return [
            self._plain(group, encodings, document.given)
            if chat is None
            else self._chat(document, chat, next(encodings))
            for document, chat, group in zip(documents, rendered, pieces, strict=True)
        ]

    @property
    def notes(self) -> Counter[str]:
        """What chat templates left out that is not refused, and how often."""
        return self._template.notes

    def _encodings(self, texts: list[str]) -> Iterator[Encoding]:
        """The encodings of texts, made some at a time: they are large."""
        batch: list[str] = []
        for text in texts:
            if batch and sum(map(len, batch)) + len(text) > 2 * LONG:
                yield from self._backend.encode_batch(batch, add_special_tokens=False)
                batch = []
            batch.append(text)
        yield from self._backend.encode_batch(batch, add_special_tokens=False)

    def _plain(self, pieces: list[str], encodings: Iterator[Encoding], given: int) -> Tokens:
        ids, sizes = [self._head], [np.zeros(len(self._head), np.int32)]
        # A token that reaches over the border of what is given and what is learned is not learned.
        before, at = len(self._head), 0
        for piece in pieces:
            encoding = next(encodings)
            offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            ids.append(np.asarray(encoding.ids, dtype=np.int64))
            sizes.append(token_bytes(piece, offsets[:, 1]))
            before += int((offsets[:, 0] + at < given).sum())
            at += len(piece)
        ids.append(self._tail)
        sizes.append(np.zeros(len(self._tail), np.int32))
        learned = np.ones(sum(map(len, ids)), dtype=bool)
        learned[:before] = False
        return Tokens(np.concatenate(ids), learned, np.concatenate(sizes), len(self._head), len(self._head))

    def _render(self, document: Document) -> Rendered | None:
        self.chats += bool(document.messages)
        if document.messages and not (self._template.text is None and document.text):
            return self._template.render_document(document)
        return None

    def _chat(self, document: Document, chat: Rendered, encoding: Encoding) -> Tokens:
        text, spans = chat.text, chat.spans
        ids = np.asarray(encoding.ids, dtype=np.int64)
        starts, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        learned = np.zeros(len(ids), dtype=bool)
        for (begin, end), wanted in zip(spans, chat.learned, strict=True):
            if not wanted:
                continue
            learned |= (starts >= begin) & (ends <= end) & (ends > starts)
        sizes = token_bytes(text, ends)
        sizes[np.isin(ids, self._special)] = 0
        bos = int(len(ids) > 0 and self._bos is not None and int(ids[0]) == self._bos)
        head, turns = find_turns(document.messages, text, spans)
        ordered = np.maximum.accumulate(starts) if len(starts) else starts
        at = np.searchsorted(ordered, np.asarray([head, *(place for turn in turns for place in turn)])).tolist()
        return Tokens(ids, learned, sizes, bos, max(bos, at[0]), tuple(zip(at[1::2], at[2::2], strict=True)))

    def _pieces(self, text: str) -> list[str]:
        """A long text in pieces whose ids, one after the other, are those of the whole."""
        if len(text) <= LONG:
            return [text]
        pieces, begin = [], 0
        while len(text) - begin > LONG:
            cut = self._cut(text, begin + LONG)
            if cut is None:
                break
            pieces.append(text[begin:cut])
            begin = cut
        return [*pieces, text[begin:]]

    def _cut(self, text: str, at: int) -> int | None:
        """A place behind ``at`` where a line begins and a split changes no id, as far as its surroundings tell."""
        for _ in range(TRIES):
            at = text.find("\n", at) + 1
            if at == 0 or at >= len(text):
                return None
            if text[at].isspace():
                continue
            left, right = text[max(at - WINDOW, 0) : at], text[at : at + WINDOW]
            whole, *halves = self._backend.encode_batch([left + right, left, right], add_special_tokens=False)
            if whole.ids == halves[0].ids + halves[1].ids:
                return at
        return None


def token_bytes(text: str, ends: Array) -> Array:
    """UTF-8 bytes that each token adds, [T] int32, from the character offsets of tokens' ends.

    Several tokens may share one character; its bytes count at the first of them. The last token takes what is left, so
    that the sum is the text's bytes.
    """
    if len(ends) == 0:
        return np.zeros(0, dtype=np.int32)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    total = np.concatenate([[0], np.cumsum(widths)])
    reached = np.maximum.accumulate(total[np.minimum(ends, len(codes))])
    reached[-1] = total[-1]
    return np.diff(reached, prepend=0).astype(np.int32)


def _adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
