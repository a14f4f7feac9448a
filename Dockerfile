# For the processor:   docker build -t wsi_jax .
# For NVIDIA GPUs:     docker build -t wsi_jax --build-arg 'EXTRAS=[cuda13]' .
# Then:                docker run --rm -v "$PWD":/data wsi_jax list
#                      docker run --rm --gpus all -v "$PWD":/data wsi_jax train ...
FROM python:3.12-slim

# "[cuda13]" or "[cuda12]"; CUDA itself comes with these wheels of JAX.
ARG EXTRAS=""
# The version, as the image is built without the history of git.
ARG VERSION="0.2.0"

COPY pyproject.toml README.md LICENSE /src/
COPY wsi_jax /src/wsi_jax
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_WSI_JAX=$VERSION \
    pip install --no-cache-dir "/src$EXTRAS" && rm -rf /src

# Compiled programs are kept where the data is, so that the next container finds them.
ENV JAX_COMPILATION_CACHE_DIR=/data/.jax_cache
WORKDIR /data
ENTRYPOINT ["wsi-jax"]
