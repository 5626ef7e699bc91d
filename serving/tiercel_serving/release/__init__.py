"""A release on disk: manifest, artefacts, checksums, and how it is written."""
