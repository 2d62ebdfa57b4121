"""Bricks without probability: tensors in, tensors out."""
