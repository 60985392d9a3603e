import base64
import gzip
import hashlib
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tools.demo_training import corpus
from tools.demo_training import texts as sources
from tools.demo_training.corpus import CorpusConfig, build, make_example
from tools.demo_training.texts import (
    SourceMissingError,
    Text,
    collect,
    debian_descriptions,
    parse_dictionary,
    parse_docstrings,
    parse_pod,
    parse_translation,
    permissive,
    usable,
)
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.data import FloatArray

LONG = " ".join(f"Sentence {i} tells a little about thing number {i} and ends." for i in range(12))

TRANSLATION = """Package: gzip
Description-md5: 0123456789abcdef
Description-en: GNU compression utilities
 This package provides the standard GNU file compression utilities, which
 are also the default compression tools for Debian.
 .
 They typically operate on files with names ending in '.gz'.

Package: oddity
Description-md5: 0123456789abcdef

Package: vim
Description-md5: 0123456789abcdef
Description-en: Vi IMproved - enhanced vi editor
 Vim is an almost compatible version of the UNIX editor Vi.
"""


def _console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_translation_file_gives_synopsis_and_description() -> None:
    gzip_text, vim = parse_translation(TRANSLATION)
    assert gzip_text.title == "GNU compression utilities"
    assert gzip_text.body.split()[-5:] == ["with", "names", "ending", "in", "'.gz'."]
    assert " . " not in gzip_text.body
    assert (vim.title, vim.kind) == ("Vi IMproved - enhanced vi editor", "summary")


def test_descriptions_are_read_from_lists_that_are_already_there(tmp_path: Path) -> None:
    lists = tmp_path / "apt-lists"
    lists.mkdir()
    (lists / "mirror_dists_stable_main_i18n_Translation-en").write_text(TRANSLATION, encoding="utf-8")
    assert [text.title[:3] for text in debian_descriptions(tmp_path)] == ["GNU", "Vi "]


def test_a_machine_without_apt_is_a_missing_source_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceMissingError, match="apt-get is not installed"):
        list(debian_descriptions(tmp_path))


def _dict_number(n: int) -> str:
    # dictd writes numbers in base 64, the highest digit first, without padding
    digits = base64.b64encode(b"\0" + struct.pack(">Q", n)).decode()
    return digits.lstrip("A") or "A"


def test_a_dictionary_gives_each_entry_once_under_its_first_headword() -> None:
    first = "*LISP\nStarLISP\n\n   <language> A {data-parallel} extension of {Common LISP}.\n\n   (2014-12-17)\n"
    second = "AFAIK\n //, n.\n\n    [Usenet] Abbrev. for \u201cAs Far As I Know\u201d.\n"
    content = (first + second).encode()
    start, length = len(first.encode()), len(second.encode())
    rows = [
        ("*LISP", 0, start),
        ("00-database-info", 0, 3),
        ("AFAIK", start, length),
        ("StarLISP", 0, start),
    ]
    index = "\n".join(f"{word}\t{_dict_number(offset)}\t{_dict_number(size)}" for word, offset, size in rows)
    texts = list(parse_dictionary(index, gzip.decompress(gzip.compress(content))))
    assert [text.title for text in texts] == ["*LISP", "AFAIK"]
    assert texts[0].body.split() == ["A", "data-parallel", "extension", "of", "Common", "LISP."]
    assert texts[1].body.strip() == "Abbrev. for \u201cAs Far As I Know\u201d."


def test_a_pod_page_gives_its_sections_without_code_and_formatting() -> None:
    pod = (
        "=head1 NAME\n\nperlfaq4 - Data\n\n=head2 Why is C<int()> broken?\n\nYour C<int()> is most probably\nworking."
        "\n\n    print int(0.6)\n\nSee L<perlop>.\n\n=over 4\n\n=head2 Next\n\nMore.\n"
    )
    texts = list(parse_pod(pod))
    assert [text.title for text in texts] == ["Why is int() broken?", "Next"]
    assert texts[0].body.split() == ["Your", "int()", "is", "most", "probably", "working.", "See", "perlop."]


