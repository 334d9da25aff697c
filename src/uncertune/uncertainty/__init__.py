"""What the model knows: ensembles by Monte-Carlo dropout and otherwise, and uncertainty token by token.

score      the front door: total, aleatoric and epistemic uncertainty of every response token of a batch
dropout    dropout switched on in eval mode, seeded, place by place; everything restored
sites      where a module tree has dropout
ensemble   members: dropout samples, LoRA adapters, checkpoints
bald       the decomposition, streamed over members and tokens
check      whether dropout at a place changes anything
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
