"""Tokenizers of every kind that rerankers use, small, with odd normalisers and added tokens."""

from __future__ import annotations

from collections.abc import Callable

from support.tiny_models import parity_texts, unigram, wordpiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ADDED = ["new york", "<|x|>", "ﬁn"]  # with a space, of signs, of a ligature that NFKC takes apart


def byte_level_bpe() -> Tokenizer:
    """RoBERTa's kind: white space in front belongs to the word, and runs of it are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<s>", "</s>"]))


def bpe_of_the_whole_text() -> Tokenizer:
    """Llama's first kind: no words, spaces are letters, unknown characters fall back to one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<unk>"]))


def unigram_of_the_whole_text() -> Tokenizer:
    """XLM-R's kind with SentencePiece's normalisation: runs of spaces become one, accents go, nothing is split."""
    tokenizer = unigram()
    replaced = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), replaced])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(parity_texts(), trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": wordpiece,
    "Unigram": unigram,
    "Unigram of the whole text": unigram_of_the_whole_text,
    "byte-level BPE": byte_level_bpe,
    "BPE of the whole text": bpe_of_the_whole_text,
}


def make(kind: str) -> Tokenizer:
    """A tokenizer of a kind, with `ADDED`."""
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(token, normalized=place == 2) for place, token in enumerate(ADDED)])
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    return tokenizer
