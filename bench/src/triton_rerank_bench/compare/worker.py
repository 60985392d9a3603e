"""Scores with one peer library, in that library's environment, for a process that measures it.

A script, not a module of ours: the environment it runs in has the peer library and nothing of ours, so it imports the
standard library and, inside functions, the peer. It is started with the number of a socket's file, takes what
``multiprocessing.Connection`` sends there, and answers each with a pair, what it came to and what failed:

    {"op": "load", "library": …, "arguments": {…}}                  → notes {…}
    {"op": "score", "query": …, "documents": […], "options": {…}}   → scores […]
    {"op": "make", "kind": …, "arguments": […]}                     → None; files that peers load

It ends when the other side does. What the library prints goes where stdout and stderr do.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Options = dict[str, Any]
Score = Callable[[str, list[str], Options], Sequence[float]]
Notes = dict[str, str]

READY_TIMEOUT_S = 240.0
CALL_TIMEOUT_S = 120.0
CALIBRATION_PAIRS = 200


def main() -> int:
    """Answer until the other side is gone."""
    pipe, score = Connection(int(sys.argv[1])), None
    answer: Any
    with contextlib.suppress(EOFError):
        while True:
            request, answer, error = pipe.recv(), None, ""
            try:
                if request["op"] == "load":
                    score, answer = LOADERS[request["library"]](request["arguments"])
                elif request["op"] == "make":
                    MAKERS[request["kind"]](*request["arguments"])
                else:
                    assert score is not None, "load comes first"
                    answer = [float(each) for each in score(request["query"], request["documents"], request["options"])]
            except Exception as exc:  # noqa: BLE001 - whatever a library raises is an answer: the measurement goes on without it
                error = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
            pipe.send((answer, error))
    return 0


def _sentence_transformers(arguments: Options) -> tuple[Score, Notes]:
    """Arguments: folder, backend, max_length, n_threads, dtype, file_name, ov_config, device, attention.

    Options: batch_size; one_piece: all logits are fetched from the device at once; queries: one a document.
    """
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(arguments["n_threads"])
    backend, model_kwargs = arguments["backend"], {}
    if backend == "torch":
        model_kwargs["torch_dtype"] = getattr(torch, arguments["dtype"])
        if "attention" in arguments:
            model_kwargs["attn_implementation"] = arguments["attention"]
    elif backend == "onnx":
        import onnxruntime

        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = arguments["n_threads"]
        model_kwargs |= {"file_name": arguments["file_name"], "session_options": session_options}
        model_kwargs["provider"] = "CPUExecutionProvider"
    else:
        ov_config = {**arguments["ov_config"], "INFERENCE_NUM_THREADS": arguments["n_threads"]}
        model_kwargs |= {"file_name": arguments["file_name"], "ov_config": ov_config}
    model = CrossEncoder(
        arguments["folder"],
        max_length=arguments["max_length"],
        device=arguments.get("device", "cpu"),
        backend=backend,
        model_kwargs=model_kwargs,
    )
    identity = torch.nn.Identity()  # logits: the activation costs nothing that could be timed, and may tie the best

    def score(query: str, documents: list[str], options: Options) -> Sequence[float]:
        """Logits of one list, or of pairs where the options bring a query for each document."""
        queries = options.get("queries") or [query] * len(documents)
        found = model.predict(
            list(zip(queries, documents, strict=True)),
            batch_size=options["batch_size"],
            activation_fn=identity,
            show_progress_bar=False,
            convert_to_tensor=options.get("one_piece", False),
        )
        scores: list[float] = (found.float().cpu() if options.get("one_piece") else found).tolist()
        return scores

    return score, _openvino_notes(model) if backend == "openvino" else {}


def _without_padding(arguments: Options) -> tuple[Score, Notes]:
    """BERT's kind in torch on the tokens of many pairs, one after the other, as text-embeddings-inference computes it.

    Arguments: folder, max_length, n_threads, dtype, device. Options: tokens of a batch; queries: one a document.
    Attention is torch's ``varlen_attn``, and row by row on a CPU, which does not have it.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(arguments["n_threads"])
    device, tokenizer = arguments["device"], AutoTokenizer.from_pretrained(arguments["folder"])
    kind = {"torch_dtype": getattr(torch, arguments["dtype"])}
    model = AutoModelForSequenceClassification.from_pretrained(arguments["folder"], **kind).to(device).eval()
    base = model.base_model

    def attend(module: Any, lengths: list[int], bounds: Any) -> Callable[..., Any]:
        """Attention within rows: of (1, tokens, width) the same shape."""

        def forward(hidden: Any, *_: Any, **__: Any) -> Any:
            shape = (-1, module.num_attention_heads, module.attention_head_size)
            made = query, key, value = [
                part(hidden[0]).view(shape) for part in (module.query, module.key, module.value)
            ]
            if hidden.is_cuda:
                from torch.nn.attention.varlen import varlen_attn

                found: Any = varlen_attn(query, key, value, bounds, bounds, max(lengths), max(lengths))
            else:
                rows = zip(*(each.transpose(0, 1).split(lengths, dim=1) for each in made), strict=True)
                found = torch.cat([scaled_dot_product_attention(*row) for row in rows], dim=1).transpose(0, 1)
            return found.reshape(hidden.shape), None

        return forward

    def logits(rows: list[dict[str, list[int]]]) -> Any:
        """One a row, on the device: (rows, 1)."""
        lengths = [len(row["input_ids"]) for row in rows]
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        ids, types = (
            torch.tensor([[i for row in rows for i in row[name]]]) for name in ("input_ids", "token_type_ids")
        )
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        places += getattr(base.embeddings, "padding_idx", -1) + 1  # RoBERTa's positions begin behind it
        given = {"input_ids": ids, "token_type_ids": types, "position_ids": places}
        for layer in base.encoder.layer:
            layer.attention.self.forward = attend(layer.attention.self, lengths, bounds)
        hidden = base.encoder(base.embeddings(**{name: each.to(device) for name, each in given.items()}))[0]
        first, pooler = hidden[0, bounds[:-1]][:, None], getattr(base, "pooler", None)
        return model.classifier(first if pooler is None else pooler(first))

    @torch.inference_mode()
    def score(query: str, documents: list[str], options: Options) -> Sequence[float]:
        """Logits, the longest pairs first, in batches of so many tokens."""
        queries, more = options.get("queries") or [query] * len(documents), {"truncation": True}
        more |= {"max_length": arguments["max_length"], "return_token_type_ids": True}
        read = tokenizer(queries, documents, **more)
        rows = [dict(zip(read, each, strict=True)) for each in zip(*read.values(), strict=True)]
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at]["input_ids"]))
        batches: list[list[int]] = []
        room = 0
        for at in order:
            room -= len(rows[at]["input_ids"])
            if room < 0 or not batches:
                batches.append([])
                room = options["tokens"] - len(rows[at]["input_ids"])
            batches[-1].append(at)
        found = torch.cat([logits([rows[at] for at in batch]) for batch in batches]).float().cpu()[:, 0]
        return [value for _, value in sorted(zip(order, found.tolist(), strict=True))]

    return score, {}


