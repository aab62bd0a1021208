"""Marks answers while they are served, by the engine's logit bias; off unless the owner gives a key."""

from __future__ import annotations

from stillroom.core.errors import UsageError
from stillroom.core.marks import DELTA, MarkKey, period_now, word_biases
from stillroom.runtime.facts import vocabulary_pieces
from stillroom.serving.pool import ServedModel
from stillroom.serving.requests import ChatRequest, CompletionRequest


class Marking:
    """One key, for every answer of a server.

    Args:
        key: The owner's key.
        delta: Difference in logits between listed and other words.
    """

    def __init__(self, key: MarkKey, delta: float = DELTA) -> None:
        self.key = key
        self.delta = delta
        self._biases: dict[tuple[str, str], list[list[float]]] = {}

    def require_allowed(self, asked: ChatRequest | CompletionRequest) -> None:
        """Refuse what would give the mark away.

        Raises:
            UsageError: Log-probabilities or biases were asked for; names which.
        """
        for name in ("logprobs", "top_logprobs", "logit_bias"):
            # `false` asks for nothing; a completion's 0 asks for the chosen token's log-probability.
            value = getattr(asked, name, None)
            if value is not None and value is not False and value != {}:
                raise UsageError(f"{name}: this server does not offer it.", f"Leave {name} out.")

    def biases(self, model: ServedModel) -> list[list[float]]:
        """What is added to logits of a model this month: pairs of a token's id and its bias.

        Raises:
            UsageError: The model's vocabulary has no words that can be marked.
        """
        known = (model.name, period_now())
        if known not in self._biases:
            pieces = vocabulary_pieces(model.opened.gguf)
            found = [[token, bias] for token, bias in word_biases(self.key, pieces, known[1], self.delta)]
            if not found:
                raise UsageError(
                    f"{model.name}: its vocabulary has no words that can be marked.", "Serve it without --mark."
                )
            self._biases = {key: value for key, value in self._biases.items() if key[1] == known[1]} | {known: found}
        return self._biases[known]
