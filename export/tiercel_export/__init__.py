"""Compilers: fitted workflow, towers, rankers and indexes in, a release for Triton out."""
