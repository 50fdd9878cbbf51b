"""Sparsity: which weights of a vision transformer stay, and what becomes of the others."""

from impact_lightning.sparsity.calibration import Calibration as Calibration
from impact_lightning.sparsity.calibration import CalibrationImages as CalibrationImages
from impact_lightning.sparsity.calibration import Inputs as Inputs
from impact_lightning.sparsity.calibration import calibrate as calibrate
from impact_lightning.sparsity.keep_masks import KeepMasks as KeepMasks
from impact_lightning.sparsity.masks import NofM as NofM
from impact_lightning.sparsity.masks import parse_scope as parse_scope
from impact_lightning.sparsity.one_shot import Pruned as Pruned
from impact_lightning.sparsity.one_shot import prune_layers as prune_layers
from impact_lightning.sparsity.prune import prune as prune
from impact_lightning.sparsity.pruned_file import read_masks as read_masks
from impact_lightning.sparsity.pruned_file import read_protocol as read_protocol
from impact_lightning.sparsity.recipe import Recipe as Recipe
from impact_lightning.sparsity.sparse_gpt import sparse_gpt as sparse_gpt
from impact_lightning.sparsity.targets import Target as Target
from impact_lightning.sparsity.targets import find_targets as find_targets
