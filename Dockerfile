# syntax=docker/dockerfile:1
# Two images: `worker` (the last stage, so the default) on RunPod's PyTorch, with a GPU's libraries,
# and `control`, small and without any, for the role `control`. docs/deploy.md says how to build them.

# Pin what you deploy: a tag moves, a digest does not. Its digest is told by
#   docker buildx imagetools inspect --format '{{.Manifest.Digest}}' NAME:TAG
# and goes behind the tag: --build-arg BASE_IMAGE=NAME:TAG@sha256:...
# The base's torch (`torch2130`) is the one that requirements.txt names.
ARG BASE_IMAGE=runpod/pytorch:1.3.3-cu1281-torch2130-ubuntu2404
ARG CONTROL_BASE_IMAGE=python:3.12-slim-bookworm

# ---- the code, once for both. .dockerignore lets nothing else through.
FROM scratch AS code
COPY *.py /app/
COPY api /app/api
COPY attempts /app/attempts
COPY child /app/child
COPY cli /app/cli
COPY health /app/health
COPY inputs /app/inputs
COPY jobs /app/jobs
COPY processes /app/processes
COPY programs /app/programs
COPY records /app/records
COPY retention /app/retention
COPY stores /app/stores
COPY worker /app/worker

# ---- a CPU is enough to tell how a process stands
FROM ${CONTROL_BASE_IMAGE} AS control

# `root` where a network volume takes the place of a bucket: the volume is root's.
ARG RUN_AS=worker
RUN useradd --no-log-init --create-home --uid 10001 worker \
    && install --directory --owner=worker --group=worker /scratch /app/data
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WORKER_SCRATCH_DIR=/scratch \
    WORKER_ROLE=control
WORKDIR /app

COPY requirements-worker.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --requirement requirements-worker.txt

COPY --from=code /app ./
RUN python -m compileall -q .

USER ${RUN_AS}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2m --timeout=30s --start-period=1m --retries=3 \
    CMD ["python", "rp_handler.py", "doctor", "--quick"]
CMD ["python", "-u", "rp_handler.py"]

# ---- what runs jobs
FROM ${BASE_IMAGE} AS worker

ARG RUN_AS=worker
RUN useradd --no-log-init --create-home --uid 10001 worker \
    && install --directory --owner=worker --group=worker /scratch /app/data \
    && python -m venv --system-site-packages /opt/worker
# The base keeps caches in /workspace, which is root's.
ENV PATH=/opt/worker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WORKER_SCRATCH_DIR=/scratch \
    HF_HOME=/scratch/huggingface
WORKDIR /app

# The base's own torch: gigabytes, and built for its CUDA. Its exact version is a constraint, so that
# pip takes it as it is, or says that another one is required, but never downloads a second. Whatever
# else the base has in another version is left to the base; ours goes into the environment above.
COPY requirements.txt requirements-worker.txt ./
RUN python -c "from importlib.metadata import version; print('torch==' + version('torch'))" \
        > /tmp/base.txt \
    && pip install --no-cache-dir --disable-pip-version-check \
        --constraint /tmp/base.txt --requirement requirements.txt \
    && rm /tmp/base.txt \
    && python -c "import torch; assert not torch.__file__.startswith('/opt/worker'), torch.__file__"

# The digits that `train_diffusion` is tried with, and the job that a run without arguments does.
COPY examples/digits ./examples/digits
COPY test_input.json ./

# Last, what changes most. Its bytecode, because the user cannot write it and each child would compile.
COPY --from=code /app ./
RUN python -m compileall -q .

USER ${RUN_AS}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2m --timeout=30s --start-period=1m --retries=3 \
    CMD ["python", "rp_handler.py", "doctor", "--quick"]
# The base's entrypoint prints a banner. The worker itself is process 1 and needs no other init: each
# attempt has its own (child/guardian.py), and orphans come to the worker wherever it stands.
ENTRYPOINT []
CMD ["python", "-u", "rp_handler.py"]
