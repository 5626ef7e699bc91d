"""The same models in several engines: in process at each batch, and served."""
