"""Texts in English that PyPI and Debian's packages bring along, for training the demo model.

Sources: Debian's package descriptions, docstrings of the standard library and of permissively licensed installed
packages, the FOLDOC and Jargon dictionaries, perl's documentation. No test collection is among them.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import re
import subprocess
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from triton_rerank_export.errors import ExportError

MIN_WORDS, MAX_WORDS, MAX_TITLE_WORDS = 22, 220, 25  # of a text; a longer body is cut, a longer title is none
DOCSTRINGS_PER_PACKAGE = 1500  # so that no package's jargon fills the corpus
_APT_TIMEOUT_S = 600.0

_PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC)\b", re.IGNORECASE)
_COPYLEFT = re.compile(r"GPL|General Public|MPL|Mozilla", re.IGNORECASE)
_NOT_DOCUMENTATION = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_DOCSTRING_SECTION = re.compile(
    r"\n\s*(Parameters|Args|Arguments|Examples?|Returns|Raises|Attributes|References):?\s*\n"
)
_CODE_LINE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |:\w+|[-=~]{3,}).*$", re.MULTILINE)
_DICT_MARKS = re.compile(r"[{}]|^\s*<[^>]+>|\[[^\]]*\]|\(\d{4}-\d\d-\d\d\)")
_DICT_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_POD_HEADING = re.compile(r"^=head[1-4]\s+(.*)$", re.MULTILINE)
_POD_CODE = re.compile(r"[A-Z]<+\s*([^<>]*?)\s*>+")


@dataclass(frozen=True)
class Text:
    """One text of a source: a title, a body that does not repeat it, and the kind of title (see ``_QUESTIONS``)."""

    title: str
    body: str
    kind: Literal["term", "summary", "task", "heading"]


class SourceMissingError(ExportError):
    """A source of texts is not to be had on this machine; the message says why."""


def collect(cache: Path, console: Console) -> list[Text]:
    """Read all sources; one that is missing is named with the reason and skipped.

    Raises:
        ExportError: all are missing.
    """
    texts: list[Text] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, read in progress.track(list(SOURCES.items()), description="reading texts"):
            try:
                found = usable(read(cache))
            except SourceMissingError as error:
                console.print(f"{name}: skipped, {error}")
                continue
            console.print(f"{name}: {len(found):,} texts")
            texts += found
    if not texts:
        raise ExportError("none of the sources of training texts could be had; the reasons are printed above")
    return texts


def usable(texts: Iterable[Text]) -> list[Text]:
    """Tidy the spaces, shorten, drop what is too short, and keep one of those that begin alike."""
    kept: dict[str, Text] = {}
    for text in texts:
        words, title = text.body.split(), " ".join(text.title.split()).rstrip(".")
        if len(words) >= MIN_WORDS and 0 < len(title.split()) <= MAX_TITLE_WORDS:
            body = " ".join(words[:MAX_WORDS])
            kept.setdefault(body[:120].lower(), Text(title, body, text.kind))
    return list(kept.values())


def debian_descriptions(cache: Path) -> Iterator[Text]:
    """Yield synopsis and long description of every Debian package."""
    for path in _translations(cache):
        yield from parse_translation(path.read_text(encoding="utf-8"))


def parse_translation(content: str) -> Iterator[Text]:
    """Parse apt's Translation-en format: fields in paragraphs, continuation lines indented, ``.`` for a blank one."""
    for paragraph in content.split("\n\n"):
        _, mark, description = paragraph.partition("\nDescription-en: ")
        if mark:
            synopsis, *lines = description.split("\n")
            yield Text(synopsis, " ".join(line for line in lines if line.strip() != "."), "summary")


def _translations(cache: Path) -> list[Path]:
    lists = cache / "apt-lists"
    if not (found := sorted(lists.glob("*Translation-en"))):
        lists.mkdir(parents=True, exist_ok=True)
        said = _run(["apt-get", *_apt_options(cache), "update"], cache)
        found = sorted(lists.glob("*Translation-en"))
        if not found:
            raise SourceMissingError(f"apt-get update brought no English descriptions ({said[-200:] or 'no message'})")
    return found


def _apt_options(cache: Path) -> list[str]:
    """Keep apt within the cache, so that neither root nor the machine's own lists are needed."""
    options = {
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "Acquire::Retries": "1",
        "APT::Sandbox::User": "root",  # the _apt user may not reach the cache
        "Dir::State::lists": str((cache / "apt-lists").resolve()),
        "Dir::Cache": str((cache / "apt-cache").resolve()),
    }
    return [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]


