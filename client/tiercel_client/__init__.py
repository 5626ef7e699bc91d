"""The thin gRPC client an application installs."""
