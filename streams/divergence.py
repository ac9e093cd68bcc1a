"""KL divergence of a quantized model from the full one, document by document, in nats."""

import numpy as np
import torch

from core.forward import call, device_of, pad


def log_chances(module: torch.nn.Module, ids: np.ndarray) -> torch.Tensor:
    """Log-probabilities of every next token of a document, float32 [T, vocabulary]."""
    return call(module, *pad([ids], device_of(module)), last_only=False).logits[0].float().log_softmax(-1)


def divergence(full: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Σ over tokens of KL(full ‖ now), nats; both are log-probabilities [T, vocabulary]."""
    full = full.float()
    return (full.exp() * (full - now)).sum()
