"""Rules as expressions: text → tree (``grammar``) → types (``types``) → masks (``masks``)."""
