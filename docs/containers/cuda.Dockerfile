# budgetplan for training, validation runs and workers on an NVIDIA GPU.
#
#     docker build -f docs/containers/cuda.Dockerfile -t budgetplan-cuda .
#
# PyTorch's wheels hold the CUDA libraries; the driver comes from the host through NVIDIA's container
# toolkit (docker run --gpus all). gcc compiles the stand-in of `budgetplan rehearse`.
FROM python:3.12-slim

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The version of gcc is that of the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY planner planner
COPY profiler profiler
# The rule takes budgetplan's own folder for a package without a version.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[service,postgresql,hf,lightning]" \
    && rm -rf /src/* \
    && useradd --create-home --uid 1000 planner

USER 1000
WORKDIR /home/planner
ENTRYPOINT ["budgetplan"]
CMD ["--help"]
