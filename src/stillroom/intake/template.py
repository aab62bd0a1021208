"""Renders chat templates. (Interim.)"""

from __future__ import annotations

from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment


def render_chat(template: str, messages: list[dict[str, Any]], *, where: str = "", **variables: Any) -> str:
    """The text of a conversation under a chat template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, **variables)
