"""Several teachers on held-out text: each position is compared with the teacher, or mixture, that its source is learned from.

Legend: P positions of a row that have a target, V ids of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.recipe.recipe import Recipe
from stillroom.teachers.several import mean_logprobs

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


class RoutedTeachers:
    """All teachers of a recipe, float32; each is loaded when text of its sources comes first.

    Args:
        recipe: The run's.
        device: Where they compute.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe = recipe
        self._device = device
        self._routes = recipe.routes
        self._of_source = {source: number for number, route in enumerate(self._routes) for source in route.sources}
        self._models: dict[str, CausalModel] = {}

    def _model(self, name: str) -> CausalModel:
        if name not in self._models:
            from stillroom.teachers.registry import open_teacher
            from stillroom.teachers.teacher import weights_of

            opened = open_teacher(self._recipe.every_teacher[name], self._device, torch.float32)
            self._models[name] = weights_of(opened, "The stage `evaluate`").model
        return self._models[name]

    @property
    def size(self) -> int:
        """Ids of the vocabulary: of the recipe's own teacher, which has no fewer than the others."""
        return int(self._model("teacher").get_output_embeddings().weight.shape[0])

    def at(self, row: Sequences, where: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """Log-probs in the teachers' ids, [positions of a chunk, V], by chunk of a row's positions.

        Args:
            row: One sequence.
            where: Its positions that have a target, [P].
        """
        sources = row.document_sources[row.documents[0][where].long()].tolist()
        chosen = torch.tensor([self._of_source[source] for source in sources])
        here = sorted(set(chosen.tolist()))
        places = where.to(self._device)
        hidden = {
            name: hidden_states(self._model(name), row.ids, row.positions)[0, places]
            for name in sorted({name for number in here for name in self._routes[number].names})
        }
        size = self.size

        def chunk(part: slice) -> torch.Tensor:
            routes = chosen[part]
            found = torch.empty(len(routes), size, device=self._device)
            for number in sorted(set(routes.tolist())):
                mine = (routes == number).nonzero().squeeze(1).to(self._device)
                weights = self._routes[number].weights
                said = [
                    logits_from_hidden(self._model(name), hidden[name][part][mine]).log_softmax(1)
                    for name, _ in weights
                ]
                found[mine] = mean_logprobs(said, [math.log(weight) for _, weight in weights], size)
            return found

        return chunk
