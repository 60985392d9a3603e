"""docker/ without a Docker engine: linters, schema, and that its facts are those of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support import image

from triton_rerank.contract import ENCODER_BACKEND
from triton_rerank_export.tensorrt.plans import CONTAINER_COMMAND, SERVED_VERSION, TRITON_IMAGE
from triton_rerank_export.tensorrt.profiles import CACHE_FOLDER
from triton_rerank_gateway.cli import main as gateway_main
from triton_rerank_server.cli import main
from triton_rerank_server.launch.environment import triton_environment
from triton_rerank_server.launch.installation import OUR_BACKENDS, find_installation
from triton_rerank_server.process import ENDING_S

ROOT = image.DOCKER.parent
PROFILES = pytest.mark.parametrize("profile", ["cpu", "gpu"])
DOCKERFILES = pytest.mark.parametrize("dockerfile", [image.SERVING, image.EXPORT], ids=lambda path: path.name)


def run_tool(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment; it is an error if it is not there."""
    program = Path(sys.executable).parent / name
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


# --- linters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", [image.SERVING, image.EXPORT, image.GATEWAY], ids=lambda path: path.name)
def test_the_linter_finds_nothing(dockerfile: Path) -> None:
    done = run_tool("hadolint", str(dockerfile))
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_something() -> None:
    done = run_tool("hadolint", "-", text="FROM ubuntu:latest\nRUN pip install numpy\n")
    assert done.returncode != 0
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("path", [image.COMPOSE, image.STACK, image.TLS], ids=lambda path: path.name)
def test_a_compose_file_is_valid(path: Path) -> None:
    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
    assert done.returncode == 0, done.stdout


def test_the_schema_would_refuse_a_misspelt_key(tmp_path: Path) -> None:
    text = image.COMPOSE.read_text(encoding="utf-8")
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace("stop_grace_period", "stop_grace_time"))
    assert broken.read_text() != text
    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(broken))
    assert done.returncode != 0
    assert "stop_grace_time" in done.stdout


# --- one fact, one place -------------------------------------------------------------------------------------------


@DOCKERFILES
def test_the_default_image_is_the_one_that_plans_are_built_for(dockerfile: Path) -> None:
    assert image.default(dockerfile, "TRITON_IMAGE") == TRITON_IMAGE
    assert image.of(dockerfile, "FROM") == ["${TRITON_IMAGE}"]


@pytest.mark.parametrize("served", ["11.2.1.2", "11.2.1.2+cuda13.0", "11.2.1.2-1+cuda13.0"])
def test_the_export_image_takes_tensorrts_version_from_the_image(served: str) -> None:
    (run,) = [run for run in image.of(image.EXPORT, "RUN") if "tensorrt-cu13-bindings" in run]
    (wanted,) = re.findall(r'"(tensorrt-cu13-bindings==\S+)"', run)
    guard = run.split(" && ", 1)[0].strip()
    for environment, code, said in (({SERVED_VERSION: served}, 0, "tensorrt-cu13-bindings==11.2.1.2\n"), ({}, 1, "")):
        command = ["sh", "-c", f'{guard} && echo "{wanted}"']
        done = subprocess.run(
            command, env={"PATH": os.defpath, **environment}, capture_output=True, text=True, check=False
        )
        assert (bool(done.returncode), done.stdout) == (bool(code), said)


@DOCKERFILES
def test_packages_come_from_the_constraints_of_the_images_python(dockerfile: Path) -> None:
    installs = [run for run in image.of(dockerfile, "RUN") if "-m pip " in run]
    assert installs
    assert all(re.search(r"--constraint \S*constraints", run) for run in installs)
    assert any("constraints-3.12.txt" in copy for copy in image.of(dockerfile, "COPY"))


def installed_packages() -> list[str]:
    """Of the serving image, on a CPU."""
    (install,) = [run for run in image.of(image.SERVING, "RUN") if "-m pip " in run]
    listed = install.split("&&", 1)[0].split("/tmp/constraints.txt", 1)[1]
    assert "${ENGINES}" in listed
    return listed.replace("${ENGINES}", image.default(image.SERVING, "ENGINES").strip('"')).split()


