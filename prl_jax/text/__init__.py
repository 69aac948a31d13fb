"""Text to tokens and back: tokenizers, chat templates, judge templates. Imports no jax."""
