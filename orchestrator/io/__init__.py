"""Bytes: local disk, S3 and memory behind one small interface."""
