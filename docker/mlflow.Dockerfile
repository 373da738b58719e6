# An MLflow server with what PostgreSQL and S3 need, in the versions of requirements.lock.
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}
ENV PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MLFLOW_DISABLE_TELEMETRY=true
COPY requirements.lock /build/
RUN pip install --constraint /build/requirements.lock mlflow "psycopg[binary]" boto3
USER 1000
EXPOSE 5000
ENTRYPOINT ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
