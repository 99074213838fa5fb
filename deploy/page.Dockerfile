# syntax=docker/dockerfile:1
# From the repository's root:  docker build -f deploy/page.Dockerfile -t widefield-page:0.1.0 .
FROM python:3.12-slim-bookworm
WORKDIR /opt/widefield
COPY --chmod=644 constraints-page.txt ./
RUN pip install --no-cache-dir --only-binary :all: -r constraints-page.txt
COPY --chmod=u=rwX,go=rX client client
COPY --chmod=644 page.py ./
# HOME, uploads and caches: only /tmp is writable.
ENV HOME=/tmp \
    GRADIO_TEMP_DIR=/tmp/page \
    PYTHONDONTWRITEBYTECODE=1
# Fail now, not at the start.
RUN python -c "import gradio, page, tritonclient.grpc, tritonclient.http"
USER 10001:10001
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s --retries=3 \
  CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:7860/', timeout=4)"]
ENTRYPOINT ["python", "-m", "page", "--host", "0.0.0.0"]