def test_docstrings_lose_examples_and_argument_lists() -> None:
    source = b'''
"""Module line.

Module prose.
"""
class Loader:
    """Loads things."""
def load(path):
    """Load a thing.

    It is read at once.

    >>> load("x")

    Args:
        path: where it is.
    """
'''
    texts = {text.title: text for text in parse_docstrings(source)}
    assert texts["Module line."].body.split() == ["Module", "prose."]
    assert texts["Load a thing."].body.split() == ["It", "is", "read", "at", "once."]
    assert texts["Load a thing."].kind == "task"
    assert texts["Loads things."].kind == "heading"


@pytest.mark.parametrize("source", [b"def broken(:", b"x = 1\0", b"# -*- coding: nonsense -*-\n"])
def test_a_file_that_is_no_python_gives_nothing(source: bytes) -> None:
    assert list(parse_docstrings(source)) == []


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"License-Expression": ["MIT"]}, True),
        ({"License": ["BSD 3-Clause"]}, True),
        ({"Classifier": ["License :: OSI Approved :: Apache Software License"]}, True),
        ({"License-Expression": ["MPL-2.0 AND MIT"]}, False),
        ({"License": ["MIT"], "Classifier": ["License :: OSI Approved :: GNU General Public License v3"]}, False),
        ({"Classifier": ["Programming Language :: Python :: 3"]}, False),
    ],
)
def test_only_a_stated_permissive_licence_counts(metadata: dict[str, list[str]], expected: bool) -> None:
    assert permissive(metadata.get) is expected


def test_texts_are_tidied_shortened_and_deduplicated() -> None:
    short = Text("short", "too few words", "term")
    first, twin = Text(" one\n title. ", LONG * 3, "term"), Text("another", LONG * 3 + "different end", "term")
    (kept,) = usable([short, first, twin])
    assert kept.title == "one title"
    assert len(kept.body.split()) == sources.MAX_WORDS


def test_every_form_of_query_is_made_and_none_is_left_in_its_document() -> None:
    text = Text("a title of five words", LONG, "summary")
    examples = [make_example(text, np.random.default_rng(seed)) for seed in range(200)]
    for query, document in examples:
        assert query is None or query.removesuffix("...") not in document
    queries = [query for query, _ in examples if query is not None]
    assert any(document == text.title for _, document in examples)
    assert text.title in queries
    assert any(query.startswith("is there a package for") for query in queries)
    assert any(query.count("Sentence") == 1 for query in queries)
    passages = [query for query in queries if query.count("Sentence") > 1]
    assert passages
    assert max(len(query.split()) for query in passages) <= corpus.QUERY_WORDS[1]


def test_missing_sources_are_named_and_skipped_unless_all_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_cache: Path) -> Iterator[Text]:
        raise SourceMissingError("no such thing here")

    console = _console()
    monkeypatch.setattr(sources, "SOURCES", {"good": lambda _: iter([Text("t", LONG, "term")]), "bad": missing})
    assert [text.title for text in collect(tmp_path, console)] == ["t"]
    assert "bad: skipped, no such thing here" in _said(console)
    monkeypatch.setattr(sources, "SOURCES", {"bad": missing})
    with pytest.raises(ExportError, match="none of the sources"):
        collect(tmp_path, console)


def _word_vectors(texts: list[str], _console: Console) -> FloatArray:
    """Stand-in for the bi-encoder: hashed bags of words."""
    vectors = np.full((len(texts), 64), 1e-3, np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, hashlib.sha256(word.encode()).digest()[0] % 64] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_a_corpus_is_built_once_and_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    rng = np.random.default_rng(5)
    words = [f"word{i}" for i in range(500)]

    def texts(_cache: Path) -> Iterator[Text]:
        for i in range(150):
            sentences = [" ".join(rng.choice(words, 12)).capitalize() + "." for _ in range(6)]
            yield Text(f"title of text {i}", " ".join(sentences), "summary")

    monkeypatch.setattr(sources, "SOURCES", {"made up": texts})
    monkeypatch.setattr(corpus, "_embed", _word_vectors)
    config = CorpusConfig(documents=120, queries=60)
    groups = build(tmp_path, config, _console())
    assert len(groups) == 60
    assert all(group.n_positives == 1 and group.scores is not None for group in groups)
    monkeypatch.setattr(sources, "SOURCES", {})
    monkeypatch.setattr(corpus, "_embed", None)
    assert build(tmp_path, config, _console()) == groups
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads((tmp_path / "texts-1.jsonl").read_text().splitlines()[0])["kind"] == "summary"


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ExportError, match="200 queries of 100 documents"):
        CorpusConfig(documents=100, queries=200)
