# The base is pinned by version. Pin its digest where you build (`--build-arg PYTHON=python:3.11.14-slim-bookworm@sha256:…`):
# it could not be looked up where this file was written. The image is linted by the tests, not built by them.
ARG PYTHON=python:3.11.14-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN ["python", "-m", "venv", "/opt/broker"]
COPY requirements/run.lock requirements/run.lock
RUN ["/opt/broker/bin/python", "-m", "pip", "install", "--require-hashes", "--only-binary", ":all:", "-r", "requirements/run.lock"]
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
RUN ["/opt/broker/bin/python", "-m", "pip", "install", "--no-deps", "--no-build-isolation", "."]
COPY tools/private_copy.py tools/container_health.py /opt/broker/
RUN ["python", "-c", "import os; os.mkdir('/data', 0o700); os.chown('/data', 10001, 10001)"]

# hadolint ignore=DL3006
FROM ${PYTHON}
COPY --from=build /opt/broker /opt/broker
COPY --from=build --chown=10001:10001 --chmod=0700 /data /data
ENV BROKER_DATA=/data \
    BROKER_POLICIES=/policies \
    BROKER_HOST=0.0.0.0 \
    BROKER_PORT=8700 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 8700
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/broker/bin/python", "-I", "/opt/broker/container_health.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/broker/bin/broker"]
CMD ["serve"]
