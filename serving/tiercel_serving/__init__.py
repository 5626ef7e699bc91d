"""Everything that a serving host needs: release format, stages as pure functions, and the Triton adapter."""