def _openvino_notes(model: Any) -> Notes:
    """The precision that OpenVINO computes in: on a processor with bf16 its own choice is bf16, not fp32."""
    encoder = getattr(model, "transformers_model", None) or model.model  # its name before sentence-transformers 6
    encoder.compile()
    compiled = encoder.request
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {"computes in": str(precision)}


def _fastembed(arguments: Options) -> tuple[Score, Notes]:
    """Arguments: folder, file_name, n_threads. Options: batch_size."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    name = "local/checkpoint"
    TextCrossEncoder.add_custom_model(model=name, sources=ModelSource(hf=name), model_file=arguments["file_name"])
    model = TextCrossEncoder(name, threads=arguments["n_threads"], specific_model_path=arguments["folder"], cuda=False)

    def score(query: str, documents: list[str], options: Options) -> Sequence[float]:
        """Scores of one list by fastembed."""
        return list(model.rerank(query, documents, batch_size=options["batch_size"]))

    return score, {}


def _flashrank(arguments: Options) -> tuple[Score, Notes]:
    """Arguments: folder, file_name, max_length. Options: documents_a_call, None for all.

    It has no setting for threads or batches: it takes as many threads as there are cores, and each call is one batch.
    """
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    folder = Path(arguments["folder"])
    model_file_map[folder.name] = arguments["file_name"]
    model = Ranker(folder.name, cache_dir=str(folder.parent), max_length=arguments["max_length"], log_level="WARNING")

    def score(query: str, documents: list[str], options: Options) -> Sequence[float]:
        """Scores of one list by FlashRank, in calls of as many documents as the options say."""
        scores = [0.0] * len(documents)
        size = options["documents_a_call"] or len(documents)
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            passages = [{"id": start + place, "text": document} for place, document in enumerate(part)]
            for passage in model.rerank(RerankRequest(query=query, passages=passages)):
                scores[passage["id"]] = passage["score"]
        return scores

    return score, {}


def infinity_server(program: Path, arguments: Options, **popen: Any) -> tuple[subprocess.Popen[bytes], int]:
    """Its HTTP server with a model, and its port; it ends with the thread that starts it.

    Arguments: folder, flags. Raises RuntimeError with its last error where it does not start.
    """
    port = _free_port()
    command = [str(program), "v2", "--model-id", ".", "--served-model-name", "m"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port), *arguments["flags"]]
    # in the model's folder: its optimum engine finds ONNX files of a local model by relative path only
    log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
    server = subprocess.Popen(
        command,
        cwd=arguments["folder"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        preexec_fn=_die_with_parent,
        **popen,
    )
    try:
        _connect(server, port).close()
    except RuntimeError as exc:
        words = [line.strip() for line in os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace").splitlines()]
        errors = [line for line in words if re.match(r"\w+(Error|Exception):", line)]
        raise RuntimeError(f"{exc}; {errors[-1] if errors else words[-1:]}") from exc
    return server, port


def _infinity(arguments: Options) -> tuple[Score, Notes]:
    """Arguments: folder, flags. No options: all its settings are flags of its server."""
    _, port = infinity_server(Path(sys.executable).with_name("infinity_emb"), arguments)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_TIMEOUT_S)
    headers = {"Content-Type": "application/json"}

    def score(query: str, documents: list[str], options: Options) -> Sequence[float]:
        """Scores of one list by Infinity's server."""
        body = {"model": "m", "query": query, "documents": documents, "raw_scores": True}
        connection.request("POST", "/rerank", json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()  # its server hangs up after 5 quiet seconds, which others' turns last; opening costs 0.1 ms
        if response.status != http.client.OK:
            raise RuntimeError(f"status {response.status}: {answer}")
        scores = [0.0] * len(documents)
        for result in answer["results"]:
            scores[result["index"]] = result["relevance_score"]
        return scores

    return score, {}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def _connect(server: subprocess.Popen[bytes], port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_TIMEOUT_S)
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"its server ended with {server.returncode}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            if response.status == http.client.OK:
                return connection
        connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"its server was not ready after {READY_TIMEOUT_S:g} s")


