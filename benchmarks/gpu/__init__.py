"""Benchmarks on a GPU: ``python -m benchmarks.gpu``. They need torch, but neither pandas nor NVTabular.

::

    model    a typical ranker, and the shapes at which it is measured
    ranker   its forms: eager, torch.compile, AOTInductor with and without CUDA graphs, ONNX Runtime
    search   exact top-k over item vectors, against the time to read them
    index    an approximate FAISS index, against exact search
    served   a release on Triton with its stages on the device, against stages on the CPU
    report   tables, JSON, Markdown
    command  the command line
"""
