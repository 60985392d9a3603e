# Export with TensorRT: the serving image's own TensorRT, and PyTorch beside it.
# Build from the project's root: docker build -f docker/export.Dockerfile -t triton-rerank-export .
# The tag is TRITON_IMAGE in export/src/triton_rerank_export/tensorrt/plans.py.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.08-py3
FROM ${TRITON_IMAGE}

COPY requirements/constraints-3.12.txt /src/
COPY client /src/client
COPY server /src/server
COPY export /src/export

# An environment of its own, made without ensurepip, which Ubuntu packs apart. Of TensorRT the bindings alone: they load
# the libraries of the image, so a plan is built by what will run it. Their version is the image's own word. ONNX Runtime
# is that for GPUs, in the place of the other one, so that fp16 is gated where it will be computed; without --gpus it
# computes on the CPU. CUDA and cuDNN are torch's.
ARG ENGINE=onnxruntime-gpu==1.31.1
RUN : "${TRT_VERSION:?the image does not say which TensorRT it has}" \
    && python3 -m venv --without-pip /opt/export \
    && python3 -m pip --python /opt/export/bin/python install --no-cache-dir --constraint /src/constraints-3.12.txt \
        /src/client /src/server "/src/export[demo]" "tensorrt-cu13-bindings==${TRT_VERSION%%[+-]*}" \
    && python3 -m pip --python /opt/export/bin/python uninstall --yes onnxruntime \
    && python3 -m pip --python /opt/export/bin/python install --no-cache-dir --no-deps "${ENGINE}" \
    && /opt/export/bin/python -c "import onnxruntime" \
    && rm -r /src
ENV PATH=/opt/export/bin:${PATH}

# Kernel timings and downloaded checkpoints; mount a volume on it. Any user may write, for docker run --user.
RUN install --directory --mode=1777 /var/cache/triton-rerank
ENV XDG_CACHE_HOME=/var/cache \
    HF_HOME=/var/cache/triton-rerank/huggingface

USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "triton-rerank-export"]
CMD ["--help"]
