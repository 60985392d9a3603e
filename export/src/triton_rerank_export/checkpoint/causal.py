"""Rerankers that are causal language models: the prompts that they were trained with, one row each.

Their score is in the logits of the token after the prompt: that of a yes, less that of a no. It is log(P(yes) / P(no)),
so its sigmoid is the softmax of the two. The pieces are in backends/tokenizer/prompt.py's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from triton_rerank.types import Activation
from triton_rerank_export.errors import ExportError
from triton_rerank_server.backends.tokenizer.prompt import Prompt

_SPECIAL = re.compile(r"<\|\w+\|>|<bos>")  # as the prompts below write special tokens


@dataclass(frozen=True)
class Asked:
    """What a causal reranker is asked, and how it answers.

    Attributes:
        name: as ``--prompt`` takes it.
        ids: pattern of the ids and folders that are known to be asked so.
        prompt: the texts around query and document.
        positive: the token of a yes.
        negative: the token of a no; "" where the first one's logit counts alone.
        scale: that the logit is divided by.
        activation: how it becomes a score where the checkpoint's files do not say.
    """

    name: str
    ids: str
    prompt: Prompt
    positive: str
    negative: str
    scale: float = 1.0
    activation: Activation = "sigmoid"


@dataclass(frozen=True)
class Answers:
    """The rows of the model's own head that a score is made from.

    Attributes:
        positive: token id of a yes.
        negative: token id of a no; None where there is none.
        scale: that the logit is divided by.
    """

    positive: int
    negative: int | None
    scale: float


_QWEN3 = Asked(
    name="qwen3-reranker",
    ids=r"qwen3\W?rerank",
    prompt=Prompt(
        prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        query="<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
        middle="",
        document=" {document}",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    positive="yes",
    negative="no",
)
_MXBAI = Asked(
    name="mxbai-rerank-v2",
    ids=r"mxbai-rerank-\w+-v2",
    prompt=Prompt(  # its authors make the ids of query, line break, document and task apart
        prefix="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        query="instruction: {instruction}\nquery: {query}",
        bare_query="query: {query}",
        middle="\ndocument:",
        document=" {document}",
        suffix="\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
    ),
    positive="1",
    negative="0",
    activation="identity",
)
_ZERANK_PARTS = {
    "prefix": "<|im_start|>system",
    "middle": "<|im_end|>\n<|im_start|>user",
    "document": "\n{document}",
    "suffix": "<|im_end|>\n<|im_start|>assistant\n",
}
_ZERANK_2 = Asked(
    name="zerank-2",
    ids=r"zerank-2",
    prompt=Prompt(
        query="\n<query>{query}</query>\n<instruction>{instruction}</instruction>",
        bare_query="\n{query}",
        **_ZERANK_PARTS,
    ),
    positive="Yes",
    negative="",
    scale=5.0,
)
_ZERANK_1 = Asked(
    name="zerank-1",
    ids=r"zerank-1",
    prompt=Prompt(query="\n{query}", **_ZERANK_PARTS),
    positive="Yes",
    negative="",
    scale=5.0,
)
_BGE_GEMMA = Asked(  # its authors make the ids of query, line break, document and task apart
    name="bge-reranker-v2-gemma",
    ids=r"bge-reranker-v2-gemma",
    prompt=Prompt(
        prefix="<bos>",
        query="A: {query}",
        middle="\n",
        document="B: {document}",
        suffix="\nGiven a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    ),
    positive="Yes",
    negative="",
)

PROMPTS = {asked.name: asked for asked in (_QWEN3, _MXBAI, _ZERANK_2, _ZERANK_1, _BGE_GEMMA)}


def find(hints: Sequence[str], stated: str | None) -> Asked | None:
    """What a checkpoint is asked.

    Args:
        hints: its id and its folder's name.
        stated: name of a prompt that the user gave; None where none was given.

    Raises:
        ExportError: there is no such prompt.
    """
    if stated is not None:
        if stated not in PROMPTS:
            raise ExportError(f"--prompt {stated!r:.80} is not known; there are {', '.join(PROMPTS)}")
        return PROMPTS[stated]
    return next((asked for asked in PROMPTS.values() if any(re.search(asked.ids, hint, re.I) for hint in hints)), None)


def check_prompt(tokenizer: Tokenizer, asked: Asked) -> None:
    """Check that a tokenizer knows what a prompt is made of.

    Raises:
        ExportError: a special token is missing, or is none.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    pieces = "".join((asked.prompt.prefix, asked.prompt.middle, asked.prompt.suffix))
    missing = sorted(set(_SPECIAL.findall(pieces)) - special)
    if missing:
        raise ExportError(
            f"its tokenizer.json has no special token {', '.join(missing)}, which the prompt {asked.name} is made of; "
            "tokenizer and prompt do not belong together"
        )


def head_of(tokenizer: Tokenizer, asked: Asked) -> Answers:
    """The ids of the tokens whose logits make a score.

    Raises:
        ExportError: a yes or a no is not one token.
    """
    negative = _one_token(tokenizer, asked.negative, asked) if asked.negative else None
    return Answers(_one_token(tokenizer, asked.positive, asked), negative, asked.scale)


def _one_token(tokenizer: Tokenizer, word: str, asked: Asked) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    if len(ids) != 1 or tokenizer.id_to_token(ids[0]) != word:
        raise ExportError(
            f"its tokenizer makes {len(ids)} tokens of {word!r}, whose logit is the score of the prompt {asked.name}; "
            "it must be one"
        )
    return int(ids[0])
