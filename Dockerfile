# Two images: `docker build --target cpu .` (the default, last) and `docker build --target cuda .`.
ARG TORCH=torch==2.13.0

FROM debian:bookworm-slim AS build
ARG TORCH
ARG TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates g++ cmake ninja-build libyaml-cpp-dev \
      python3 python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ktransformers
RUN /opt/ktransformers/bin/pip install --no-cache-dir $TORCH_ARGS $TORCH
COPY . /src
RUN /opt/ktransformers/bin/pip install --no-cache-dir /src

# Needs an NVIDIA driver and the container toolkit where it runs, neither where it is built.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build-cuda
ARG TORCH
ARG TORCH_ARGS=""
ARG CUDA_ARCHITECTURES="75;80;86;89;90;100;120"
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates g++ cmake ninja-build libyaml-cpp-dev \
      python3 python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ktransformers
RUN /opt/ktransformers/bin/pip install --no-cache-dir $TORCH_ARGS $TORCH
COPY . /src
RUN /opt/ktransformers/bin/pip install --no-cache-dir /src
RUN place=$(/opt/ktransformers/bin/python -c 'import ktransformers as k; print(k.__path__[0])') && \
    cmake -S /src -B /build -G Ninja -DKT_BUILD_PYTHON=OFF -DKT_BUILD_TESTS=OFF -DKT_CUDA=ON \
      "-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES" "-DKT_OUTPUT_DIR=$place" && \
    cmake --build /build --target kt_cuda && rm -rf /build

FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates python3 libyaml-cpp0.8 && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 kt && mkdir /models
COPY --from=build-cuda /opt/ktransformers /opt/ktransformers
ENV PATH=/opt/ktransformers/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ktransformers version
USER kt
EXPOSE 10002
ENTRYPOINT ["ktransformers"]
CMD ["serve", "--gguf_path", "/models", "--host", "0.0.0.0"]

FROM debian:bookworm-slim AS cpu
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates python3 libyaml-cpp0.7 && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 kt && mkdir /models
COPY --from=build /opt/ktransformers /opt/ktransformers
ENV PATH=/opt/ktransformers/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ktransformers version
USER kt
EXPOSE 10002
ENTRYPOINT ["ktransformers"]
CMD ["serve", "--gguf_path", "/models", "--host", "0.0.0.0"]
