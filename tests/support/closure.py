"""Do the tensors of an ensemble fit together? The check of a repository holds configs against what export writes."""

from __future__ import annotations

from typing import Any

_Kind = tuple[int, tuple[int, ...]]  # data type, dims


def closure_faults(ensemble: Any, steps: dict[str, Any]) -> list[str]:
    """Hold an ensemble's tensors together.

    Args:
        ensemble: its ``ModelConfig``.
        steps: model name -> ``ModelConfig`` of at least its steps.

    Returns:
        A sentence for each tensor that is produced twice or never, goes unused, or changes dtype or shape on its way.
    """
    produced: dict[str, _Kind | None] = {tensor.name: _kind(tensor) for tensor in ensemble.input}
    used: set[str] = set()
    faults = []
    for step in ensemble.ensemble_scheduling.step:
        config = steps[step.model_name]
        inputs, outputs = ({t.name: _kind(t) for t in tensors} for tensors in (config.input, config.output))
        for name, tensor in step.input_map.items():
            used.add(tensor)
            if produced.get(tensor) != inputs.get(name):
                faults.append(
                    f"{ensemble.name}: {step.model_name} reads {name} as {inputs.get(name)} from {tensor}, which is "
                    f"{produced.get(tensor)}"
                )
        for name in sorted(set(inputs) - set(step.input_map)):
            faults.append(f"{ensemble.name}: input {name} of {step.model_name} comes from nowhere")
        for name, tensor in step.output_map.items():
            if tensor in produced:
                faults.append(f"{ensemble.name}: {tensor} is produced twice, the second time by {step.model_name}")
            produced[tensor] = outputs.get(name)
    faults += [
        f"{ensemble.name}: output {tensor.name} is {_kind(tensor)}, its step gives {produced.get(tensor.name)}"
        for tensor in ensemble.output
        if produced.get(tensor.name) != _kind(tensor)
    ]
    unused = sorted(set(produced) - used - {tensor.name for tensor in ensemble.output})
    return faults + [f"{ensemble.name}: {name} is produced and never used" for name in unused]


def _kind(tensor: Any) -> _Kind:
    return tensor.data_type, tuple(tensor.dims)
