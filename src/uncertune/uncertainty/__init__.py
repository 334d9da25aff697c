"""Uncertainty of tokens by ensembles: Monte-Carlo dropout, adapters or checkpoints.

score      ``token_uncertainty``: total, aleatoric and epistemic uncertainty of every response token of a batch
dropout    seeded dropout in eval mode, place by place; everything is restored
sites      the dropout places of a module tree
ensemble   members: dropout samples, LoRA adapters, checkpoints
bald       the decomposition, streamed over members and tokens
check      whether dropout at a place has an effect
documents  a batch row by row, without padding
"""

from uncertune.uncertainty.dropout import dropout_places, mc_dropout, sample_seed
from uncertune.uncertainty.ensemble import Ensemble, Member, adapter_ensemble, dropout_ensemble, model_ensemble
from uncertune.uncertainty.score import TokenUncertainty, token_uncertainty

__all__ = [
    "Ensemble",
    "Member",
    "TokenUncertainty",
    "adapter_ensemble",
    "dropout_ensemble",
    "dropout_places",
    "mc_dropout",
    "model_ensemble",
    "sample_seed",
    "token_uncertainty",
]
