"""Who gives blocks to workers: threads of this process, or Ray Data. Both yield what became of each, as it comes."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import islice
from typing import Any

from triton_rerank import ConfigurationError
from triton_rerank_bulk.scoring import BlockScorer, Outcome, Work

Outcomes = Generator[Outcome, None, None]


def run_here(work: Work, blocks: Sequence[int], workers: int) -> Outcomes:
    """Blocks in threads of this process; a block ends while the next is under way.

    Args:
        work: what is scored.
        blocks: those that are not there yet.
        workers: blocks under way at a time; they share the calls.
    """
    scorer = BlockScorer(work)
    threads = ThreadPoolExecutor(workers)
    left, under_way = iter(blocks), set[Future[Outcome]]()
    try:
        under_way |= {threads.submit(scorer.run, block) for block in islice(left, workers)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way |= {threads.submit(scorer.run, block) for block in islice(left, len(done))}
            yield from (future.result() for future in done)
    finally:
        scorer.close()
        threads.shutdown(cancel_futures=True)


def run_ray(work: Work, blocks: Sequence[int], workers: tuple[int, int], address: str, cpus: float) -> Outcomes:
    """Blocks by actors of Ray Data, on as many machines as it has.

    A block is a row of the data set and a file of one name, written whole: a block that is computed again, by an actor
    that took the place of a dead one or after the driver died, takes its own place. So nothing needs Ray's checkpoints,
    and an output may be continued with Ray or without it.

    Args:
        work: what is scored; its folders must be at the same place on every machine.
        blocks: those that are not there yet.
        workers: least and most actors.
        address: of a cluster, or "local" to start one on this machine.
        cpus: that an actor takes of Ray's account.

    Raises:
        ConfigurationError: the extra ``ray`` is not installed, or no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items
    except ImportError as exc:
        raise ConfigurationError(f"--ray needs Ray ({exc}): pip install 'triton-rerank-bulk[ray]'") from exc
    _join(ray, address)
    try:
        DataContext.get_current().enable_progress_bars = False
        rows = from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
        least, most = min(workers[0], len(blocks)), min(workers[1], len(blocks))
        done = rows.map_batches(
            _actor(work), batch_size=1, compute=ActorPoolStrategy(min_size=least, max_size=most), num_cpus=cpus
        )
        yield from _outcomes(done.iter_rows())
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """A cluster of our own gets a second attempt: Ray gives a node 30 s, and now and then it is not there by then."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options["include_dashboard"] = False
    for attempts_left in (1, 0) if address == "local" else (0,):
        try:
            ray.init(address, **options)
            return
        except Exception as exc:  # Ray raises the bare class where a node does not start in time
            ray.shutdown()
            if not attempts_left:
                raise ConfigurationError(f"--ray {address}: no cluster is there, or it did not start ({exc})") from exc


def _actor(work: Work) -> type:
    """A class that holds its work, so that an actor can be made again wherever the driver's memory is."""

    class BulkScorer:
        def __init__(self) -> None:
            self._scorer = BlockScorer(work)

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            found = [asdict(self._scorer.run(int(block))) for block in batch["block"]]
            return {name: [outcome[name] for outcome in found] for name in found[0]}

    return BulkScorer


def _outcomes(rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
    return (Outcome(**row) for row in rows)
