"""A wallet that programs spend from within caps that a contract holds."""
