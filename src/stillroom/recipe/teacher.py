"""The recipe's words for teachers, their capture and the codecs of the cache."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillroom.recipe.section import SINCE, Section


class HuggingFaceTeacher(Section):
    """A Hugging Face folder, or a name on the hub (the hub needs a network)."""

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """A folder (relative paths start at the recipe's folder), or a name on the hub."""
    revision: str | None = None
    """The commit to load, so that a run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the teacher while it is captured; ``auto`` takes bfloat16 where the CPU is fast at it."""
    licence: str | None = None
    """Licence as its owner states it; without it, what the model card says."""
    original: str | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """Of a quantized teacher, the model in floats that it was made from: a folder, or a name on the hub. The KL to it is then
    measured on validation text (docs/import.md)."""


class _WithoutOriginal(Section):
    """A teacher that is not compared with the model it was made from."""

    why: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _no_original(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("original") is not None:
            raise ValueError(f"`original` is for a quantized Hugging Face teacher: {cls.why}. Leave it out")
        return value


class GgufTeacher(_WithoutOriginal):
    """A GGUF file, by path or inside an installed package."""

    why: ClassVar[str] = "the KL of a GGUF file to the model it was made from is not measured"

    kind: Literal["gguf"] = "gguf"
    path: str
    """A file, or ``package:NAME/FILE`` for a file inside an installed Python package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the teacher while it is captured; ``auto`` takes bfloat16 where the CPU is fast at it."""
    licence: str | None = None
    """Licence as its owner states it; without it, what the file's metadata says."""


def is_private_host(host: str) -> bool:
    """Whether a host is this machine, or an address of a private network."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


class EndpointPrice(Section):
    """What the endpoint costs, and the most that may be spent. All in one currency."""

    input: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of a million prompt tokens."""
    output: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of a million generated tokens."""
    cap: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The most that all requests of a run may cost together, also over several attempts: a request that might pass it is not
    sent."""

    @model_validator(mode="after")
    def _counts(self) -> EndpointPrice:
        if self.cap is not None and self.input == 0 and self.output == 0:
            raise ValueError("a cap needs a price: give `input` or `output`, per million tokens")
        return self


class EndpointTeacher(_WithoutOriginal):
    """A model behind an HTTP endpoint that lists its most probable tokens on a given text (docs/endpoint-teacher.md)."""

    why: ClassVar[str] = (
        "of a model behind an endpoint only the most probable tokens are known, and what it was made from is not"
    )

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = Field(min_length=1)
    """Address of the server, such as ``http://127.0.0.1:8080``. Never with a key in it."""
    model: str = Field(min_length=1, max_length=200)
    """Name of the model there."""
    server: Literal["auto", "llamacpp", "vllm", "sglang", "together", "fireworks", "mistral", "chat"] = "auto"
    """What kind of server it is; ``auto`` finds out."""
    tokenizer: str = Field(min_length=1)
    """Hugging Face folder (or hub name) with the model's tokenizer and config.json; weights are not needed."""
    revision: str | None = None
    """The commit of the tokenizer to load."""
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that has the key. The key itself is written nowhere."""
    top: int = Field(default=20, ge=1, le=4096)
    """Most probable ids to ask for per position. Servers have limits: vLLM and Together 20 by default, Fireworks 5."""
    service: str | None = Field(default=None, min_length=2, max_length=120)
    """The company or service that runs the server, for the terms gate; needed unless it is on this machine or a private
    network."""
    sends_text: bool = False
    """Your word that the corpus may be sent there. Nothing is sent without it."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at most; fewer while the server says that it is too much."""
    attempts: int = Field(default=6, ge=1, le=20)
    """Attempts of a request."""
    timeout_seconds: float = Field(default=120.0, ge=0.01, le=3600)
    """Seconds for an answer."""
    check_every: int = Field(default=64, ge=1)
    """Requests after which the model's fingerprint is checked again."""
    price: EndpointPrice = EndpointPrice()
    """What it costs, and the most that may be spent."""
    licence: str | None = None
    """Licence of the model as its owner states it; without it, what the tokenizer's folder says."""

    @property
    def dtype(self) -> Literal["auto"]:
        """The dtype it computes in is the server's business."""
        return "auto"

    @property
    def is_private(self) -> bool:
        """Whether the address is this machine's or a private network's."""
        return is_private_host(urlsplit(self.base_url).hostname or "")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        value = value.strip()
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError("not an address; it looks like http://127.0.0.1:8080") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("not an address; it looks like http://127.0.0.1:8080")
        if parts.username or parts.password or parts.query or parts.fragment:
            # The value is not repeated: it may be a key.
            raise ValueError(
                "an address without user, key, `?` or `#`; name the key's environment variable as `key_env`"
            )
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _allowed(self) -> EndpointTeacher:
        if not self.sends_text:
            raise ValueError(
                "the corpus would be sent to the endpoint: write `sends_text: true` if its owner allows that"
            )
        if not self.is_private:
            if self.service is None:
                raise ValueError(
                    "the server is not on this machine or a private network: name who runs it as `service`, so that its terms "
                    "can be checked"
                )
            if self.base_url.startswith("http:") and self.key_env is not None:
                raise ValueError("a key is sent over https only: write `https://` in `base_url`")
        return self


Teacher = Annotated[HuggingFaceTeacher | GgufTeacher | EndpointTeacher, Field(discriminator="kind")]