def _make_onnx(checkpoint: str, folder: str, instructions: str) -> None:
    """onnx/model.onnx, onnx/model_O3.onnx, onnx/model_qint8.onnx.

    Instructions is sentence-transformers' name of an instruction set: arm64, avx2, avx512 or avx512_vnni.
    """
    from sentence_transformers import (
        CrossEncoder,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    CrossEncoder(checkpoint, device="cpu", backend="onnx", model_kwargs={"export": True}).save_pretrained(folder)
    model = CrossEncoder(folder, device="cpu", backend="onnx", model_kwargs={"file_name": "onnx/model.onnx"})
    export_optimized_onnx_model(model, "O3", folder)
    export_dynamic_quantized_onnx_model(model, instructions, folder, file_suffix="qint8")
    _copy_texts(checkpoint, folder)


def _make_openvino(checkpoint: str, folder: str, pairs: str) -> None:
    """openvino/openvino_model.xml, openvino/openvino_model_qint8_quantized.xml.

    Pairs is a folder of JSON lines ``{"pair": [query, document]}``, of which static quantisation takes the ranges of
    activations.
    """
    from optimum.intel import OVQuantizationConfig
    from sentence_transformers import CrossEncoder, export_static_quantized_openvino_model

    CrossEncoder(checkpoint, device="cpu", backend="openvino", model_kwargs={"export": True}).save_pretrained(folder)
    export_static_quantized_openvino_model(
        CrossEncoder(folder, device="cpu", backend="openvino"),
        OVQuantizationConfig(num_samples=CALIBRATION_PAIRS),
        folder,
        dataset_name=pairs,
        dataset_config_name="default",
        dataset_split="train",
        column_name="pair",
    )
    _copy_texts(checkpoint, folder)


def _copy_texts(checkpoint: str, folder: str) -> None:
    """As all peers read them, not as export wrote them."""
    for path in Path(checkpoint).iterdir():
        if path.suffix in {".json", ".txt"}:
            shutil.copyfile(path, Path(folder, path.name))


MAKERS: dict[str, Callable[[str, str, str], None]] = {"onnx": _make_onnx, "openvino": _make_openvino}
LOADERS: dict[str, Callable[[Options], tuple[Score, Notes]]] = {
    "sentence-transformers": _sentence_transformers,
    "without padding": _without_padding,
    "fastembed": _fastembed,
    "flashrank": _flashrank,
    "infinity": _infinity,
}

if __name__ == "__main__":
    sys.exit(main())
