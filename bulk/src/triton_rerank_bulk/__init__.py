"""Scores many pairs by a reranker into Parquet: goes on after any crash, and audits what it wrote.

`Job` is a folder of output, `BlockScorer` scores a part of it, `run_here` and `run_ray` give the parts to workers.
"""

from triton_rerank_bulk.audit import Audit, audit, export
from triton_rerank_bulk.engines import run_here, run_ray
from triton_rerank_bulk.job import Job, open_job
from triton_rerank_bulk.pairs import Source, find_source
from triton_rerank_bulk.scoring import BlockScorer, Outcome, Work

__all__ = [
    "Audit",
    "BlockScorer",
    "Job",
    "Outcome",
    "Source",
    "Work",
    "audit",
    "export",
    "find_source",
    "open_job",
    "run_here",
    "run_ray",
]
