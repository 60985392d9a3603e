from __future__ import annotations

from triton_rerank._plan import plan


def test_one_request_where_everything_fits() -> None:
    assert plan([3, 1, 2], overhead=0, max_batch_size=10, max_request_bytes=100) == ((1, 2, 0),)


def test_documents_of_like_length_travel_together() -> None:
    assert plan([100, 1, 90, 2], overhead=0, max_batch_size=2, max_request_bytes=10**6) == ((1, 3), (2, 0))


def test_bytes_are_bounded_with_the_query_counted_for_every_pair() -> None:
    assert plan([1, 1, 1, 1], overhead=9, max_batch_size=100, max_request_bytes=20) == ((0, 1), (2, 3))


def test_a_pair_over_the_byte_bound_goes_alone() -> None:
    assert plan([500, 1], overhead=0, max_batch_size=100, max_request_bytes=20) == ((1,), (0,))


def test_no_documents_no_requests() -> None:
    assert plan([], overhead=5, max_batch_size=1, max_request_bytes=1) == ()
