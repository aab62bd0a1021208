"""What can be said of a mixture's experts before and after they are measured.

Legend: E experts of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.recipe.student import DenseStudent, ShrinkStudent

if TYPE_CHECKING:
    import torch

    from stillroom.models.families.family import Family

SHARES = (0.75, 0.5, 0.25)
"""Shares of the experts that stay for which it is said what is lost."""
KNOWN_TOKENS = 100
"""Tokens per expert from which a measurement says something."""
PUBLISHED = (
    "published one-shot removals (REAP, arXiv 2510.13999, and its users) kept 80 to 99 % of a task's score with a quarter of "
    "the experts gone and 17 to 99 % with half"
)


def expected_loss(added: torch.Tensor, experts: int) -> dict[str, float]:
    """By the share of experts that stay: the share of what the experts add that goes, mean over layers.

    Args:
        added: What each adds, rows that sum to 1, or to 0 for a layer without experts, [layers, E].
        experts: E.
    """
    rows = added[added.sum(1) > 0].sort(1, descending=True).values
    if not len(rows):
        return {}
    return {f"{share:.0%}": float(rows[:, max(1, round(share * experts)) :].sum(1).mean()) for share in SHARES}


def expert_note(student: ShrinkStudent | DenseStudent, tokens: int, experts: int, chosen: int, kept: int) -> str:
    """What a plan says where experts go.

    Args:
        student: The recipe's section.
        tokens: Tokens of the training text.
        experts: E.
        chosen: Experts that a token goes through.
        kept: Experts of a layer that stay.
    """
    each = min(student.importance.tokens, tokens) * chosen / experts
    few = ""
    if each < KNOWN_TOKENS:
        few = f" (few: {KNOWN_TOKENS * experts // chosen:,} `student.importance.tokens` would give each {KNOWN_TOKENS})"
    return (
        f"{kept} of {experts} experts of each layer stay. Calibration tokens per expert: about {each:,.0f}{few}. What is lost "
        f"depends on the model, and the stage `shrink` measures it for 75, 50 and 25 % of the experts: {PUBLISHED}."
    )


def repair_note(family: Family, student: ShrinkStudent, fewer: bool) -> str:
    """Why the least-squares repair does not apply, in the words of plan and stage; empty where it does.

    Args:
        family: The teacher's.
        student: The recipe's section.
        fewer: Whether layers are removed.
    """
    if not student.heal:
        return ""
    if not family.repairable:
        return (
            f"The least-squares repair does not apply: the family {family.name} has no single matrix in each layer that it "
            "could fit."
        )
    if family.norm_after and fewer:
        return (
            f"The least-squares repair does not apply to removed layers: in the family {family.name} a norm follows what "
            "layers add, so that nothing can stand in for them."
        )
    return ""