def test_on_gpus_the_image_has_the_onnxruntime_that_is_measured_there() -> None:
    (engine,) = re.findall(
        r"^onnxruntime-gpu(?:\[.*\])?(==\S+)", (ROOT / "requirements/gpu.in").read_text(), re.MULTILINE
    )
    assert "args" not in image.service("cpu")["build"]
    assert image.service("gpu")["build"]["args"] == {"ENGINES": f"onnxruntime-gpu{engine}"}
    assert image.default(image.EXPORT, "ENGINE") == f"onnxruntime-gpu{engine}"  # which the gate of fp16 computes with
    for text in (image.SERVING.read_text(encoding="utf-8"), (image.DOCKER / "README.md").read_text(encoding="utf-8")):
        assert f"--build-arg ENGINES=onnxruntime-gpu{engine}" in text


def test_what_the_serving_image_installs_is_pinned() -> None:
    pinned = (ROOT / "requirements" / "constraints-3.12.txt").read_text(encoding="utf-8")
    packages = installed_packages()
    assert {"tokenizers", "onnxruntime", "openvino", "grpcio", "tritonclient", "protobuf"} <= set(packages)
    for package in packages:
        assert re.search(rf"^{package.replace('_', '[-_]')}==", pinned, flags=re.MULTILINE | re.IGNORECASE), package


def test_the_image_has_both_backends_whole_and_takes_no_native_ones_place() -> None:
    """Laid out as `lay_out_backends` does: the package, beside it the model.py that imports it, and what both share."""
    expected = []
    for package, backend in (("tokenizer", "tokenizer"), ("encoder", ENCODER_BACKEND)):
        folder, target = str((OUR_BACKENDS / package).relative_to(ROOT)), f"/opt/tritonserver/backends/{backend}"
        shared = str((OUR_BACKENDS / "meters.py").relative_to(ROOT))
        expected += [[f"{folder}/model.py", shared, f"{target}/"], [folder, f"{target}/{package}"]]
    assert [text.split() for text in image.of(image.SERVING, "COPY") if "backends" in text] == expected


