# syntax=docker/dockerfile:1

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/streamer
# first what seldom changes; only files whose hashes the locks name
COPY requirements.lock requirements-build.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --require-hashes --requirement requirements-build.lock \
    && /opt/streamer/bin/pip install --require-hashes --requirement requirements.lock
COPY . .
# a wheel, not a checkout, and of the extras only the map's: only what serving needs
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/streamer/bin/pip install --no-deps --no-index /tmp/wheel/*.whl

FROM python:3.13-slim AS runtime
RUN useradd --system --uid 10001 --user-group --no-create-home streamer
COPY --from=build /opt/streamer /opt/streamer
ENV PATH=/opt/streamer/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /var/empty
USER 10001:10001

# `docker build --target operations`: for migrations, backups and pruning; with pg_dump of PostgreSQL's own repository,
# as it must not be older than the server
FROM runtime AS operations
USER root
RUN apt-get update \
    && apt-get install --no-install-recommends --yes ca-certificates postgresql-common \
    && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
    && apt-get install --no-install-recommends --yes postgresql-client-18 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
CMD ["streamer", "db", "check"]

FROM runtime
EXPOSE 8080
# DATABASE_URL, REDIS_URL and STREAMER_JWT_SECRET or STREAMER_JWKS_URL come from outside
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('STREAMER_PORT', 8080)}/livez\", timeout=2)"]
CMD ["streamer", "serve", "--host", "0.0.0.0"]
