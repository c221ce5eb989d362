# NVIDIA's PyTorch image (the one that NERSC Perlmutter offers under Shifter) with this project's packages.
#   docker build -t hrm .
#   docker run --gpus all --ipc host -v $PWD:/workspace/hrm hrm torchrun --nproc-per-node 8 pretrain.py +experiment=arc_1
FROM nvcr.io/nvidia/pytorch:24.07-py3

# A100 and H100: the extensions are compiled without a GPU, so the architectures must be named.
ARG CUDA_ARCHITECTURES="8.0;9.0"
ENV TORCH_CUDA_ARCH_LIST=${CUDA_ARCHITECTURES} MAX_JOBS=8

WORKDIR /workspace/hrm
COPY requirements.txt requirements-cuda.txt ./
# The image's own torch satisfies requirements.txt and stays.
RUN pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-build-isolation -r requirements-cuda.txt
COPY . .
