# Build from the root of the checkout:  docker build -f infra/docker/train.Dockerfile -t aligndet-train .
FROM python:3.11-slim-bookworm AS build
COPY . /src
# OpenCV and numba import these while the kernels compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && /src/infra/docker/install.sh train /src /opt/aligndet

FROM python:3.11-slim-bookworm
# What OpenCV links.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 aligndet
COPY --from=build /opt/aligndet /opt/aligndet
ENV PATH=/opt/aligndet/bin:$PATH \
    ALIGNDET_CACHE_DIR=/opt/aligndet/cache
USER 10001
WORKDIR /home/aligndet
CMD ["aligndet", "--help"]
