"""Documents to token ids, with what is to be learned and the bytes of every token. Knows nothing of splits or packing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillroom.corpus.documents import Document
from stillroom.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Tokens:
    """One document's tokens, each array [T].

    Attributes:
        ids: Token ids, int64.
        learned: Whether a token is a target, bool.
        bytes: UTF-8 bytes of text that each token adds, int32; they sum to the text's bytes. 0 for special tokens.
    """

    ids: np.ndarray
    learned: np.ndarray
    bytes: np.ndarray


def tokenize(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, add_bos: bool | None, add_eos: bool
) -> list[Tokens]:
    """Tokens of documents.

    Raises:
        CorpusError: A chat and a tokenizer without a chat template.
    """
    rendered = [_render(document, tokenizer) for document in documents]
    plain = [not document.messages for document in documents]
    encodings = tokenizer.backend_tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    wants_bos = _adds_bos(tokenizer) if add_bos is None else add_bos
    found = []
    for (text, spans), encoding, is_plain in zip(rendered, encodings, plain, strict=True):
        ids = np.asarray(encoding.ids, dtype=np.int64)
        ends = np.asarray([end for _, end in encoding.offsets], dtype=np.int64)
        sizes = token_bytes(text, ends)
        learned = np.ones(len(ids), dtype=bool)
        if not is_plain:
            starts = np.asarray([start for start, _ in encoding.offsets], dtype=np.int64)
            learned[:] = False
            for begin, end in spans:
                learned |= (starts >= begin) & (ends <= end) & (ends > starts)
            special = set(tokenizer.all_special_ids)
            sizes[[index for index, value in enumerate(encoding.ids) if value in special]] = 0
        head = [bos] if is_plain and wants_bos and bos is not None else []
        tail = [eos] if is_plain and add_eos and eos is not None else []
        if head or tail:
            ids = np.concatenate([np.asarray(head, np.int64), ids, np.asarray(tail, np.int64)])
            learned = np.concatenate([np.zeros(len(head), bool), learned, np.ones(len(tail), bool)])
            sizes = np.concatenate([np.zeros(len(head), np.int32), sizes, np.zeros(len(tail), np.int32)])
        found.append(Tokens(ids, learned, sizes))
    return found


def token_bytes(text: str, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each token adds, [T] int32, from the character offsets of tokens' ends.

    Several tokens may share one character; its bytes count at the first of them. The last token takes what is left, so
    that the sum is the text's bytes.
    """
    if len(ends) == 0:
        return np.zeros(0, dtype=np.int32)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    total = np.concatenate([[0], np.cumsum(widths)])
    reached = np.maximum.accumulate(total[np.minimum(ends, len(codes))])
    reached[-1] = total[-1]
    return np.diff(reached, prepend=0).astype(np.int32)


def _adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _render(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[tuple[int, int]]]:
    """A document's text, and the character spans of the assistant's words (with what ends them) in a chat.

    A span is what the template adds to the conversation before it: the text up to an assistant's turn is rendered with
    the generation prompt, the text with the turn must begin with it, and the difference is what the model has to say.
    """
    if not document.messages:
        return document.text, []
    if not tokenizer.chat_template:
        raise CorpusError(
            f"{document.where}: a chat, and the teacher's tokenizer has no chat template.",
            "Use a chat model as the teacher, or give plain text.",
        )
    messages = [dict(message) for message in document.messages]
    whole = _apply(tokenizer, messages, False, document.where)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, messages[:index], True, document.where) if index else ""
        upto = _apply(tokenizer, messages[: index + 1], False, document.where)
        if not upto.startswith(before):
            # The template opens a turn otherwise when it asks for one; the words themselves are still there.
            begin = upto.rfind(message["content"])
            before = upto[:begin] if begin >= 0 else before
        if not whole.startswith(upto) and not whole.startswith(upto.rstrip()):
            begin = whole.find(message["content"], spans[-1][1] if spans else 0)
            if begin < 0:
                raise CorpusError(
                    f"{document.where}: the chat template leaves out or changes the assistant's words.",
                    "Leave this chat out, or use another template.",
                )
            spans.append((begin, begin + len(message["content"])))
            continue
        spans.append((len(before), len(upto)))
    return whole, spans


def _apply(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], prompt: bool, where: str) -> str:
    from stillroom.intake.template import render_chat

    return render_chat(
        str(tokenizer.chat_template),
        messages,
        where=where,
        add_generation_prompt=prompt,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
    )
