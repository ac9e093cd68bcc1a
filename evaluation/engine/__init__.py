"""Documents asked of a model: prompts as tokens, batches, the key-value cache, generation, samples."""
