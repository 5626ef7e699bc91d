"""A recommender on a GPU: ``python -m benchmarks.gpu``. It needs torch, and neither pandas nor NVTabular.

::

    model    a ranker of the usual form, and the shapes that it is measured at
    ranker   its forms: eager, torch.compile, AOTInductor with and without CUDA graphs, ONNX Runtime
    search   exact top-k over item vectors, against what reading them takes
    index    an approximate index of FAISS, beside exact search
    served   a release on Triton, its stages on the device, beside the same release on the CPU
    report   tables, JSON, Markdown
    command  what is typed
"""
