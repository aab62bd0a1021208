"""How tokenizers with the same ids still differ: merges, normalizer, pre-tokenizer, tokens around a text, chat template.

The corpus is tokenized and its chats are rendered once, by the recipe's `teacher`. Another teacher, an original or an existing
student with the same ids then reads text that its own tokenizer would have written otherwise. That is said and not refused: a
tokenizer rebuilt from a GGUF file may differ in rare text alone. A student is saved with the chat template that wrote its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from stillroom.core.errors import CorpusError, InspectionRefused
from stillroom.corpus.chat import ChatTemplate, Messages
from stillroom.corpus.documents import Document
from stillroom.corpus.tokens import Encoder, Tokens
from stillroom.corpus.udhr import samples
from stillroom.models.load import load_tokenizer
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WRITTEN = {
    "upper case": "THE QUICK BROWN FOX JUMPS OVER ÄÖÜ, ΑΒΓ AND АБВ; McDonald's iPhone",
    "contractions": "It's what they'd said: we'll go, I'VE been, don't, don’t.",
    "numbers": "In 1969, 3.14159, -1,234,567.89, 0x1F, 1e-6, 50%, 12:30 and 2026-11-28.",
    "composed accents": "Caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u1ebfch \ud55c\uad6d\uc5b4",
    "decomposed accents": "Cafe\u0301 nai\u0308ve A\u030angstro\u0308m e\u0302\u0301ch \u1112\u1161\u11ab",
    "compatible characters": "\ufb01ne \u2460 \uff12\uff10 \u00bd \u210c x\u00b2 \u2026",
    "emoji": "\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "spaces": "  a  b   c        d\t\te \n\n\n f\u00a0g\n  ",
    "code": "def area(self, w=1):\n    if w < 0:\n\t\treturn None\n        # half\n    return {'w': [w**2, w//2]}\n",
    "punctuation": 'He said: "No!!!" ... (see https://example.org/a_b?c=1&d=%20#e) --- ==== <b>x</b> $y$;',
}
PROBES = _WRITTEN | {name: text[:240] for name, text in samples().values()}
"""Short texts by what they are of: such as tokenizers differ in, and the beginning of one in each language."""
STUDENT = "student"
"""What a user calls the student."""
CHATS: tuple[Messages, ...] = (
    ({"role": "user", "content": "How many legs has a spider?"}, {"role": "assistant", "content": "Eight."}),
    (
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "How many legs has an ant?"},
        {"role": "assistant", "content": "Six."},
        {"role": "user", "content": "And a crab?"},
        {"role": "assistant", "content": "Ten."},
    ),
)
"""Conversations, of which a template may refuse one."""


def differences(recipe: Recipe, others: Mapping[str, PreTrainedTokenizerFast], *, chats: bool) -> list[str]:
    """What tokenizers do otherwise than that of the recipe's own teacher, a sentence for each; empty where they are alike.

    Args:
        recipe: Its `teacher` tokenizes the corpus, and its `corpus` says what is put around a text.
        others: Tokenizers by what a user calls their model. Of one with other ids, a student's, the chat template alone counts.
        chats: Whether the corpus has chats: without, chat templates do not matter.
    """
    if not others:
        return []
    own = load_tokenizer(recipe.teacher)
    probes = PROBES | {"special tokens": " a ".join(map(str, own.added_tokens_decoder.values()))}
    mine = _encoded(recipe, own, probes)
    found: list[str] = []
    for name, tokenizer in others.items():
        if tokenizer.get_vocab() == own.get_vocab():
            theirs = _encoded(recipe, tokenizer, probes)
            found += _otherwise(probes, mine, theirs, name)
            frames = _frame(own, mine[0]), _frame(tokenizer, theirs[0])
            if frames[0] != frames[1]:
                found.append(
                    f"`{name}` puts other tokens around a text than `{OWN}`: {frames[1]}, and the corpus has {frames[0]}"
                )
        if chats:
            found += _rendered_otherwise(own, tokenizer, name)
    return found


def renders_alike(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether two tokenizers' chat templates write the same conversations."""
    return _rendered(one) == _rendered(other)


def _encoded(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, probes: Mapping[str, str]) -> list[Tokens]:
    """An empty text and each of the probes, as a corpus would have them."""
    encoder = Encoder(tokenizer, recipe.corpus.add_bos, recipe.corpus.add_eos)
    return encoder.encode([Document(), *map(Document, probes.values())])


def _otherwise(probes: Mapping[str, str], mine: list[Tokens], theirs: list[Tokens], name: str) -> Iterator[str]:
    texts = zip(probes.items(), _without_frame(mine), _without_frame(theirs), strict=True)
    changed = [probe for probe, one, other in texts if one != other]
    if changed:
        what, text = changed[0]
        yield (
            f"`{name}` has the ids of `{OWN}` and tokenizes text otherwise: {len(changed)} of {len(probes)} short texts, the "
            f"first of them {what} ({text[:32]!r}); it reads the corpus as `{OWN}` tokenizes it"
        )


def _without_frame(encoded: list[Tokens]) -> list[list[int]]:
    """The ids of each probe without what is put around a text."""
    empty, *probes = encoded
    tail = len(empty.ids) - empty.bos
    return [tokens.ids[tokens.bos : len(tokens.ids) - tail].tolist() for tokens in probes]


def _frame(tokenizer: PreTrainedTokenizerFast, empty: Tokens) -> str:
    """What is put around a text, in words: the tokens before it and behind it."""
    tokens = tokenizer.convert_ids_to_tokens(empty.ids.tolist())
    return f"`{' '.join([*tokens[: empty.bos], '…', *tokens[empty.bos :]])}`"


def _rendered_otherwise(own: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, name: str) -> Iterator[str]:
    mine, theirs = _rendered(own), _rendered(other)
    if mine == theirs:
        return
    if theirs is None:
        how = f"has no chat template, and `{OWN}` has one"
    elif mine is None:
        how = f"has a chat template, and `{OWN}` has none"
    else:
        how = f"renders chats otherwise than `{OWN}`"
    takes = f", and takes the chat template of `{OWN}`" if name == STUDENT and mine is not None else ""
    yield f"`{name}` {how}: it reads the corpus's chats as `{OWN}` has them{takes}"


def _rendered(tokenizer: PreTrainedTokenizerFast) -> list[str | None] | None:
    """The texts of the conversations, None for one that the template refuses; None without a template."""
    template = ChatTemplate(tokenizer)
    if template.text is None:
        return None
    found: list[str | None] = []
    for chat in CHATS:
        try:
            found.append(template.render(chat, "")[0])
        except (CorpusError, InspectionRefused):
            found.append(None)
    # Of templates that take none of them only the source can be compared.
    return found if any(found) else [template.text]
