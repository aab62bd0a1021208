"""The chat page, one file with nothing from elsewhere, and the policy that lets it do nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from pathlib import Path

from stillroom.serving.guard import CONTENT_POLICY


def render(token: str, key_needed: bool) -> tuple[str, str]:
    """The page and its content security policy.

    Args:
        token: What the page's own requests are recognised by.
        key_needed: Whether the page asks for a key.
    """
    html, policy = _template()
    settings = json.dumps({"token": token, "keyNeeded": key_needed})
    return html.replace("{SETTINGS}", settings.replace("&", "&amp;").replace('"', "&quot;")), policy


@functools.cache
def _template() -> tuple[str, str]:
    html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    digests = {
        name: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        )
        for name in ("script", "style")
    }
    return html, CONTENT_POLICY.format(**digests)
