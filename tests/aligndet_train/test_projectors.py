"""The projectors in the places of class predictors."""

import torch

from aligndet_train.detectors.projectors import conv_projector


def test_what_is_in_a_box_alone_tells_embeddings_of_a_cells_anchors_apart():
    projector = conv_projector(8, 4, 3, anchors=9)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter)  # whatever they learn
    torch.nn.init.constant_(projector[0].bias, -1e6)  # nothing is seen
    assert not projector(torch.randn(2, 8, 5, 5)).any()
