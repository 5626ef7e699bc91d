"""Rules by expression: text → tree (``grammar``) → types (``types``) → masks (``masks``)."""
