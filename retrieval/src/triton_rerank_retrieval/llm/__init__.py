"""Language models behind an endpoint in OpenAI's form. Needs ``pip install 'triton-rerank-retrieval[llm]'``."""
