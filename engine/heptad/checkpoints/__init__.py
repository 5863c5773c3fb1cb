"""Checkpoints: capture and restore, the codec, the store on disk, loading weights."""
