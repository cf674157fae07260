# budgetplan for planning and for the service, without a GPU.
#
#     docker build -f docs/containers/planning.Dockerfile --build-arg TORCH_INDEX=URL -t budgetplan .
#
# URL is that of PyTorch's CPU builds, as the installation page of PyTorch shows it. Without it, pip
# installs the CUDA build, which is 6 GB larger.
FROM python:3.12-slim

ARG TORCH_INDEX=""

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY planner planner
COPY profiler profiler
# The rule takes budgetplan's own folder for a package without a version.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" "torchvision>=0.25" \
    && pip install --no-cache-dir ".[service,postgresql,mcp]" \
    && rm -rf /src/* \
    && useradd --create-home --uid 1000 planner

USER 1000
WORKDIR /home/planner
EXPOSE 8321
ENTRYPOINT ["budgetplan"]
CMD ["--help"]