def test_what_the_image_copies_and_installs_is_all_that_the_serve_command_imports(tmp_path: Path) -> None:
    """Modules of ours and of the packages that are installed, beside NumPy and Python's own; nothing else is there."""
    packages = installed_packages()
    code = (
        "import sys, triton_rerank_server.cli\n"
        "print(*sorted({name.partition('.')[0] for name, module in sys.modules.items()"
        " if 'site-packages' in (getattr(module, '__file__', None) or '')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = {"grpc": "grpcio", "google": "protobuf", "rapidjson": "python-rapidjson", "ml_dtypes": "ml-dtypes"}
    found = {modules.get(name, name) for name in done.stdout.split() if not name.startswith("_")}
    assert "tritonclient" in found
    assert found <= {*packages, "numpy", "triton_rerank", "triton_rerank_server"}


@pytest.mark.parametrize("dockerfile", [image.SERVING, image.EXPORT, image.GATEWAY], ids=lambda path: path.name)
def test_it_does_not_run_as_root(dockerfile: Path) -> None:
    assert image.of(dockerfile, "USER") == ["1000:1000"]


# --- the build context ---------------------------------------------------------------------------------------------


def in_context(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path, or a folder above it, decides."""
    above = [path, *(str(parent) for parent in Path(path).parents)]
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.lstrip("!").removeprefix("**/")
        anywhere = line.lstrip("!") != pattern
        names = [Path(name).name for name in above] if anywhere else above
        if line and not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            kept = line.startswith("!")
    return kept


@pytest.mark.parametrize("dockerfile", [image.SERVING, image.EXPORT, image.GATEWAY], ids=lambda path: path.name)
def test_everything_copied_exists_and_is_in_the_build_context(dockerfile: Path) -> None:
    sources = [source for copy in image.of(dockerfile, "COPY") for source in copy.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert in_context(source), source


@pytest.mark.parametrize(
    "path",
    [".venv/bin/python", ".git/config", "model_repository/m/1/model.onnx", "tests/conftest.py", ".cache/x",
     "server/src/triton_rerank_server/__pycache__/cli.pyc", "client/src/triton_rerank.egg-info/PKG-INFO"],
)  # fmt: skip
def test_what_is_large_or_private_stays_out_of_the_build_context(path: str) -> None:
    assert not in_context(path)


# --- what is run ---------------------------------------------------------------------------------------------------


def test_the_tritonserver_of_the_wheel_knows_every_flag() -> None:
    installation = find_installation()
    environment = triton_environment(installation.libraries)
    arguments = [str(installation.binary), "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    known = set(re.findall(r"^  (--[\w-]+)", done.stdout + done.stderr, flags=re.MULTILINE))
    assert "--model-repository" in known
    tls = image.compose(image.TLS)["services"]["triton-cpu"]["command"]
    used = [*image.command(image.SERVING), *image.service()["command"], *tls]
    assert {flag.split("=", 1)[0] for flag in used} <= known


def test_the_serve_command_knows_every_flag_of_the_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([*image.serve_flags(), "--no-such-flag"])
    assert refused.value.code == 2
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err


@PROFILES
def test_compose_adds_to_the_images_command(profile: str) -> None:
    assert image.service(profile)["command"][:2] == image.command(image.SERVING)


def test_tls_adds_to_composes_command_for_both_profiles() -> None:
    services = image.compose(image.TLS)["services"]
    assert set(services) == {"triton-cpu", "triton-gpu"}
    for name, each in services.items():
        command = image.service(name.removeprefix("triton-"))["command"]
        assert each["command"][: len(command)] == command


def test_without_a_profile_compose_serves_on_the_cpu() -> None:
    """Compose reads .env beside the compose file; `docker compose --profile gpu` overrules it."""
    settings = (image.DOCKER / ".env").read_text(encoding="utf-8").splitlines()
    assert [line for line in settings if not line.startswith("#")] == ["COMPOSE_PROFILES=cpu"]
    services = image.compose()["services"]
    assert {name: each["profiles"] for name, each in services.items()} == {
        name: [name.split("-")[1]] for name in ("check-cpu", "check-gpu", "triton-cpu", "triton-gpu")
    }


def checked(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each server of a compose file, with the service that must have succeeded before it starts."""
    services = image.compose(path)["services"]
    found = []
    for name, each in services.items():
        if name.startswith("triton-"):
            ((check, state),) = each["depends_on"].items()
            assert state == {"condition": "service_completed_successfully"}
            found.append((each, services[check]))
    return found


@pytest.mark.parametrize(("path", "n_servers"), [(image.COMPOSE, 2), (image.STACK, 3)], ids=["compose", "stack"])
def test_a_server_is_never_started_again_and_again_for_a_repository_that_cannot_be_served(
    path: Path, n_servers: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A clean clone has config.pbtxt and nothing else: one line, and a code that keeps the servers from starting."""
    clone = tmp_path / "model_repository"
    for config in (ROOT / "model_repository").glob("*/config.pbtxt"):
        shutil.copytree(config.parent, clone / config.parent.name, ignore=lambda _, names: {*names} - {"config.pbtxt"})
    pairs = checked(path)
    assert len(pairs) == n_servers
    for server, check in pairs:
        assert (check["image"], check["volumes"], "restart" in check) == (server["image"], server["volumes"], False)
        assert check["entrypoint"][: len(image.SERVE)] == image.SERVE
        flags = [re.sub("/models$", str(clone), flag) for flag in check["entrypoint"][len(image.SERVE) :]]
        assert main(flags) == 1
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and not said.out
        assert f"{clone}: minilm-l6-demo: not built" in said.err and "make demo" in said.err
        for config in clone.glob("*/config.pbtxt"):
            (config.parent / "1").mkdir()
        assert main(flags) == 0
        assert "minilm-l6-demo" in capsys.readouterr().out
        for version in clone.glob("*/1"):
            version.rmdir()


@pytest.mark.parametrize("path", [image.COMPOSE, image.STACK], ids=["compose", "stack"])
def test_servers_write_in_memory_and_volumes_only_and_have_no_rights(path: Path) -> None:
    for pair in checked(path):
        for each in pair:
            assert (each["read_only"], each["tmpfs"], each["cap_drop"]) == (True, ["/tmp"], ["ALL"])
            assert each["security_opt"] == ["no-new-privileges:true"]


def test_running_requests_finish_within_the_stop_grace() -> None:
    (exit_timeout,) = [flag for flag in image.serve_flags() if flag.startswith("--exit-timeout-s=")]
    assert image.stop_grace_s() > float(exit_timeout.split("=")[1]) + ENDING_S


@PROFILES
def test_compose_mounts_what_the_image_and_the_configs_name(profile: str) -> None:
    assert image.service(profile)["volumes"] == [
        "${MODEL_REPOSITORY:-../model_repository}:/models:ro",
        f"engines:{CACHE_FOLDER}",
    ]
    assert "--model-repository=/models" in image.serve_flags()
    assert any(run.endswith(CACHE_FOLDER) for run in image.of(image.SERVING, "RUN"))


@PROFILES
def test_compose_asks_for_a_gpu_where_it_is_told_and_opens_ports_to_this_machine_only(profile: str) -> None:
    service = image.service(profile)
    assert ("deploy" in service) == (profile == "gpu")
    if profile == "gpu":
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert service["ports"] == ["127.0.0.1:8001:8001", "127.0.0.1:8002:8002"]
    assert image.of(image.SERVING, "EXPOSE") == ["8001 8002"]


def test_the_refusals_docker_command_fits_the_export_image() -> None:
    assert image.entrypoint(image.EXPORT) == ["triton-rerank-export"]
    text = image.EXPORT.read_text(encoding="utf-8")
    built_as = re.search(r"docker build -f docker/export\.Dockerfile -t (\S+) \.", text)
    assert built_as is not None
    assert f" {built_as[1]} export --model MODEL --engine tensorrt " in CONTAINER_COMMAND


# --- the stack: three servers, gateway, Envoy, Prometheus, Grafana ---------------------------------------------------


def published(service: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Address and port of the host, port of the container."""
    found = [entry.rsplit(":", 2) for entry in service.get("ports", [])]
    return [(address, int(outer), int(inner)) for address, outer, inner in found]


def test_the_stack_opens_ports_to_this_machine_only() -> None:
    services = image.compose(image.STACK)["services"]
    assert {address for service in services.values() for address, _, _ in published(service)} == {"127.0.0.1"}


def test_envoy_asks_the_servers_of_the_stack() -> None:
    services = image.compose(image.STACK)["services"]
    ports = [outer for name, each in services.items() if name.startswith("triton-") for _, outer, _ in published(each)]
    assert len(ports) == 3
    (resource,) = yaml.safe_load((ROOT / "deploy" / "envoy" / "endpoints.yaml").read_text())["resources"]
    (group,) = resource["endpoints"]
    asked = [each["endpoint"]["address"]["socket_address"] for each in group["lb_endpoints"]]
    assert asked == [{"address": "127.0.0.1", "port_value": port} for port in ports]


def test_what_the_stack_mounts_is_there() -> None:
    services = image.compose(image.STACK)["services"]
    mounts = [entry.split(":")[0] for each in services.values() for entry in each.get("volumes", [])]
    files = [image.DOCKER / mount for mount in mounts if mount.startswith("../")]
    assert len(files) >= 6
    assert all(file.exists() for file in files), files


def test_the_stacks_gateway_would_start(capsys: pytest.CaptureFixture[str]) -> None:
    """Its whole command line with what the two variables bring, in force."""
    command = image.compose(image.STACK)["services"]["gateway"]["command"]
    key = "team-a=sha256:" + "0" * 64
    flags = [re.sub(r"\$\{MODEL.*\}", "m", re.sub(r"\$\{KEY.*\}", key, flag)) for flag in command]
    assert gateway_main([*image.entrypoint(image.GATEWAY)[1:], *flags, "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert 'target = "triton-1:8001,triton-2:8001,triton-3:8001"' in shown and 'model = ["m"]' in shown


def test_prometheus_finds_every_server_of_the_stack_and_reads_both_rule_files() -> None:
    services = image.compose(image.STACK)["services"]
    config = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yaml").read_text())
    asked = {job["job_name"]: job for job in config["scrape_configs"]}
    ((lookup,),) = (job["dns_sd_configs"] for job in asked.values() if "dns_sd_configs" in job)
    servers = [each for name, each in services.items() if name.startswith("triton-")]
    assert all(lookup["names"][0] in each["networks"]["default"]["aliases"] for each in servers)
    assert asked["rerank-gateway"]["static_configs"] == [{"targets": ["gateway:8080"]}]
    (folder,) = {str(Path(pattern).parent) for pattern in config["rule_files"]}
    rules = [entry for entry in services["prometheus"]["volumes"] if f":{folder}/" in entry]
    assert len(rules) == 2
