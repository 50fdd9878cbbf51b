"""Metrics of single units serve the latents of a dictionary."""

import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from impact_lightning.metrics.auroc import UnitAUROC
from impact_lightning.metrics.class_selectivity import ClassSelectivity
from impact_lightning.metrics.detection import Detection
from impact_lightning.metrics.precision_at_k import PrecisionAtK
from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
from impact_lightning.sae.topk import TopK


def test_a_latent_that_stands_for_a_class_is_found_by_all_of_them() -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % 8
    sae = TopK(16, 32, k=4).eval()
    tokens = 0.1 * torch.randn(400, 5, 16) + sae.b_dec
    tokens[labels == 3, 2] += 4 * sae.w_enc[7] / sae.w_enc[7].norm()  # on one token of each image of class 3
    codes = sae.encode(tokens).detach().amax(1)  # (B, T, F) -> (B, F), most of them exactly zero

    counts = BinCounts(unit_edges(codes, 1024))
    counts.update(codes)
    selectivity, top = ClassSelectivity(32, 8), PrecisionAtK(32, labels, k=20)
    selectivity.update(codes, labels)
    top.update(codes, torch.arange(400))
    auroc = UnitAUROC(counts.edges, counts.compute(), 8)
    detection = Detection(counts.edges, counts.compute(), selectivity.compute().best)
    auroc.update(codes, labels)
    detection.update(codes, labels)

    assert auroc.compute().auroc[3, 7] == 1
    assert selectivity.compute().index.argmax() == 7
    assert selectivity.compute().best[7] == top.compute().best[7] == 3
    assert top.compute().precision[7] == 1
    is_class, values = (labels == 3).numpy(), codes.numpy()
    for latent in range(32):
        assert abs(auroc.compute().auroc[3, latent] - roc_auc_score(is_class, values[:, latent])) < 1e-9
    assert abs(detection.compute().average_precision[7] - average_precision_score(is_class, values[:, 7])) < 1e-9
