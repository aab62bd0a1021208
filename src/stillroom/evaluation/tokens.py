r"""Classes of tokens and bins of positions.

A token's class goes by its text without white space around it, by the first rule that fits:

1. *whitespace*: nothing is left (indentation, line ends);
2. *number*: digits, with points and commas inside;
3. *word*: letters and marks of any script, with apostrophes;
4. *code*: a sign that prose hardly has (``_ { } [ ] < > = + * / \ | & ^ % $ # @ ~ ``` and ``()`` together);
5. *punctuation*: everything else that is neither letter nor digit;
6. *other*: special tokens, pieces of characters, mixtures.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CLASSES = ("word", "number", "code", "punctuation", "whitespace", "other")
CODE = frozenset("_{}[]<>=+*/\\|&^%$#@~`")
NUMBER = re.compile(r"\d[\d.,]*")


def class_of(text: str) -> str:
    """The class of a token's text."""
    bare = text.strip()
    if not bare:
        return "whitespace" if text else "other"
    if NUMBER.fullmatch(bare):
        return "number"
    if "\ufffd" in bare:
        return "other"
    if all(unicodedata.category(sign)[0] in "LM" or sign in "'’" for sign in bare) and bare.strip("'’"):
        return "word"
    if "()" in bare or any(sign in CODE for sign in bare):
        return "code"
    return "other" if any(sign.isalnum() for sign in bare) else "punctuation"


def token_classes(tokenizer: PreTrainedTokenizerFast, rows: int) -> NDArray[np.int64]:
    """The class of every id, as an index into ``CLASSES``; [rows]."""
    other = CLASSES.index("other")
    classes = np.full(rows, other, dtype=np.int64)
    special = set(tokenizer.all_special_ids)
    known = min(rows, len(tokenizer))
    texts = tokenizer.batch_decode([[index] for index in range(known)], clean_up_tokenization_spaces=False)
    for index, text in enumerate(texts):
        if index not in special:
            classes[index] = CLASSES.index(class_of(text))
    return classes


def position_edges(length: int) -> list[int]:
    """Where bins of positions begin: 0, 16, 32, 64, … below the sequence's length."""
    edges = [0]
    step = 16
    while step < length - 1:
        edges.append(step)
        step *= 2
    return edges


def position_labels(length: int) -> list[str]:
    """What the bins are called, such as ``0–15`` and ``16–31``."""
    edges = [*position_edges(length), length]
    return [f"{low}–{high - 1}" for low, high in itertools.pairwise(edges)]
