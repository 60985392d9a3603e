"""What a served model is, as data -> Triton's protobuf -> config.pbtxt. The protobuf is the schema check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from triton_rerank import contract
from triton_rerank.types import Activation

Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_HEADER = "# Written by triton-rerank-export; do not edit, export again.\n"
_FULL_LADDER = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

DEFAULT_MAX_BATCH_SIZE = 256  # pairs; a client splits longer lists
DEFAULT_QUEUE_DELAY_US = 0  # requests merge while the instance is busy; waiting would only add latency on a CPU


@dataclass(frozen=True)
class ServedModel:
    """Everything that the three configs of a model are made from.

    Attributes:
        name: public model name, the ensemble's.
        activation: "identity" or "sigmoid".
        max_length: tokens of the longest pair.
        precision: of the encoder.
        source: where the weights came from.
        token_type_ids: the encoder reads segment ids.
        pad_token_id: id that fills a row up.
        max_batch_size: most pairs in a request and in an execution.
        queue_delay_us: microseconds that the encoder's queue may wait for more requests.
    """

    name: str
    activation: Activation
    max_length: int
    precision: Precision
    source: str
    token_type_ids: bool
    pad_token_id: int
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    queue_delay_us: int = DEFAULT_QUEUE_DELAY_US

    @property
    def tokenizer_name(self) -> str:
        """Name of the ensemble's first step."""
        return self.name + contract.TOKENIZER_SUFFIX

    @property
    def encoder_name(self) -> str:
        """Name of the ensemble's second step."""
        return self.name + contract.ENCODER_SUFFIX

    def configs(self) -> dict[str, Any]:
        """Model name -> ``ModelConfig``; the ensemble last."""
        return {
            self.tokenizer_name: _tokenizer_config(self),
            self.encoder_name: _encoder_config(self),
            self.name: _ensemble_config(self),
        }


def encoder_inputs(*, token_type_ids: bool) -> tuple[str, ...]:
    """Names of the encoder's inputs, as Hugging Face calls them."""
    return (contract.INPUT_IDS, contract.ATTENTION_MASK) + ((contract.TOKEN_TYPE_IDS,) if token_type_ids else ())


def length_ladder(max_length: int) -> tuple[int, ...]:
    """Padded lengths for a model: few, so that requests meet on one and merge; the last is ``max_length``."""
    return (*(rung for rung in _FULL_LADDER if rung < max_length), max_length)


def to_text(config: Any) -> str:
    """config.pbtxt of a ``ModelConfig``."""
    return _HEADER + str(text_format.MessageToString(config))


def from_text(text: str) -> Any:
    """Parse a config.pbtxt.

    Raises:
        google.protobuf.text_format.ParseError: not a model config.
    """
    return text_format.Parse(text, pb.ModelConfig())


def _tokenizer_config(model: ServedModel) -> Any:
    ladder = ",".join(str(rung) for rung in length_ladder(model.max_length))
    tensors = [_io(name, pb.TYPE_INT64, -1) for name in encoder_inputs(token_type_ids=model.token_type_ids)]
    return pb.ModelConfig(
        name=model.tokenizer_name,
        backend="tokenizer",
        max_batch_size=model.max_batch_size,
        input=_text_inputs(),
        output=[*(_output(tensor) for tensor in tensors), *_pair_outputs()],
        dynamic_batching=pb.ModelDynamicBatching(),
        instance_group=[_instances(pb.ModelInstanceGroup.KIND_CPU)],
        parameters=_parameters(
            {
                contract.MAX_LENGTH: model.max_length,
                contract.LENGTH_LADDER: ladder,
                contract.PAD_TOKEN_ID: model.pad_token_id,
            }
        ),
    )


def _encoder_config(model: ServedModel) -> Any:
    kind = pb.ModelInstanceGroup.KIND_CPU if model.precision == "int8" else pb.ModelInstanceGroup.KIND_AUTO
    return pb.ModelConfig(
        name=model.encoder_name,
        backend="onnxruntime",
        default_model_filename="model.onnx",
        max_batch_size=model.max_batch_size,
        input=[_io(name, pb.TYPE_INT64, -1) for name in encoder_inputs(token_type_ids=model.token_type_ids)],
        output=[_output(_io(contract.LOGITS, pb.TYPE_FP32, 1))],
        dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=model.queue_delay_us),
        instance_group=[_instances(kind)],
    )


def _ensemble_config(model: ServedModel) -> Any:
    between = encoder_inputs(token_type_ids=model.token_type_ids)
    pair = (contract.TOKEN_COUNT, contract.TRUNCATED)
    return pb.ModelConfig(
        name=model.name,
        platform="ensemble",
        max_batch_size=model.max_batch_size,
        input=_text_inputs(),
        output=[_output(_io(contract.LOGITS, pb.TYPE_FP32, 1)), *_pair_outputs()],
        ensemble_scheduling=pb.ModelEnsembling(
            step=[
                _step(model.tokenizer_name, (contract.QUERY, contract.DOCUMENT), (*between, *pair)),
                _step(model.encoder_name, between, (contract.LOGITS,)),
            ]
        ),
        parameters=_parameters(
            {
                contract.ACTIVATION: model.activation,
                contract.MAX_LENGTH: model.max_length,
                contract.PRECISION: model.precision,
                contract.SOURCE: model.source,
            }
        ),
    )


def _step(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """A tensor has one name everywhere, so both maps are the identity."""
    input_map, output_map = ({tensor: tensor for tensor in tensors} for tensors in (inputs, outputs))
    return pb.ModelEnsembling.Step(model_name=name, model_version=-1, input_map=input_map, output_map=output_map)


def _text_inputs() -> list[Any]:
    return [_io(name, pb.TYPE_STRING, 1) for name in (contract.QUERY, contract.DOCUMENT)]


def _pair_outputs() -> list[Any]:
    return [_output(_io(contract.TOKEN_COUNT, pb.TYPE_INT32, 1)), _output(_io(contract.TRUNCATED, pb.TYPE_BOOL, 1))]


def _io(name: str, data_type: int, dim: int) -> Any:
    return pb.ModelInput(name=name, data_type=data_type, dims=[dim])


def _output(tensor: Any) -> Any:
    return pb.ModelOutput(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims))


def _instances(kind: int) -> Any:
    return pb.ModelInstanceGroup(count=1, kind=kind)


def _parameters(values: dict[str, object]) -> dict[str, Any]:
    return {key: pb.ModelParameter(string_value=str(value)) for key, value in values.items()}
