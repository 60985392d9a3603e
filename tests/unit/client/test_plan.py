from __future__ import annotations

from triton_rerank.triton.plan import BYTES_PER_TOKEN, Limits, plan

LADDER = (32, 64, 128, 512)
ANY = Limits(max_batch_size=1000, max_request_bytes=10**9)


def of_tokens(*tokens: int) -> list[int]:
    """Bytes of texts that the plan takes for that many tokens."""
    return [int(n * BYTES_PER_TOKEN) for n in tokens]


def test_one_request_where_padding_is_not_known_and_everything_fits() -> None:
    assert plan([3, 1, 2], overhead=0, limits=ANY) == ((0, 1, 2),)


def test_a_few_short_documents_are_not_worth_a_request_of_their_own() -> None:
    lengths = of_tokens(500, 20, 490, 20)
    assert plan(lengths, overhead=0, limits=Limits(1000, 10**9, LADDER)) == ((0, 1, 2, 3),)


def test_many_short_documents_travel_apart_from_the_long_ones() -> None:
    lengths = of_tokens(*[500] * 3, *[20] * 50)
    assert plan(lengths, overhead=0, limits=Limits(1000, 10**9, LADDER)) == (tuple(range(3, 53)), (0, 1, 2))


def test_texts_over_the_last_rung_are_cut_there_and_travel_with_it() -> None:
    lengths = of_tokens(*[500] * 20, *[9000] * 20)
    assert len(plan(lengths, overhead=0, limits=Limits(1000, 10**9, LADDER))) == 1


def test_the_query_counts_for_every_pair() -> None:
    lengths = of_tokens(*[20] * 50, *[500] * 3)
    assert len(plan(lengths, overhead=of_tokens(490)[0], limits=Limits(1000, 10**9, LADDER))) == 1


def test_the_servers_batch_size_is_kept_by_pieces_of_like_count() -> None:
    groups = plan([5] * 9, overhead=0, limits=Limits(4, 10**9))
    assert [len(group) for group in groups] == [3, 3, 3]


def test_bytes_are_bounded_with_the_query_counted_for_every_pair() -> None:
    assert plan([1, 1, 1, 1], overhead=9, limits=Limits(100, 20)) == ((0, 1), (2, 3))


def test_a_pair_over_the_byte_bound_goes_alone() -> None:
    assert plan([500, 1], overhead=0, limits=Limits(100, 20)) == ((1,), (0,))


def test_no_documents_no_requests() -> None:
    assert plan([], overhead=5, limits=Limits(1, 1, LADDER)) == ()
