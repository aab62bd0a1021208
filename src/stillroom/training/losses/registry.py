"""Objectives by the names that a recipe uses."""

from __future__ import annotations

from stillroom.training.losses.forward_kl import ForwardKL
from stillroom.training.losses.jensen_shannon import JensenShannon
from stillroom.training.losses.objective import Objective
from stillroom.training.losses.reverse_kl import ReverseKL
from stillroom.training.losses.total_variation import TotalVariation

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (ForwardKL, ReverseKL, JensenShannon, TotalVariation)
}


def make_objective(name: str) -> Objective:
    """The objective of a recipe's name."""
    return OBJECTIVES[name]()
