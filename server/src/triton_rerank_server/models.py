"""Which folders of a model repository are models, and how Triton is told to read no others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from triton_rerank import ConfigurationError
from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank.repository import read_config, version_folders
from triton_rerank_server.errors import ServerStartError

_CONTROL, _LOAD, _EXPLICIT, POLL = "--model-control-mode", "--load-model", "explicit", "poll"
MODES = (_EXPLICIT, POLL, "none")
_SHOWN = 80  # characters of a list of names
_DEVICES = Path("/dev")


def model_names(model_repository: Path) -> list[str]:
    """Folders with a config.pbtxt, sorted; hidden ones are none."""
    return sorted(path.name for path in model_repository.iterdir() if _is_model(path))


def public_names(model_repository: Path) -> list[str]:
    """Models that callers name, sorted: the steps of a model are none."""
    names = model_names(model_repository)
    steps = {name + suffix for name in names for suffix in (TOKENIZER_SUFFIX, ENCODER_SUFFIX)}
    return [name for name in names if name not in steps]


def foreign_entries(model_repository: Path) -> list[str]:
    """Whatever else lies there (``lost+found``, ``.git``, a note), sorted."""
    return sorted(path.name for path in model_repository.iterdir() if not _is_model(path))


def _is_model(path: Path) -> bool:
    return not path.name.startswith(".") and os.path.isfile(path / CONFIG_FILE)  # noqa: PTH113 - False if not allowed


def check_repository(model_repository: Path, extra_args: Sequence[str]) -> None:
    """Refuse to serve nothing, unless the caller states how models come to be loaded.

    Raises:
        ServerStartError: no such folder, no model in it (names what lies there instead), or a model that was never
            built, as in a fresh clone.
    """
    if not model_repository.is_dir():
        raise ServerStartError(f"{model_repository}: no such model repository; `make export` builds one")
    if not model_names(model_repository) and not any(flag_values(extra_args, _CONTROL)):
        found = ", ".join(foreign_entries(model_repository))[:_SHOWN] or "nothing"
        raise ServerStartError(
            f"{model_repository}: no model in it (a folder with {CONFIG_FILE}); it holds {found}; `make export` builds "
            f"one, and -- {_CONTROL}={_EXPLICIT} starts without"
        )
    if control_mode(extra_args) == POLL or "false" in flag_values(extra_args, "--exit-on-error"):
        return  # Triton goes on without a model that does not load
    listed = [name for name in _loaded(model_repository, extra_args) if _is_model(model_repository / name)]
    if bare := [name for name in listed if not version_folders(model_repository, name)]:
        models = {name.removesuffix(TOKENIZER_SUFFIX).removesuffix(ENCODER_SUFFIX) for name in bare}
        raise ServerStartError(
            f"{model_repository}: {', '.join(sorted(models))[:_SHOWN]}: not built, only {CONFIG_FILE} is there; "
            "`make demo` builds the demo model, `make export MODEL=…` any other"
        )


def idle_gpu(model_repository: Path) -> str | None:
    """What to say where a GPU is there and every encoder is computed on the CPU; else None.

    Raises:
        ServerStartError: a config cannot be read.
    """
    encoders = [name for name in model_names(model_repository) if name.endswith(ENCODER_SUFFIX)]
    if not encoders or not any(_DEVICES.glob("nvidia[0-9]*")):
        return None
    try:
        groups = [group for name in encoders for group in read_config(model_repository, name).instance_group]
    except ConfigurationError as exc:
        raise ServerStartError(str(exc)) from exc
    if not groups or any(group.kind != group.KIND_CPU for group in groups):
        return None
    return (
        f"a GPU is here and nothing uses it: every model of {model_repository} was exported for CPUs; "
        "`make export MODEL=… PRECISION=fp16` makes one for the GPU"
    )


def control_flags(model_repository: Path, extra_args: Sequence[str]) -> list[str]:
    """Flags of model control: ours, and the caller's in place of them.

    The models are named, so that Triton reads no other folder. So they are where the caller asks for no control, since
    ensembles must be unloaded at the end (`restriction.restrictions` keeps others from it). A Triton that polls reads
    all folders, and must not end because of one that is no model.

    Args:
        model_repository: the folder.
        extra_args: what the caller passes to tritonserver.
    """
    mode = control_mode(extra_args)
    rest = _without(_without(extra_args, _LOAD), _CONTROL)
    if mode == POLL:
        tolerant = (
            ["--exit-on-error=false"]
            if any((model_repository / x).is_dir() for x in foreign_entries(model_repository))
            else []
        )
        return [f"{_CONTROL}={POLL}", *(f"{_LOAD}={name}" for name in flag_values(extra_args, _LOAD)), *tolerant, *rest]
    return [f"{_CONTROL}={_EXPLICIT}", *(f"{_LOAD}={name}" for name in _loaded(model_repository, extra_args)), *rest]


def _loaded(model_repository: Path, extra_args: Sequence[str]) -> list[str]:
    """What is loaded at the start by a Triton that does not poll."""
    named = list(flag_values(extra_args, _LOAD))
    return named if control_mode(extra_args) == _EXPLICIT and "*" not in named else model_names(model_repository)


def control_mode(extra_args: Sequence[str]) -> str | None:
    """The one that the caller asks for: "explicit", "poll", "none"; None if he leaves it to us."""
    return next(reversed(list(flag_values(extra_args, _CONTROL))), None)


def flag_values(arguments: Sequence[str], flag: str) -> Iterable[str]:
    """Every value that a flag is given, as ``--flag=value`` or ``--flag value``."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            yield value if equals else "".join(arguments[place + 1 : place + 2])


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not skip and name != flag:
            kept.append(argument)
        skip = not skip and name == flag and not equals
    return kept
