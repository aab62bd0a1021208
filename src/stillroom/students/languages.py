"""What a smaller vocabulary costs each language: tokens per byte before and after, on :mod:`stillroom.corpus.udhr`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from stillroom.core.errors import RecipeError
from stillroom.corpus.udhr import samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class LanguageCost:
    """One language.

    Attributes:
        code: Its code, such as ``de``.
        name: Its English name.
        before: The teacher's tokens a UTF-8 byte.
        after: The student's tokens per byte.
    """

    code: str
    name: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """After over before: 1 is no cost."""
        return self.after / self.before


def require_languages(codes: Iterable[str]) -> None:
    """Refuse a language that there is no sample of.

    Raises:
        RecipeError: Names it and those there are.
    """
    for code in codes:
        if code not in samples():
            raise RecipeError(
                f"`student.vocabulary.languages`: there is no sample of {code!r}.",
                f"Known: {', '.join(sorted(samples()))}. Put text of another language into the corpus instead.",
            )


def language_counts(tokenizer: PreTrainedTokenizerFast, codes: Iterable[str]) -> dict[int, int]:
    """How often each id is in the samples of languages."""
    counts: dict[int, int] = {}
    for code in codes:
        for index in tokenizer(samples()[code][1], add_special_tokens=False).input_ids:
            counts[index] = counts.get(index, 0) + 1
    return counts


def tokens_per_byte(tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Tokens a UTF-8 byte of text."""
    return len(tokenizer(text, add_special_tokens=False).input_ids) / len(text.encode())


def language_costs(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, codes: Iterable[str] = ()
) -> list[LanguageCost]:
    """The cost of a trim in each language; without codes, in all there are samples of."""
    costs = []
    for code in codes or samples():
        name, text = samples()[code]
        costs.append(LanguageCost(code, name, tokens_per_byte(before, text), tokens_per_byte(after, text)))
    return costs


def as_record(costs: Iterable[LanguageCost]) -> dict[str, dict[str, float | str]]:
    """Costs for a JSON record, by code."""
    return {
        cost.code: {
            key: value if isinstance(value, str) else round(value, 5)
            for key, value in asdict(cost).items()
            if key != "code"
        }
        | {"ratio": round(cost.ratio, 4)}
        for cost in costs
    }
