"""A cluster that is not there, or does not start in time."""

from __future__ import annotations

import types
from typing import Any

import pytest

from triton_rerank import ConfigurationError
from triton_rerank_bulk.engines import _join


class Ray(types.SimpleNamespace):
    """Ray, whose nodes do not start in time for so many attempts."""

    def __init__(self, failures: int) -> None:
        super().__init__(failures=failures, addresses=[], ended=0)

    def init(self, address: str, **_: Any) -> None:
        self.addresses.append(address)
        if len(self.addresses) <= self.failures:
            raise Exception("The current node timed out during startup")

    def shutdown(self) -> None:
        self.ended += 1


def test_a_node_of_our_own_that_does_not_start_in_time_is_tried_again() -> None:
    ray = Ray(failures=1)
    _join(ray, "local")
    assert (ray.addresses, ray.ended) == (["local", "local"], 1)


@pytest.mark.parametrize(("address", "attempts"), [("local", 2), ("10.0.0.1:6379", 1)])
def test_a_cluster_that_is_not_there_is_told_with_rays_own_words(address: str, attempts: int) -> None:
    ray = Ray(failures=9)
    with pytest.raises(
        ConfigurationError, match=f"--ray {address}: no cluster is there, or it did not start .*timed out"
    ):
        _join(ray, address)
    assert (len(ray.addresses), ray.ended) == (attempts, attempts)
