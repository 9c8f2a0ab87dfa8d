import pytest
import torch
from mmcv.ops import MaskedConv2d


@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((3, 1), (1, 0)), ((1, 1), (0, 0))])
def test_masked_conv_is_the_convolution_where_the_mask_is_set(random, device, kernel, padding):
    conv = MaskedConv2d(3, 4, kernel, padding=padding).double().to(device)
    features, mask = random(1, 3, 6, 7), random(1, 6, 7) > 0
    with torch.no_grad():
        wanted = conv(features) * mask[:, None]
        torch.testing.assert_close(conv(features, mask), wanted)
        assert conv(features, torch.zeros_like(mask)).eq(0).all()


def test_a_mask_may_be_larger_than_the_output_where_it_is_not_set(random, device):
    conv = MaskedConv2d(2, 2, 3, padding=0).double().to(device)
    features = random(1, 2, 5, 5)
    mask = torch.zeros(1, 5, 5, device=device)
    mask[0, :3, :3] = 1
    with torch.no_grad():
        torch.testing.assert_close(conv(features, mask), conv(features))
