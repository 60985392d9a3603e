"""ONNX Runtime 1.31 calls its maker's servers some eight seconds after its import; nothing of ours lets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.stand_in import DeadSocket

SILENT_S = 14
ASK = f"""
import time
{{importing}}
import onnxruntime
onnxruntime.get_available_providers()
time.sleep({SILENT_S})
"""


@pytest.mark.parametrize(
    "module", ["triton_rerank_export", "triton_rerank_server.backends.encoder.onnxruntime_session"]
)
def test_nobody_is_called(module: str) -> None:
    with DeadSocket() as proxy:
        proxies = {name: f"http://127.0.0.1:{proxy.port}" for name in ("http_proxy", "https_proxy", "HTTPS_PROXY")}
        kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        asked = ASK.format(importing=f"import {module}")
        done = subprocess.run([sys.executable, "-c", asked], env={**kept, **proxies}, timeout=120, check=False)
        assert done.returncode == 0
        assert proxy.connections == 0
