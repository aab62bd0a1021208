"""Objectives by the names that a recipe uses. Knows no formula."""

from __future__ import annotations

from stillroom.train.losses.forward_kl import ForwardKL
from stillroom.train.losses.jensen_shannon import JensenShannon
from stillroom.train.losses.objective import Objective
from stillroom.train.losses.reverse_kl import ReverseKL
from stillroom.train.losses.total_variation import TotalVariation

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (ForwardKL, ReverseKL, JensenShannon, TotalVariation)
}


def make_objective(name: str) -> Objective:
    """The objective of a recipe's name."""
    return OBJECTIVES[name]()
