# Build from the root of the checkout:  docker build -f infra/docker/mine.Dockerfile -t aligndet-mine .
FROM python:3.11-slim-bookworm AS build
COPY . /src
# OpenCV and numba import these while the kernels compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && /src/infra/docker/install.sh mine /src /opt/aligndet

FROM python:3.11-slim-bookworm
ARG UID=10001
# libgl1, libglib2.0-0: OpenCV; wget: KubeRay's health probes; openssh-client, rsync: how `ray up` and the head it starts
# reach containers and workers; profile.d: Ray starts login shells, which reset PATH.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid "$UID" aligndet \
    && echo "PATH=/opt/aligndet/bin:\$PATH" > /etc/profile.d/aligndet.sh
COPY --from=build /opt/aligndet /opt/aligndet
# HOME: `ray up` reads it from here, and takes /root where it finds none.
ENV PATH=/opt/aligndet/bin:$PATH \
    HOME=/home/aligndet \
    ALIGNDET_CACHE_DIR=/opt/aligndet/cache \
    OMP_NUM_THREADS=1
USER $UID
WORKDIR /home/aligndet
CMD ["aligndet", "--help"]
