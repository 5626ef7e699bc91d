"""From a trained run to a release, with the run's own tables or with others."""
