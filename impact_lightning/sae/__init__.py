"""Sparse autoencoders: dictionaries of features, their training steps, thresholds and normalisation."""

from impact_lightning.sae.autoencoder import SAE as SAE
from impact_lightning.sae.autoencoder import Objective as Objective
from impact_lightning.sae.batch_topk import BatchTopK as BatchTopK
from impact_lightning.sae.gated import Gated as Gated
from impact_lightning.sae.jump_relu import JumpReLU as JumpReLU
from impact_lightning.sae.matryoshka import Matryoshka as Matryoshka
from impact_lightning.sae.optimizer import DictionaryAdam as DictionaryAdam
from impact_lightning.sae.relu import ReLU as ReLU
from impact_lightning.sae.topk import TopK as TopK
