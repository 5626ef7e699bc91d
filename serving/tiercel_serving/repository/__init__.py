"""The Triton model repository of a release: configs, Triton's own rules, targets."""
