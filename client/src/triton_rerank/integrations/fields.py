"""What the pydantic components have in common: their options, and how these are given to a client."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SkipValidation

from triton_rerank.aio import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.contract import DEFAULT_TIMEOUT_S
from triton_rerank.core.numbers import plain
from triton_rerank.core.scorer import Scorer
from triton_rerank.core.validate import TextKey

Whole = Annotated[int, BeforeValidator(plain)]  # numpy's too, which pydantic refuses
Real = Annotated[float, BeforeValidator(plain)]


class Options(BaseModel):
    """Options of a component, documented by each; and its clients."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # a misspelt top_n would return everything

    target: str | None = None
    model: str | None = None
    scorer: SkipValidation[Scorer] | None = Field(default=None, exclude=True)
    top_n: Whole | None = Field(default=None, ge=1)
    min_score: Real | None = None
    timeout_s: Real = Field(default=DEFAULT_TIMEOUT_S, gt=0)
    max_length: Whole | None = Field(default=None, ge=1)
    max_query_tokens: Whole | None = Field(default=None, ge=1)
    instruction: str | None = None
    keep_retrieval_score: bool | str = False
    _client: RerankClient = PrivateAttr()
    _async_client: AsyncRerankClient = PrivateAttr()

    def _connect(self, text_key: TextKey) -> None:
        """Make the clients; nothing is sent before the first call."""
        self._client = RerankClient(self.target, model=self.model, scorer=self.scorer, text_key=text_key)
        self._async_client = AsyncRerankClient(scorer=self._client.scorer, text_key=text_key)

    def _options(self) -> dict[str, Any]:
        names = ("min_score", "timeout_s", "max_length", "max_query_tokens", "instruction")
        return {"top_k": self.top_n, **{name: getattr(self, name) for name in names}}
