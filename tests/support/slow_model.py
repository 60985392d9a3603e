"""A tiny model whose encoder sleeps before it answers: a queue that fills, and work that takes long, at no cost."""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_rerank.contract import ENCODER_SUFFIX, MANIFEST_FILE

NAME = "tiny-bert"
ENCODER = NAME + ENCODER_SUFFIX

_MODEL = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self._delay_s = float(json.loads(args["model_config"])["parameters"]["delay_s"]["string_value"])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        time.sleep(self._delay_s)
        rows = len(pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy())
        seconds = np.full((rows, 1), request.timeout() / 1e6, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", seconds)])
"""


def write_slow(
    repository: Path, folder: Path, *, delay_s: float, max_queue_size: int = 0, max_batch_size: int = 4
) -> Path:
    """A repository with one model whose encoder takes ``delay_s`` a request, one request at a time.

    Its logits are the seconds that the request said it may wait in the queue.

    Args:
        repository: one with tiny-bert.
        folder: to write to.
        delay_s: seconds.
        max_queue_size: requests that may wait; 0 means any number.
        max_batch_size: most pairs of a request; requests of as many pairs are never computed together.
    """
    for source in sorted(repository.glob(f"{NAME}*")):
        shutil.copytree(source, folder / source.name)
    shutil.rmtree(folder / ENCODER / "1")
    (folder / ENCODER / "1").mkdir()
    (folder / ENCODER / "1" / "model.py").write_text(_MODEL)
    (folder / NAME / "1" / MANIFEST_FILE).unlink()  # it holds a canary that this model does not order
    for name in (NAME, ENCODER):
        path = folder / name / "config.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.max_batch_size = max_batch_size
        if name == ENCODER:
            config.backend = "python"
            config.default_model_filename = "model.py"
            config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
            config.parameters["delay_s"].string_value = str(delay_s)
            del config.model_warmup[:]
        path.write_text(text_format.MessageToString(config))
    return folder
