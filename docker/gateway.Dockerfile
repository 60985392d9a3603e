# The gateway alone; Triton runs elsewhere. Build from the project's root: docker build -f docker/gateway.Dockerfile .
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE}

COPY requirements/constraints-3.12.txt /tmp/constraints.txt
COPY client /tmp/client
COPY gateway /tmp/gateway
RUN python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt /tmp/client "/tmp/gateway[otel]" \
    && rm -r /tmp/constraints.txt /tmp/client /tmp/gateway

USER 1000:1000
EXPOSE 8080

HEALTHCHECK --start-period=2m --start-interval=2s --interval=10s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/ready', timeout=4)"]

# Keys, models and bounds come as flags or as TRITON_RERANK_GATEWAY_… (docs/gateway.md); without a key it does not start.
ENTRYPOINT ["triton-rerank-gateway", "--address=0.0.0.0", "--port=8080"]
