"""``triton-rerank-bench gpu``: what a GPU makes of the models, within twelve minutes, what matters most first.

Each shape is exported, timed in process and served, beside peers on the same device; then come its other forms of
graph, other settings and Triton's own backend. Each step is told, and written, before the next begins.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu.device import describe
from triton_rerank_bench.gpu.forms import Form, matrix_rate, measure_form, show
from triton_rerank_bench.gpu.measure import AS_EXPORTED, WORKLOAD, Beside, Ground, Served, beside_peers, judge, serving
from triton_rerank_bench.gpu.models import DEFAULT_SHAPES, FORMS, NATIVE, SHAPES, Prepared, check_shape, prepare
from triton_rerank_bench.gpu.steps import Steps
from triton_rerank_bench.load.command import level_tables
from triton_rerank_bench.options import add_check, add_common, number, positive, whole
from triton_rerank_bench.report import LOUD, Json, Report, Table, indented
from triton_rerank_bench.tune.knobs import exported_setting, on_cpu, on_gpu
from triton_rerank_bench.tune.variants import Configs
from triton_rerank_server import atomic
from triton_rerank_server.launch.installation import find_installation

DEFAULT_CONCURRENCIES = (1, 8, 32)
PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}
WAYS: dict[str, dict[str, Any]] = {  # settings that are served beside the exported one
    "2 encoder instances": {"instances": 2},
    **{f"tokenizers: {count}": {"tokenizers": count} for count in (1, 4, 8)},
}
_BESIDE = {"peer": "peer", "its seconds over ours": "ratio:.2f", "our tau": "served_tau:.3f", "its": "peer_tau:.3f"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that may be chosen."""
    add, each = parser.add_argument, "repeatable; default"
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    add("--device-id", type=whole, default=0, help="GPU, as nvidia-smi counts (default %(default)s)")
    add("--shape", action="append", choices=list(SHAPES), help=f"{each} {', '.join(DEFAULT_SHAPES)}")
    weights = "trained weights of a shape; repeatable; a shape without them gets random ones"
    add("--checkpoint", action="append", default=[], metavar="SHAPE=FOLDER", help=weights)
    add("--minutes", type=number, default=12.0, help="that all may take (default %(default)g)")
    add("--level-s", type=number, default=3.0, help="seconds of each level of load (default %(default)s)")
    add("--concurrency", type=positive, action="append", help=f"callers at a level; {each} {DEFAULT_CONCURRENCIES}")
    add("--work", type=Path, default=Path(".cache/gpu"), help="for models, several GB (default %(default)s)")
    add_check(parser)
    add_common(parser)


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure what the minutes last for; Ctrl-C keeps the steps that are done.

    Returns:
        The report, and 130 after Ctrl-C, 1 if ``--check`` is given and a target was missed, else 0.

    Raises:
        BenchError: a wrong option, or something that the device needs is missing.
    """
    checkpoints = _checkpoints(options.checkpoint)
    options.shape = list(dict.fromkeys(options.shape or DEFAULT_SHAPES))
    options.concurrency = sorted(options.concurrency or DEFAULT_CONCURRENCIES)
    device = describe(options.device, options.device_id)
    for line in device.lines():
        console.print(line.removeprefix(LOUD), style="red" if line.startswith(LOUD) else None, highlight=False)
    with console.status("") as status:
        on = Ground(device, options.level_s, options.seed, lambda doing, _=None: status.update(doing))
        found = _Run(options, console, on, checkpoints)
        try:
            found.all_steps()
        except KeyboardInterrupt:
            found.interrupted = True
    return found.report().finish(options, console)


@dataclass
class _Run:
    options: argparse.Namespace
    console: Console
    on: Ground
    checkpoints: dict[str, Path]
    rate: float = 0.0  # of products of matrices, operations a second
    forms: list[Form] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.steps = Steps(self.options.minutes, self.report, self.console)
        self.prepared: dict[str, dict[str, Prepared]] = {shape: {} for shape in self.options.shape}  # what works
        self.passages = [(WORKLOAD, callers) for callers in self.options.concurrency]
        self.levels = [*self.passages, ("single", 1), ("ten", 1), ("short", self.options.concurrency[-1])]

    def all_steps(self) -> None:
        """The flat form of each shape, served and beside peers, then the other forms and settings."""
        step = self.steps.run
        step("products of matrices", self.measure_matrices)
        for shape, prepared in self.prepared.items():
            step(f"{shape}, flat", partial(self.measure, shape, "flat"))
            if not prepared:
                step(f"{shape}, padded", partial(self.measure, shape, "padded"))
            step(f"{shape}, {AS_EXPORTED}", partial(self.serve, shape, AS_EXPORTED))
        for shape in self.prepared:
            for form in (form for form in FORMS if f"{shape}, {form}" not in self.steps.seconds):
                step(f"{shape}, {form}", partial(self.measure, shape, form))
            for way in WAYS:
                step(f"{shape}, {way}", partial(self.serve, shape, way))

    def measure_matrices(self) -> None:
        """What the device can do."""
        self.rate = matrix_rate(self.on.device)
        self.console.print(f"products of matrices: {self.rate / 1e12:,.2f} TFLOP/s", highlight=False)

    def measure(self, shape: str, form: str) -> None:
        """Export a form of a shape, and time it in process; the native backend's is served."""
        if form == NATIVE and not (find_installation().backends / "onnxruntime/libtriton_onnxruntime.so").exists():
            raise BenchError("this Triton has no ONNX Runtime backend of its own; NVIDIA's image has")
        given, precision = self.checkpoints.get(shape), PRECISIONS[self.on.device.kind]
        prepared = prepare(shape, given, self.options.work, precision, form, on_step=self.on.on_step)
        self.checkpoints[shape] = prepared.checkpoint  # so that random weights are made once
        if form == NATIVE:
            self.serve(shape, form, prepared)
        else:
            self.forms.append(measure_form(prepared, form, self.on, self.rate))
            show(self.forms[-1], self.console)
            self.prepared[shape][form] = prepared

    def serve(self, shape: str, way: str, native: Prepared | None = None) -> None:
        """Load a server with the first form of a shape that works, or the native one; as exported, beside peers."""
        prepared = native or next(iter(self.prepared[shape].values()), None)
        if prepared is None:
            raise BenchError("no form of its graph works here")

        def change(configs: Configs) -> None:
            """Place the encoder on the device, and set what is to be another."""
            (on_gpu if self.on.device.kind == "cuda" else on_cpu)(configs)
            replace(exported_setting(shape, configs), **WAYS.get(way, {})).change(configs)

        self.served.append(figures := Served(shape, way))
        levels = self.passages[-1:] if way in WAYS else self.levels
        with serving(figures, prepared.repository, change, levels, self.on) as server:
            for name, levels_of in itertools.groupby(figures.levels, key=lambda level: level.workload):
                for table in level_tables(f"{shape}, {way}, {name}", list(levels_of)):
                    self.console.print(table.grid())
            if way == AS_EXPORTED:
                best = max(figures.levels[: len(self.passages)], key=lambda level: level.pairs_per_s)
                found, failed = beside_peers(server, prepared, best.concurrency or 1, self.on)
                self.beside += found
                self.steps.left_out += failed
                self.console.print(Table(f"{shape}: most pairs/s, in turns", _BESIDE, found).grid())

    def report(self) -> Report:
        """What was found so far, held against the project's goals, and written where it was asked for."""
        names = ("minutes", "level_s", "concurrency", "checkpoint", "seed")
        settings: Json = {name: getattr(self.options, name) for name in names}
        figures: Json = {name: getattr(self, name) for name in ("forms", "served", "beside")}
        figures |= {"device": self.on.device, "matrix_flops": self.rate}
        figures |= {"left_out": self.steps.left_out, "seconds": self.steps.seconds}
        version = self.served[0].triton_version if self.served else None
        judged = judge(self.on.device, self.rate, self.served, self.beside)
        report = Report("gpu", version, settings, figures, [], targets=judged, interrupted=self.interrupted)
        if self.options.output:
            atomic.write_file(self.options.output, indented(report.json()).encode())
        return report


def _checkpoints(values: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        shape, separator, folder = value.partition("=")
        if not separator or shape not in SHAPES:
            raise BenchError(f"--checkpoint {value}: it must be SHAPE=FOLDER with a shape of {', '.join(SHAPES)}")
        found[shape] = Path(folder)
        check_shape(found[shape], shape)
    return found