def _run(command: list[str], folder: Path) -> str:
    """Run a command to its end; returns what it said on stderr."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_APT_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise SourceMissingError(f"{command[0]} is not installed; Debian and its relatives have it") from error
    except subprocess.TimeoutExpired as error:
        raise SourceMissingError(f"{command[0]} took longer than {_APT_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise SourceMissingError(f"{command[0]} failed: {done.stderr.strip()[-200:]}")
    return done.stderr.strip()


def _unpacked(cache: Path, package: str) -> Path:
    """Download a Debian package and unpack it into the cache; returns the folder."""
    folder, partial = cache / package, cache / f"{package}.partial"
    if not folder.is_dir():
        _translations(cache)  # apt must know the package before it can fetch it
        _run(["apt-get", *_apt_options(cache), "download", package], cache)
        if not (archives := sorted(cache.glob(f"{package}_*.deb"))):
            raise SourceMissingError(f"apt-get download {package} left no file")
        _run(["dpkg-deb", "-x", archives[-1].name, partial.name], cache)
        partial.rename(folder)
        for archive in archives:
            archive.unlink()
    return folder


def dictionaries(cache: Path) -> Iterator[Text]:
    """Yield the entries of FOLDOC and the Jargon File."""
    for name in ("foldoc", "jargon"):
        folder = _unpacked(cache, f"dict-{name}") / "usr/share/dictd"
        if not (folder / f"{name}.index").is_file():
            raise SourceMissingError(f"the package dict-{name} has no usr/share/dictd/{name}.index")
        index = (folder / f"{name}.index").read_text(encoding="utf-8")
        yield from parse_dictionary(index, gzip.decompress((folder / f"{name}.dict.dz").read_bytes()))


def parse_dictionary(index: str, content: bytes) -> Iterator[Text]:
    """Parse dictd's format: an index of headword, offset and length in base 64, and the entries one after another."""
    seen: set[str] = set()
    for line in index.splitlines():
        headword, offset, length = line.split("\t")[:3]
        if headword.startswith("00-database") or offset in seen:
            continue
        seen.add(offset)  # other headwords of the same entry follow
        start = _dict_number(offset)
        entry = content[start : start + _dict_number(length)].decode("utf-8", errors="replace")
        _, _, body = entry.partition("\n\n")  # the headword's lines end with a blank one
        yield Text(headword, _DICT_MARKS.sub("", body), "term")


def _dict_number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = 64 * number + _DICT_DIGITS.index(digit)
    return number


def perl_documentation(cache: Path) -> Iterator[Text]:
    """Yield the sections of perl's manual pages and FAQ, without the lists of changes."""
    for path in sorted(_unpacked(cache, "perl-doc").rglob("*.pod")):
        if not path.name.endswith("delta.pod"):
            yield from parse_pod(path.read_text(encoding="utf-8", errors="replace"))


def parse_pod(content: str) -> Iterator[Text]:
    """Parse perl's POD: one text a heading, its running text without code and lists."""
    _, *parts = _POD_HEADING.split(content)
    for heading, section in zip(parts[::2], parts[1::2], strict=True):
        prose = [p for p in section.split("\n\n") if p.strip() and not p.lstrip("\n").startswith((" ", "\t", "="))]
        if not heading.isupper():  # NAME, AUTHOR, SEE ALSO: the same in every page
            yield Text(_POD_CODE.sub(r"\1", heading), _POD_CODE.sub(r"\1", " ".join(prose)), "heading")


def python_docstrings(_cache: Path) -> Iterator[Text]:
    """Yield docstrings of the standard library and of permissively licensed packages; nothing is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    files = {str(path.relative_to(library)): path for path in library.rglob("*.py")}
    yield from _docstrings_of(files, limit=3 * DOCSTRINGS_PER_PACKAGE)
    for distribution in sorted(importlib.metadata.distributions(), key=lambda d: str(d.metadata["Name"])):
        if permissive(distribution.metadata.get_all):
            files = {str(file): Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
            yield from _docstrings_of(files, limit=DOCSTRINGS_PER_PACKAGE)


def permissive(get_all: Callable[[str], list[str] | None]) -> bool:
    """Tell from a package's metadata (field → values) whether its licence is permissive, and nothing else."""
    stated = [value for field in ("License-Expression", "License") for value in get_all(field) or ()]
    stated += [value for value in get_all("Classifier") or () if value.startswith("License")]
    text = " ".join(stated)
    return bool(_PERMISSIVE.search(text)) and not _COPYLEFT.search(text)


def _docstrings_of(files: dict[str, Path], *, limit: int) -> Iterator[Text]:
    """Yield up to ``limit`` docstrings from files (name inside the package → path) all over a package."""
    names = [n for n in files if n.endswith(".py") and not _NOT_DOCUMENTATION & set(Path(n).parts)]
    for name in sorted(names, key=digest):
        for text in usable(parse_docstrings(files[name].read_bytes())) if files[name].is_file() else ():
            if limit == 0:
                return
            limit -= 1
            yield text


def parse_docstrings(source: bytes) -> Iterator[Text]:
    """Yield the docstrings of a Python file: first line and running text, without examples and argument lists."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the escapes in other people's strings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates, other Pythons
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            prose = _CODE_LINE.sub("", _DOCSTRING_SECTION.split("\n" + rest)[0])
            task = isinstance(node, ast.FunctionDef) and not summary.split(" ")[0].endswith("s")  # "Return", "Returns"
            yield Text(summary, prose, "task" if task else "heading")


SOURCES: dict[str, Callable[[Path], Iterator[Text]]] = {
    "Debian package descriptions": debian_descriptions,
    "Python docstrings": python_docstrings,
    "FOLDOC and Jargon dictionaries": dictionaries,
    "perl documentation": perl_documentation,
}


def digest(text: str) -> str:
    """Return the sha256 of a text, in hex; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
