"""The contract between client, model repository and server: every name that crosses the wire, once.

Tensor names equal Hugging Face's, so no map is needed anywhere. The two backends run inside Triton, where this
package is not installed; ``tests/contract`` holds them to the names below.
"""

from __future__ import annotations

from typing import Final

# The ensemble, which carries the public model name. Inputs and outputs are (n, 1), one row a pair.
QUERY: Final = "query"  # BYTES, UTF-8
DOCUMENT: Final = "document"  # BYTES, UTF-8
LOGITS: Final = "logits"  # FP32, the model's raw output
TOKEN_COUNT: Final = "token_count"  # INT32, tokens of the pair after the cut, special tokens included
TRUNCATED: Final = "truncated"  # BOOL, true where query or document was cut

# Between the two steps. (n, padded length)
INPUT_IDS: Final = "input_ids"  # INT64
ATTENTION_MASK: Final = "attention_mask"  # INT64
TOKEN_TYPE_IDS: Final = "token_type_ids"  # INT64, only where the model has them

# Of a flat graph, whose other inputs are rows one after the other; no request has it.
WIDTHS: Final = "widths"  # INT32 (rows,), how many numbers of each input are a row's

TOKENIZER_SUFFIX: Final = "-tokenizer"  # the ensemble's first step is <model>-tokenizer
ENCODER_SUFFIX: Final = "-encoder"  # and its second <model>-encoder

# The encoder's backend in config.pbtxt: ours, which no image of NVIDIA's replaces; ENGINE is its parameter.
ENCODER_BACKEND: Final = "rerank_encoder"
ENGINE: Final = "engine"  # the library that computes: "onnxruntime" or "openvino"
SCHEDULING: Final = "scheduling"  # "continuous", or absent for executions that Triton makes
THREADS: Final = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}  # by engine; absent: all
MICRO_BATCH_TOKENS: Final = "micro_batch_tokens"  # padded tokens computed at once; absent: the engine's choice
CUDA_GRAPH_SHAPES: Final = "cuda_graph_shapes"  # "1x32,8x128"; absent: no CUDA graphs

# Request parameters. Never optional inputs: requests with different sets of inputs do not batch together.
MAX_LENGTH: Final = "max_length"  # tokens a pair, at most the model's own
MAX_DOCUMENT_TOKENS: Final = "max_document_tokens"  # kept of the document; absent: as many as have room
MAX_QUERY_TOKENS: Final = "max_query_tokens"  # tokens kept of the query; absent: cut only where the pair does not fit
INSTRUCTION: Final = "instruction"  # what a model with a prompt is told to look for; absent: the prompt's own

# Parameters of the ensemble in config.pbtxt, written by export and read by the client from the server.
ACTIVATION: Final = "activation"  # "identity" or "sigmoid"
PRECISION: Final = "precision"  # "fp32", "bf16", "fp16" or "int8"
SOURCE: Final = "source"  # where the weights came from
# MAX_LENGTH is one too.

# Parameters of the tokenizer step.
LENGTH_LADDER: Final = "length_ladder"  # comma-separated padded lengths; Triton merges requests of equal shape only
PAD_TOKEN_ID: Final = "pad_token_id"
QUERY_PROMPT: Final = "query_prompt"  # put before every query; absent for none
SPECIAL_TOKENS_IN_TEXT: Final = "special_tokens_in_text"  # "text" or "special"; absent for "text"
PROMPT: Final = "prompt_"  # begins the names of a prompt's pieces; which, says backends/tokenizer/prompt.py
INSTRUCTION_PLACE: Final = "{instruction}"  # in the piece around the query, where the prompt takes one
# MAX_LENGTH and INSTRUCTION are, too.

CONFIG_FILE: Final = "config.pbtxt"  # in the folder of the ensemble and of each step
MANIFEST_FILE: Final = "manifest.json"  # in each version folder of the ensemble: source, tools, hashes, parity, canary

DEFAULT_GRPC_TARGET: Final = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S: Final = 10.0
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024  # text bytes a sub-request; gRPC's own limit is 2 GiB
MAX_TEXT_BYTES: Final = 16 * 1024 * 1024  # bytes of one query or document; the tokenizer step's bound too
