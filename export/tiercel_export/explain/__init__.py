"""What the compiler made of a workflow, in words: for ``tiercel explain-features``."""
