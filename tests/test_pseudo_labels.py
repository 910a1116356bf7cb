"""The mean weight of every class, for logs."""

import pytest
import torch
import torch.nn.functional as F

from rpg_loss import FixMatchSegLoss, PseudoLabels, RPGLoss, fixmatch_targets


@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("multilabel", [False, True])
def test_mean_weights_are_means_over_the_pixels_of_a_class(multilabel, spatial):
    labels = torch.randint(2, (6, 4, *spatial)) if multilabel else torch.randint(4, (6, *spatial))
    weights = torch.rand(6, *spatial)
    if multilabel:
        labels[:, 2] = 0
    else:
        labels[labels == 2] = 1
    for dtype in (torch.int64, torch.uint8, torch.float32) if multilabel else (torch.int64,):
        means = PseudoLabels(labels.to(dtype), weights).mean_weights(4)
        assert means.shape == (4,)
        assert means[2] == 0  # absent
        for c in (0, 1, 3):
            of_class = weights[labels[:, c] == 1] if multilabel else weights[labels == c]
            torch.testing.assert_close(means[c], of_class.mean())


@pytest.mark.parametrize("multilabel", [False, True])
def test_mean_weights_of_fixmatch_are_shares_of_what_is_kept(multilabel):
    logits = 4 * torch.randn(2, 3, 6, 5)
    labels, weights = targets = fixmatch_targets(logits, multilabel=multilabel)
    means = targets.mean_weights(3)
    for c in range(3):
        kept = weights[:, c][labels[:, c] == 1] if multilabel else weights[labels == c]
        torch.testing.assert_close(means[c], kept.mean())
    _, pseudo = FixMatchSegLoss(multilabel=multilabel)(logits, logits, return_pseudo_labels=True)
    assert torch.equal(pseudo.mean_weights(3), means)


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_ignored_pixels_are_of_no_class(ignore_index):
    feat, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    valid = torch.rand(2, 4, 4) < 0.5
    pseudo = RPGLoss(5, ignore_index=ignore_index).pseudo_labels(feat, feat, y, valid_u=valid)
    inside = PseudoLabels(pseudo.labels[valid], pseudo.weights[valid])
    torch.testing.assert_close(pseudo.mean_weights(3), inside.mean_weights(3))


@pytest.mark.parametrize("multilabel", [False, True])
def test_so_are_those_that_fixmatch_ignores(multilabel):
    """Under a warp, within a CutOut square, and in padding: what remains is kept whole."""
    logits = torch.full((1, 3, 6, 8), -9.0)
    logits[:, 0, :, :4] = logits[:, 1, :, 4:] = 9.0
    cut, valid = torch.zeros(1, 6, 8, dtype=torch.bool), torch.ones(1, 6, 8, dtype=torch.bool)
    cut[..., 2:5], valid[:, :2] = True, False
    _, pseudo = FixMatchSegLoss(multilabel=multilabel, cutout="ignore")(
        logits,
        logits,
        warp=lambda maps: F.pad(maps[..., 1:], (0, 1)),
        cutout_mask=cut,
        valid_weak=valid,
        return_pseudo_labels=True,
    )
    assert pseudo.mean_weights(3).tolist() == [1, 1, 0]
    ignored = cut | ~valid
    ignored[..., -1] = True
    labels = pseudo.labels if multilabel else pseudo.labels.unsqueeze(1)
    assert (labels[ignored.unsqueeze(1).expand_as(labels)] == (0 if multilabel else -100)).all()


def test_wrong_numbers_of_classes_are_refused():
    class_map = PseudoLabels(torch.tensor([0, 3]), torch.ones(2))
    with pytest.raises(ValueError, match="num_classes: got 3 for pseudo-labels of classes up to 3, expected as many"):
        class_map.mean_weights(3)
    with pytest.raises(ValueError, match="num_classes: got 3 for pseudo-labels of 2 labels"):
        PseudoLabels(torch.ones(4, 2), torch.ones(4)).mean_weights(3)
    with pytest.raises(TypeError, match="num_classes: got None, expected an int"):
        class_map.mean_weights(None)
